"""What the network is shown: rows, and who may attend to whom.

A training example is fed as ``[noisy rows | clean rows]``, one pass in which every position is
trained once, seen exactly as the sampler will see it. Each row carries

- ``noisy``     its region: a member of a window (True) or of the settled context (False),
- ``first``     the first position of its window,
- ``position``  the position of the token it holds (−1: the beginning-of-sequence token),
- ``target``    the position it predicts, or `NO_TARGET`,
- ``valid``     False for rows that exist only to keep shapes static.

*Aligned* rows predict the token they hold (masked language model style). *Shifted* rows predict
the next token (autoregressive style): a window that starts at w gets one extra row in front, which
holds the clean token w − 1, and its last row predicts nothing; the clean region begins with the
beginning-of-sequence token.

The predicate `may_attend` is the only definition of attention in the package: training, sampling,
kernels and figures use it.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from hybrid_jax.errors import UserError
from hybrid_jax.method.hyperschedule import Hyperschedule

NO_TARGET = -1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """How windows are laid out for the network.

    Attributes:
      alignment: "aligned" or "shifted" (see the module text).
      causal_window: rows of a window see only rows up to their own position in it.
      context: clean rows see the clean rows up to themselves ("causal") or up to the end of
        their own window ("block_causal"; only where windows settle whole).
    """

    alignment: Literal["aligned", "shifted"] = "aligned"
    causal_window: bool = False
    context: Literal["causal", "block_causal"] = "causal"

    def check(self, schedule: Hyperschedule) -> None:
        """Raises UserError if this layout cannot serve `schedule`."""
        if self.alignment not in ("aligned", "shifted"):
            raise UserError(f"alignment must be aligned or shifted, but it is {self.alignment}.")
        if self.context not in ("causal", "block_causal"):
            raise UserError(f"context must be causal or block_causal, but it is {self.context}.")
        if self.context == "block_causal" and not schedule.settles_whole:
            raise UserError(
                f"Block-causal context needs windows that settle whole, which {schedule.name} "
                "does not have: choose context=causal or a block schedule."
            )

    def plain(self, schedule: Hyperschedule) -> bool:
        """Whether clean rows alone do the whole job: shifted rows, one full-noise token a window.

        Such a window holds nothing to look at, so the row of the token before it predicts it: this
        is ordinary GPT training.
        """
        return self.alignment == "shifted" and schedule.width == 1 and schedule.levels == 1


class Rows(NamedTuple):
    """Attributes of the rows fed to the network, arrays [R] (see the module text)."""

    noisy: jax.Array
    first: jax.Array
    position: jax.Array
    target: jax.Array
    valid: jax.Array

    @property
    def holds_noise(self) -> jax.Array:
        """Rows that hold a corrupted token (the others hold a clean one)."""
        return self.noisy & (self.position >= self.first)


def may_attend(layout: Layout, query: Rows, key: Rows) -> jax.Array:
    """The mask predicate, True where `query` may attend to `key`; fields broadcast, bool.

    Window rows see their own window and the clean prefix before it; clean rows see clean rows.
    """
    window = key.noisy & (key.first == query.first)
    if layout.causal_window:
        window &= key.position <= query.position
    prefix = ~key.noisy & (key.position < query.first)
    if layout.context == "block_causal":
        context = ~key.noisy & (key.first <= query.first)
    else:
        context = ~key.noisy & (key.position <= query.position)
    return query.valid & key.valid & jnp.where(query.noisy, window | prefix, context)


def attention_mask(layout: Layout, rows: Rows) -> jax.Array:
    """`may_attend` for all pairs of rows: fields [..., R] -> bool [..., R, R] (query, key)."""
    return masks_between(layout, rows, rows)


def masks_between(layout: Layout, queries: Rows, keys: Rows) -> jax.Array:
    """`may_attend` for all pairs: fields [..., R] and [..., R'] -> bool [..., R, R']."""
    query = jax.tree.map(lambda x: x[..., :, None], queries)
    key = jax.tree.map(lambda x: x[..., None, :], keys)
    return may_attend(layout, query, key)


def training_rows(layout: Layout, schedule: Hyperschedule, phase: jax.Array) -> Rows:
    """Rows of one training example.

    Args:
      phase: int32 [phase_groups], see `Hyperschedule.tile`.

    Returns:
      Rows with fields [R]; R depends on the layout and the schedule only. Nothing that is never
      needed is fed: no clean rows where nothing settles before the last step (flat), no noisy rows
      for plain autoregression.
    """
    length = schedule.length
    position = jnp.arange(length)
    step, window_step = schedule.tile(phase)
    first = schedule.settled(step)
    in_window = (position >= first) & (position < schedule.frontier(step + 1))
    active = in_window & is_active(schedule, step, position)

    context = settled_before_last_step(schedule)
    shift = int(layout.alignment == "shifted")
    clean_position = jnp.arange(-shift, context)
    plain = layout.plain(schedule)
    clean = Rows(
        noisy=jnp.zeros_like(clean_position, bool),
        first=_before_all(clean_position, first[jnp.maximum(clean_position, 0)]),
        position=clean_position,
        target=clean_position + 1 if plain else jnp.full_like(clean_position, NO_TARGET),
        valid=jnp.ones_like(clean_position, bool),
    )
    if plain:
        return clean

    noisy = Rows(
        noisy=jnp.ones_like(position, bool),
        first=first,
        position=position,
        target=jnp.where(active, position, NO_TARGET),
        valid=in_window,
    )
    if not shift:
        return concatenate(noisy, clean)

    # The row of token i predicts token i + 1 of the same window.
    following = jnp.append(jnp.where(active, position, NO_TARGET)[1:], NO_TARGET)
    same_window = jnp.append(first[1:] == first[:-1], False)
    noisy = noisy._replace(target=jnp.where(in_window & same_window, following, NO_TARGET))
    start = schedule.settled(window_step)
    exists = (window_step < schedule.steps) & (schedule.frontier(window_step + 1) > start)
    at_start = is_active(schedule, window_step, jnp.minimum(start, length - 1))
    lead = Rows(
        noisy=jnp.ones_like(exists),
        first=jnp.where(exists, start, length),
        position=start - 1,
        target=jnp.where(exists & at_start, start, NO_TARGET),
        valid=exists,
    )
    return concatenate(lead, noisy, clean)


def generation_rows(layout: Layout, schedule: Hyperschedule, step: jax.Array) -> Rows:
    """Rows that show a whole sequence at one generation step (no cache; int32 scalar `step`).

    Settled positions are clean rows, the window is noisy rows, worthless positions are invalid.
    """
    length = schedule.length
    settled = schedule.settled(step)
    frontier = schedule.frontier(step + 1)
    shift = int(layout.alignment == "shifted")
    if layout.plain(schedule):
        position = jnp.arange(-1, length - 1)
        return Rows(
            noisy=jnp.zeros_like(position, bool),
            first=position,
            position=position,
            target=position + 1,
            valid=position < settled,
        )
    # Clean rows −shift … settled−1, then the leading row if shifted, then the window.
    index = jnp.arange(length + 2 * shift)
    noisy = index >= settled + shift
    position = jnp.where(noisy, index - 2 * shift, index - shift)
    # Windows that settle whole are the same at every step they live, so a settled position's own
    # window is the one that was open when it settled: that is what training showed.
    settled_first = window_start(schedule, jnp.maximum(position, 0))
    return Rows(
        noisy=noisy,
        first=jnp.where(noisy, settled, _before_all(position, settled_first)),
        position=position,
        target=jnp.where(noisy & (position + shift < frontier), position + shift, NO_TARGET),
        valid=position < jnp.where(noisy, frontier, settled),
    )


def query_rows(
    layout: Layout,
    schedule: Hyperschedule,
    step: jax.Array,
    slot: jax.Array,
    count: jax.Array,
    capacity: int,
    *,
    window: bool = True,
) -> Rows:
    """Rows that a sampler with a cache feeds at one step: those of `generation_rows` that are new.

    First `count` clean rows for the cache's slots from `slot` on (slots are filled in the order of
    `context_rows`), in `capacity` rows; then, if `window`, the leading row of shifted layouts and
    the window. Worthless positions have no rows. step, slot, count: int32 scalars.
    """
    shift = int(layout.alignment == "shifted")
    number = jnp.arange(capacity)
    clean = _clean_rows(layout, schedule, slot + number, number < count)
    if not window or layout.plain(schedule):
        return clean
    settled = schedule.settled(step)
    frontier = schedule.frontier(step + 1)
    position = settled + jnp.arange(-shift, schedule.width)
    follows = position + shift
    noisy = Rows(
        noisy=jnp.ones_like(position, bool),
        first=jnp.full_like(position, settled),
        position=position,
        target=jnp.where(follows < frontier, follows, NO_TARGET),
        valid=position < frontier,
    )
    return concatenate(clean, noisy)


def window_positions(schedule: Hyperschedule, step: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Positions of the windows at some steps, int32 [..., W], and which of them exist, bool.

    Those that do not exist are clipped to the last position, so that all can be looked up.
    """
    position = schedule.settled(step)[..., None] + jnp.arange(schedule.width)
    exists = position < schedule.frontier(step + 1)[..., None]
    return jnp.minimum(position, schedule.length - 1), exists


def context_rows(layout: Layout, schedule: Hyperschedule, slots: int, filled: jax.Array) -> Rows:
    """The rows that a cache of `slots` slots holds, of which the first `filled` are valid."""
    slot = jnp.arange(slots)
    return _clean_rows(layout, schedule, slot, slot < filled)


def context_slots(layout: Layout, schedule: Hyperschedule) -> int:
    """Slots that a cache needs: one for each clean row that a window may see."""
    return settled_before_last_step(schedule) + int(layout.alignment == "shifted")


def _clean_rows(layout: Layout, schedule: Hyperschedule, slot: jax.Array, valid: jax.Array) -> Rows:
    """Settled rows; slot 0 is the beginning-of-sequence token in shifted layouts."""
    position = slot - int(layout.alignment == "shifted")
    follows = position + 1 if layout.plain(schedule) else jnp.full_like(position, NO_TARGET)
    return Rows(
        noisy=jnp.zeros_like(position, bool),
        first=_before_all(position, window_start(schedule, jnp.maximum(position, 0))),
        position=position,
        target=follows,
        valid=valid,
    )


def _before_all(position: jax.Array, first: jax.Array) -> jax.Array:
    """Puts the beginning-of-sequence token in a window of its own, before all others: in the first
    window, block-causal context would let it see the tokens that it helps to predict."""
    return jnp.where(position < 0, -1, first)


def window_start(schedule: Hyperschedule, position: jax.Array) -> jax.Array:
    """First position of the window that `position` is in just before it settles."""
    with jax.ensure_compile_time_eval():
        settled = schedule.settled(jnp.arange(schedule.steps + 1))
    settling_step = jnp.searchsorted(settled, position, side="right") - 1
    return settled[settling_step]


def is_active(schedule: Hyperschedule, step, position) -> jax.Array:
    """Whether the level of `position` changes at `step`, bool."""
    return schedule.level(step, position) != schedule.level(step + 1, position)


def settled_before_last_step(schedule: Hyperschedule) -> int:
    """Number of positions that any window may see as settled context."""
    with jax.ensure_compile_time_eval():
        return int(schedule.settled(schedule.steps - 1))


def row_tokens(rows: Rows, noisy: jax.Array, clean: jax.Array, bos: int) -> jax.Array:
    """The token each row holds. noisy, clean int32 [L] -> int32 [R]."""
    at = jnp.maximum(rows.position, 0)
    held = jnp.where(rows.holds_noise, noisy[at], clean[at])
    return jnp.where(rows.position < 0, bos, held)


def row_levels(rows: Rows, level: jax.Array) -> jax.Array:
    """Noise level each row holds: that of its token for corrupted tokens, else 0.

    level float32 [L] -> float32 [R].
    """
    return jnp.where(rows.holds_noise, level[jnp.maximum(rows.position, 0)], 0.0)


def predictors(rows: Rows, length: int) -> tuple[jax.Array, jax.Array]:
    """The row that predicts each position, int32 [L], and whether there is one, bool [L]."""
    slot = jnp.where(rows.valid & (rows.target >= 0), rows.target, length)
    index = jnp.full(length, -1).at[slot].set(jnp.arange(slot.shape[0]), mode="drop")
    return jnp.maximum(index, 0), index >= 0


def concatenate(*parts: Rows) -> Rows:
    """Rows one group after the other."""
    return jax.tree.map(lambda *xs: jnp.concatenate(xs), *parts)
