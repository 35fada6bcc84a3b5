"""The training estimator against the bound it estimates, its draws, and its sums in chunks."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from enumeration import LENGTH, SCHEDULES, Reader, all_sequences, kernels, quick_jit, spec_of

from hybrid_jax.method import chunked_loss, hyperschedule, noising
from hybrid_jax.method import loss as estimator
from hybrid_jax.method import objective as objectives
from hybrid_jax.method.objective import Bound, Draw, Objective

pytestmark = [pytest.mark.usefixtures("strict_promotion"), pytest.mark.slow]

TOKENS = 5
KERNELS = kernels(TOKENS)
TEXT = jnp.array([1, 0, 1], jnp.int32)


@functools.cache
def reader(tokens):
    network = Reader(vocab_size=tokens, length=LENGTH, strength=0.25)
    return network, network.init(seed=4)


def copies(count, key):
    """A batch of nothing but TEXT."""
    return estimator.Batch(
        jnp.broadcast_to(TEXT, (count, LENGTH)), jnp.arange(count), key, size=count
    )


def expected_terms(spec, phase, draw):
    """E over noisy sequences of the terms of TEXT, each sequence by its exact probability."""
    kernel = spec.kernel
    network, params = reader(kernel.vocab_size)
    noisy = jnp.asarray(all_sequences(kernel.vocab_size + 1, LENGTH))
    n = len(noisy)
    noised = estimator.Noised(
        tokens=jnp.broadcast_to(TEXT, (n, LENGTH)),
        noisy=noisy,
        phase=jnp.broadcast_to(phase, (n, spec.schedule.phase_groups)),
        draw=jax.tree.map(lambda x: jnp.broadcast_to(x, (n, LENGTH)), draw),
    )
    terms = estimator.drawn_terms(spec, network, params, noised).sum(1)
    log_q = jax.vmap(lambda x, t: noising.marginal(kernel, x, t))(TEXT, draw.level)
    chance = jnp.exp(log_q[jnp.arange(LENGTH), noisy].sum(1))
    return jnp.sum(jnp.where(chance > 0, chance * terms, 0.0))


def enumerated(spec, nodes=24):
    """The bound on −log p(TEXT): all phases and noisy sequences, nothing of `objective.draw`.

    In continuous time a whole step is integrated with the plain measure dλ; near λ = 1 the nodes
    v = w³ keep up with the integrand.
    """
    schedule = spec.schedule
    position = jnp.arange(LENGTH)
    if spec.objective.time == "continuous":
        w, weight = np.polynomial.legendre.leggauss(nodes)
        w, weight = (w + 1) / 2, weight / 2
        places, weights = np.maximum(w**3, 1e-6), weight * 3 * w**2
    else:
        places, weights = np.zeros(1), np.ones(1)

    def at(phase, place):
        step, _ = schedule.tile(phase)
        now = schedule.level(step, position) / schedule.levels
        after = schedule.level(step + 1, position) / schedule.levels
        draw = Draw(now - place * (now - after), after, now - after, now != after)
        return expected_terms(spec, phase, draw)

    phases = jnp.repeat(jnp.arange(schedule.phases)[:, None], schedule.phase_groups, axis=1)
    run = quick_jit(jax.vmap(jax.vmap(at, (None, 0)), (0, None)))
    values = np.asarray(run(phases, jnp.asarray(places, jnp.float32)), np.float64)
    return float(np.mean(values @ weights))


def estimated(spec, *, draws=128, batch=512):
    """Mean of the training estimator over independent batches, and its standard error."""
    network, params = reader(spec.kernel.vocab_size)

    def one(key):
        return estimator.batch_terms(spec, network, params, copies(batch, key)).sum(1).mean()

    run = quick_jit(lambda keys: jax.lax.map(one, keys))
    means = np.asarray(run(jax.random.split(jax.random.key(11), draws)), np.float64)
    return means.mean(), means.std(ddof=1) / np.sqrt(draws)


@pytest.mark.parametrize(
    ("schedule_name", "kernel_name", "alignment", "time"),
    [
        ("block", "epsilon", "shifted", "discrete"),
        ("custom", "gamma .1", "aligned", "discrete"),
        ("slide", "absorbing", "shifted", "continuous"),
    ],
)
def test_training_estimates_the_bound(schedule_name, kernel_name, alignment, time):
    spec = spec_of(schedule_name, kernels(2)[kernel_name], alignment, time=time)
    bound = enumerated(spec)
    mean, error = estimated(spec)
    assert error < 0.01 * bound
    assert abs(mean - bound) < 4 * error + 1e-3 * bound


def test_levels_drawn_inside_steps_stand_for_the_whole_step():
    """Averaging over the uniforms themselves: the density of the pushed-away place is made good.

    The context parameterisation, because a mean that ignores z costs ∫ dλ/λ at λ → 0.
    """
    kernel = kernels(2)["gamma .7"]
    spec = spec_of("block", kernel, "aligned", parameterisation="context", time="continuous")
    schedule = spec.schedule

    def at(u):
        phase, draw = objectives.draw(
            schedule, kernel, "continuous", jnp.broadcast_to(u, schedule.phase_groups)
        )
        return expected_terms(spec, phase, draw)

    uniforms = (jnp.arange(200, dtype=jnp.float32) + 0.5) / 200
    drawn = quick_jit(jax.vmap(at))(uniforms).mean()
    assert drawn == pytest.approx(enumerated(spec), rel=1e-2)


@pytest.mark.parametrize(
    ("schedule_name", "time"),
    [("flat", "continuous"), ("block", "discrete"), ("custom", "discrete")],
)
def test_absorbing_bound_of_a_blind_network_is_its_cross_entropy(schedule_name, time):
    """Any masked diffusion pays each position once: ∫ dλ P(masked)/λ = 1, and so for sums.

    Nothing is enumerated here, so this also fixes the scale of the estimate (`phases`).
    """
    spec = spec_of(schedule_name, noising.absorbing(vocab_size=2), "aligned", time=time)
    network, params = reader(2)
    blind = {name: np.zeros_like(value) for name, value in params.items()}
    logits = jnp.array([0.3, -0.8, 0.0])

    class Blind(Reader):
        def logits(self, params, features):
            return jnp.broadcast_to(logits, (*features.shape[:-1], 3))

    network = Blind(**dataclasses.asdict(network))
    terms = quick_jit(
        lambda key: estimator.batch_terms(spec, network, blind, copies(20_000, key)).sum(1)
    )(jax.random.key(0))
    wanted = -float(jax.nn.log_softmax(logits[:2])[TEXT].sum())
    error = float(terms.std()) / np.sqrt(len(terms))
    assert error < 0.02 * wanted
    assert abs(float(terms.mean()) - wanted) < 4 * error


def test_weighted_cross_entropy_is_what_the_loss_estimates_for_epsilon():
    """Its expectation for a blind network: both weights integrate to multiples of −log p."""
    kernel = noising.epsilon_hybrid(vocab_size=2, epsilon=0.2)
    settings = {"loss": "weighted_cross_entropy", "time": "continuous"}
    spec = spec_of("flat", kernel, "aligned", **settings)
    network, params = reader(2)
    blind = {name: np.zeros_like(value) for name, value in params.items()}
    terms = quick_jit(
        lambda key: estimator.batch_terms(spec, network, blind, copies(20_000, key)).sum(1)
    )(jax.random.key(0))
    # Masked: ∫ λ/λ = 1. Shown: replaced by another token ε/2, weight 1 − ε; kept 1 − ε/2, weight ε.
    wanted = LENGTH * np.log(2) * (1 + 0.1 * 0.8 + 0.9 * 0.2)
    error = float(terms.std()) / np.sqrt(len(terms))
    assert error < 0.02 * wanted
    assert abs(float(terms.mean()) - wanted) < 4 * error


# ---------------------------------------------------------------------------------------------
# Draws.


@pytest.mark.parametrize("name", ["flat", "block", "slide", "custom"])
def test_uniforms_of_a_batch_lie_one_in_each_stratum(name):
    schedule, count = SCHEDULES[name], 50
    key = jax.random.key(1)
    drawn = objectives.draw_uniforms(key, schedule, "discrete", count, jnp.arange(count))
    total = count * schedule.phase_groups
    assert drawn.shape == (count, schedule.phase_groups)
    np.testing.assert_array_equal(np.sort(np.floor(drawn * total).ravel()), np.arange(total))


def test_uniforms_of_each_example_are_uniform():
    """Moments of one example over many keys, at 5 standard errors."""
    draw = lambda k: objectives.draw_uniforms(  # noqa: E731
        k, SCHEDULES["block"], "continuous", 4, jnp.array([2])
    )
    drawn = np.asarray(quick_jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 20_000)))
    for group in range(2):
        u = drawn[:, 0, group]
        assert abs(u.mean() - 0.5) < 5 * np.sqrt(1 / 12 / len(u))
        assert abs((u**2).mean() - 1 / 3) < 5 * np.sqrt(4 / 45 / len(u))


def test_uniforms_of_some_examples_are_those_of_the_whole_batch():
    """Whoever asks for an example gets the same draw: noise does not depend on devices."""
    key = jax.random.key(3)
    draw = functools.partial(objectives.draw_uniforms, key, SCHEDULES["block"], "discrete", 16)
    some = jnp.array([3, 11, 12])
    np.testing.assert_array_equal(draw(some), draw(jnp.arange(16))[some])


@pytest.mark.parametrize("time", ["discrete", "continuous"])
@pytest.mark.parametrize("name", ["flat", "block"])
def test_levels_of_training_are_drawn_from_the_bell_and_those_of_bounds_are_not(name, time):
    """The draws of a batch are stratified, so each window's share below a level is exact to 1/n;
    a draw counts as often as the levels that it stands for."""
    count, schedule = 2000, SCHEDULES[name]
    spec = spec_of(name, KERNELS["absorbing"], "aligned", time=time, levels="bell")
    bell = scipy.stats.truncnorm(-1.5, 3.5, 0.3, 0.2).cdf
    laws = [(spec, lambda x: 0.2 * x + 0.8 * bell(x))]
    laws.append((spec.for_bound(Bound(kernel=spec.kernel, time=time)), lambda x: x))
    for spec, law in laws:
        run = quick_jit(lambda key, spec=spec: estimator.corrupt_batch(spec, copies(count, key)))
        draw = run(jax.random.key(1)).draw
        drawn, measure = (np.asarray(x)[:, [0, 2]] for x in (draw.level, draw.measure))
        steps = schedule.levels if time == "discrete" else 20
        for level in np.arange(1, steps + 1) / steps:
            below = drawn < level + 1e-3 * (time == "discrete")
            share = measure[below].sum() / measure.sum()
            assert share == pytest.approx(law(level), abs=2 / count)


def test_terms_follow_the_global_index_of_an_example():
    """The same for everything that is drawn, the noisy tokens included."""
    spec = spec_of("slide", KERNELS["gamma .7"], "aligned")
    network, params = reader(TOKENS)
    tokens = jax.random.randint(jax.random.key(5), (8, LENGTH), 0, TOKENS, jnp.int32)
    key = jax.random.key(6)
    run = quick_jit(
        lambda *examples: estimator.batch_terms(
            spec, network, params, estimator.Batch(*examples, key, size=8)
        )
    )
    whole = run(tokens, jnp.arange(8))
    other = jnp.array([6, 1, 3, 0, 2, 7, 5, 4])
    np.testing.assert_allclose(run(tokens[other], other), whole[other], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["slide", "custom"])
def test_continuous_levels_lie_inside_the_step_that_the_uniform_picks(name):
    schedule, kernel = SCHEDULES[name], KERNELS["gamma .7"]
    position = jnp.arange(LENGTH)
    drawn = quick_jit(lambda u: objectives.draw(schedule, kernel, "continuous", u))
    for u in (0.0, 0.21, 0.49, 0.51, 0.999):
        phase, draw = drawn(jnp.array([u]))
        assert phase[0] == int(schedule.phases * u)
        step, _ = schedule.tile(phase)
        now, after = (schedule.level(step + i, position) / schedule.levels for i in (0, 1))
        assert np.all(draw.level <= now)
        assert np.all(draw.level >= after)
        np.testing.assert_array_equal(draw.active, now != after)
        assert np.all((draw.level > 0) & (draw.level < 1) | ~draw.active)


def test_levels_are_pushed_away_from_full_noise_by_as_much_as_the_integrand_grows():
    """(1 − λ)^−c times the measure is the same for every level of one step from 1 to 1/2."""
    kernel, schedule = KERNELS["gamma .7"], hyperschedule.flat(length=LENGTH, levels=2)
    uniforms = jnp.array([[0.05], [0.2], [0.3], [0.45]])
    draw = quick_jit(jax.vmap(lambda u: objectives.draw(schedule, kernel, "continuous", u)[1]))(
        uniforms
    )
    scale = 0.5**0.3 / (1 - 0.7)
    np.testing.assert_allclose(draw.measure / (1 - draw.level) ** 0.7, scale, rtol=1e-3)


@pytest.mark.parametrize("name", ["flat", "block", "slide", "custom"])
def test_the_measure_falls_towards_level_0_as_the_root_of_the_level(name):
    """So that (measure/λ)², the square of what a masked position weighs, has a finite mean."""
    schedule, kernel = SCHEDULES[name], KERNELS["absorbing"]
    draw = quick_jit(
        jax.vmap(
            lambda u: objectives.draw(
                schedule, kernel, "continuous", jnp.broadcast_to(u, schedule.phase_groups)
            )[1]
        )
    )(jnp.linspace(0.01, 0.99, 60))
    settling = draw.active & (draw.level_next == 0)
    start = np.asarray(draw.level, np.float64)[settling]
    ratio = np.asarray(draw.measure, np.float64)[settling] / np.sqrt(start)
    # Of a step from level a to 0: 2 √a.
    steps = {2 * np.sqrt(k / schedule.levels) for k in range(1, schedule.levels + 1)}
    assert all(min(abs(found - step) for step in steps) < 1e-4 for found in ratio)
    assert len(ratio) > 10


def test_inactive_positions_contribute_nothing():
    """Neither to values nor, through whatever the network shows there, to gradients."""
    active = jnp.array([[True, False, True]])
    draw = Draw(
        level=jnp.array([[0.75, 0.0, 0.9]]),
        level_next=jnp.array([[0.5, 0.0, 0.25]]),
        measure=jnp.array([[0.25, 0.0, 0.65]]),
        active=active,
    )
    tokens = jnp.array([[1, 2, 3]])
    noisy = jnp.array([[4, 2, TOKENS]])

    def terms(features, time):
        term = functools.partial(Objective(time=time).term, KERNELS["gamma .1"])
        return chunked_loss.position_terms(
            term, lambda _, f: f, None, features, tokens, noisy, draw, chunk=2
        )

    features = jax.random.normal(jax.random.key(0), (1, LENGTH, TOKENS + 1))
    for time in ("discrete", "continuous"):
        run = quick_jit(lambda f: jax.vjp(functools.partial(terms, time=time), f))  # noqa: B023
        found, pull = run(features)
        assert np.all((found != 0) == active)
        (gradient,) = pull(jnp.ones_like(found))
        assert np.all(np.isfinite(gradient))
        assert np.all(np.any(gradient != 0, axis=-1) == active)


@pytest.mark.parametrize(
    ("time", "settings", "kernel"),
    [
        ("discrete", {}, "gamma .7"),
        ("continuous", {"parameterisation": "score"}, "gamma .1"),
        ("continuous", {"loss": "weighted_cross_entropy"}, "epsilon"),
    ],
)
def test_streaming_changes_neither_values_nor_gradients(time, settings, kernel):
    """Of sums whose gradients are taken while the logits exist, against whole rows at once."""
    term = functools.partial(Objective(time=time, **settings).term, KERNELS[kernel])
    key_tokens, key_states, key_level, *keys = jax.random.split(jax.random.key(5), 5)
    tokens = jax.random.randint(key_tokens, (2, 5), 0, TOKENS, jnp.int32)
    noisy = jax.random.randint(key_states, (2, 5), 0, TOKENS + 1, jnp.int32)
    level = jax.random.uniform(key_level, (2, 5), minval=0.1, maxval=0.9)
    draw = Draw(level, level / 2, level / 2, jnp.arange(10).reshape(2, 5) != 3)
    features, head = (
        jax.random.normal(k, shape)
        for k, shape in zip(keys, [(2, 5, 3), (3, TOKENS + 1)], strict=True)
    )
    run_head = lambda head, f: f @ head  # noqa: E731

    def plain(features, head):
        terms = chunked_loss.position_terms(
            term, run_head, head, features, tokens, noisy, draw, chunk=5
        )
        return 3.0 * terms.sum()

    def streamed(features, head, chunk):
        return 3.0 * chunked_loss.summed_terms(
            term, run_head, head, features, tokens, noisy, draw, chunk=chunk
        )

    value, gradients = quick_jit(jax.value_and_grad(plain, (0, 1)))(features, head)
    for chunk in (1, 2, 128):  # in chunks of 2, the 5 positions are padded to 6
        run = functools.partial(streamed, chunk=chunk)
        found, others = quick_jit(jax.value_and_grad(run, (0, 1)))(features, head)
        np.testing.assert_allclose(found, value, rtol=1e-5)
        if chunk == 2:
            np.testing.assert_allclose(quick_jit(run)(features, head), value, rtol=1e-5)
        for other, gradient in zip(others, gradients, strict=True):
            np.testing.assert_allclose(
                other, gradient, rtol=1e-4, atol=1e-5 * float(jnp.abs(gradient).max())
            )
    assert np.all(gradients[0][0, 3] == 0)


def test_the_training_loss_is_the_mean_of_the_terms():
    spec = spec_of("block", KERNELS["gamma .7"], "aligned")
    network, params = reader(TOKENS)
    tokens = jax.random.randint(jax.random.key(5), (8, LENGTH), 0, TOKENS, jnp.int32)
    batch = estimator.Batch(tokens, jnp.arange(8), jax.random.key(6), size=8)
    loss, terms = quick_jit(
        lambda params: [f(spec, network, params, batch)
                        for f in (estimator.batch_loss, estimator.batch_terms)]
    )(params)  # fmt: skip
    np.testing.assert_allclose(loss, terms.mean(), rtol=1e-5)
