"""Texts with gaps, of known lengths and of lengths to be chosen.

A gap is ``{{5}}`` (5 tokens), ``{{3-12}}`` (3 to 12) or ``{{}}`` (1 to 16). The last two are open:
the text is written with every length, from the same noise, and the candidate with the fewest nats
per token is kept. So it is the text that the chosen lengths alone would have given.

Nats are the bound on −log p of what was filled in *and* of the tokens close behind, the rest given.
Windows fill a gap before they see what follows, so a wrong length shows there; and what follows may
begin within a gap that is too long, where it costs little. See docs/math.md; the normalisation by
length is that of CAL (arXiv 2602.00476).
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Iterable, Sequence

import jax
import numpy as np

from hybrid_jax.data.tokenizers.base import Tokenizer
from hybrid_jax.errors import UserError, check_text
from hybrid_jax.generation import driver
from hybrid_jax.generation.driver import Round
from hybrid_jax.generation.generator import Generator
from hybrid_jax.generation.requests import Request, Text
from hybrid_jax.sampling.prompts import GAP
from hybrid_jax.training import likelihood

LONGEST = 16  # tokens of a gap that gives no length
_MOST = 256  # candidates of a text
_BEHIND = 16  # given tokens behind a gap that count
_DRAWS = 64  # of levels and noise for each candidate, where the bound is not exact


def with_gaps(text: str, tokenizer: Tokenizer, length: int) -> list[Request]:
    """Candidates for this text: one for each choice of lengths of its open gaps that fits.

    Args:
      length: tokens that the model writes.

    Raises:
      UserError: if it is no text, there is no gap, a gap's lengths make no sense or are more than
        `length`, or there are too many choices.
    """
    check_text(text, "The text with gaps")
    shown = text if len(text) <= 40 else f"{text[:40]}…"
    parts = re.split(r"\{\{([0-9-]*)\}\}", text)
    if len(parts) == 1:
        raise UserError(
            f"The text {shown!r} has no gap: write {{{{5}}}} where 5 tokens are to be filled in, "
            "or {{}} where their number is to be found."
        )
    known = [[int(token) for token in tokenizer.encode(part)] for part in parts[::2]]
    gaps = [_lengths(gap, length) for gap in parts[1::2]]
    choices = math.prod(map(len, gaps))
    if choices > _MOST:
        raise UserError(
            f"The open gaps of the text {shown!r} have {choices} choices of lengths, of which at "
            f"most {_MOST} are tried: narrow them, as in {{{{3-6}}}}."
        )
    is_open = [not gap.isdigit() for gap in parts[1::2]]
    requests: list[Request] = []
    for filled in itertools.product(*gaps):
        ids = list(known[0])
        for n, behind in zip(filled, known[1:], strict=True):
            ids += [GAP] * n + behind
        # One is kept in any case: that it does not fit is said where all prompts are checked.
        if len(ids) <= length or not requests:
            own = tuple(itertools.compress(filled, is_open))
            requests.append(Request(prompt=text, ids=ids, stop=len(ids), lengths=own))
    return requests


def _lengths(gap: str, length: int) -> Sequence[int]:
    """The lengths that a gap may have."""
    if not gap:
        return range(1, min(LONGEST, length) + 1)
    least, to, most = gap.partition("-")
    most = most if to else least
    # The number of digits first: Python refuses to read very long numbers.
    if any(len(n) > 9 or (n.isdigit() and int(n) > length) for n in (least, most)):
        raise UserError(
            f"The gap {{{{{gap[:12]}}}}} is longer than the {length} tokens that the model writes."
        )
    if not (least.isdigit() and most.isdigit() and 1 <= int(least) <= int(most)):
        raise UserError(
            f"The gap {{{{{gap[:12]}}}}} has no lengths: write one, at least 1, or the fewest "
            "and the most, as in {{3-12}}."
        )
    return range(int(least), int(most) + 1)


def run(
    generator: Generator,
    asked: Sequence[Sequence[Request]],
    *,
    seed: int,
    batch_size: int,
    on_round: Callable[[Round], None] | None = None,
) -> list[Text]:
    """Generates texts in their order, as `driver.run`, each chosen among the candidates for it."""
    choice, texts = Choice(generator, asked, seed), []
    for round_ in driver.rounds(
        generator, choice.requests, seed=seed, batch_size=batch_size, texts_of=choice.texts_of
    ):
        texts += choice.take(round_.texts.values())
        if on_round is not None:
            on_round(round_)
    return sorted(texts, key=lambda text: text.number)


class Choice:
    """The texts to write, and the choice among the candidates for each as they are done.

    Attributes:
      requests: all candidates, for `driver.rounds`.
      texts_of: number of the text that each is for.
    """

    def __init__(self, generator: Generator, asked: Sequence[Sequence[Request]], seed: int):
        """`asked`: the candidates for each text."""
        self._generator, self._asked, self._seed = generator, asked, seed
        self._waiting: dict[int, list[Text]] = {}
        self.requests = [request for candidates in asked for request in candidates]
        self.texts_of = np.repeat(np.arange(len(asked)), [len(each) for each in asked]).tolist()

    def take(self, done: Iterable[Text]) -> list[Text]:
        """Texts whose candidates are all done with these, under their own numbers."""
        chosen = []
        for text in done:
            number = self.texts_of[text.number]
            waiting = self._waiting.setdefault(number, [])
            waiting.append(text)
            if len(waiting) == len(self._asked[number]):
                best = self._best(sorted(self._waiting.pop(number), key=lambda text: text.number))
                chosen.append(dataclasses.replace(best, number=number))
        return chosen

    def _best(self, candidates: Sequence[Text]) -> Text:
        if len(candidates) == 1:
            return candidates[0]
        counted = [_counted(self.requests[text.number], len(text.tokens)) for text in candidates]
        model = self._generator.model
        bound = model.experiment.bound(model.tokenizer.vocab_size)
        nats = likelihood.text_bounds(
            model, [np.asarray(text.tokens) for text in candidates],
            [~counts for counts in counted],
            draws=1 if likelihood.is_exact(model.spec, bound) else _DRAWS,
            key=jax.random.key(self._seed),
        )  # fmt: skip
        per_token = nats.mean(axis=1) / [np.count_nonzero(counts) for counts in counted]
        return candidates[int(np.argmin(per_token))]


def _counted(request: Request, tokens: int) -> np.ndarray:
    """True for the tokens of a text that were filled in, and for those close behind them."""
    gap = np.asarray(request.ids) == GAP
    near = np.convolve(gap, np.ones(1 + _BEHIND, int))[: len(gap)]
    return np.asarray(near[:tokens] > 0)
