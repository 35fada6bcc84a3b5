"""Terms of the bound against brute force, and objectives without meaning."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from enumeration import (
    data_posterior,
    dense_posterior,
    dense_transition,
    kernels,
    quick_jit,
    spec_of,
)

from hybrid_jax.errors import UserError
from hybrid_jax.method import noising, scores
from hybrid_jax.method.layout import Layout
from hybrid_jax.method.objective import Objective

pytestmark = pytest.mark.usefixtures("strict_promotion")

TOKENS = 5
DATA = np.array([0.55, 0.2, 0.12, 0.1, 0.03])
OTHER = np.array([0.1, 0.3, 0.2, 0.15, 0.25])  # a wrong belief about the data
ENTROPY = -np.sum(DATA * np.log(DATA))
KERNELS = kernels(TOKENS)
STATES = np.arange(TOKENS + 1)


def posterior_of(kernel, prior, level):
    """p(x | z) of a prior [N] at one level, [z, x]; uniform where z is impossible."""
    return np.nan_to_num(data_posterior(kernel, prior, level), nan=1.0 / TOKENS)


def log_scores_of(kernel, prior, level):
    """log q_t(y)/q_t(z) over real tokens for a prior, [z, y]."""
    mixed = prior @ dense_transition(kernel, 0.0, level)[:-1]
    mixed = np.log(np.maximum(mixed, 1e-30))
    return mixed[None, :-1] - mixed[:, None]


def logits_of(parameterisation, kernel, prior, level):
    """Logits [z, N] of a network that holds exactly this belief about the clean token."""
    if parameterisation == "mean":
        return np.log(np.maximum(posterior_of(kernel, prior, level), 1e-30))
    if parameterisation == "context":
        return np.broadcast_to(np.log(prior), (TOKENS + 1, TOKENS))
    odds = np.log(level) - np.log1p(-level)
    return log_scores_of(kernel, prior, level) + odds + np.log(TOKENS)


# Terms for all pairs of level, state and clean token at once: [levels, z, x].


def continuous_terms(objective, kernel, logits, levels):
    term = functools.partial(objective.continuous_term, kernel)
    over_tokens = jax.vmap(term, (None, 0, None, None))
    over_states = jax.vmap(over_tokens, (0, None, 0, None))
    tokens, noisy = jnp.arange(kernel.vocab_size), jnp.arange(kernel.vocab_size + 1)
    return jax.vmap(over_states, (0, None, None, 0))(logits, tokens, noisy, levels)


def discrete_terms(objective, kernel, logits, levels, levels_next):
    term = functools.partial(objective.discrete_term, kernel)
    over_tokens = jax.vmap(term, (None, 0, None, None, None))
    over_states = jax.vmap(over_tokens, (0, None, 0, None, None))
    tokens, noisy = jnp.arange(kernel.vocab_size), jnp.arange(kernel.vocab_size + 1)
    return jax.vmap(over_states, (0, None, None, 0, 0))(logits, tokens, noisy, levels, levels_next)


run_continuous = quick_jit(continuous_terms, static_argnums=(0, 1))
run_discrete = quick_jit(discrete_terms, static_argnums=(0, 1))


def expectation(kernel, terms, levels):
    """E over x ~ data and z ~ q(· | x) of terms [levels, z, x], for each level."""
    chance = np.stack([dense_transition(kernel, 0.0, t)[:-1] for t in levels])
    joint = DATA[None, :, None] * chance
    terms = np.asarray(terms, np.float64).transpose(0, 2, 1)
    return np.sum(np.where(joint > 0, joint * np.where(joint > 0, terms, 0.0), 0.0), axis=(1, 2))


def continuous_bound(objective, kernel, logits_at, nodes=200):
    """∫ dλ of the expected term over (0, 1), for one position on its own.

    λ = 3t² − 2t³ spreads the nodes out where the integrand is steep, at both ends.
    """
    t = (np.arange(nodes) + 0.5) / nodes
    levels = np.float64(np.float32(3 * t**2 - 2 * t**3))
    weight = 6 * t * (1 - t) / nodes
    logits = jnp.asarray(np.stack([logits_at(level) for level in levels]), jnp.float32)
    terms = run_continuous(objective, kernel, logits, jnp.asarray(levels, jnp.float32))
    return np.sum(weight * expectation(kernel, terms, levels))


def discrete_bound(objective, kernel, logits_at, steps):
    """Σ over T equal steps of the expected term, for one position on its own."""
    levels = np.arange(1, steps + 1) / steps
    logits = jnp.asarray(np.stack([logits_at(level) for level in levels]), jnp.float32)
    low = jnp.asarray(levels - 1 / steps, jnp.float32)
    terms = run_discrete(objective, kernel, logits, jnp.asarray(levels, jnp.float32), low)
    return np.sum(expectation(kernel, terms, levels))


# ---------------------------------------------------------------------------------------------
# One position: what the bound must be.


@pytest.mark.parametrize(
    ("gamma", "parameterisation"),
    [
        *((gamma, "mean") for gamma in (0.0, 0.01, 0.05, 0.1, 0.5, 1.0)),
        *((gamma, "score") for gamma in (0.0, 0.1, 1.0)),
    ],
)
def test_score_entropy_of_true_scores_integrates_to_the_entropy_of_the_data(
    gamma, parameterisation
):
    kernel = noising.gamma_hybrid(vocab_size=TOKENS, gamma=gamma)
    found = continuous_bound(
        Objective(parameterisation=parameterisation),
        kernel,
        lambda level: logits_of(parameterisation, kernel, DATA, level),
    )
    assert found == pytest.approx(ENTROPY, rel=1e-3)


@pytest.mark.parametrize("parameterisation", ["mean", "context"])
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS.keys())
def test_discrete_bound_of_a_wrong_belief_is_its_cross_entropy(kernel, parameterisation):
    """One belief about the clean token makes one joint model: every chain pays the same for it."""
    found = discrete_bound(
        Objective(parameterisation=parameterisation),
        kernel,
        lambda level: logits_of(parameterisation, kernel, OTHER, level),
        steps=5,
    )
    assert found == pytest.approx(-np.sum(DATA * np.log(OTHER)), rel=1e-4)


@pytest.mark.parametrize(
    ("name", "parameterisation"),
    [("absorbing", "score"), ("uniform", "mean"), ("gamma .1", "mean"), ("gamma .1", "score")],
)
def test_discrete_bound_tends_to_the_continuous_one(name, parameterisation):
    """For a network whose belief depends on the level, so that the number of steps matters."""
    kernel = KERNELS[name]
    objective = Objective(parameterisation=parameterisation)

    def logits_at(level):
        belief = DATA ** (1 - level) * OTHER**level
        # Scores tell nothing at full noise itself, and are read just below it.
        reading = scores.HIGHEST_SCORE_LEVEL if level == 1 else level
        return logits_of(parameterisation, kernel, belief / belief.sum(), reading)

    limit = continuous_bound(objective, kernel, logits_at)
    gaps = [abs(discrete_bound(objective, kernel, logits_at, steps) - limit) for steps in (4, 200)]
    assert gaps[0] > 3e-3
    assert gaps[1] < 2e-3 * limit


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bent(noising.NoiseKernel):
    """Masking with A = 1 − λ², without rates."""

    replaces = False

    def survival_between(self, level_s, level_t):
        low, high = (jnp.square(jnp.asarray(x, jnp.float32)) for x in (level_s, level_t))
        masked = (high - low) / (1 - low)
        nothing = jnp.zeros_like(masked)
        return noising.Survival(
            unmasked=1 - masked, kept=nothing + 1, masked=masked, replaced=nothing
        )


class BentWithRates(Bent):
    def rates(self, level):
        return noising.Rates(masking=2 * level / (1 + level), replacing=0.0)


@pytest.mark.parametrize("parameterisation", ["mean", "score"])
def test_score_entropy_of_other_masking_integrates_to_the_entropy_of_the_data(parameterisation):
    """Masking alone does not see how fast it comes: the bound is that of A = 1 − λ."""
    kernel = BentWithRates(name="bent", vocab_size=TOKENS)
    levels, weight = np.polynomial.legendre.leggauss(200)
    levels, weight = (levels + 1) / 2, weight / 2
    objective = Objective(parameterisation=parameterisation)
    survival = kernel.survival(jnp.asarray(levels, jnp.float32))
    masked = np.asarray(survival.masked, np.float64)[:, None]
    if parameterisation == "mean":
        logits = np.broadcast_to(np.log(DATA), (len(levels), TOKENS))
    else:  # of MASK: A p / (1 − A), with the odds of the level that scores are read by
        odds = np.log(levels / (1 - levels))[:, None] + np.log(TOKENS)
        logits = np.log((1 - masked) / masked * DATA) + odds
    logits = jnp.asarray(np.repeat(logits[:, None], TOKENS + 1, axis=1), jnp.float32)
    terms = run_continuous(objective, kernel, logits, jnp.asarray(levels, jnp.float32))
    hidden = np.asarray(terms[:, TOKENS], np.float64) @ DATA * masked[:, 0]
    assert hidden @ weight == pytest.approx(ENTROPY, rel=1e-3)


# ---------------------------------------------------------------------------------------------
# One term.


def dense_reverse_score(kernel, log_score, low, high):
    """The Tweedie step [z, z_s] from a dense matrix inverse, clamped and normalised."""
    high = min(high, scores.HIGHEST_SCORE_LEVEL)
    move = dense_transition(kernel, low, high)
    step = np.zeros((TOKENS + 1, TOKENS + 1))
    for z in STATES:
        reach = np.append(np.exp(log_score[z]), 1.0 if z == TOKENS else 0.0)
        reach[z] = 1.0
        back = reach @ np.linalg.inv(move)
        if low == 0:
            back[-1] = 0.0  # data holds no MASK
        step[z] = np.maximum(back * move[:, z], 0.0)
    return step / np.maximum(step.sum(1, keepdims=True), 1e-300)


@pytest.mark.parametrize("parameterisation", ["mean", "score"])
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS.keys())
def test_discrete_term_is_the_divergence_of_two_dense_reverse_steps(kernel, parameterisation):
    objective = Objective(parameterisation=parameterisation)
    pairs = [(0.0, 0.4), (0.3, 0.5), (0.6, 1.0), (0.0, 1.0)]
    noise = np.random.default_rng(0).normal(size=(TOKENS + 1, TOKENS)) * 0.3
    lows, highs = (np.array(ends) for ends in zip(*pairs, strict=True))
    read = np.minimum(highs, scores.HIGHEST_SCORE_LEVEL)
    logits = np.stack([logits_of(parameterisation, kernel, OTHER, t) + noise for t in read])
    found = run_discrete(
        objective, kernel, *(jnp.asarray(x, jnp.float32) for x in (logits, highs, lows))
    )
    for i, (low, high) in enumerate(pairs):
        true = dense_posterior(kernel, low, high)
        if parameterisation == "mean":
            p = np.exp(logits[i]) / np.exp(logits[i]).sum(1, keepdims=True)
            # Where z cannot come from x, no posterior is defined (absorbing: z is x, or MASK).
            guess = np.einsum("zx,xzs->zs", p, np.nan_to_num(true))
        else:
            odds = np.log(read[i]) - np.log1p(-read[i])
            guess = dense_reverse_score(kernel, logits[i] - odds - np.log(TOKENS), low, high)
        for x in range(TOKENS):
            for z in STATES:
                q = true[x, z]
                if np.isnan(q).any() or (z < TOKENS and not kernel.replaces):
                    continue
                some = q > 1e-12
                if np.any(guess[z, some] == 0):  # clamped: the step is held impossible
                    assert found[i, z, x] == np.inf
                    continue
                wanted = np.sum(q[some] * (np.log(q[some]) - np.log(guess[z, some])))
                # The inverse of almost full noise multiplies float32 errors of scores by 1e4.
                close = pytest.approx(wanted, rel=1e-2, abs=2e-5)
                assert found[i, z, x] == close, (i, z, x)


def test_absorbing_continuous_term_is_the_weighted_cross_entropy_of_masked_tokens():
    kernel, logits = KERNELS["absorbing"], jnp.log(jnp.asarray(OTHER, jnp.float32))
    term = functools.partial(Objective().continuous_term, kernel, logits, 2)
    assert term(kernel.mask, 0.25) == pytest.approx(-np.log(OTHER[2]) / 0.25, rel=1e-5)
    assert term(2, 0.25) == 0


def test_context_parameterisation_adds_what_the_shown_token_tells():
    objective = Objective(parameterisation="context")
    logits = jnp.log(jnp.asarray(OTHER, jnp.float32))
    for kernel in KERNELS.values():
        wanted = posterior_of(kernel, OTHER, 0.3)
        for state in STATES if kernel.masks else STATES[:-1]:
            if state < TOKENS and not kernel.replaces:
                continue
            log_p = objective.log_prediction(kernel, logits, state, 0.3)
            np.testing.assert_allclose(np.exp(log_p), wanted[state], rtol=1e-4)


def test_padded_logits_change_nothing():
    """Columns from N on belong to MASK and padding."""
    kernel = KERNELS["gamma .1"]
    logits = jnp.log(jnp.asarray(OTHER, jnp.float32))
    padded = jnp.concatenate([logits, jnp.full(3, 50.0)])
    for parameterisation in ("mean", "context", "score"):
        objective = Objective(parameterisation=parameterisation)
        read = functools.partial(objective.log_prediction, kernel)
        np.testing.assert_array_equal(read(padded, 1, 0.4), read(logits, 1, 0.4))


def test_weighted_cross_entropy_follows_the_formula():
    """Masked tokens weigh 1/λ, replaced ones λ_w (1 − ε)/(1 − λ), kept ones λ_w ε/(1 − λ)."""
    kernel = noising.epsilon_hybrid(vocab_size=TOKENS, epsilon=0.1)
    objective = Objective(loss="weighted_cross_entropy", shown_weight=2.0)
    logits = jnp.log(jnp.asarray(OTHER, jnp.float32))
    term = functools.partial(objective.weighted_cross_entropy, kernel, logits, 3)
    surprise = -np.log(OTHER[3])
    assert term(kernel.mask, 0.2) == pytest.approx(surprise / 0.2, rel=1e-5)
    assert term(1, 0.2) == pytest.approx(surprise * 2.0 * 0.9 / 0.8, rel=1e-5)
    assert term(3, 0.2) == pytest.approx(surprise * 2.0 * 0.1 / 0.8, rel=1e-5)


LEVELS = jnp.array([1e-6, 0.5, 1.0 - 1e-6])
WILD = jnp.array([[[30.0, -30.0, 0.0, 5.0, 1.0]] * (TOKENS + 1)] * 3)


@pytest.mark.parametrize(
    ("name", "parameterisation"),
    [
        *((name, "mean") for name in ("absorbing", "uniform", "gamma .1", "epsilon")),
        *((name, "score") for name in ("absorbing", "uniform", "gamma .1", "epsilon")),
        ("gamma .1", "context"),
    ],
)
def test_gradients_of_the_terms_are_finite_at_the_ends_of_the_scale(name, parameterisation):
    """For states that can occur; scores so wild that a step becomes impossible are left out."""
    kernel, objective = KERNELS[name], Objective(parameterisation=parameterisation)
    mild = WILD / (30.0 if parameterisation == "score" else 1.0)
    possible = jnp.asarray(
        np.stack([dense_transition(kernel, 0.0, float(t))[:-1].T > 0 for t in LEVELS])
    )
    mean = lambda terms: jnp.mean(jnp.where(possible, terms, 0.0))  # noqa: E731

    @quick_jit
    def gradients(logits):
        to_clean = jnp.zeros(3)
        found = [
            jax.grad(lambda x: mean(discrete_terms(objective, kernel, x, LEVELS, to_clean)))(
                logits
            ),
            jax.grad(lambda x: mean(discrete_terms(objective, kernel, x, LEVELS, LEVELS / 2)))(
                logits
            ),
        ]
        if not kernel.jumps_at_zero:
            found.append(
                jax.grad(lambda x: mean(continuous_terms(objective, kernel, x, LEVELS)))(logits)
            )
        return found

    for gradient in gradients(mild):
        gradient = gradient[np.any(possible, axis=-1)]
        assert np.all(np.isfinite(gradient))
        assert np.any(gradient != 0)


# ---------------------------------------------------------------------------------------------
# Errors.


@pytest.mark.parametrize(
    ("settings", "kernel", "message"),
    [
        ({"parameterisation": "noise"}, "absorbing", "must be one of mean, context, score"),
        ({"loss": "mse"}, "absorbing", "must be one of bound, weighted_cross_entropy"),
        ({"time": "never"}, "absorbing", "must be one of discrete, continuous"),
        (
            {"loss": "weighted_cross_entropy", "parameterisation": "score"},
            "epsilon",
            "weighted cross-entropy needs",
        ),
        ({"time": "continuous"}, "epsilon", "no continuous form"),
    ],
)
def test_objectives_without_meaning_are_refused(settings, kernel, message):
    with pytest.raises(UserError, match=message):
        spec_of("flat", KERNELS[kernel], "aligned", **settings)


def test_a_kernel_without_rates_has_no_continuous_bound():
    kernel = Bent(name="bent", vocab_size=3)
    spec_of("flat", kernel, "aligned", time="discrete")
    spec_of("flat", kernel, "aligned", time="continuous", loss="weighted_cross_entropy")
    with pytest.raises(UserError, match="bent noise defines no rates"):
        spec_of("flat", kernel, "aligned", time="continuous")


def test_problem_refuses_an_empty_chunk():
    spec = spec_of("flat", KERNELS["absorbing"], "aligned")
    with pytest.raises(UserError, match="chunk must be at least 1"):
        dataclasses.replace(spec, chunk=0)


def test_problem_refuses_a_layout_that_does_not_serve_its_schedule():
    spec = spec_of("slide", KERNELS["absorbing"], "aligned")
    with pytest.raises(UserError, match="windows that settle whole"):
        dataclasses.replace(spec, layout=Layout(context="block_causal"))
