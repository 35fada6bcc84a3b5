"""A text while it is generated: what its tokens are at one moment, for whoever shows it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from hybrid_jax.data.tokenizers.base import Tokenizer
from hybrid_jax.method.hyperschedule import Hyperschedule
from hybrid_jax.sampling.prompts import Prompts
from hybrid_jax.sampling.state import Generated, Generation

KINDS = {
    "given": "part of the prompt, never changed",
    "settled": "final",
    "active": "shown, may still change",
    "corrected": "replaced since the last frame",
    "masked": "not revealed yet, or masked again",
    "worthless": "not begun",
}
"""What a token can be, and what that means."""

_MASKED, _WORTHLESS = "░", "·"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frame:
    """A text at one moment.

    Attributes:
      runs: neighbours of one kind, in order: the kind and their text, with ░ for each masked token
        and · for each worthless one.
      step: generation steps done, of `steps`.
      calls, corrections: so far (see `sampling.state.Generation`).
    """

    runs: list[tuple[str, str]]
    step: int
    steps: int
    nfe: int
    corrections: int


class Frames:
    """Makes the frames of one text, in the order of its states.

    Args:
      schedule: of the sampler.
      given: of the batch.
      row: of the text in the batch.
    """

    def __init__(
        self, schedule: Hyperschedule, tokenizer: Tokenizer, given: Prompts, *, row: int = 0
    ):
        steps = np.arange(schedule.steps + 1)
        self._settled = np.asarray(schedule.settled(steps))
        self._frontier = np.asarray(schedule.frontier(steps))
        self._tokenizer, self._row = tokenizer, row
        self._stop = int(given.stop[row])
        self._frozen = np.asarray(given.frozen[row])
        self._before: np.ndarray | None = None

    def of(self, state: Generation) -> Frame:
        """The text in a state of the loop; corrected is what changed since the frame before."""
        step = int(state.step[self._row])
        # A copy: the loop will write the next state to the same place.
        tokens = np.array(state.tokens)[self._row, : self._stop]
        what = kinds(
            tokens,
            self._before,
            self._frozen,
            mask=self._tokenizer.vocab_size,
            settled=int(self._settled[step]),
            frontier=int(self._frontier[step]),
        )
        self._before = tokens
        return self._frame(what, tokens, step, state)

    def last(self, result: Generated) -> Frame:
        """The text when it is done; all of it is settled."""
        tokens = np.asarray(result.tokens)[self._row, : int(result.length[self._row])]
        what = ["given" if frozen else "settled" for frozen in self._frozen[: len(tokens)]]
        return self._frame(what, tokens, len(self._settled) - 1, result)

    def _frame(
        self, what: list[str], tokens: np.ndarray, step: int, counts: Generation | Generated
    ) -> Frame:
        return Frame(
            runs=[(kind, self._text(kind, ids)) for kind, ids in _runs(what, tokens)],
            step=step,
            steps=len(self._settled) - 1,
            nfe=int(counts.nfe[self._row]),
            corrections=int(counts.corrections[self._row]),
        )

    def _text(self, kind: str, ids: list[int]) -> str:
        if kind == "worthless":  # whatever noise these positions hold
            return _WORTHLESS * len(ids)
        return self._tokenizer.decode(ids, mask_text=_MASKED)


def kinds(
    tokens: np.ndarray,
    before: np.ndarray | None,
    frozen: np.ndarray,
    *,
    mask: int,
    settled: int,
    frontier: int,
) -> list[str]:
    """What each token is, one of `KINDS`.

    Args:
      tokens: int32 [n], and `before` of the frame before, if there was one.
      frozen: bool [at least n], given tokens.
      settled, frontier: positions that are final, and that are begun.
    """
    what = []
    for i, token in enumerate(tokens):
        if frozen[i]:
            what.append("given")
        elif i >= max(settled, frontier):
            what.append("worthless")
        elif token == mask:
            what.append("masked")
        elif before is not None and before[i] not in (mask, token):
            what.append("corrected")
        else:
            what.append("settled" if i < settled else "active")
    return what


def _runs(what: list[str], tokens: np.ndarray) -> Iterator[tuple[str, list[int]]]:
    """Neighbours of one kind together, so that characters of several tokens stay whole."""
    start = 0
    for end in range(1, len(what) + 1):
        if end == len(what) or what[end] != what[start]:
            yield what[start], [int(token) for token in tokens[start:end]]
            start = end
