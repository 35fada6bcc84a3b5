"""The attention mask of a training example by blocks, without a matrix for all pairs of rows.

A mask of 2L × 2L rows is mostly False: a noisy row sees its window and the clean rows before it, a
clean row sees clean rows up to itself. A `Pattern` keeps the rows. For any block of them it gives a
few contiguous ranges that hold all visible rows; inside these ranges `layout.may_attend` decides.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from hybrid_jax.method import layout as layouts
from hybrid_jax.method.hyperschedule import Hyperschedule
from hybrid_jax.method.layout import Layout, Rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Regions:
    """Order of the rows of a training example: ``[leading rows | noisy rows | clean rows]``.

    Attributes:
      leads: leading rows of windows, one each (shifted layouts).
      noisy: rows of windows, in the order of their positions from 0 on.
      clean: clean rows, in the order of their positions from 0, or −1 if shifted, on.
      width: most rows of a window, without the leading one.
      regular: windows begin at the multiples of `width`; otherwise they may begin anywhere.
    """

    leads: int
    noisy: int
    clean: int
    width: int
    regular: bool

    @property
    def rows(self) -> int:
        return self.leads + self.noisy + self.clean

    def begin(self, position: int) -> int:
        """First position that the window of `position` may begin at."""
        if self.regular:
            return position // self.width * self.width
        return max(0, position - self.width + 1)

    def end(self, position: int) -> int:
        """Last position that the window of `position` may end before."""
        if self.regular:
            return (position // self.width + 1) * self.width
        return position + self.width


class Span(NamedTuple):
    """A block of queries, and the ranges of keys that hold all they may see."""

    queries: slice
    keys: tuple[slice, ...]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["rows"],
    meta_fields=["layout", "schedule", "whole"],
)
@dataclasses.dataclass(frozen=True)
class Pattern:
    """The pairs of rows that `layout.may_attend` allows.

    Attributes:
      layout, schedule: that made the rows.
      rows: of `layout.training_rows`, fields [B or 1, R].
      whole: whether these are the rows as made; otherwise some examples hide some of them, because
        they are not valid or of other documents.
    """

    layout: Layout
    schedule: Hyperschedule
    rows: Rows
    whole: bool = True

    @functools.cached_property
    def regions(self) -> Regions:
        """The order of the rows."""
        layout, schedule = self.layout, self.schedule
        length, width = schedule.length, schedule.width
        clean = layouts.context_slots(layout, schedule)
        if layout.plain(schedule):
            return Regions(leads=0, noisy=0, clean=clean, width=1, regular=True)
        regular = False
        if schedule.settles_whole:
            with jax.ensure_compile_time_eval():
                starts = np.asarray(layouts.window_start(schedule, jnp.arange(length)))
            regular = bool(np.all(starts == np.arange(length) // width * width))
        leads = schedule.windows * layout.shift
        return Regions(leads=leads, noisy=length, clean=clean, width=width, regular=regular)

    @property
    def plain_causal(self) -> bool:
        """True if each valid row sees all rows up to itself."""
        causal = not self.regions.noisy and self.layout.context == "causal"
        return causal and self.rows.document is None

    @property
    def full(self) -> bool:
        """True if each row sees every row: one window, and nothing else."""
        r = self.regions
        alone = not r.leads and not r.clean and r.regular and r.width == r.noisy
        return self.whole and alone and not self.layout.causal_window

    def mask(self) -> Bool[Array, "B R R"]:
        """The mask of all pairs (query, key); B may be 1."""
        return layouts.attention_mask(self.layout, self.rows)

    @property
    def constant(self) -> bool:
        """True if the mask is the same in every example, so that a program may contain it."""
        return self.whole and self.schedule.settles_whole

    def constant_mask(self) -> Bool[np.ndarray, "R R"]:
        """`mask` as a constant of the program. Raises ValueError if it is none."""
        if not self.constant:
            raise ValueError(f"the rows of {self.schedule.name} are not the same in all examples")
        with jax.ensure_compile_time_eval():
            phase = jnp.zeros(self.schedule.phase_groups, jnp.int32)
            rows = layouts.training_rows(self.layout, self.schedule, phase)
            return np.asarray(layouts.attention_mask(self.layout, rows))

    def part(self, queries: slice, keys: tuple[slice, ...]) -> Bool[Array, "B Q K"]:
        """The mask of some of the pairs (query, key); B may be 1."""
        query = jax.tree.map(lambda x: x[..., queries], self.rows)
        key = jax.tree.map(
            lambda x: jnp.concatenate([x[..., part] for part in keys], axis=-1), self.rows
        )
        return layouts.attention_mask(self.layout, query, key)


def spans(layout: Layout, regions: Regions, block: int) -> list[Span]:
    """Covers every allowed pair once: queries in blocks of at most `block` rows.

    A block's ranges hold what any of its rows may see, wherever the windows of irregular schedules
    begin.
    """
    r, shift = regions, layout.shift
    noisy, clean = r.leads, r.leads + r.noisy  # where these regions begin
    found: list[Span] = []
    for start in range(0, r.leads, block):
        # A leading row is as long as its window: few, and each sees rows far apart.
        found.append(Span(slice(start, min(start + block, r.leads)), (slice(0, r.rows),)))
    for start in range(0, r.noisy, block):
        stop = min(start + block, r.noisy)
        low, high = r.begin(start), min(r.end(stop - 1), r.noisy)
        # Clean rows before the last window's first position, which is at most stop − 1.
        before = min(r.begin(stop - 1) if r.regular else stop - 1, r.noisy) + shift
        keys = [slice(0, r.leads), slice(noisy + low, noisy + high),
                slice(clean, clean + min(before, r.clean))]  # fmt: skip
        filled = tuple(part for part in keys if part.stop > part.start)
        found.append(Span(slice(noisy + start, noisy + stop), filled))
    for start in range(0, r.clean, block):
        stop = min(start + block, r.clean)
        upto = stop
        if layout.context == "block_causal":
            upto = min(r.end(max(stop - 1 - shift, 0)) + shift, r.clean)
        found.append(Span(slice(clean + start, clean + stop), (slice(clean, clean + upto),)))
    return found
