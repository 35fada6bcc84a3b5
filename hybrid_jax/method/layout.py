"""Rows, the network's input, and which rows may attend to which.

A training example is fed as ``[noisy rows | clean rows]``, one pass in which every position is
trained once, seen exactly as the sampler will see it. Each row carries

- ``noisy``     its region: a member of a window (True) or of the settled context (False),
- ``first``     the first position of its window,
- ``position``  the position of the token it holds (−1: the beginning-of-sequence token),
- ``target``    the position it predicts, or `NO_TARGET`,
- ``valid``     False for rows that exist only to keep shapes static,
- ``document``  the number of its document where these do not see one another, else None.

*Aligned* rows predict the token they hold (masked language model style). *Shifted* rows predict
the next token (autoregressive style): a window that starts at w gets one extra row in front, which
holds the clean token w − 1, and its last row predicts nothing; the clean region begins with the
beginning-of-sequence token.

The predicate `may_attend` is the only definition of attention in the package: training, sampling,
kernels and figures use it.
"""

import dataclasses
from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Int32

from hybrid_jax.errors import UserError, check_literals
from hybrid_jax.method.hyperschedule import Hyperschedule

NO_TARGET = -1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """The layout of windows in the rows of the network.

    Attributes:
      alignment: "aligned" or "shifted" (see the module text).
      causal_window: rows of a window see only rows up to their own position in it.
      context: clean rows see the clean rows up to themselves ("causal") or up to the end of
        their own window ("block_causal"; only where windows settle whole).
      documents: documents of a record see one another ("joined") or not ("separate").
    """

    alignment: Literal["aligned", "shifted"] = "aligned"
    causal_window: bool = False
    context: Literal["causal", "block_causal"] = "causal"
    documents: Literal["joined", "separate"] = "joined"

    def check(self, schedule: Hyperschedule) -> None:
        """Raises UserError if this layout cannot serve `schedule`."""
        check_literals(self, "layout.")
        if self.context == "block_causal" and not schedule.settles_whole:
            raise UserError(
                f"Block-causal context needs windows that settle whole, which {schedule.name} "
                "does not have: choose context=causal or a block schedule."
            )

    @property
    def shift(self) -> int:
        """Positions from the token that a row holds to the one that it predicts: 0 or 1."""
        return int(self.alignment == "shifted")

    def plain(self, schedule: Hyperschedule) -> bool:
        """True if clean rows do the whole job: shifted rows, one full-noise token a window.

        Such a window holds nothing to look at, so the row of the token before it predicts it: this
        is ordinary GPT training.
        """
        return bool(self.shift) and schedule.width == 1 and schedule.levels == 1


class Rows(NamedTuple):
    """Attributes of the rows fed to the network (see the module text)."""

    noisy: Bool[Array, "*B R"]
    first: Int[Array, "*B R"]
    position: Int[Array, "*B R"]
    target: Int[Array, "*B R"]
    valid: Bool[Array, "*B R"]
    document: Int[Array, "*B R"] | None = None

    @property
    def holds_noise(self) -> Bool[Array | np.ndarray, "*B R"]:
        """Rows that hold a corrupted token (the others hold a clean one)."""
        return self.noisy & (self.position >= self.first)


def may_attend(layout: Layout, query: Rows, key: Rows) -> Bool[Array, "..."]:
    """The mask predicate, True where `query` may attend to `key`; fields broadcast.

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
    allowed = query.valid & key.valid & jnp.where(query.noisy, window | prefix, context)
    return allowed if query.document is None else allowed & (query.document == key.document)


def attention_mask(
    layout: Layout, queries: Rows, keys: Rows | None = None
) -> Bool[Array, "*B R M"]:
    """`may_attend` for all pairs of queries, fields [..., R], and keys, by default the same."""
    query = jax.tree.map(lambda x: x[..., :, None], queries)
    key = jax.tree.map(lambda x: x[..., None, :], queries if keys is None else keys)
    return may_attend(layout, query, key)


# ---------------------------------------------------------------------------------------------
# Rows of a training example.


def training_rows(
    layout: Layout, schedule: Hyperschedule, phase: Int32[Array, "{schedule.phase_groups}"]
) -> Rows:
    """Rows of one training example.

    Args:
      phase: see `Hyperschedule.tile`.

    Returns:
      Rows with fields [R]; R depends on the layout and the schedule only. Nothing that is never
      needed is fed: no clean rows where nothing settles before the last step (flat), no noisy rows
      for plain autoregression.
    """
    chex.assert_shape(phase, (schedule.phase_groups,))
    slots = context_slots(layout, schedule)
    clean = context_rows(layout, schedule, slots, slots)
    if layout.plain(schedule):
        return clean

    position = jnp.arange(schedule.length)
    step, window_step = schedule.tile(phase)
    first = schedule.settled(step)
    in_window = (position >= first) & (position < schedule.frontier(step + 1))
    active = in_window & is_active(schedule, step, position)
    target = jnp.where(active, position, NO_TARGET)
    noisy = Rows(
        noisy=jnp.ones_like(position, bool),
        first=first,
        position=position,
        target=target,
        valid=in_window,
    )
    if not layout.shift:
        return concatenate(noisy, clean)

    # The row of token i predicts token i + 1 of the same window.
    following = jnp.append(target[1:], NO_TARGET)
    same_window = jnp.append(first[1:] == first[:-1], False)
    noisy = noisy._replace(target=jnp.where(in_window & same_window, following, NO_TARGET))
    start = schedule.settled(window_step)
    exists = (window_step < schedule.steps) & (schedule.frontier(window_step + 1) > start)
    at_start = is_active(schedule, window_step, jnp.minimum(start, schedule.length - 1))
    lead = Rows(
        noisy=jnp.ones_like(exists),
        first=jnp.where(exists, start, schedule.length),
        position=start - 1,
        target=jnp.where(exists & at_start, start, NO_TARGET),
        valid=exists,
    )
    return concatenate(lead, noisy, clean)


# ---------------------------------------------------------------------------------------------
# Rows of one generation step: the whole sequence, or what is new to a cache.


def generation_rows(layout: Layout, schedule: Hyperschedule, step: Int[ArrayLike, ""]) -> Rows:
    """Rows that show a whole sequence at one generation step (no cache); fields [R].

    Settled positions are clean rows, the window is noisy rows, worthless positions are invalid.
    """
    known = schedule.settled(step) + layout.shift
    if layout.plain(schedule):
        return context_rows(layout, schedule, schedule.length, known)
    # Clean rows −shift … settled−1, then the leading row if shifted, then the window.
    index = jnp.arange(schedule.length + 2 * layout.shift)
    clean = _clean_rows(layout, schedule, index, index < known)
    window = _window_rows(layout, schedule, step, index - 2 * layout.shift)
    rows: Rows = jax.tree.map(lambda *row: jnp.where(index < known, *row), clean, window)
    return rows


class Query(NamedTuple):
    """One forward pass of a sampler with a cache, for a batch of texts.

    Attributes:
      rows: R new rows, fields [B, R]: settled tokens for the cache, then the window.
      keys: the rows of the cache's M slots, then the new ones, fields [B, M + R].
      mask: which of the keys each row may attend to.
      settled: number of settled tokens that are fed. They go to the next slots of the cache.
      window: the rows that predict the W positions of the window.
    """

    rows: Rows
    keys: Rows
    mask: Bool[Array, "B R M+R"]
    settled: Int32[Array, "B"]
    window: slice


def query(
    layout: Layout,
    schedule: Hyperschedule,
    step: Int[Array, "B"],
    filled: Int[Array, "B"],
    *,
    slots: int,
    capacity: int,
    window: bool = True,
) -> Query:
    """Rows that a sampler with a cache feeds: those of `generation_rows` that the cache lacks.

    Settled tokens fill the slots in order (as `context_rows` has them), at most `capacity` at once.
    Worthless positions have no rows.

    Args:
      step: the step of each text; S for texts that are done, which feed nothing.
      filled: slots of each text that are filled.
      slots: M, slots of the cache (see `context_slots`).
      capacity: rows for settled tokens.
      window: False for settled tokens alone.
    """
    chex.assert_equal_shape([step, filled])
    missing = pending(layout, schedule, step, filled)
    if layout.plain(schedule) and not window:
        missing = jnp.maximum(missing - 1, 0)  # the newest waits for the window it predicts
    count = jnp.minimum(missing, capacity)
    if layout.context == "block_causal":
        # Rows see their whole window, so windows are fed whole.
        end = filled + count - layout.shift
        whole = window_start(schedule, jnp.clip(end, 0, schedule.length - 1))
        count = jnp.where(missing > capacity, whole + layout.shift - filled, count)
    step = jnp.minimum(step, schedule.steps - 1)
    has_window = window and not layout.plain(schedule)

    def one(step: Array, filled: Array, count: Array) -> tuple[Rows, Rows]:
        number = jnp.arange(capacity)
        new = _clean_rows(layout, schedule, filled + number, number < count)
        if has_window:
            position = schedule.settled(step) + jnp.arange(-layout.shift, schedule.width)
            new = concatenate(new, _window_rows(layout, schedule, step, position))
        return new, concatenate(context_rows(layout, schedule, slots, filled), new)

    rows, keys = jax.vmap(one)(step, filled, count)
    # In plain autoregression one token settles a step, and its row predicts the window.
    start = capacity if has_window else 0
    return Query(
        rows=rows,
        keys=keys,
        mask=attention_mask(layout, rows, keys),
        settled=count,
        window=slice(start, start + schedule.width),
    )


def pending(
    layout: Layout, schedule: Hyperschedule, step: Int[Array, "B"], filled: Int[Array, "B"]
) -> Int[Array, "B"]:
    """Settled tokens of each text that a cache lacks, 0 for texts that are done."""
    settled = schedule.settled(step) + layout.shift
    return jnp.where(step < schedule.steps, jnp.maximum(settled - filled, 0), 0)


def _window_rows(
    layout: Layout, schedule: Hyperschedule, step: Int[ArrayLike, ""], position: Int[Array, "R"]
) -> Rows:
    """The leading row of shifted layouts and the window at one step, at these positions."""
    frontier = schedule.frontier(step + 1)
    follows = position + layout.shift
    return Rows(
        noisy=jnp.ones_like(position, bool),
        first=jnp.full_like(position, schedule.settled(step)),
        position=position,
        target=jnp.where(follows < frontier, follows, NO_TARGET),
        valid=position < frontier,
    )


def window_positions(
    schedule: Hyperschedule, step: Int[Array, "*B"]
) -> tuple[Int[Array, "*B W"], Bool[Array, "*B W"]]:
    """Positions of the windows at some steps, and which of them exist.

    Those that do not exist are clipped to the last position, so that all can be looked up.
    """
    step = jnp.asarray(step)
    offset = jnp.expand_dims(jnp.arange(schedule.width), range(step.ndim))
    position = schedule.settled(step)[..., None] + offset
    exists = position < schedule.frontier(step + 1)[..., None]
    return jnp.minimum(position, schedule.length - 1), exists


def context_rows(
    layout: Layout, schedule: Hyperschedule, slots: int, filled: Int[ArrayLike, ""]
) -> Rows:
    """The rows that a cache of `slots` slots holds, of which the first `filled` are valid."""
    slot = jnp.arange(slots)
    return _clean_rows(layout, schedule, slot, slot < filled)


def context_slots(layout: Layout, schedule: Hyperschedule) -> int:
    """Slots that a cache needs: one for each clean row that a window may see."""
    with jax.ensure_compile_time_eval():
        return int(schedule.settled(schedule.steps - 1)) + layout.shift


def _clean_rows(
    layout: Layout, schedule: Hyperschedule, slot: Int[Array, "R"], valid: Bool[Array, "R"]
) -> Rows:
    """Settled rows; slot 0 is the beginning-of-sequence token in shifted layouts.

    Windows that settle whole are the same at every step they live, so a settled position's own
    window is the one that was open when it settled: that is what training shows. Only block-causal
    context asks for it.
    """
    position = slot - layout.shift
    follows = position + 1 if layout.plain(schedule) else jnp.full_like(position, NO_TARGET)
    first = position
    if layout.context == "block_causal":
        first = window_start(schedule, jnp.maximum(position, 0))
    return Rows(
        noisy=jnp.zeros_like(position, bool),
        # The beginning-of-sequence token has a window of its own, before all others: in the first
        # one, block-causal context would let it see the tokens that it helps to predict.
        first=jnp.where(position < 0, -1, first),
        position=position,
        target=follows,
        valid=valid,
    )


def window_start(schedule: Hyperschedule, position: Int[Array, "..."]) -> Int[Array, "..."]:
    """First position of the window that `position`, in [0, L), is in just before it settles."""
    with jax.ensure_compile_time_eval():
        settled = np.asarray(schedule.settled(np.arange(schedule.steps + 1)))
    settling_step = np.searchsorted(settled, np.arange(schedule.length), side="right") - 1
    return jnp.asarray(settled[settling_step])[position]


def separated(layout: Layout, rows: Rows, clean: Int[Array, "L"], eos: int) -> Rows:
    """The same rows, each of the document of its position or, if shifted, of the next one.

    Args:
      clean: tokens, in which each document ends with `eos`.
    """
    ended = jnp.append(jnp.zeros(1, jnp.int32), jnp.cumsum(clean == eos, dtype=jnp.int32))
    return rows._replace(document=ended[rows.position + layout.shift])


# ---------------------------------------------------------------------------------------------
# Contents of rows.


def is_active(
    schedule: Hyperschedule, step: Int[ArrayLike, "..."], position: Int[ArrayLike, "..."]
) -> Bool[Array, "..."]:
    """True if the level of `position` changes at `step`."""
    return schedule.level(step, position) != schedule.level(step + 1, position)


def row_tokens(
    rows: Rows, noisy: Int[Array, "L"], clean: Int[Array, "L"], bos: int
) -> Int[Array, "R"]:
    """The token each row holds."""
    at = jnp.maximum(rows.position, 0)
    held = jnp.where(rows.holds_noise, noisy[at], clean[at])
    return jnp.where(rows.position < 0, bos, held)


def row_levels(rows: Rows, level: Float[Array, "L"]) -> Float[Array, "R"]:
    """The noise level each row holds: that of its token for corrupted tokens, else 0."""
    return jnp.where(rows.holds_noise, level[jnp.maximum(rows.position, 0)], 0.0)


def predictors(rows: Rows, length: int) -> tuple[Int[Array, "{length}"], Bool[Array, "{length}"]]:
    """The row that predicts each position, and whether there is one."""
    slot = jnp.where(rows.valid & (rows.target >= 0), rows.target, length)
    index = jnp.full(length, -1).at[slot].set(jnp.arange(slot.shape[0]), mode="drop")
    return jnp.maximum(index, 0), index >= 0


def concatenate(*parts: Rows) -> Rows:
    """Rows one group after the other."""
    rows: Rows = jax.tree.map(lambda *fields: jnp.concatenate(fields), *parts)
    return rows
