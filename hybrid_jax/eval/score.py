"""Log-likelihood bounds of single texts, with the standard error of their draws."""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from hybrid_jax.errors import UserError, check_seed, check_text
from hybrid_jax.eval.perplexity import is_exact
from hybrid_jax.method import hyperschedule, loss
from hybrid_jax.method.loss import Network, Spec
from hybrid_jax.training.pretrained import Pretrained
from hybrid_jax.training.statistics import mean_and_standard_error


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """A bound on −log p of a text.

    Attributes:
      nll: nats of the whole text; the likelihood itself if `exact`, else an upper bound.
      nll_se: standard error of `nll` over draws of levels and noise; 0 if `exact`.
      tokens, bytes: of the text; bytes of UTF-8.
      exact: whether the bound is the likelihood.
    """

    nll: float
    nll_se: float
    tokens: int
    bytes: int
    exact: bool

    @property
    def bits_per_byte(self) -> float:
        return self.nll / math.log(2) / self.bytes

    @property
    def bits_per_byte_se(self) -> float:
        return self.nll_se / math.log(2) / self.bytes


def score(model: Pretrained, texts: Sequence[str], *, draws: int = 8, seed: int = 0) -> list[Score]:
    """Scores texts one by one, each written from nothing by the model's hyperschedule.

    A text shorter than the model's L positions is the beginning of the hyperschedule; a longer one
    is cut into pieces of L tokens, whose nats are added. No end-of-document token is scored.

    Args:
      draws: of levels and noise for each piece, stratified; at least 2. 1 is taken if exact.
      seed: of the draws; the same draws for equal numbers of tokens, so that texts compare.

    Raises:
      UserError: for an empty text or none, a seed out of range, or fewer than 2 draws.
    """
    if draws < 2:
        raise UserError(f"A standard error needs at least 2 draws, but draws is {draws}.")
    key = jax.random.key(check_seed(seed))
    for number, text in enumerate(texts):
        check_text(text, f"Text {number}")
        if not text:
            raise UserError(f"Text {number} is empty: there is nothing to score.")
    bound = model.experiment.bound(model.tokenizer.vocab_size)
    exact = is_exact(model, bound)
    spec = model.spec.for_bound(bound)

    def one(text: str, ids: np.ndarray) -> Score:
        length = spec.schedule.length
        nll = variance = 0.0
        for number, start in enumerate(range(0, len(ids), length)):
            piece = ids[start : start + length]
            short = hyperschedule.beginning(spec.schedule, len(piece))
            values = _draws(
                dataclasses.replace(spec, schedule=short),
                model.network,
                1 if exact else draws,
                model.params,
                piece,
                jax.random.fold_in(key, number),
            )
            mean, error = mean_and_standard_error(np.asarray(values))
            nll += mean
            variance += 0.0 if exact else error**2
        return Score(
            nll=nll,
            nll_se=math.sqrt(variance),
            tokens=len(ids),
            bytes=len(text.encode("utf-8")),
            exact=exact,
        )

    encoded = model.tokenizer.encode_batch(texts)
    return [one(text, ids) for text, ids in zip(texts, encoded, strict=True)]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _draws(
    spec: Spec, network: Network, count: int, params: object, tokens: jax.Array, key: jax.Array
) -> jax.Array:
    """Nats of one text under `count` draws, float32 [count]."""
    copies = jnp.broadcast_to(tokens, (count, tokens.shape[0]))
    batch = loss.Batch(copies, jnp.arange(count), key, count)
    return loss.batch_terms(spec, network, params, batch).sum(axis=1)
