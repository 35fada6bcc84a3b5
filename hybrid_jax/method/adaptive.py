"""Windows whose width is chosen while a text is generated: a graph of steps, not a fixed table.

A hyperschedule asks nothing of a step but its number. Here the number tells where a window begins,
its width (0: not chosen yet) and how often it was worked on, so that settled, frontier and levels
are functions of the step as in any table, and layout, cache and attention stay as they are. Which
path a text takes through the steps is chosen in the generation loop (`sampling.windows`).
"""

import dataclasses
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int, Int32

from hybrid_jax.errors import check_number
from hybrid_jax.method.hyperschedule import Ramp, Steps


class Step(NamedTuple):
    """A window at a step.

    Attributes:
      first: its first position.
      width: its positions; 0 while it is not chosen.
      done: of T steps; T: the window is closed.
    """

    first: Int32[Array, "..."]
    width: Int32[Array, "..."]
    done: Int32[Array, "..."]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adaptive:
    """Windows of 1 … ω positions, one after the other from any position on, T steps each.

    Attributes:
      blocks: the windows of a text of which each has its greatest width. Training, which knows no
        other path, sees these.
    """

    blocks: Ramp
    # The window that a settled position was in is not known from the position.
    settles_whole: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_number(self.steps, f"The number of steps of {self.name}")

    @property
    def name(self) -> str:
        return f"adaptive {self.blocks.name}"

    @property
    def length(self) -> int:
        return self.blocks.length

    @property
    def levels(self) -> int:
        return self.blocks.levels

    @property
    def width(self) -> int:
        return self.blocks.width

    @property
    def steps(self) -> int:
        return self.length * (self.width + 1) * (self.levels + 1)

    def number(self, first: Steps, width: Steps = 0, done: Steps = 0) -> Int32[Array, "..."]:
        """The step of a window; S for one that begins behind the text."""
        return jnp.asarray((first * (self.width + 1) + width) * (self.levels + 1) + done)

    def at(self, step: Steps) -> Step:
        """The window at a step."""
        window, done = jnp.divmod(jnp.asarray(step), self.levels + 1)
        first, width = jnp.divmod(window, self.width + 1)
        return Step(first, width, done)

    def closed(self, step: Steps) -> Int32[Array, "..."]:
        """The step at which the window of `step` has settled."""
        first, width, _ = self.at(step)
        return self.number(first, width, self.levels)

    def block_step(self, step: Steps) -> Int32[Array, "..."]:
        """Another number, the same for all widths, and that of `blocks` where a block begins there.

        For random draws, which then are those of the blocks if all windows have that width.
        """
        first, _, done = self.at(step)
        turn, shift = jnp.divmod(first, self.width)
        return (turn + shift * -(-self.length // self.width)) * self.levels + done

    def level(self, step: Steps, position: Steps) -> Int32[Array, "..."]:
        first, width, done = self.at(step)
        behind = position >= first + jnp.where(width == 0, self.width, width)
        inside = jnp.where(behind, self.levels, self.levels - done)
        return jnp.where(position < first, 0, inside)

    def settled(self, step: Steps) -> Int32[Array, "..."]:
        first, width, done = self.at(step)
        return jnp.minimum(first + jnp.where(done == self.levels, width, 0), self.length)

    def frontier(self, step: Steps) -> Int32[Array, "..."]:
        first, width, done = self.at(step)
        width = jnp.where(width == 0, self.width, width)
        return jnp.minimum(first + jnp.where(done > 0, width, 0), self.length)

    # The tiling of training: that of the blocks, at the steps of the path through all of them.
    @property
    def phases(self) -> int:
        return self.blocks.phases

    @property
    def phase_groups(self) -> int:
        return self.blocks.phase_groups

    @property
    def windows(self) -> int:
        return self.blocks.windows

    def tile(
        self, phase: Int[Array, "{self.phase_groups}"]
    ) -> tuple[Int32[Array, "{self.length}"], Int32[Array, "{self.windows}"]]:
        step, window_step = self.blocks.tile(phase)
        return self._of_blocks(step), self._of_blocks(window_step)

    def _of_blocks(self, step: Int[Array, "n"]) -> Int32[Array, "n"]:
        turn, done = jnp.divmod(step, self.levels)
        return self.number(turn * self.width, self.width, done)
