"""Hyperschedules: the noise level of every position after every generation step.

A hyperschedule is a table ``τ[s, i] ∈ {0 … T}``: the level of position ``i`` after ``s`` steps,
``T`` (full noise) at ``s = 0`` and ``0`` (clean) at ``s = S``, never rising with ``s``
(arXiv 2504.06416, section 3). At step ``s`` (the move from ``τ[s]`` to ``τ[s + 1]``) a position is

- *settled*   if its level is 0 already, and that of all before it,
- *worthless* if its level stays ``T``, and that of all behind it: these carry nothing, so they are
  not shown to the network,
- in the *window* otherwise: ``settled(s) <= i < frontier(s + 1)``, and *active* where the level
  changes at this step.

Everything else in the package asks a hyperschedule only what the `Hyperschedule` protocol offers;
nothing else knows which family a table belongs to. Values are plain integers held in frozen,
hashable dataclasses; the functions of (step, position) are pure and work under jit and vmap.
"""

import dataclasses
import functools
import itertools
from typing import ClassVar, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.typing import ArrayLike
from jaxtyping import Array, Int, Int32

from hybrid_jax.errors import UserError, check_count, check_number

Steps = Int[ArrayLike, "..."]
"""Steps or positions: int32 arrays, or numbers, that broadcast."""


@runtime_checkable
class Hyperschedule(Protocol):
    """Interface of a hyperschedule.

    Attributes:
      name: for messages and results.
      length: L, the number of positions.
      levels: T, the level of full noise.
      steps: S, the number of generation steps.
      width: ω, positions in the widest window.
      phases: number of equally likely phases of a training tiling (see `tile`).
      phase_groups: number of phases that one example draws independently.
      windows: most windows that one tiling holds.
      settles_whole: whether windows are the same at every step they live, and so settle as a whole.
    """

    @property
    def name(self) -> str: ...
    @property
    def length(self) -> int: ...
    @property
    def levels(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def phases(self) -> int: ...
    @property
    def phase_groups(self) -> int: ...
    @property
    def windows(self) -> int: ...
    @property
    def settles_whole(self) -> bool: ...

    def level(self, step: Steps, position: Steps) -> Int32[Array, "..."]:
        """τ[step, position]."""

    def settled(self, step: Steps) -> Int32[Array, "..."]:
        """Number of leading positions at level 0 after `step` steps."""

    def frontier(self, step: Steps) -> Int32[Array, "..."]:
        """Number of positions after `step` steps up to the last one below level T."""

    def tile(
        self, phase: Int[Array, "{self.phase_groups}"]
    ) -> tuple[Int32[Array, "{self.length}"], Int32[Array, "{self.windows}"]]:
        """One training tiling: phases in [0, phases).

        Returns the step at which each position is trained, int32 [L], and the step of each window,
        int32 [windows] (a step >= S marks a window that does not exist in this tiling). For every
        position, the sum over its active steps of any f(step, position) equals `phases` times the
        mean over uniform phases of f at the position's step, taken as 0 where the position is not
        active at that step.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ramp:
    """Each position waits at T until its start step, then falls one level a step.

    ``τ[s, i] = clip(T + starts[i] − s, 0, T)``; `starts` begins at 0 and never falls. Windows at
    the steps ``phase, phase + T, phase + 2T, …`` are disjoint and cover each position once, which
    is what makes one training pass cover every position of an example.
    """

    name: str
    starts: tuple[int, ...]
    levels: int

    def __post_init__(self) -> None:
        check_count(len(self.starts), "A hyperschedule's length")
        check_count(self.levels, "A hyperschedule's levels")
        whole = all(hasattr(start, "__index__") for start in self.starts)
        ordered = all(a <= b for a, b in itertools.pairwise(self.starts))
        if self.starts[0] != 0 or not (whole and ordered):
            raise UserError(
                f"{self.name}: the steps at which positions start must be whole numbers that begin "
                f"at 0 and never fall, but are {str(self.starts[:8])[1:-1]}, …"
            )
        check_number(self.steps, f"The number of steps of {self.name}")

    @property
    def length(self) -> int:
        return len(self.starts)

    @property
    def steps(self) -> int:
        return self.starts[-1] + self.levels

    @functools.cached_property
    def width(self) -> int:
        starts = np.asarray(self.starts)  # the steps at which a window gains positions
        settled = np.searchsorted(starts, starts - self.levels, side="right")
        frontier = np.searchsorted(starts, starts, side="right")
        return int((frontier - settled).max())

    @property
    def phases(self) -> int:
        return self.levels

    @property
    def settles_whole(self) -> bool:
        return all(start % self.levels == 0 for start in self.starts)

    @property
    def phase_groups(self) -> int:
        # Windows that do not depend on the phase may each draw their own: lower variance.
        return self.windows if self.settles_whole else 1

    @property
    def windows(self) -> int:
        return -(-self.steps // self.levels)

    @property
    def _starts(self) -> Int32[np.ndarray, "{self.length}"]:
        return np.asarray(self.starts, np.int32)

    def level(self, step: Steps, position: Steps) -> Int32[Array, "..."]:
        start = jnp.asarray(self._starts)[position]
        return jnp.clip(self.levels + start - step, 0, self.levels)

    def settled(self, step: Steps) -> Int32[Array, "..."]:
        return _count(self._starts, step - self.levels, side="right")

    def frontier(self, step: Steps) -> Int32[Array, "..."]:
        return _count(self._starts, step)

    def tile(
        self, phase: Int[Array, "{self.phase_groups}"]
    ) -> tuple[Int32[Array, "{self.length}"], Int32[Array, "{self.windows}"]]:
        starts = self._starts
        per_window = jnp.broadcast_to(phase, (self.windows,)).astype(jnp.int32)
        # With one phase for all, the entry looked up here is the same wherever we look.
        own = per_window[starts // self.levels]
        step = jnp.asarray(starts + (own - starts) % self.levels)
        return step, per_window + self.levels * jnp.arange(self.windows)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A table given entry by entry (built by `custom`, which checks it)."""

    name: str
    rows: tuple[tuple[int, ...], ...]
    # Windows of an arbitrary table do not tile the positions: a training example gets one step.
    phase_groups: ClassVar[int] = 1
    windows: ClassVar[int] = 1
    settles_whole: ClassVar[bool] = False

    @property
    def length(self) -> int:
        return len(self.rows[0])

    @property
    def levels(self) -> int:
        return self.rows[0][0]

    @property
    def steps(self) -> int:
        return len(self.rows) - 1

    @functools.cached_property
    def _windows(self) -> Int32[np.ndarray, "2 {self.steps}+1"]:
        """Begin of the window of each step, and end of the one before it."""
        clean, noise = (np.asarray(self.rows) == level for level in (0, self.levels))
        leading, trailing = (
            np.logical_and.accumulate(x, axis=1).sum(1) for x in (clean, noise[:, ::-1])
        )
        return np.stack([leading, self.length - trailing]).astype(np.int32)

    @functools.cached_property
    def width(self) -> int:
        settled, frontier = self._windows
        return int((frontier[1:] - settled[:-1]).max())

    @property
    def phases(self) -> int:
        return self.steps

    def level(self, step: Steps, position: Steps) -> Int32[Array, "..."]:
        return jnp.asarray(self.rows, jnp.int32)[step, position]

    def settled(self, step: Steps) -> Int32[Array, "..."]:
        return jnp.asarray(self._windows[0])[step]

    def frontier(self, step: Steps) -> Int32[Array, "..."]:
        return jnp.asarray(self._windows[1])[step]

    def tile(
        self, phase: Int[Array, "{self.phase_groups}"]
    ) -> tuple[Int32[Array, "{self.length}"], Int32[Array, "{self.windows}"]]:
        step = jnp.asarray(phase, jnp.int32).reshape(1)
        return jnp.broadcast_to(step, (self.length,)), step


def _count(
    rising: Int32[np.ndarray, "n"], bound: Steps, *, side: Literal["left", "right"] = "left"
) -> Int32[Array, "..."]:
    """Number of entries of a sorted array below (left) or up to (right) `bound`."""
    if not isinstance(bound, jax.Array):  # known now, so it needs no program
        return jnp.asarray(np.searchsorted(rising, bound, side=side), jnp.int32)
    return jnp.searchsorted(jnp.asarray(rising), jnp.asarray(bound), side=side).astype(jnp.int32)


def block(*, length: int, width: int, levels: int) -> Ramp:
    """Blocks of ω positions, one block after the other, T steps each (block diffusion).

    ``τ[s, i] = clip(T(⌊i/ω⌋ + 1) − s, 0, T)``, ``S = T⌈L/ω⌉``. The last block may be shorter.
    """
    _check_window(length, width, levels)
    starts = tuple(levels * (i // width) for i in range(length))
    return Ramp(name=f"block(ω={width}, T={levels})", starts=starts, levels=levels)


def slide(*, length: int, width: int, levels: int) -> Ramp:
    """A window of ω positions that moves ω/T positions a step, with a ramp of levels inside.

    ``τ[s, i] = clip(T + ⌊iT/ω⌋ − s, 0, T)``, ``S = T + ⌊(L−1)T/ω⌋``.
    """
    _check_window(length, width, levels)
    starts = tuple(i * levels // width for i in range(length))
    return Ramp(name=f"slide(ω={width}, T={levels})", starts=starts, levels=levels)


def quenched_ar(*, length: int) -> Ramp:
    """One position after the other in one step each: autoregression (GPT)."""
    return dataclasses.replace(block(length=length, width=1, levels=1), name="quenched AR")


def flat(*, length: int, levels: int) -> Ramp:
    """All positions together in T steps: masked diffusion (SEDD, MDLM)."""
    ramp = block(length=length, width=length, levels=levels)
    return dataclasses.replace(ramp, name=f"flat(T={levels})")


def dilated(*, length: int, levels: int) -> Table:
    """Every T-th position at once in each of T steps, first 0, T, 2T …, then T/2, T/2 + T …
    (dilated unmasking, arXiv 2506.19037): what is revealed together stands far apart.

    Raises:
      UserError: unless T is a power of 2, at most the length.
    """
    if not 1 <= levels <= length or levels & (levels - 1):
        raise UserError(
            f"levels of a dilated schedule must be a power of 2 in 1 … {length}, but is {levels}."
        )
    # The binary digits of a place among T, backwards, are its step.
    step = [int(f"{place + levels:b}"[:0:-1] or "0", 2) for place in range(levels)]
    masked = np.resize(step, length) >= np.arange(levels + 1)[:, None]
    return custom(masked.astype(int), name=f"dilated(T={levels})")


def custom(levels_table: npt.ArrayLike, *, name: str = "custom") -> Table:
    """A table given entry by entry.

    Args:
      levels_table: int [S+1, L]: T at the first step, 0 at the last, never rising with the step.
        Where it falls along the positions, these are one window until the first of them is clean.

    Raises:
      UserError: naming the first offending entry.
    """
    try:
        table = np.asarray(levels_table)
    except ValueError as error:
        raise UserError(
            "The rows of a hyperschedule table must all have the same number of levels."
        ) from error
    if table.ndim != 2 or table.shape[0] < 2 or table.shape[1] < 1:
        raise UserError(
            f"A hyperschedule table needs the shape [steps + 1, positions] with at least one step "
            f"and one position, but this one has the shape {list(table.shape)}."
        )
    if not np.issubdtype(table.dtype, np.integer):
        raise UserError(
            f"A hyperschedule table holds whole-number levels, but this one is {table.dtype}."
        )
    table = table.astype(np.int64)  # differences of unsigned numbers would wrap around
    top = int(table[0, 0])
    if top < 1:
        raise UserError("A hyperschedule starts at a full-noise level of at least 1.")
    check_number(top, "The full-noise level of a hyperschedule table")
    row = np.arange(len(table))[:, None]
    for wrong, rule in (
        ((table != top) & (row == 0), f"must start at the full-noise level {top}"),
        ((table != 0) & (row == len(table) - 1), "must end at level 0"),
        (np.diff(table, axis=0, prepend=table[:1]) > 0, "must not rise from step to step"),
    ):
        for step, position in np.argwhere(wrong):
            raise UserError(
                f"Hyperschedule entry [step {step}, position {position}] = "
                f"{table[step, position]} {rule}."
            )
    return Table(name=name, rows=tuple(tuple(int(v) for v in row) for row in table))


def beginning(schedule: Hyperschedule, length: int) -> Hyperschedule:
    """The hyperschedule of the first `length` positions alone; their levels are the same."""
    if length == schedule.length:
        return schedule
    if isinstance(schedule, Ramp):
        return dataclasses.replace(schedule, starts=schedule.starts[:length])
    return custom(np.asarray(table(schedule))[:, :length], name=schedule.name)


def table(schedule: Hyperschedule) -> Int32[Array, "{schedule.steps}+1 {schedule.length}"]:
    """The whole table τ ("Figure 1" of the paper)."""
    steps = jnp.arange(schedule.steps + 1)[:, None]
    positions = jnp.arange(schedule.length)[None, :]
    table: Array = jax.jit(schedule.level)(steps, positions)
    return table


def _check_window(length: int, width: int, levels: int) -> None:
    for name, value in (("length", length), ("width", width), ("levels", levels)):
        check_count(value, f"A hyperschedule's {name}")
    if width > length:
        raise UserError(
            f"The window width {width} does not fit a sequence of {length} positions: "
            f"choose a width of at most {length}."
        )
