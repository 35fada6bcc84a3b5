"""Log-likelihood bounds of single texts, with the standard error of their draws."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np

from hybrid_jax.data.tokenizers.base import Tokenizer
from hybrid_jax.errors import UserError, check_seed, check_text
from hybrid_jax.training.likelihood import is_exact, text_bounds
from hybrid_jax.training.pretrained import Pretrained
from hybrid_jax.training.statistics import bits_per_byte, mean_and_standard_error


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """A bound on −log p of a text, or of a text behind a prompt.

    Attributes:
      nll: nats of the whole text; the likelihood itself if `exact`, else an upper bound.
      nll_se: standard error of `nll` over draws of levels and noise; 0 if `exact`.
      tokens, bytes: of the text without the prompt; bytes of UTF-8, and 0 where tokens stand for no
        text.
      exact: whether the bound is the likelihood.
      draws: nats of each draw, of which `nll` is the mean.
    """

    nll: float
    nll_se: float
    tokens: int
    bytes: int
    exact: bool
    draws: tuple[float, ...] = dataclasses.field(repr=False)

    @property
    def nats_per_token(self) -> float:
        return self.nll / self.tokens

    @property
    def bits_per_byte(self) -> float:
        return bits_per_byte(self.nll, self.bytes)

    @property
    def bits_per_byte_se(self) -> float:
        return bits_per_byte(self.nll_se, self.bytes)


def score(
    model: Pretrained,
    texts: Sequence[str],
    *,
    prompt: str | Sequence[str] = "",
    draws: int = 8,
    seed: int = 0,
) -> list[Score]:
    """Scores texts, each written by the model's hyperschedule from nothing or behind a prompt.

    A text shorter than the model's L positions is the beginning of the hyperschedule; a longer one
    is cut into pieces of L tokens, whose nats are added. No end-of-document token is scored. A
    prompt is kept as the sampler keeps it, and must leave room for the text.

    Args:
      prompt: of all texts, or one for each; its tokens are those of `generate`.
      draws: of levels and noise for each piece, stratified; at least 2. 1 is taken if exact.
      seed: of the draws; the same draws for texts of like lengths, so that differences between them
        are known better than their values.

    Raises:
      UserError: for a text without a token, a prompt that leaves no room, a seed out of range, or
        fewer than 2 draws.
    """
    if draws < 2:
        raise UserError(f"A standard error needs at least 2 draws, but draws is {draws}.")
    key = jax.random.key(check_seed(seed))
    prompts = [prompt] * len(texts) if isinstance(prompt, str) else list(prompt)
    if len(prompts) != len(texts):
        raise UserError(f"There are {len(prompts)} prompts for {len(texts)} texts: give one each.")
    pairs = zip(prompts, texts, strict=True)
    pieces = [_pieces(model, number, *pair) for number, pair in enumerate(pairs)]
    bound = model.experiment.bound(model.tokenizer.vocab_size)
    exact = is_exact(model.spec, bound)
    count = 1 if exact else draws
    nats = np.zeros((len(texts), count))
    for number in range(max(map(len, pieces), default=0)):
        longer = [text for text, own in enumerate(pieces) if len(own) > number]
        group = [pieces[text][number] for text in longer]
        nats[longer] += text_bounds(
            model, [ids for ids, _ in group], [np.arange(len(ids)) < given for ids, given in group],
            draws=count, key=jax.random.fold_in(key, number),
        )  # fmt: skip
    of_text = bool(model.tokenizer.token_bytes.any())
    scores = []
    for text, own, each in zip(texts, pieces, nats, strict=True):
        mean, error = mean_and_standard_error(each)
        scores.append(Score(
            nll=mean, nll_se=0.0 if exact else error, exact=exact, draws=tuple(each.tolist()),
            tokens=sum(len(ids) - given for ids, given in own),
            bytes=len(text.encode("utf-8")) if of_text else 0,
        ))  # fmt: skip
    return scores


def chance_of_noise(better: Score, worse: Score) -> float:
    """The chance that draws put two texts in this order though both are equal, from the paired
    differences of their draws; 0 for likelihoods. Normal approximation."""
    difference, error = mean_and_standard_error(np.subtract(worse.draws, better.draws))
    if better.exact or error == 0:
        return 0.0 if difference else 0.5
    return 0.5 * math.erfc(difference / error / math.sqrt(2))


def _pieces(model: Pretrained, number: int, prompt: str, text: str) -> list[tuple[np.ndarray, int]]:
    """The tokens of a text, cut where they are more than L, and how many of each are given."""
    check_text(text, f"Text {number}")
    check_text(prompt, f"The prompt of text {number}")
    length = model.spec.schedule.length
    ids, given = tokens_behind(model.tokenizer, prompt, text)
    if len(ids) == given:
        raise UserError(f"Text {number} is empty: it has no token to score.")
    if not prompt:
        return [(ids[start : start + length], 0) for start in range(0, len(ids), length)]
    if len(ids) > length:
        raise UserError(
            f"Text {number} has {len(ids) - given} tokens behind a prompt of {given}, "
            f"but the model writes {length} in all: shorten one of them."
        )
    return [(ids, given)]


def tokens_behind(tokenizer: Tokenizer, prompt: str, text: str) -> tuple[np.ndarray, int]:
    """The tokens of a prompt and the text behind it, int32 [n], and how many are the prompt's.

    Text may be encoded otherwise behind a prompt than alone; but a prompt keeps its tokens.
    """
    given = tokenizer.encode(prompt)
    if tokenizer.token_bytes.any():  # the ids "1" and "2" would be 12
        ids = tokenizer.encode(prompt + text)
        if len(ids) > len(given) and np.array_equal(ids[: len(given)], given):
            return ids, len(given)
    return np.concatenate([given, tokenizer.encode(text)]), len(given)
