"""Every update rule against its definition, by enumeration.

For two tokens and three positions the distribution of generated texts is computed from the rules'
definitions, written here a second time and in another way: all draws of the network's predictions
and all choices of what is revealed, redrawn or masked again, step after step, with what the network
says taken from rows that show the whole text. 30,000 texts of the compiled, cached loop must
agree.
"""

import collections
import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from enumeration import (
    LENGTH,
    all_logits,
    all_sequences,
    data_posterior,
    dense_posterior,
    dense_transition,
    kernels,
    reader,
    spec_of,
)
from scipy.stats import chisquare

from hybrid_jax.method import hyperschedule
from hybrid_jax.method.objective import Objective
from hybrid_jax.sampling import prompts
from hybrid_jax.sampling.loop import generate
from hybrid_jax.sampling.rules import ACS, EntropyBound, Psi, ReMDM, Threshold
from hybrid_jax.sampling.state import Sampler
from hybrid_jax.sampling.update_rule import Prediction, Window

N = 2
MASK = N
DRAWS = 30_000

# ---------------------------------------------------------------------------------------------
# Definitions. Each gives, for one state of a window and one draw x̂ of all its predictions, what
# may happen to each active position: lists of (probability, token, confidence).


def unmasked(kernel, level):
    return (1.0 - level) ** (1.0 - kernel.gamma)


def reveal_chance(kernel, now, after):
    return (unmasked(kernel, after) - unmasked(kernel, now)) / (1.0 - unmasked(kernel, now))


def maybe(chance, new, old):
    assert -1e-9 < chance < 1 + 1e-9
    return [(chance, *new), (1.0 - chance, *old)]


posterior = functools.cache(dense_posterior)


def psi(rule, kernel, at):
    options = {}
    for i in at.active:
        z, now, after = at.tokens[i], at.now[i], at.after[i]
        step = posterior(kernel, after, now)[at.drawn[i], z]
        afresh = dense_transition(kernel, 0.0, after)[at.drawn[i]]
        chance = rule.kappa * step + (1 - rule.kappa) * afresh
        options[i] = [(c, token, 0.0) for token, c in enumerate(chance)]
    return options


def acs(rule, kernel, at, sweep=False):
    ratio = {i: 1.0 if sweep else at.after[i] / at.now[i] for i in at.active}
    shown = [i for i in at.active if at.tokens[i] != MASK]
    chance = {i: rule.eta * ratio[i] for i in shown}
    if rule.guidance == "confidence":
        chance = spread({i: 1.0 - at.p[i][at.tokens[i]] for i in shown}, sum(chance.values()))
    reveal = {i: reveal_chance(kernel, at.now[i], at.after[i])
              for i in at.active if i not in shown}  # fmt: skip
    if rule.correction == "remask":
        # As many masks are left, on average, as if none came back.
        left = sum(1.0 - r for r in reveal.values())
        open_ = {i: 1.0 - at.p[i][at.tokens[i]] if rule.guidance == "confidence" else chance[i]
                 for i in shown if at.after[i] > 0}  # fmt: skip
        back = spread(open_, min(left, sum(rule.eta * ratio[i] for i in shown)))
        fewer = 1.0 - sum(back.values()) / left if left else 1.0
        chance = dict.fromkeys(shown, 0.0) | back
        reveal = {i: 1.0 - (1.0 - r) * fewer for i, r in reveal.items()}
    options = {}
    for i in at.active:
        old, new = (at.tokens[i], at.confidence[i]), (at.drawn[i], at.p[i][at.drawn[i]])
        if rule.correction == "remask" and i in shown:
            new = (MASK, 0.0)
        options[i] = maybe({**reveal, **chance}[i], new, old)
    return options


def spread(weights, expected):
    """min(1, c w) for the c at which they add up to `expected`, found by bisection."""
    low, high = 0.0, 1e9
    for _ in range(200):
        c = (low + high) / 2
        low, high = (
            (low, c) if sum(min(1, c * w) for w in weights.values()) > expected else (c, high)
        )
    return {i: min(1.0, low * w) for i, w in weights.items()}


def remdm(rule, kernel, at):
    shown = [i for i in at.active if at.tokens[i] != MASK]
    options = {}
    for i in at.active:
        before, after = unmasked(kernel, at.now[i]), unmasked(kernel, at.after[i])
        most = min(1.0, (1.0 - after) / before) if before else 1.0
        if rule.strategy == "cap":
            sigma = min(rule.eta, most)
        elif rule.strategy == "rescale":
            sigma = rule.eta * most
        else:
            total = sum(np.exp(-at.confidence[j]) for j in shown)
            sigma = rule.eta * most * np.exp(-at.confidence[i]) / total if i in shown else 0.0
        old, new = (at.tokens[i], at.confidence[i]), (at.drawn[i], at.p[i][at.drawn[i]])
        if i in shown:
            options[i] = maybe(sigma, (MASK, at.confidence[i]), old)
        else:
            options[i] = maybe((after - (1 - sigma) * before) / (1 - before), new, old)
    return options


def fixed(at, revealed):
    return {
        i: [(1.0, at.drawn[i], at.p[i][at.drawn[i]])]
        if i in revealed
        else [(1.0, at.tokens[i], at.confidence[i])]
        for i in at.active
    }


def quota(at, masked):
    """The fewest reveals after which no more are masked than the schedule expects."""
    expected = sum(at.after[i] for i in at.active)
    return max(1, next(n for n in range(LENGTH + 1) if len(masked) - n <= expected + 1e-6))


def threshold(rule, kernel, at):
    masked = [i for i in at.active if at.tokens[i] == MASK]
    surest = sorted(masked, key=lambda i: -at.p[i][at.drawn[i]])
    revealed = {i for i in masked if at.p[i][at.drawn[i]] > rule.threshold or at.after[i] == 0}
    return fixed(at, revealed | set(surest[: quota(at, masked)]))


def entropy_bound(rule, kernel, at):
    masked = [i for i in at.active if at.tokens[i] == MASK]
    entropy = {i: -sum(q * np.log(q) for q in at.p[i]) for i in masked}
    surest = sorted(masked, key=entropy.get)
    sets = [surest[:n] for n in range(len(masked) + 1)]
    fits = [s for s in sets if sum(map(entropy.get, s)) - max(map(entropy.get, s), default=0)
            <= rule.bound]  # fmt: skip
    revealed = {i for i in masked if at.after[i] == 0}
    return fixed(at, revealed | set(fits[-1]) | set(surest[: quota(at, masked)]))


DEFINITIONS = {Psi: psi, ACS: acs, ReMDM: remdm, Threshold: threshold, EntropyBound: entropy_bound}

Moment = collections.namedtuple("Moment", "tokens confidence drawn p now after active")


def text_distribution(spec, network, params, rule):
    """Exact distribution of generated texts, {text: probability}."""
    schedule, kernel = spec.schedule, spec.kernel
    table = np.asarray(hyperschedule.table(schedule))
    levels = table / schedule.levels
    states = {tuple(state): k for k, state in enumerate(all_sequences(N + 1, LENGTH))}
    logits = np.asarray(all_logits(spec, network, params), np.float64)[..., :N]
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    remembers = isinstance(rule, ReMDM)  # nothing else looks at the confidences
    place = (0, 0, (MASK,) * LENGTH, (0.0,) * LENGTH)
    mass = {place: 1.0}
    texts = collections.Counter()
    while mass:
        # The earliest step first: everything that leads to a state comes before it.
        place = min(mass, key=lambda key: key[:2])
        chance = mass.pop(place)
        step, sweep, tokens, confidence = place
        if step == schedule.steps:
            texts[tokens] += chance
            continue
        now, after = levels[step], levels[step + 1]
        active = [i for i in range(LENGTH) if now[i] != after[i]]
        closing = [i for i in active if after[i] == 0]
        if sweep:
            active = closing
        here = p[step, states[tokens]]
        for drawn in itertools.product(range(N), repeat=len(active)):
            drawn = dict(zip(active, drawn, strict=True))
            weight = chance * np.prod([here[i][x] for i, x in drawn.items()])
            at = Moment(tokens, confidence, drawn, here, now, after, active)
            extra = {"sweep": True} if sweep else {}
            options = DEFINITIONS[type(rule)](rule, kernel, at, **extra)
            for choice in itertools.product(*options.values()):
                moved, sure = list(tokens), list(confidence)
                for i, (_, token, confident) in zip(options, choice, strict=True):
                    moved[i] = token
                    sure[i] = float(confident) if remembers else 0.0
                part = weight * np.prod([c for c, _, _ in choice])
                if part == 0:
                    continue
                following = (step + 1, 0)
                if rule.adaptive:
                    window = [
                        i for i in range(LENGTH) if now[i] > 0 and table[step + 1, i] < table[0, i]
                    ]
                    if all(moved[i] != MASK for i in window):
                        begun = (table < table[0]).sum(1)
                        opens = [
                            s for s in range(step + 1, schedule.steps) if begun[s + 1] > begun[s]
                        ]
                        following = (opens[0] if opens else schedule.steps, 0)
                if rule.sweeps and closing:
                    again = sweep == 0 or (tuple(moved) != tokens and sweep < rule.sweeps)
                    if again:
                        following = (step, sweep + 1)
                key = (*following, tuple(moved), tuple(sure))
                mass[key] = mass.get(key, 0.0) + part
    return texts


def generated_counts(spec, network, params, rule):
    keys = jax.random.split(jax.random.key(5), DRAWS)
    given = prompts.nothing(DRAWS, LENGTH)
    sampler = Sampler(spec=spec, network=network)
    texts = np.asarray(generate(sampler, rule, params, keys, given).tokens)
    assert texts.max() < N, "MASK is left"
    return np.bincount(texts @ (1 << np.arange(LENGTH)[::-1]), minlength=N**LENGTH)


RULES = {
    "acs": ("epsilon", ACS(eta=0.7)),
    "acs, confidence": ("gamma .1", ACS(eta=0.9, guidance="confidence")),
    "acs, sweeps": ("epsilon", ACS(eta=0.5, sweeps=2)),
    "remdm, cap": ("absorbing", ReMDM(eta=0.3, strategy="cap")),
    "remdm, rescale": ("gamma .1", ReMDM(eta=0.6, strategy="rescale")),
    "remdm, confidence": ("absorbing", ReMDM(eta=1.0, strategy="confidence")),
    "threshold": ("absorbing", Threshold(threshold=0.8)),
    "entropy": ("epsilon", EntropyBound(bound=0.4)),
}
# A rule sees the levels of a window alone, so one schedule of several tells; more where a rule
# depends on more of it: closing sweeps, and going on early.
CASES = [
    ("block", "acs", "aligned"),
    ("flat", "acs, confidence", "shifted"),
    ("quenched AR", "acs, sweeps", "shifted"),
    ("block", "acs, sweeps", "aligned"),
    ("slow slide", "acs, sweeps", "shifted"),
    ("custom", "remdm, cap", "aligned"),
    ("flat", "remdm, rescale", "shifted"),
    ("slow slide", "remdm, confidence", "aligned"),
    ("block", "threshold", "aligned"),
    ("custom", "threshold", "shifted"),
    ("slow slide", "entropy", "aligned"),
    # More positions than steps: adaptive rules must keep pace.
    ("fast flat", "threshold", "aligned"),
    ("fast flat", "entropy", "shifted"),
]

# Under schedules that show tokens before their last step, and while others are masked or settle.
RULES |= {
    "psi": ("gamma .7", Psi(kappa=0.8)),
    "acs, remask": ("epsilon", ACS(eta=1.0, correction="remask")),
    "acs, remask by confidence": (
        "gamma .1", ACS(eta=0.6, correction="remask", guidance="confidence")
    ),
}  # fmt: skip
CASES += [
    ("flat", "psi", "aligned"),
    ("flat", "acs, remask", "shifted"),
    ("wide slide", "acs, remask by confidence", "aligned"),
]
OTHERS = {
    "fast flat": hyperschedule.flat(length=LENGTH, levels=2),
    "wide slide": hyperschedule.slide(length=LENGTH, width=LENGTH, levels=3),
}


@pytest.mark.parametrize(("schedule_name", "rule_name", "alignment"), CASES)
def test_texts_follow_the_definition_of_the_rule(schedule_name, rule_name, alignment):
    kernel_name, rule = RULES[rule_name]
    other = OTHERS.get(schedule_name)
    spec = spec_of("flat" if other else schedule_name, kernels(N)[kernel_name], alignment)
    spec = dataclasses.replace(spec, schedule=other or spec.schedule)
    network, params = reader(N)
    exact = text_distribution(spec, network, params, rule)
    assert sum(exact.values()) == pytest.approx(1.0, abs=1e-9)
    expected = np.array([exact[tuple(text)] for text in all_sequences(N, LENGTH)]) * DRAWS
    counts = generated_counts(spec, network, params, rule)
    likely = expected > 5
    assert counts[~likely].sum() <= expected[~likely].sum() + 20
    scale = counts[likely].sum() / expected[likely].sum()
    assert chisquare(counts[likely], expected[likely] * scale).pvalue > 1e-5


@pytest.mark.parametrize("name", kernels(N))
@pytest.mark.parametrize("kappa", [0.0, 0.6])
def test_psi_keeps_the_marginals_of_the_noise(name, kappa):
    """With exact predictions z_s has the distribution of x noised to λ_s, whatever κ is."""
    kernel, data, now, after = kernels(N)[name], np.array([0.8, 0.2]), 0.7, 0.4
    draw = np.random.default_rng(0)
    noisy = draw.choice(N + 1, DRAWS, p=data @ dense_transition(kernel, 0.0, now)[:N])
    chance = data_posterior(kernel, data, now)
    if not kernel.replaces:  # what a network says of a shown token is never used
        chance[:N] = chance[:N, ::-1]
    window = Window(
        tokens=jnp.asarray(noisy, jnp.int32), level=jnp.full(DRAWS, now),
        level_next=jnp.full(DRAWS, after), active=jnp.ones(DRAWS, bool),
        confidence=jnp.zeros(DRAWS),
    )  # fmt: skip
    zeros = jnp.zeros(DRAWS)
    drawn = jnp.asarray(draw.random(DRAWS) < chance[noisy, 1], jnp.int32)
    reading = Prediction(token=drawn, probability=zeros, current=zeros, doubt=zeros, nats=zeros)
    moved, _ = Psi(kappa=kappa).move(kernel, jax.random.key(1), window, reading)
    expected = data @ dense_transition(kernel, 0.0, after)[:N] * DRAWS
    possible = expected > 0
    counts = np.bincount(moved, minlength=N + 1)
    assert counts[possible].sum() == DRAWS
    assert chisquare(counts[possible], expected[possible]).pvalue > 1e-4


def test_more_steps_of_psi_help_by_their_root():
    """Two positions, an exact network, absorbing noise: exact errors of its definition."""
    data = np.array([[0.45, 0.05], [0.1, 0.4]])
    alone = data.sum(1, keepdims=True), data.sum(0)[:, None]
    # p of a position where the other one shows a token, or MASK.
    p = [
        np.hstack([joint / joint.sum(0), own])
        for joint, own in zip((data, data.T), alone, strict=True)
    ]

    def error(kappa, steps):
        mass = np.zeros((N + 1, N + 1))
        mass[MASK, MASK] = 1.0
        for step in range(steps, 0, -1):
            now, after = step / steps, (step - 1) / steps
            reveal = kappa * (now - after) / now + (1 - kappa) * (1 - after)
            keep = 1 - (1 - kappa) * after
            move = np.zeros((2, N + 1, N + 1, N + 1))  # position, other, from, to
            for i, other in itertools.product(range(2), range(N + 1)):
                for token in range(N):
                    move[i, other, token, [token, MASK]] = keep, 1 - keep
                move[i, other, MASK] = [*(reveal * p[i][:, other]), 1 - reveal]
            mass = np.einsum("ab,bac,abd->cd", mass, *move)
        return abs(mass[:N, :N] - data).sum()

    for kappa, gain in ((1.0, 4.0), (0.5, 2.0)):
        assert error(kappa, 100) / error(kappa, 400) == pytest.approx(gain, rel=0.1)


def test_psi_noises_what_scores_predict():
    at = Window(tokens=jnp.int32(0), level=0.5, level_next=0.25, active=True, confidence=0.0)
    score, key = Objective(parameterisation="score"), jax.random.key(0)
    read = functools.partial(Psi().read, kernels(N)["gamma .1"], score, key, at=at)
    reading = jax.eval_shape(read, jnp.zeros(N))
    assert isinstance(reading, Prediction)


def test_confidence_guidance_redraws_where_the_model_doubts():
    """The share of redraws at each of five shown tokens, and none elsewhere."""
    current = jnp.array([0.9, 0.5, 0.99, 0.2, 0.7, 0.1, 0.1])
    tokens = jnp.array([0, 0, 0, 0, 0, MASK, 0])
    window = Window(
        tokens=tokens,
        level=jnp.full(7, 0.8),
        level_next=jnp.full(7, 0.4),
        active=jnp.arange(7) < 6,
        confidence=jnp.zeros(7),
    )
    reading = Prediction(token=jnp.ones(7, int), probability=current, current=current,
                         doubt=current, nats=current)  # fmt: skip
    rule = ACS(eta=0.6, guidance="confidence")
    keys = jax.random.split(jax.random.key(0), 20_000)
    kernel = kernels(N)["epsilon"]
    moved, _ = jax.jit(jax.vmap(lambda k: rule.move(kernel, k, window, reading)))(keys)
    share = np.mean(np.asarray(moved) != tokens, axis=0)[:5]
    doubt = 1.0 - current[:5]
    # Five tokens, each with 0.6 · 0.4/0.8 in the mean.
    np.testing.assert_allclose(share, doubt / doubt.sum() * 5 * 0.3, atol=0.015)


def test_remdm_forgets_what_was_drawn_with_little_confidence():
    confidence = jnp.array([0.9, 0.1, 0.5, 0.0, 0.0])
    tokens = jnp.array([0, 0, 1, MASK, 0])
    window = Window(
        tokens=tokens,
        level=jnp.full(5, 0.5),
        level_next=jnp.full(5, 0.25),
        active=jnp.arange(5) < 4,
        confidence=confidence,
    )
    reading = Prediction(*jnp.zeros((5, 5)))
    reading = reading._replace(token=jnp.ones(5, int))
    rule = ReMDM(eta=0.9, strategy="confidence")
    keys = jax.random.split(jax.random.key(0), 20_000)
    kernel = kernels(N)["absorbing"]
    moved, _ = jax.jit(jax.vmap(lambda k: rule.move(kernel, k, window, reading)))(keys)
    share = np.exp(-confidence[:3])
    # σ_max = (1 − A_s)/A_t = 0.25/0.5.
    np.testing.assert_allclose(
        np.mean(np.asarray(moved)[:, :3] == MASK, axis=0),
        0.9 * 0.5 * share / share.sum(),
        atol=0.015,
    )
    assert np.mean(np.asarray(moved)[:, 3] == 1) == pytest.approx(0.5, abs=0.015)


def revealed(rule, level_next, *, probability, entropy):
    """The one of three masked positions that a rule reveals."""
    window = Window(
        tokens=jnp.full(3, MASK),
        level=jnp.ones(3),
        level_next=jnp.array(level_next),
        active=jnp.ones(3, bool),
        confidence=jnp.zeros(3),
    )
    reading = Prediction(token=jnp.zeros(3, int), probability=jnp.array(probability),
                         current=jnp.zeros(3), doubt=jnp.array(entropy),
                         nats=jnp.zeros(3))  # fmt: skip
    moved, _ = rule.move(kernels(N)["absorbing"], jax.random.key(0), window, reading)
    return [i for i in range(3) if moved[i] != MASK]


def test_none_settles_as_mask_however_unsure_it_is():
    doubtful = {"probability": [0.1, 0.7, 0.6], "entropy": [0.69, 0.2, 0.3]}
    for rule in (Threshold(threshold=1.0), EntropyBound(bound=0.0)):
        # Of three no more than ⌊0 + 0.5 + 0.75⌋ may stay masked: two go, and the one that settles.
        assert revealed(rule, [0.0, 0.5, 0.75], **doubtful) == [0, 1, 2]
        assert revealed(rule, [0.25, 0.5, 0.75], **doubtful) == [1, 2]


def test_the_entropy_of_the_most_uncertain_is_free():
    readings = {"probability": [0.5] * 3, "entropy": [0.3, 0.2, 0.6]}
    for bound, wanted in ((0.1, [1]), (0.45, [0, 1]), (0.55, [0, 1, 2])):
        assert revealed(EntropyBound(bound=bound), [0.9] * 3, **readings) == wanted
