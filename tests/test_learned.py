"""Costs of tables in benchmarks/learned.py: predicted from distances, and measured by a network."""

import itertools

import learned
import numpy as np
from oracle import chain as chains
from oracle.network import Oracle, params_of

from hybrid_jax.method import hyperschedule, noising
from hybrid_jax.method.layout import Layout
from hybrid_jax.method.loss import Spec
from hybrid_jax.method.objective import Objective


def of_chain(length):
    chain = chains.of_step(np.random.default_rng(0).random((3, 3)) + np.eye(3))
    kernel = noising.absorbing(vocab_size=3)
    spec = Spec(
        schedule=hyperschedule.quenched_ar(length=length), kernel=kernel, layout=Layout(),
        objective=Objective(),
    )  # fmt: skip
    return chain, learned.hidden_nats(spec, Oracle(kernel=kernel, length=length), params_of(chain))


def test_predicted_cost_is_the_mean_over_all_draws_of_steps():
    draw = np.random.default_rng(0)
    length, steps = 4, 3
    g = draw.random((learned.REACH + 1,) * 2)
    q = draw.dirichlet(np.ones(steps), size=length)
    total = 0.0
    for drawn in itertools.product(range(steps), repeat=length):
        chance = np.prod(q[np.arange(length), drawn])
        for i, step in enumerate(drawn):
            left = [i - j - 1 for j in range(i) if drawn[j] < step]
            right = [j - i - 1 for j in range(i + 1, length) if drawn[j] < step]
            at = min(left, default=learned.REACH), min(right, default=learned.REACH)
            total += chance * g[at] / length
    np.testing.assert_allclose(learned.cost(np.float32(g), np.float32(q)), total, rtol=1e-5)


def test_predicted_cost_of_a_flat_table_is_that_of_factorising():
    chain, _ = of_chain(6)
    flat = learned.of_ramp(np.zeros(6, int), 3, 3)
    c = chains.conditional_entropies(chain, 1)
    least = (c[-1] + 5 * c[1]) / 6
    found = learned.predicted(np.float32(learned.g_of_chain(chain)), flat) - least
    np.testing.assert_allclose(found, chains.factorising_cost(chain, 6, 6, 3), atol=1e-6)


def test_measured_cost_of_an_order_is_its_likelihood():
    """Of every text of four tokens: the outer two of each pair first, then what is between them."""
    chain, nats = of_chain(4)
    texts = np.array(list(itertools.product(range(3), repeat=4)), np.int32)
    texts = np.resize(texts, (2 * learned.BATCH, 4))
    found = learned.measured(nats, texts, learned.of_order(np.array([0, 1, 0, 1]), 2))
    a, b, c, d = texts.T
    once, twice = chain.step, chain.step @ chain.step
    between = once[a, b] * once[b, c] / twice[a, c]
    p = chain.start[a] * chain.start[c] * between * once[c, d]
    np.testing.assert_allclose(found, -np.log(p), rtol=1e-5)
