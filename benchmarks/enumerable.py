"""A model so small that all of it can be enumerated: texts, noisy texts, samplers and bounds.

The data are texts of a Markov chain, and the network is a table behind the interface of the
transformer: the exact posterior of the data, or that with errors. What happens at a step is the
package's own: rows, masks, noise and terms.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hybrid_jax.method import hyperschedule, layout, noising, scores
from hybrid_jax.method.hyperschedule import Hyperschedule
from hybrid_jax.method.layout import Layout, Rows
from hybrid_jax.method.mask_blocks import Pattern
from hybrid_jax.method.noising import NoiseKernel
from hybrid_jax.method.objective import Objective

NODES = 48
"""Levels at which an integral over levels looks."""

Params = dict[str, Any]


def sequences(symbols: int, length: int) -> np.ndarray:
    """Every sequence of ids below `symbols`, int32 [symbols ** length, length]."""
    return np.array(list(itertools.product(range(symbols), repeat=length)), np.int32)


def markov_texts(vocab: int, length: int) -> np.ndarray:
    """p(x) of every text of a Markov chain in which most tokens are followed by themselves."""
    first = np.arange(vocab, 0, -1.0) / np.arange(1, vocab + 1).sum()
    following = np.array([0.8, *np.arange(vocab - 1, 0, -1.0) * 0.4 / (vocab * (vocab - 1))])
    texts = sequences(vocab, length)
    return first[texts[:, 0]] * np.prod(following[np.diff(texts, axis=1) % vocab], axis=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A network of the interface `method.loss.Network` that knows the data by heart.

    Its logits are log p(x_i | everything that the row sees) by Bayes' rule over all texts, under
    the kernel's noise at the level of each row, plus an error that is fixed for everything seen.

    Attributes:
      kernel: of the noise that the rows hold.
      length: of the texts.
    """

    kernel: NoiseKernel
    length: int

    def params(self, data: np.ndarray, errors: float) -> Params:
        """Tables: log p(x), and errors of this standard deviation for each noisy text."""
        tokens = self.kernel.vocab_size
        shape = ((tokens + 1) ** self.length, self.length, tokens)
        wrong = errors * np.random.default_rng(0).normal(size=shape)
        return {"data": jnp.asarray(np.log(data), jnp.float32), "wrong": jnp.float32(wrong)}

    def features(self, params, tokens, position, mask, level, dropout_keys=None):
        sees = (mask.mask() if isinstance(mask, Pattern) else mask).astype(jnp.float32)
        position = jnp.broadcast_to(position, tokens.shape)
        texts, ids = sequences(self.kernel.vocab_size, self.length), np.arange(self.kernel.mask)

        def evidence(token, t):
            """log q(z | x) of a row for every clean token; "impossible" is a number here."""
            log_q = jax.vmap(lambda x: noising.marginal(self.kernel, x, t)[token])(ids)
            return jnp.maximum(log_q, -80.0)

        row_evidence = jax.vmap(jax.vmap(evidence))(tokens, level)
        own = jnp.asarray(texts.T)[position]  # [B, R, texts]: the token of each text there
        log_q = jnp.take_along_axis(row_evidence, own, axis=2)
        log_p = params["data"] + jnp.einsum("brk,bkn->brn", sees, log_q)
        here = own[..., None] == ids
        posterior = jax.nn.logsumexp(log_p[..., None], axis=2, b=here)
        # The noisy text that a row sees, with MASK where it sees nothing, as one number.
        place = jax.nn.one_hot(position, self.length)
        shown = jnp.einsum("brk,bk,bkl->brl", sees, tokens - jnp.float32(len(ids)), place)
        base = (len(ids) + 1) ** np.arange(self.length)[::-1]
        seen = jnp.round((shown + len(ids)) @ jnp.float32(base)).astype(jnp.int32)
        return posterior + params["wrong"][seen, position]

    def head(self, params):
        return {}

    def logits(self, params, features):
        return features


class Moment(NamedTuple):
    """A step, or a place in it: levels λ [L] there and at the step's end, and rows [R]."""

    rows: Rows
    level: Any
    after: Any


@functools.partial(jax.jit, static_argnums=0)
def moments(schedule: Hyperschedule) -> Moment:
    """Every step of a hyperschedule at its start, where discrete time looks; fields [S, ...]."""
    step, position = jnp.arange(schedule.steps), jnp.arange(schedule.length)
    level = schedule.level(step[:, None], position) / schedule.levels
    after = schedule.level(step[:, None] + 1, position) / schedule.levels
    rows = jax.vmap(lambda s: layout.generation_rows(Layout(), schedule, s))(step)
    return Moment(rows, level, after)


@functools.partial(jax.jit, static_argnums=0)
def parts(network: Table, params: Params, now: Moment) -> dict[str, Any]:
    """Terms and moves at a moment, for every noisy text z, position i and clean token v.

    Returns:
      chance: q(z_i | x_i = v); discrete, continuous, released: terms; logits: log p(x_i = v | z);
      all [Z, L, V]. reverse: p_θ(z'_i | z) [Z, L, V + 1].
    """
    kernel, objective = network.kernel, Objective()
    rows, level, after = now
    states = jnp.asarray(sequences(kernel.vocab_size + 1, network.length))
    held = jax.vmap(lambda z: layout.row_tokens(rows, z, z, 0))(states)
    row_level = jnp.broadcast_to(layout.row_levels(rows, level), held.shape)
    mask = layout.attention_mask(Layout(), rows)[None]
    features = network.features(params, held, rows.position[None], mask, row_level)
    source, _ = layout.predictors(rows, network.length)
    logits = network.logits(params, features[:, source])

    def of_position(logits, z, level, after):
        rests = level == after
        # A position at rest gets levels at which no formula divides by zero.
        high, low = jnp.where(rests, 0.5, level), jnp.where(rests, 0.0, after)

        def of_token(v):
            return {
                "chance": jnp.exp(noising.marginal(kernel, v, level)[z]),
                "discrete": objective.discrete_term(kernel, logits, v, z, high, low),
                "continuous": objective.continuous_term(kernel, logits, v, z, high),
                "released": released_term(kernel, logits, v, z, high),
            }

        found = jax.vmap(of_token)(jnp.arange(kernel.vocab_size))
        found |= {name: jnp.where(rests, 0.0, found[name]) for name in found if name != "chance"}
        moves = jnp.exp(objective.reverse_step(kernel, logits, z, low, high))
        stays = jax.nn.one_hot(z, kernel.vocab_size + 1)
        return found | {"reverse": jnp.where(rests, stays, moves)}

    found = jax.vmap(jax.vmap(of_position), (0, 0, None, None))(logits, states, level, after)
    return found | {"logits": jax.nn.log_softmax(logits)}


def released_term(kernel: NoiseKernel, logits, token, noisy, level):
    """The γ loss of the released code for one position, per dλ.

    Score entropy with the ratios of pure masking where the position is masked, and of pure
    replacement where it shows a token, both at the level of the mixed noise; the scores are those
    of the mixed noise.
    """
    count = kernel.vocab_size
    score = scores.score_of_mean(kernel, jax.nn.log_softmax(logits), noisy, level)
    masked, ids = noisy == kernel.mask, jnp.arange(count)

    def entropy(pure: NoiseKernel):
        clean, same, other = scores.true_score(pure, token, noisy, level)
        ratio = jnp.where(ids == token, clean, jnp.where(ids == noisy, same, other))
        some = ratio > -jnp.inf
        ratio = jnp.where(some, ratio, 0.0)
        gap = jnp.exp(score) - jnp.exp(ratio) * (score - ratio + 1.0)
        return jnp.where(some, gap, jnp.exp(score))

    hidden = jnp.sum(entropy(noising.absorbing(vocab_size=count)))
    shown = jnp.sum(jnp.where(ids == noisy, 0.0, entropy(noising.uniform(vocab_size=count))))
    rates = kernel.rates(level)
    term = jnp.where(masked, rates.masking * hidden, rates.replacing / count * shown)
    return term / (1.0 - level)


def expected(found: dict[str, np.ndarray], name: str, texts: np.ndarray) -> np.ndarray:
    """E over z ~ q(· | x) of Σ_i term, for every text x."""
    place = np.arange(texts.shape[1])
    chance, term = (np.asarray(found[key], np.float64) for key in ("chance", name))
    weight = np.prod(chance[:, place, texts], axis=2)  # [Z, X]
    value = np.where(chance > 0, np.nan_to_num(term), 0.0)[:, place, texts].sum(2)
    return np.sum(weight * value, axis=0)


def enumerate_steps(
    schedule: Hyperschedule, network: Table, params: Params
) -> tuple[np.ndarray, np.ndarray]:
    """−log p(x) of the ancestral sampler and its discrete bound, for every text."""
    tokens = network.kernel.vocab_size
    texts = sequences(tokens, schedule.length)
    states, place = sequences(tokens + 1, schedule.length), np.arange(schedule.length)
    mass = np.prod(np.where(states == tokens, 1.0, 0.0), axis=1)  # all MASK
    bound, steps = np.zeros(len(texts)), jax.tree.map(np.asarray, moments(schedule))
    for step in range(schedule.steps):
        found = parts(network, params, jax.tree.map(lambda x: x[step], steps))  # noqa: B023
        bound += expected(found, "discrete", texts)
        some = mass > 0
        reverse = np.asarray(found["reverse"], np.float64)[some]
        reverse /= reverse.sum(2, keepdims=True)
        mass = mass[some] @ np.prod(reverse[:, place, states], axis=2)
    return -np.log(mass[np.all(states < tokens, axis=1)]), bound


def integrate(network: Table, params: Params, name: str, power: int = 0) -> np.ndarray:
    """∫ dλ λ^power E_z Σ_i term of all positions at one level λ, for every text."""
    texts = sequences(network.kernel.vocab_size, network.length)
    nodes, weight = np.polynomial.legendre.leggauss(NODES)
    t = (nodes + 1) / 2
    levels = np.float32(3 * t**2 - 2 * t**3)  # nodes crowd where the integrand is steep
    once = hyperschedule.flat(length=network.length, levels=1)
    whole = jax.tree.map(lambda x: np.asarray(x[0]), moments(once))
    total = np.zeros(len(texts))
    for level, w in zip(levels, weight / 2 * 6 * t * (1 - t), strict=True):
        found = parts(network, params, whole._replace(level=np.full_like(whole.level, level)))
        total += w * float(level) ** power * expected(found, name, texts)
    return total


def masked_logits(network: Table, params: Params) -> np.ndarray:
    """log p(x_i = v | z) of every noisy text; under masking alone it does not depend on λ."""
    once = moments(hyperschedule.flat(length=network.length, levels=2))
    found = parts(network, params, jax.tree.map(lambda x: x[1], once))
    return np.asarray(found["logits"], np.float64)
