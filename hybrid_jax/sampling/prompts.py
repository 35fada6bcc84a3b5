"""Given tokens: prompts, and texts with gaps to fill."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Int

from hybrid_jax.errors import UserError

GAP = -1
"""In a row of ids: a token to be generated."""


class Prompts(NamedTuple):
    """Given tokens of each text of a batch.

    Attributes:
      tokens: read only where frozen.
      frozen: given tokens: they never change.
      stop: tokens wanted: the text is done once all before that have settled.
    """

    tokens: Int[Array | np.ndarray, "B L"]
    frozen: Bool[Array | np.ndarray, "B L"]
    stop: Int[Array | np.ndarray, "B"]


def nothing(batch: int, length: int) -> Prompts:
    """Texts generated from nothing."""
    return build([[]] * batch, length=length, vocab_size=1)


def build(
    rows: Sequence[Sequence[int]],
    *,
    length: int,
    vocab_size: int,
    stop: Sequence[int] | int | None = None,
) -> Prompts:
    """Prompts of any lengths, as one batch.

    Args:
      rows: for each text its first tokens, ids or `GAP`.
      length: L, positions of the schedule.
      vocab_size: N, number of real tokens.
      stop: tokens wanted of each text, given ones included; None for L.

    Raises:
      UserError: if a prompt leaves no room, has nothing to generate, or holds an unknown id.
    """
    lengths, ids = _joined(rows)
    stops = _checked(lengths, ids, length, vocab_size, stop)
    shown = np.arange(length) < lengths[:, None]
    given = np.zeros(shown.shape, np.int32)
    frozen = np.zeros(shown.shape, bool)
    given[shown], frozen[shown] = np.where(ids == GAP, 0, ids), ids != GAP
    return Prompts(given, frozen, stops.astype(np.int32))


def check(
    rows: Sequence[Sequence[int]],
    *,
    length: int,
    vocab_size: int,
    stop: Sequence[int] | int | None = None,
) -> Int[np.ndarray, "B"]:
    """The tokens wanted of each text. Arguments and errors are those of `build`."""
    return _checked(*_joined(rows), length, vocab_size, stop)


def _joined(rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """The length of each row, and the ids of all, one after another."""
    if not len(rows):
        raise UserError("There are no prompts: give at least one, which may be empty.")
    flat = [np.asarray(row, np.int64).reshape(-1) for row in rows]
    return np.array([len(ids) for ids in flat]), np.concatenate(flat)


def _checked(
    lengths: np.ndarray,
    ids: np.ndarray,
    length: int,
    vocab_size: int,
    stop: Sequence[int] | int | None,
) -> np.ndarray:
    batch = len(lengths)
    stops = np.broadcast_to(length if stop is None else np.asarray(stop), batch)
    if not np.issubdtype(stops.dtype, np.integer):
        raise UserError(f"Texts have whole numbers of tokens, and not {stop}.")
    owners = np.repeat(np.arange(batch), lengths)
    unknown = (ids != GAP) & ((ids < 0) | (ids >= vocab_size))
    holds_unknown = np.bincount(owners[unknown], minlength=batch) > 0
    is_full = (lengths == stops) & (np.bincount(owners[ids == GAP], minlength=batch) == 0)
    wrong = (stops < 1) | (stops > length) | (lengths > stops) | holds_unknown | is_full
    if not wrong.any():
        return stops
    first = int(np.argmax(wrong))
    name = f"Prompt {first + 1}" if batch > 1 else "The prompt"
    wanted, given = stops[first], lengths[first]
    if not 1 <= wanted <= length:
        raise UserError(
            f"{name} asks for a text of {wanted} tokens, but the model writes 1 to {length}."
        )
    if given > wanted:
        raise UserError(
            f"{name} has {given} tokens, which does not fit a text of {wanted}: shorten it"
            + (", or ask for a longer text." if wanted < length else ".")
        )
    if holds_unknown[first]:
        raise UserError(
            f"{name} holds the token id {ids[unknown][0]}, which is outside 0 … {vocab_size - 1}: "
            "it comes from another tokenizer, or is MASK."
        )
    raise UserError(
        f"{name} fills all {wanted} tokens and leaves nothing to generate: shorten it, or "
        "put a gap into it."
    )
