"""First-order Markov chains over tokens, and what separates texts from them.

All in float64 numpy and without the package, whose results are compared with it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from scipy import special

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


def of_letters(texts: Iterable[str]) -> Chain:
    """The chain of letters and the space; whatever is no letter counts as space, many as one."""
    ids = {letter: number for number, letter in enumerate(LETTERS)}
    words = ("".join(c if c in ids else " " for c in text.lower()).split() for text in texts)
    return _of_tokens(([ids[c] for c in " ".join(found)] for found in words), len(LETTERS))


def of_bytes(texts: Iterable[str]) -> Chain:
    return _of_tokens((list(text.encode()) for text in texts), 256)


def _of_tokens(texts: Iterable[list[int]], size: int) -> Chain:
    """The chain of texts; every pair counts once more than it was seen."""
    pairs = np.ones((size, size))
    for text in texts:
        pairs += pairs_of(np.array([text], int), size)
    return of_step(pairs)


def conditional_entropies(chain: Chain, distances: int) -> np.ndarray:
    """H(x_n | x_0) of n = 0 … `distances`, and behind them H(x_0), as if infinitely far."""
    apart, found = np.eye(len(chain.start)), [0.0]
    for _ in range(distances):
        apart = apart @ chain.step
        found.append(-float(chain.start @ special.xlogy(apart, apart).sum(1)))
    return np.array([*found, -special.xlogy(chain.start, chain.start).sum()])


def factorising_cost(chain: Chain, length: int, width: int, steps: int) -> float:
    """Nats a token that masked diffusion loses: a bound on KL(chain ‖ sampler).

    Blocks of `width` are revealed one after the other. Each of the T steps of a block reveals one
    of T random shares of it, each position without the others of its share. So the bound is the
    mean over λ = 1/T, 2/T … 1 of E H(x_i | shown), where all before the block is shown, the others
    of the block with probability 1 − λ, and none behind it; less the entropy. Of a chain only the
    nearest shown token counts on each side; where those are a and b steps away, H = c_a + c_b −
    c_{a+b} with c_n = H(x_n | x_0), and c_∞ = H(x_0) where nothing is shown.
    """
    c = conditional_entropies(chain, 2 * length)
    nothing, total = len(c) - 1, 0.0
    for i, level in itertools.product(range(length), np.arange(1, steps + 1) / steps):
        inside, end = i % width, min(i - i % width + width, length)
        a, chance_a = _nearest(level, inside, nothing if inside == i else inside + 1)
        b, chance_b = _nearest(level, end - 1 - i, nothing)
        both = np.minimum(a[:, None] + b, nothing)
        total += float(chance_a @ (c[a][:, None] + c[b] - c[both]) @ chance_b)
    return total / (steps * length) - (c[-1] + (length - 1) * c[1]) / length


def _nearest(level: float, count: int, beyond: int) -> tuple[np.ndarray, np.ndarray]:
    """Distances of the nearest shown of `count` positions in a row, and their probabilities."""
    away = np.arange(count)
    chance = np.append((1 - level) * level**away, level**count)
    return np.append(away + 1, beyond), chance


def pairs_of(tokens: np.ndarray, size: int) -> np.ndarray:
    """Counts of each token behind each, [V, V], in texts [B, L]."""
    joint = tokens[:, :-1] * size + tokens[:, 1:]
    return np.bincount(joint.ravel(), minlength=size**2).reshape(size, size)


def distances(chain: Chain, tokens: np.ndarray) -> dict[str, float]:
    """Distances of the pairs of neighbours of texts [B, L] from those of the chain.

    From counts the entropy comes out too low, and KL as much too high: by about V(V − 1)/2M for M
    pairs, if each is likely. The correction puts Grassberger's estimate of n log n (2003,
    arXiv physics/0307138) in the place of each n log n of a count, which also serves rare pairs.

    Returns:
      "kl": Σ_a p(a) KL(p(·|a) ‖ step(·|a)) of the observed p, nats a token; "corrected kl";
      "tv": Σ_a p(a) TV(p(·|a), step(·|a)); "unigram tv": TV(p, start); "entropy": the corrected
      Σ_a p(a) H(p(·|a)).
    """
    size = len(chain.start)
    pairs = pairs_of(tokens, size)
    total, first = pairs.sum(), pairs.sum(1)
    cross = -float((pairs * np.log(chain.step)).sum() / total)
    rows = special.xlogy(first, first).sum()
    plain = float(rows - special.xlogy(pairs, pairs).sum()) / total
    entropy = float(rows - (pairs * _log_count(pairs)).sum()) / total
    unigram = np.bincount(tokens.ravel(), minlength=size) / tokens.size
    return {
        "kl": cross - plain,
        "corrected kl": cross - entropy,
        "tv": float(abs(pairs - first[:, None] * chain.step).sum() / 2 / total),
        "unigram tv": float(abs(unigram - chain.start).sum() / 2),
        "entropy": entropy,
    }


def _log_count(count: np.ndarray) -> np.ndarray:
    """G(n), such that n G(n) has nearly the mean p log p of counts n; 0 for n = 0."""
    n = np.maximum(count, 1)
    sign = np.where(n % 2 == 0, 0.5, -0.5)
    found = special.digamma(n) + sign * (special.digamma((n + 1) / 2) - special.digamma(n / 2))
    return np.where(count > 0, found, 0.0)


def jackknife(chain: Chain, tokens: np.ndarray) -> dict[str, tuple[float, float]]:
    """Distances of all texts [S, B, L] together, and their standard errors over the S seeds."""
    seeds = len(tokens)
    whole = distances(chain, np.concatenate(tokens))
    parts = [distances(chain, np.concatenate(np.delete(tokens, s, axis=0))) for s in range(seeds)]
    spread = {name: np.std([part[name] for part in parts]) for name in whole}
    return {name: (whole[name], float(spread[name] * np.sqrt(seeds - 1))) for name in whole}
