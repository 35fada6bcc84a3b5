"""Terms of the bound against brute force, and the training estimator against the whole bound."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from enumeration import (
    Reader,
    all_sequences,
    data_posterior,
    dense_posterior,
    dense_transition,
    kernels,
    quick_jit,
)

from hybrid_jax.errors import UserError
from hybrid_jax.method import chunked_loss, hyperschedule, noising, scores
from hybrid_jax.method import loss as estimator
from hybrid_jax.method import objective as objectives
from hybrid_jax.method.layout import Layout
from hybrid_jax.method.loss import Spec
from hybrid_jax.method.objective import Draw, Objective

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
    """What a network must output, [z, N], to hold exactly this belief about the clean token."""
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


def continuous_bound(objective, kernel, logits_at, nodes=600):
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
# The training estimator against the bound it estimates.

LENGTH = 3
UNEVEN = hyperschedule.custom([[4, 4, 4], [2, 4, 4], [2, 3, 4], [0, 3, 3], [0, 1, 1], [0, 0, 0]])
SCHEDULES = {
    "flat": hyperschedule.flat(length=LENGTH, levels=3),
    "block": hyperschedule.block(length=LENGTH, width=2, levels=2),
    "slide": hyperschedule.slide(length=LENGTH, width=2, levels=2),
    "custom": UNEVEN,
}
TEXT = jnp.array([1, 0, 1], jnp.int32)


@functools.cache
def reader(tokens, length=LENGTH):
    network = Reader(vocab_size=tokens, length=length, strength=0.25)
    return network, network.init(seed=4)


def spec_of(schedule, kernel, alignment="aligned", **objective_settings):
    return Spec(
        schedule=schedule,
        kernel=kernel,
        layout=Layout(alignment=alignment),
        objective=Objective(**objective_settings),
        bos=0,
    )


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
    spec = spec_of(SCHEDULES[schedule_name], kernels(2)[kernel_name], alignment, time=time)
    bound = enumerated(spec)
    mean, error = estimated(spec)
    assert error < 0.01 * bound
    assert abs(mean - bound) < 4 * error + 1e-3 * bound


def test_levels_drawn_inside_steps_stand_for_the_whole_step():
    """Averaging over the uniforms themselves: the density of the pushed-away place is made good.

    The context parameterisation, because a mean that ignores z costs ∫ dλ/λ at λ → 0.
    """
    kernel = kernels(2)["gamma .7"]
    spec = spec_of(SCHEDULES["block"], kernel, parameterisation="context", time="continuous")
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
    spec = spec_of(SCHEDULES[schedule_name], noising.absorbing(vocab_size=2), time=time)
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
    spec = spec_of(
        hyperschedule.flat(length=LENGTH, levels=4),
        kernel,
        loss="weighted_cross_entropy",
        time="continuous",
    )
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


def test_terms_follow_the_global_index_of_an_example():
    """The same for everything that is drawn, the noisy tokens included."""
    spec = spec_of(SCHEDULES["slide"], KERNELS["gamma .7"])
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


def test_continuous_levels_lie_inside_the_step_that_the_uniform_picks():
    schedule, kernel = SCHEDULES["slide"], KERNELS["gamma .7"]
    position = jnp.arange(LENGTH)
    for u in (0.0, 0.2, 0.49, 0.51, 0.999):
        phase, draw = objectives.draw(schedule, kernel, "continuous", jnp.array([u]))
        assert phase[0] == int(2 * u)
        step, _ = schedule.tile(phase)
        now, after = (schedule.level(step + i, position) / schedule.levels for i in (0, 1))
        assert np.all(draw.level <= now)
        assert np.all(draw.level >= after)
        assert np.all((draw.level > 0) & (draw.level < 1))


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
    for chunk in (1, 2, 5, 128):  # in chunks of 2, the 5 positions are padded to 6
        run = functools.partial(streamed, chunk=chunk)
        found, others = quick_jit(jax.value_and_grad(run, (0, 1)))(features, head)
        np.testing.assert_allclose(found, value, rtol=1e-5)
        np.testing.assert_allclose(quick_jit(run)(features, head), value, rtol=1e-5)
        for other, gradient in zip(others, gradients, strict=True):
            np.testing.assert_allclose(
                other, gradient, rtol=1e-4, atol=1e-5 * float(jnp.abs(gradient).max())
            )
    assert np.all(gradients[0][0, 3] == 0)


def test_the_training_loss_is_the_mean_of_the_terms():
    spec = spec_of(SCHEDULES["block"], KERNELS["gamma .7"])
    network, params = reader(TOKENS)
    tokens = jax.random.randint(jax.random.key(5), (8, LENGTH), 0, TOKENS, jnp.int32)
    batch = estimator.Batch(tokens, jnp.arange(8), jax.random.key(6), size=8)
    loss = estimator.batch_loss(spec, network, params, batch)
    terms = estimator.batch_terms(spec, network, params, batch)
    np.testing.assert_allclose(loss, terms.mean(), rtol=1e-5)


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
        spec_of(SCHEDULES["flat"], KERNELS[kernel], **settings)


def test_a_kernel_without_rates_has_no_continuous_bound():
    kernel = Bent(name="bent", vocab_size=3)
    spec_of(SCHEDULES["flat"], kernel, time="discrete")
    spec_of(SCHEDULES["flat"], kernel, time="continuous", loss="weighted_cross_entropy")
    with pytest.raises(UserError, match="bent noise defines no rates"):
        spec_of(SCHEDULES["flat"], kernel, time="continuous")


def test_problem_refuses_an_empty_chunk():
    spec = spec_of(SCHEDULES["flat"], KERNELS["absorbing"])
    with pytest.raises(UserError, match="chunk of positions must be at least 1"):
        dataclasses.replace(spec, chunk=0)


def test_problem_refuses_a_layout_that_does_not_serve_its_schedule():
    spec = spec_of(SCHEDULES["slide"], KERNELS["absorbing"])
    with pytest.raises(UserError, match="windows that settle whole"):
        dataclasses.replace(spec, layout=Layout(context="block_causal"))
