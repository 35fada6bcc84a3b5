"""Noise kernels against dense matrix exponentials, Bayes' rule and float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from enumeration import data_posterior, dense_posterior, dense_transition, kernels, quick_jit

from hybrid_jax.errors import UserError
from hybrid_jax.method import noising, scores

pytestmark = pytest.mark.usefixtures("strict_promotion")

TOKENS = 4
KERNELS = kernels(TOKENS)
# (λs, λt), with both ends of the scale.
PAIRS = [(0.0, 0.01), (0.0, 0.6), (0.0, 1.0), (0.2, 0.25), (0.3, 0.9), (0.5, 1.0), (0.99, 1.0)]
STATES = jnp.arange(TOKENS + 1)
DATA = np.array([0.5, 0.1, 0.15, 0.25])


def each_kernel(*names):
    return pytest.mark.parametrize("kernel", [KERNELS[n] for n in names], ids=names)


every_kernel = each_kernel(*KERNELS)
masking_kernels = each_kernel("absorbing", "gamma .1", "gamma .7", "epsilon")
replacing_kernels = each_kernel("uniform", "gamma .1", "gamma .7", "epsilon")


def on_pairs(function, *axes):
    """Compiles function(kernel, *per-axis arguments, λs, λt), mapped over the axes and PAIRS."""
    low, high = (jnp.array(ends) for ends in zip(*PAIRS, strict=True))

    @functools.partial(quick_jit, static_argnums=0)
    def run(kernel):
        def at(low, high):
            inner = lambda *arguments: function(kernel, *arguments, low, high)  # noqa: E731
            for i in reversed(range(len(axes))):
                inner = jax.vmap(inner, [0 if i == j else None for j in range(len(axes))])
            return inner(*axes)

        return jax.vmap(at)(low, high)

    return lambda kernel: np.exp(np.asarray(run(kernel), np.float64))


transitions = on_pairs(noising.transition, STATES)
posteriors = on_pairs(noising.posterior, STATES[:-1], STATES)


def expect(actual, wanted, **tolerance):
    """Compares where the expected value exists (conditioning events of positive probability)."""
    exists = np.isfinite(wanted)
    assert exists.mean() > 0.1
    tolerance = {"rtol": 2e-5, "atol": 2e-7, **tolerance}
    np.testing.assert_allclose(actual[exists], wanted[exists], **tolerance)


# ---------------------------------------------------------------------------------------------
# Forward.


@every_kernel
def test_transition_is_the_exponential_of_the_rate_matrix(kernel):
    wanted = np.stack([dense_transition(kernel, low, high) for low, high in PAIRS])
    expect(transitions(kernel), wanted)


@every_kernel
def test_marginal_is_the_transition_from_level_0(kernel):
    for level in (0.01, 0.5, 1.0):
        found = jax.vmap(lambda x: noising.marginal(kernel, x, level))(STATES[:-1])  # noqa: B023
        expect(np.exp(found), dense_transition(kernel, 0.0, level)[:-1])


@every_kernel
def test_level_0_is_clean(kernel):
    """Also for ε, whose replacement happens only on leaving level 0."""
    clean = noising.marginal(kernel, 2, 0.0)
    np.testing.assert_array_equal(np.exp(clean), np.eye(TOKENS + 1)[2])


def test_full_noise_forgets_the_token():
    for name, kernel in KERNELS.items():
        noise = np.exp(noising.marginal(kernel, 1, 1.0))
        wanted = [0.25] * 4 + [0.0] if name == "uniform" else [0.0] * 4 + [1.0]
        np.testing.assert_allclose(noise, wanted, atol=1e-7, err_msg=name)


@every_kernel
def test_transitions_compose(kernel):
    """Chapman–Kolmogorov: going by way of a level in between changes nothing."""
    between = jax.vmap(noising.transition, (None, 0, None, None))
    for low, middle, high in [(0.0, 0.3, 0.8), (0.1, 0.4, 1.0), (0.0, 1e-3, 0.5)]:
        first = np.exp(between(kernel, STATES, low, middle))
        second = np.exp(between(kernel, STATES, middle, high))
        direct = np.exp(between(kernel, STATES, low, high))
        np.testing.assert_allclose(first @ second, direct, rtol=1e-5, atol=1e-6)


@every_kernel
@pytest.mark.parametrize("level", [0.1, 0.6, 1.0])
def test_corrupt_draws_from_the_marginal(kernel, level):
    draws, token = 40_000, 2
    tokens = jnp.full(draws, token, jnp.int32)
    noisy = noising.corrupt(kernel, jax.random.key(5), tokens, jnp.full(draws, level))
    assert noisy.dtype == jnp.int32
    counts = np.bincount(noisy, minlength=TOKENS + 1)
    assert len(counts) == TOKENS + 1  # nothing beyond MASK
    expected = draws * dense_transition(kernel, 0.0, level)[token]
    possible = expected > 1e-6
    # In particular uniform noise never draws MASK.
    assert counts[~possible].sum() == 0
    if possible.sum() > 1:
        test = scipy.stats.chisquare(counts[possible], expected[possible], sum_check=False)
        assert test.pvalue > 1e-5


@every_kernel
def test_corrupt_draws_each_position_at_its_own_level(kernel):
    level = jnp.tile(jnp.array([0.0, 0.9]), 2000)
    noisy = noising.corrupt(kernel, jax.random.key(0), jnp.zeros(4000, jnp.int32), level)
    assert np.all(noisy[::2] == 0)
    assert np.mean(noisy[1::2] != 0) > 0.6


@pytest.mark.parametrize("name", ["absorbing", "uniform", "gamma .1", "gamma .7"])
def test_rates_are_the_derivatives_of_the_survivals(name):
    """−d log A/dσ and −d log B/dσ, and −dA/dλ, by differences."""
    kernel, level = KERNELS[name], jnp.array([0.1, 0.5, 0.9])
    move = kernel.survival_between(level, level + 1e-3 * (1 - level))
    sigma = -np.log1p(-1e-3)
    masking, replacing = kernel.rates(level)
    np.testing.assert_allclose(-jnp.log(move.unmasked) / sigma, masking, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(-jnp.log(move.kept) / sigma, replacing, rtol=1e-3, atol=1e-6)
    density = kernel.survival(level).unmasked * move.masked / (1e-3 * (1 - level))
    np.testing.assert_allclose(kernel.masking_density(level), density, rtol=1e-3, atol=1e-6)


def test_kernels_say_what_can_happen_to_a_token():
    found = {name: (k.masks, k.replaces, k.jumps_at_zero) for name, k in KERNELS.items()}
    for name, kernel in KERNELS.items():
        reached = dense_transition(kernel, 0.0, 0.5)[0] > 1e-12
        leap = 1.0 - dense_transition(kernel, 0.0, 1e-9)[0, 0] > 1e-6
        assert found[name] == (reached[-1], reached[1], leap), name


# ---------------------------------------------------------------------------------------------
# Reverse.


@every_kernel
def test_posterior_is_bayes_rule(kernel):
    wanted = np.stack([dense_posterior(kernel, low, high) for low, high in PAIRS])
    expect(posteriors(kernel), wanted, rtol=1e-4)


@masking_kernels
def test_reveal_probability_is_that_of_leaving_mask(kernel):
    for low, high in PAIRS:
        leaves = 1.0 - dense_posterior(kernel, low, high)[0, -1, -1]
        reveal = noising.reveal_probability(kernel, low, high)
        np.testing.assert_allclose(reveal, leaves, rtol=2e-5)


@every_kernel
def test_reverse_mean_mixes_the_posteriors(kernel):
    log_p = jnp.log(jnp.asarray(DATA, jnp.float32))
    run = on_pairs(lambda k, z, low, high: noising.reverse_mean(k, log_p, z, low, high), STATES)
    wanted = np.stack(
        [np.einsum("x,xts->ts", DATA, dense_posterior(kernel, low, high)) for low, high in PAIRS]
    )
    expect(run(kernel), wanted, rtol=1e-4)


@replacing_kernels
def test_token_step_weights_choose_as_the_posterior(kernel):
    """The four ways to step down from a shown token, for a draw x̂ equal to it or not."""
    shown = 1
    for low, high in [(0.0, 0.6), (0.3, 0.9), (0.2, 0.25)]:
        weight = jax.tree.map(float, noising.token_step(kernel, low, high))
        wanted = dense_posterior(kernel, low, high)
        for clean in (0, shown):
            chance = np.full(TOKENS + 1, weight.redraw_uniform / TOKENS)
            chance[-1] = 0.0
            chance[clean] += weight.take_clean
            chance[shown] += weight.keep + (clean == shown) * weight.keep_if_equal
            np.testing.assert_allclose(chance / chance.sum(), wanted[clean, shown], rtol=1e-4)


# ---------------------------------------------------------------------------------------------
# Scores.


def true_ratios(kernel, level):
    """q_t(y) / q_t(z) of the data's marginals over real tokens, [z, y]."""
    mixed = DATA @ dense_transition(kernel, 0.0, level)[:-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = mixed[None, :-1] / mixed[:, None]
    return np.where(mixed[:, None] > 1e-25, ratios, np.nan)


@every_kernel
@pytest.mark.parametrize("level", [0.01, 0.5, 0.99])
def test_score_of_the_true_posterior_is_the_ratio_of_marginals(kernel, level):
    log_p = jnp.log(jnp.asarray(data_posterior(kernel, DATA, level), jnp.float32))
    found = jax.vmap(lambda p, z: scores.score_of_mean(kernel, p, z, level))(log_p, STATES)
    wanted = true_ratios(kernel, level)
    if not kernel.replaces:
        wanted[:-1] = np.nan  # a shown token is right: no score is asked for
    expect(np.exp(np.asarray(found, np.float64)), wanted, rtol=1e-4)


@every_kernel
@pytest.mark.parametrize("level", [0.01, 0.5, 0.99])
def test_true_score_is_the_ratio_of_transition_probabilities(kernel, level):
    """Its three values (y = x, y = z, any other y) cover every ratio q(y|x)/q(z|x)."""
    reach = dense_transition(kernel, 0.0, level)
    for token in range(2):
        for state in (0, 1, 2, TOKENS):
            if reach[token, state] == 0:
                continue
            clean, same, other = np.exp(scores.true_score(kernel, token, state, level))
            for y in range(TOKENS):
                value = same if y == state else clean if y == token else other
                ratio = reach[token, y] / reach[token, state]
                np.testing.assert_allclose(value, ratio, rtol=2e-5)


@every_kernel
def test_reverse_score_of_true_scores_is_the_posterior_of_the_data(kernel):
    for low, high in [(0.0, 0.01), (0.0, 0.6), (0.2, 0.25), (0.3, 0.9)]:
        ratios = true_ratios(kernel, high)
        log_score = jnp.asarray(np.log(np.where(ratios > 0, ratios, 1e-30)), jnp.float32)
        step = jax.vmap(lambda s, z: scores.reverse_score(kernel, s, z, low, high))(  # noqa: B023
            log_score, STATES
        )
        before = DATA @ dense_transition(kernel, 0.0, low)[:-1]
        joint = (before[:, None] * dense_transition(kernel, low, high)).T
        joint[joint.sum(1) < 1e-25] = np.nan
        expect(np.exp(step), joint / joint.sum(1, keepdims=True), rtol=1e-3, atol=1e-5)


@every_kernel
def test_reverse_score_of_any_scores_is_a_distribution_without_mask_at_level_0(kernel):
    log_score = 3.0 * jax.random.normal(jax.random.key(2), (50, TOKENS))
    to_clean = jax.vmap(lambda s, z: scores.reverse_score(kernel, s, z, 0.0, 0.4), (None, 0))
    chance = np.exp(quick_jit(jax.vmap(to_clean, (0, None)))(log_score, STATES))
    possible = chance if kernel.masks else chance[:, :-1]
    np.testing.assert_allclose(possible.sum(-1), 1.0, rtol=1e-5)
    assert np.all(chance[..., -1] == 0)


# ---------------------------------------------------------------------------------------------
# Float32, at the size of a real vocabulary.

MANY = 50_257
HARD_LEVELS = [1e-6, 1e-4, 0.5, 1 - 1e-4, 1 - 1e-6, 1.0]


def survival_64(kernel, level_t, level_s):
    """a and b between two float32 levels, in float64."""
    r = (1.0 - np.float64(np.float32(level_s))) / (1.0 - np.float64(np.float32(level_t)))
    jump = 1.0 - kernel.epsilon if level_t == 0 and level_s > 0 else 1.0
    return r ** (1.0 - kernel.gamma), r**kernel.gamma * jump


def reverse_mean_64(kernel, p, state, low, high):
    """Σ_x p(x) q(z_s | z_t, x) in float64 from sums over x, without any case distinction."""
    n = kernel.vocab_size
    a_low, b_low = survival_64(kernel, 0.0, low)
    a_high, b_high = survival_64(kernel, 0.0, high)
    a, b = survival_64(kernel, low, high)
    if state == n:
        reach = np.full(n, 1.0 - a_high)
        arrive = np.full(n, 1.0 - a)
    else:
        reach = np.full(n, a_high * (1.0 - b_high) / n)
        reach[state] += a_high * b_high
        arrive = np.full(n, a * (1.0 - b) / n)
        arrive[state] += a * b
    share = p / reach
    tokens = a_low * (b_low * share + (1.0 - b_low) / n * share.sum()) * arrive
    return np.append(tokens, (1.0 - a_low) * share.sum() if state == n else 0.0)


@functools.partial(quick_jit, static_argnums=0)
def everything_at(kernel, log_p, state, low, high):
    return {
        "marginal": noising.marginal(kernel, 7, high),
        "transition": noising.transition(kernel, 7, low, high),
        "posterior": noising.posterior(kernel, 7, state, low, high),
        "reverse_mean": noising.reverse_mean(kernel, log_p, state, low, high),
    }


@functools.cache
def confident_prediction():
    """log p over a real vocabulary: one likely token, a long uneven tail."""
    scores = np.random.default_rng(0).normal(size=MANY) * 2.0
    scores[7] += 14.0
    return scores - np.log(np.exp(scores).sum())


@pytest.mark.parametrize("level", HARD_LEVELS)
@pytest.mark.parametrize("name", ["gamma", "uniform", "epsilon", "absorbing"])
def test_float32_is_exact_over_a_real_vocabulary(name, level):
    kernel = {
        "gamma": noising.gamma_hybrid(vocab_size=MANY, gamma=0.01),
        "uniform": noising.uniform(vocab_size=MANY),
        "epsilon": noising.epsilon_hybrid(vocab_size=MANY, epsilon=0.01),
        "absorbing": noising.absorbing(vocab_size=MANY),
    }[name]
    log_p = confident_prediction()
    p = np.exp(log_p)
    shown = [] if not kernel.replaces or (level == 1 and name != "uniform") else [7, 11]
    hidden = [] if name == "uniform" else [kernel.mask]
    for state in shown + hidden:
        for low in (0.0, 0.75 * level):
            found = everything_at(kernel, jnp.asarray(log_p, jnp.float32), state, low, level)
            for what, values in found.items():
                total = np.exp(np.asarray(values, np.float64)).sum()
                assert total == pytest.approx(1.0, abs=1e-5), (what, state, low)
            wanted = reverse_mean_64(kernel, p, state, low, level)
            actual = np.exp(np.asarray(found["reverse_mean"], np.float64))
            np.testing.assert_allclose(actual, wanted, rtol=3e-4, atol=1e-12)


@pytest.mark.parametrize("level", HARD_LEVELS)
def test_survival_and_its_complements_keep_their_digits(level):
    for kernel in kernels(MANY).values():
        unmasked, kept = survival_64(kernel, 0.0, level)
        at = kernel.survival(level)
        for actual, wanted in [
            (at.unmasked, unmasked),
            (at.kept, kept),
            (at.masked, 1.0 - unmasked),
            (at.replaced, 1.0 - kept),
        ]:
            np.testing.assert_allclose(actual, wanted, rtol=2e-5, atol=1e-12)


@every_kernel
def test_gradients_of_the_reverse_step_are_finite(kernel):
    """Impossible next states have log-probability −inf: they must not turn gradients into nan."""

    def likelihood(logits, state, low, high):
        log_step = noising.reverse_mean(kernel, jax.nn.log_softmax(logits), state, low, high)
        possible = log_step > -jnp.inf
        return jnp.sum(jnp.where(possible, log_step, 0.0))

    logits = jnp.array([3.0, -2.0, 0.5, 40.0])
    low, high = (jnp.array(ends) for ends in zip(*PAIRS, strict=True))
    of_state = jax.vmap(jax.grad(likelihood), (None, 0, None, None))
    gradient = quick_jit(jax.vmap(of_state, (None, None, 0, 0)))(logits, STATES, low, high)
    assert np.all(np.isfinite(gradient))
    assert np.any(gradient != 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vocab_size": 1}, "at least 2 tokens"),
        ({"gamma": 1.5}, "gamma must lie in"),
        ({"gamma": -0.1}, "gamma must lie in"),
        ({"epsilon": 1.0}, "epsilon must lie in"),
        ({"epsilon": -0.5}, "epsilon must lie in"),
        ({"gamma": 0.1, "epsilon": 0.1}, "cannot both be positive"),
    ],
)
def test_kernels_without_meaning_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        noising.Hybrid(**{"name": "test", "vocab_size": 5, **arguments})
