"""The bound against brute force: enumerate what the sampler generates, and what training sees.

For two or three tokens and three positions every noisy sequence is enumerated. The sampler's exact
p(x) comes from a chain over all states, with predictions from *generation* rows; the bound comes
from *training* rows, with all phases and all noisy sequences weighted by their exact probability.
The two sides share only the kernels, whose own tests compare them with matrix exponentials.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_jax import estimator, hyperschedule, layout, noising, objective
from hybrid_jax.estimator import Problem
from hybrid_jax.layout import Layout
from hybrid_jax.models.transformer import Transformer
from hybrid_jax.objective import Objective

LENGTH = 3

SCHEDULES = {
    "quenched AR": hyperschedule.quenched_ar(length=LENGTH),
    "flat": hyperschedule.flat(length=LENGTH, levels=3),
    "block": hyperschedule.block(length=LENGTH, width=2, levels=2),
    "slide": hyperschedule.slide(length=LENGTH, width=2, levels=2),
    "slow slide": hyperschedule.slide(length=LENGTH, width=2, levels=4),
    "custom": hyperschedule.custom(
        [[4, 4, 4], [2, 4, 4], [2, 3, 4], [0, 3, 3], [0, 1, 1], [0, 0, 0]]
    ),
}


def kernels(tokens):
    return {
        "absorbing": noising.absorbing(tokens=tokens),
        "uniform": noising.uniform(tokens=tokens),
        "gamma": noising.gamma_hybrid(tokens=tokens, gamma=0.3),
        "epsilon": noising.epsilon_hybrid(tokens=tokens, epsilon=0.2),
    }


def network(tokens):
    """A small random transformer with large weights: an arbitrary function of what a row sees."""
    net = Transformer(tokens=tokens, layers=1, width=16, heads=2, condition=8)
    params = net.init(jax.random.key(7))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(3), len(leaves))
    wild = [
        leaf + 0.4 * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)
    ]
    return net, jax.tree.unflatten(tree, wild)


def states_of(tokens, length=LENGTH):
    return np.array(list(itertools.product(range(tokens + 1), repeat=length)), np.int32)


def sampler_distribution(problem, net, params):
    """Exact distribution of the ancestral sampler over all states [(N+1)^L] after the last step."""
    schedule, kernel = problem.schedule, problem.kernel
    states = states_of(kernel.tokens)
    everything = np.arange(len(states))
    shape = (kernel.tokens + 1,) * LENGTH
    start = np.exp(np.asarray(noising.marginal(kernel, 0, 1.0)))
    mass = start
    for _ in range(LENGTH - 1):
        mass = np.multiply.outer(mass, start)
    mass = mass.reshape(-1)
    positions = jnp.arange(LENGTH)

    @jax.jit
    def moves(step):
        """log P(next token | state) for every state and position: [states, L, N+1]."""
        rows = layout.generation_rows(problem.layout, schedule, step)
        level = schedule.level(step, positions) / schedule.levels
        after = schedule.level(step + 1, positions) / schedule.levels
        active = level != after
        logits = generation_logits(problem, net, params, rows, jnp.asarray(states), level)
        safe_level = jnp.where(active, level, 0.5)
        safe_after = jnp.where(active, after, 0.0)
        log_next = jax.vmap(
            lambda lg, z: jax.vmap(
                lambda a, b, s, t: objective.reverse_step(problem.objective, kernel, a, b, s, t)
            )(lg, z, safe_after, safe_level)
        )(logits, jnp.asarray(states))
        stay = jnp.log(jax.nn.one_hot(jnp.asarray(states), kernel.tokens + 1))
        return jnp.where(active[None, :, None], log_next, stay)

    for step in range(schedule.steps):
        chance = np.exp(np.asarray(moves(jnp.asarray(step)), np.float64))
        new = np.zeros_like(mass)
        for source in everything[mass > 0]:
            joint = chance[source, 0]
            for position in range(1, LENGTH):
                joint = np.multiply.outer(joint, chance[source, position])
            new += mass[source] * joint.reshape(-1)
        mass = new
    return mass.reshape(shape)


def generation_logits(problem, net, params, rows, states, level):
    held = jax.vmap(lambda z: layout.row_tokens(rows, z, z, problem.bos))(states)
    row_level = layout.row_levels(rows, level)
    mask = layout.attention_mask(problem.layout, rows)[None]
    features = net.features(
        params, held, rows.position[None], mask, jnp.broadcast_to(row_level, held.shape)
    )
    source, _ = layout.predictors(rows, LENGTH)
    return net.logits(params, features[:, source])


def enumerated_bound(problem, net, params, data):
    """Σ over phases and noisy sequences, weighted exactly: the mean of the training estimator."""
    schedule, kernel = problem.schedule, problem.kernel
    phases = np.array(
        list(itertools.product(range(schedule.phases), repeat=schedule.phase_groups)), np.int32
    )
    states = states_of(kernel.tokens)
    bound = np.zeros(len(data))

    @jax.jit
    def total(tokens, phase):
        uniform = (phase + 0.5) / schedule.phases
        _, where = objective.draw(schedule, kernel, "discrete", uniform)
        n = len(states)
        terms = estimator.drawn_terms(
            problem,
            net,
            params,
            jnp.broadcast_to(tokens, (n, LENGTH)),
            jnp.asarray(states),
            jnp.broadcast_to(phase, (n, schedule.phase_groups)),
            jax.tree.map(lambda x: jnp.broadcast_to(x, (n, LENGTH)), where),
            time="discrete",
            loss=False,
        ).sum(1)
        log_q = jax.vmap(lambda x, t: noising.marginal(kernel, x, t))(tokens, where.level)
        weight = jnp.exp(log_q[jnp.arange(LENGTH)[None], states].sum(1))
        return jnp.sum(jnp.where(weight > 0, weight * terms, 0.0))

    for i, tokens in enumerate(data):
        values = [float(total(jnp.asarray(tokens), jnp.asarray(p))) for p in phases]
        bound[i] = np.mean(values)
    return bound


def all_data(tokens):
    return np.array(list(itertools.product(range(tokens), repeat=LENGTH)), np.int32)


@pytest.mark.parametrize("alignment", ["aligned", "shifted"])
@pytest.mark.parametrize("kernel_name", ["absorbing", "uniform", "gamma", "epsilon"])
@pytest.mark.parametrize("schedule_name", list(SCHEDULES))
def test_bound_holds_and_is_exact_for_autoregression(schedule_name, kernel_name, alignment):
    tokens = 2
    problem = Problem(
        schedule=SCHEDULES[schedule_name],
        kernel=kernels(tokens)[kernel_name],
        layout=Layout(alignment=alignment),
        objective=Objective(),
        bos=1,
        chunk=2,
    )
    net, params = network(tokens)
    exact = sampler_distribution(problem, net, params)
    assert exact.sum() == pytest.approx(1.0, abs=1e-5)
    data = all_data(tokens)
    log_p = np.log(exact[tuple(data.T)])
    # Nothing is left on MASK at the end.
    assert np.exp(log_p).sum() == pytest.approx(1.0, abs=1e-5)
    bound = enumerated_bound(problem, net, params, data)
    if schedule_name == "quenched AR":
        np.testing.assert_allclose(bound, -log_p, rtol=2e-5, atol=2e-6)
    else:
        assert np.all(bound >= -log_p - 1e-5)
        # A denoiser that has learnt nothing is far from tight: the bound is not the likelihood.
        assert np.max(bound + log_p) > 1e-3
