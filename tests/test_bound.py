"""The bound against brute force: enumerate what the sampler generates, and what training sees.

For two or three tokens and three positions every noisy sequence is enumerated. The sampler's exact
p(x) comes from a chain over all states, with predictions from *generation* rows; the bound comes
from *training* rows, with all phases and all noisy sequences weighted by their exact probability.
The two sides share only the kernels, whose own tests compare them with matrix exponentials.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from enumeration import (
    LENGTH,
    POSITIONS,
    SCHEDULES,
    all_sequences,
    kernels,
    quick_jit,
    reader,
    sampler_distribution,
    spec_of,
)

from hybrid_jax.method import hyperschedule, noising
from hybrid_jax.method import loss as estimator
from hybrid_jax.method.objective import Draw
from hybrid_jax.models.transformer import Transformer

pytestmark = [pytest.mark.usefixtures("strict_promotion"), pytest.mark.slow]


@functools.cache
def transformer(tokens):
    """A small transformer with large random weights."""
    network = Transformer(vocab_size=tokens, layers=2, width=16, heads=2, condition=8)
    leaves, tree = jax.tree.flatten(jax.jit(network.init)(jax.random.key(7)))
    keys = jax.random.split(jax.random.key(3), len(leaves))
    wild = [
        leaf + 0.4 * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)
    ]
    return network, jax.tree.unflatten(tree, wild)


def enumerated_bound(spec, network, params, data, given=(-1,) * LENGTH):
    """Σ over phases and noisy sequences, weighted exactly: the mean of the training estimator.

    `given`: tokens of all `data` that are never corrupted, −1 where there is none.
    """
    phases = all_sequences(spec.schedule.phases, spec.schedule.phase_groups)
    free = np.array(given) < 0
    states = all_sequences(spec.kernel.vocab_size + 1, LENGTH)
    states = states[np.all(free | (states == given), axis=1)]
    parts = _weighted_terms(spec, network, params, *map(jnp.asarray, (data, phases, states, free)))
    return np.asarray(parts, np.float64).mean(1)


@functools.partial(quick_jit, static_argnums=(0, 1))
def _weighted_terms(spec, network, params, data, phases, states, free):
    schedule, kernel, n = spec.schedule, spec.kernel, len(states)

    def total(tokens, phase):
        step, _ = schedule.tile(phase)
        level = schedule.level(step, POSITIONS) / schedule.levels
        after = schedule.level(step + 1, POSITIONS) / schedule.levels
        draw = Draw(level, after, level - after, (level != after) & free)
        noised = estimator.Noised(
            tokens=jnp.broadcast_to(tokens, (n, LENGTH)),
            noisy=states,
            phase=jnp.broadcast_to(phase, (n, schedule.phase_groups)),
            draw=jax.tree.map(lambda x: jnp.broadcast_to(x, (n, LENGTH)), draw),
        )
        terms = estimator.drawn_terms(spec, network, params, noised).sum(1)
        log_q = jax.vmap(lambda x, t: noising.marginal(kernel, x, t))(tokens, level)
        weight = jnp.exp(jnp.where(free, log_q[POSITIONS, states], 0.0).sum(1))
        return jnp.sum(jnp.where(weight > 0, weight * terms, 0.0))

    return jax.vmap(jax.vmap(total, (None, 0)), (0, None))(data, phases)


def bound_and_likelihood(spec, network, params):
    """For every text: its bound, and −log p of the sampler."""
    exact = sampler_distribution(spec, network, params)
    assert exact.sum() == pytest.approx(1.0, abs=1e-5)
    data = all_sequences(spec.kernel.vocab_size, LENGTH)
    p = exact[tuple(data.T)]
    # Nothing is left on MASK at the end.
    assert p.sum() == pytest.approx(1.0, abs=1e-5)
    with np.errstate(divide="ignore"):
        return enumerated_bound(spec, network, params, data), -np.log(p)


def check(spec, network, params, *, exact):
    bound, surprise = bound_and_likelihood(spec, network, params)
    if exact:
        np.testing.assert_allclose(bound, surprise, rtol=2e-5, atol=5e-6)
        return
    assert np.all(bound >= surprise - 1e-5)
    # A denoiser that has learnt nothing is far from tight: the bound is not the likelihood.
    finite = np.isfinite(bound)
    assert not finite.all() or np.max(bound - surprise) > 1e-3


KERNEL_NAMES = ["absorbing", "uniform", "gamma .1", "epsilon"]
# Every schedule with two kernels, in alternating alignments; autoregression with all.
CASES = [
    (schedule_name, kernel_name, alignment)
    for i, schedule_name in enumerate(SCHEDULES)
    for j, kernel_name in enumerate(KERNEL_NAMES)
    for k, alignment in enumerate(["aligned", "shifted"])
    if (i + j + 2 * k) % 4 == 0 or (i == 0 and (j == 1 or (j + k) % 2 == 0))
]


@pytest.mark.parametrize(("schedule_name", "kernel_name", "alignment"), CASES)
def test_bound_holds_and_is_exact_for_autoregression(schedule_name, kernel_name, alignment):
    spec = spec_of(schedule_name, kernels(2)[kernel_name], alignment)
    # Full uniform noise is a random token, and aligned rows show it to the network: p(x) is then a
    # mixture over that token, of which the bound takes the logarithm inside (Jensen).
    random_input = kernel_name == "uniform" and alignment == "aligned"
    exact = schedule_name == "quenched AR" and not random_input
    check(spec, *reader(2), exact=exact)


@pytest.mark.parametrize(
    ("schedule_name", "kernel_name", "alignment"),
    [
        ("quenched AR", "gamma .1", "aligned"),
        ("flat", "absorbing", "shifted"),
        ("slide", "gamma .1", "aligned"),
    ],
)
def test_bound_holds_for_scores(schedule_name, kernel_name, alignment):
    """Clamped entries make some texts impossible: then both sides may be infinite."""
    kernel = kernels(2)[kernel_name]
    spec = spec_of(schedule_name, kernel, alignment, parameterisation="score")
    check(spec, *reader(2), exact=schedule_name == "quenched AR")


def test_bound_holds_for_the_context_parameterisation():
    kernel = kernels(2)["gamma .7"]
    spec = spec_of("slide", kernel, "aligned", parameterisation="context")
    check(spec, *reader(2), exact=False)


@pytest.mark.parametrize("alignment", ["aligned", "shifted"])
@pytest.mark.parametrize("schedule_name", ["quenched AR", "block"])
def test_bound_holds_for_block_causal_context(schedule_name, alignment):
    spec = spec_of(schedule_name, kernels(2)["absorbing"], alignment, context="block_causal")
    check(spec, *reader(2), exact=schedule_name == "quenched AR")


def test_bound_holds_for_three_tokens():
    check(spec_of("slide", kernels(3)["gamma .1"], "shifted"), *reader(3), exact=False)


def test_bound_holds_for_a_transformer():
    check(spec_of("slide", kernels(2)["gamma .1"], "shifted"), *transformer(2), exact=False)


GIVEN = [(1, -1, -1), (0, 1, -1), (-1, 0, -1), (1, -1, 0)]


@pytest.mark.parametrize(
    ("schedule_name", "kernel_name", "alignment"),
    [
        ("quenched AR", "absorbing", "shifted"),
        ("flat", "absorbing", "aligned"),
        ("block", "epsilon", "shifted"),
        ("slide", "gamma .1", "aligned"),
        ("custom", "absorbing", "shifted"),
    ],
)
def test_bound_holds_given_tokens_that_the_sampler_keeps(schedule_name, kernel_name, alignment):
    """−log p(rest | given) of the sampler that keeps what is given, for prompts and for gaps. The
    sum over all ways to go on is at most 1, and 1 for autoregression behind a prompt."""
    spec = spec_of(schedule_name, kernels(2)[kernel_name], alignment)
    network, params = reader(2)
    for given in GIVEN:
        exact = sampler_distribution(spec, network, params, given)
        data = all_sequences(2, LENGTH)
        data = data[np.all((np.array(given) < 0) | (data == given), axis=1)]
        p = exact[tuple(data.T)]
        assert p.sum() == pytest.approx(1.0, abs=1e-5)
        bound = enumerated_bound(spec, network, params, data, given)
        with np.errstate(divide="ignore"):
            assert np.all(bound >= -np.log(p) - 1e-5)
        if schedule_name == "quenched AR":
            np.testing.assert_allclose(bound, -np.log(p), rtol=2e-5, atol=5e-6)
        assert np.exp(-bound).sum() <= 1 + 1e-5


def corrupted(spec, batch):
    """The noised examples, from a compiled program."""
    run = quick_jit(lambda key: estimator.corrupt_batch(spec, batch._replace(key=key)))
    return run(batch.key)


def test_given_tokens_are_not_corrupted_and_have_no_term():
    spec = spec_of("block", kernels(3)["epsilon"], "aligned")
    count = 400
    tokens = jnp.broadcast_to(jnp.array([0, 1, 2]), (count, LENGTH))
    given = jnp.broadcast_to(jnp.array([False, True, False]), (count, LENGTH))
    batch = estimator.Batch(tokens, jnp.arange(count), jax.random.key(0), count)
    plain, noised = (corrupted(spec, batch._replace(given=x)) for x in (None, given))
    np.testing.assert_array_equal(noised.noisy[:, 1], 1)
    assert np.any(plain.noisy[:, 1] != 1)
    np.testing.assert_array_equal(noised.noisy[:, ::2], plain.noisy[:, ::2])
    assert not np.any(noised.draw.active[:, 1])
    np.testing.assert_array_equal(noised.draw.active[:, ::2], plain.draw.active[:, ::2])
    network, params = reader(3)
    terms = quick_jit(
        lambda params: estimator.batch_terms(spec, network, params, batch._replace(given=given))
    )(params)
    np.testing.assert_array_equal(terms[:, 1], 0)
    assert np.any(terms[:, 0] > 0)


@pytest.mark.parametrize(
    ("alignment", "schedule_name"),
    [
        ("shifted", "quenched AR"),
        ("aligned", "flat"),
        ("shifted", "block"),
        ("aligned", "slide"),
        ("shifted", "custom"),
    ],
)
def test_positions_behind_the_length_do_not_exist(alignment, schedule_name):
    """The terms are those of the hyperschedule's beginning, whatever stands behind."""
    spec = spec_of(schedule_name, kernels(2)["gamma .1"], alignment)
    if schedule_name == "custom":  # one that settles from left to right: nothing behind widens it
        rising = [[4, 4, 4], [2, 4, 4], [2, 3, 4], [0, 3, 3], [0, 1, 1], [0, 0, 0]]
        spec = dataclasses.replace(spec, schedule=hyperschedule.custom(rising))
    schedule, length = spec.schedule, 2
    short = dataclasses.replace(spec, schedule=hyperschedule.beginning(schedule, length))
    network, params = reader(2)
    count = 24
    tokens = jax.random.randint(jax.random.key(1), (count, LENGTH), 0, 2)
    batch = estimator.Batch(tokens, jnp.arange(count), jax.random.key(2), count)
    batch = batch._replace(length=jnp.full(count, length))
    noised = corrupted(spec, batch)
    assert not np.any(noised.draw.active[:, length:])
    terms = quick_jit(estimator.drawn_terms, static_argnums=(0, 1))
    found = terms(spec, network, params, noised)
    other = noised._replace(tokens=noised.tokens.at[:, length:].set(0),
                            noisy=noised.noisy.at[:, length:].set(1))  # fmt: skip
    np.testing.assert_array_equal(found, terms(spec, network, params, other))
    wanted = terms(
        short,
        network,
        params,
        estimator.Noised(
            tokens=tokens[:, :length],
            noisy=noised.noisy[:, :length],
            phase=noised.phase[:, : short.schedule.phase_groups],
            draw=jax.tree.map(lambda x: x[:, :length], noised.draw),
        ),
    )
    scale = short.schedule.phases / schedule.phases
    np.testing.assert_allclose(found[:, :length] * scale, wanted, rtol=1e-4, atol=1e-5)
    assert np.any(found > 0)
