"""First-order Markov chains over tokens, and what separates texts from them.

All in float64 numpy and without the package, whose results are compared with it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

LETTERS = " abcdefghijklmnopqrstuvwxyz"


class Chain(NamedTuple):
    """A chain in its stationary state.

    Attributes:
      start: [V], the probability of each token at any one position.
      step: [V, V], of the next token, [from, to]; all above 0, so that no context is impossible.
    """

    start: np.ndarray
    step: np.ndarray

    @property
    def entropy_rate(self) -> float:
        """Nats per token."""
        return float(-(self.start[:, None] * self.step * np.log(self.step)).sum())

    def draw(self, generator: np.random.Generator, count: int, length: int) -> np.ndarray:
        """Independent texts, int [count, length]."""
        tokens = np.empty((count, length), np.int64)
        uniform = generator.random((count, length, 1))
        tokens[:, 0] = (uniform[:, 0] > np.cumsum(self.start)[:-1]).sum(1)
        rising = np.cumsum(self.step, axis=1)[:, :-1]
        for i in range(1, length):
            tokens[:, i] = (uniform[:, i] > rising[tokens[:, i - 1]]).sum(1)
        return tokens


def of_step(step: np.ndarray) -> Chain:
    """The chain of a positive matrix of transitions."""
    step = step / step.sum(1, keepdims=True)
    start = np.linalg.matrix_power(step, 1 << 16)[0]
    return Chain(start / start.sum(), step)


def of_texts(texts: Iterable[str]) -> Chain:
    """The chain of letters and the space; whatever is no letter counts as space, many as one.

    Every pair counts once more than it was seen.
    """
    ids = {letter: number for number, letter in enumerate(LETTERS)}
    pairs = np.ones((len(LETTERS), len(LETTERS)))
    for text in texts:
        kept = "".join(c if c in ids else " " for c in text.lower())
        found = np.array([ids[c] for c in " ".join(kept.split())], int)
        np.add.at(pairs, (found[:-1], found[1:]), 1)
    return of_step(pairs)


def distances(chain: Chain, tokens: np.ndarray) -> dict[str, float]:
    """Distances of the pairs of neighbours of texts [B, L] from those of the chain.

    The plug-in KL of M pairs lies about V(V − 1)/2M above the true one, and the entropy as much
    below; the correction is too large where the chain expects less than one of many pairs, so that
    texts of the chain itself (the floor) may end up below 0.

    Returns:
      "kl": Σ_a p(a) KL(p(·|a) ‖ step(·|a)) of the observed p, nats a token; "corrected kl";
      "tv": Σ_a p(a) TV(p(·|a), step(·|a)); "unigram tv": TV(p, start); "entropy": the corrected
      Σ_a p(a) H(p(·|a)).
    """
    size = len(chain.start)
    pairs = np.zeros((size, size))
    np.add.at(pairs, (tokens[:, :-1].ravel(), tokens[:, 1:].ravel()), 1)
    bias = size * (size - 1) / (2 * pairs.sum())
    share = pairs / pairs.sum()
    first = share.sum(1, keepdims=True)
    seen = share > 0
    log_next = np.log(share, where=seen, out=np.zeros_like(share))
    log_next -= np.log(first, where=first > 0, out=np.zeros_like(first))
    kl = float((share * (log_next - np.log(chain.step)))[seen].sum())
    unigram = np.bincount(tokens.ravel(), minlength=size) / tokens.size
    return {
        "kl": kl,
        "corrected kl": kl - bias,
        "tv": float(abs(share - first * chain.step).sum() / 2),
        "unigram tv": float(abs(unigram - chain.start).sum() / 2),
        "entropy": float(-(share * log_next)[seen].sum()) + bias,
    }
