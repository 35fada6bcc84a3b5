"""Orders, and the likelihoods of texts under them, by enumeration.

For three tokens and three positions the path on which an order writes a text is followed in
float64 from what the network says about whole states, by a definition written here a second time.
The likelihoods of all texts must be those of these paths, add up to 1, and be the probabilities
with which the compiled loop draws the texts.
"""

import dataclasses
import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from enumeration import (
    LENGTH,
    Reader,
    all_logits,
    all_sequences,
    kernels,
    quick_jit,
    sampler_distribution,
    spec_of,
)
from scipy.stats import chisquare

import hybrid_jax as hj
from hybrid_jax import evaluate
from hybrid_jax.errors import UserError
from hybrid_jax.method import hyperschedule
from hybrid_jax.sampling import likelihood, loop, prompts, rules
from hybrid_jax.sampling.likelihood import PathLikelihood
from hybrid_jax.sampling.rules import EntropyBound, Margin, MaxProbability
from hybrid_jax.sampling.settings import SamplingConfig
from hybrid_jax.sampling.state import Sampler
from hybrid_jax.training.likelihood import evaluate_bound

pytestmark = pytest.mark.slow

N = 3
MASK = N
DRAWS = 6000
SEED = 1
NETWORK = Reader(vocab_size=N, length=LENGTH, strength=0.7)
TEXTS = all_sequences(N, LENGTH)

DOUBTS = {
    EntropyBound: lambda p: -sum(q * np.log(q) for q in p),
    Margin: lambda p: sorted(p)[-2] - sorted(p)[-1],
    MaxProbability: lambda p: -max(p),
}
ORDERS = {
    "entropy": EntropyBound(bound=0.0),
    "entropy, several": EntropyBound(bound=1.2),
    "margin": Margin(),
    "max_probability": MaxProbability(),
}
CASES = [
    ("quenched AR", "entropy, several", "aligned", "absorbing"),
    ("flat", "entropy, several", "aligned", "epsilon"),
    ("flat", "entropy", "shifted", "gamma .1"),
    ("flat", "max_probability", "aligned", "absorbing"),
    ("fast flat", "max_probability", "shifted", "absorbing"),
    ("block", "margin", "shifted", "epsilon"),
    ("fast slide", "margin", "shifted", "absorbing"),
    ("fast custom", "margin", "shifted", "gamma .1"),
]

# Where more than one position is masked in a window, of which an order can choose.
CHOOSING = {
    "fast flat": hyperschedule.flat(length=LENGTH, levels=2),
    "fast slide": hyperschedule.slide(length=LENGTH, width=3, levels=2),
    "fast custom": hyperschedule.custom([[2, 2, 2], [1, 1, 2], [0, 1, 1], [0, 0, 0]]),
}


def spec_at(schedule, alignment="aligned", noise="absorbing", **settings):
    if schedule not in CHOOSING:
        return spec_of(schedule, kernels(N)[noise], alignment, **settings)
    spec = spec_of("flat", kernels(N)[noise], alignment, **settings)
    return dataclasses.replace(spec, schedule=CHOOSING[schedule])


@functools.cache
def oracle(spec, network):
    """p of every state, [S, states, L, N], the place of each state, and the table of levels."""
    places = {tuple(state): k for k, state in enumerate(all_sequences(N + 1, LENGTH))}
    logits = np.asarray(all_logits(spec, network, network.init(SEED)), np.float64)[..., :N]
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return p, places, np.asarray(hyperschedule.table(spec.schedule))


def path_nats(spec, network, rule, text, doubt_of=None):
    """−log p of a text, along the path on which an order writes it, or one by another doubt."""
    doubt_of = doubt_of or DOUBTS[type(rule)]
    p, places, table = oracle(spec, network)
    begun = (table < table[0]).sum(1)
    tokens, step, nats = [MASK] * LENGTH, 0, 0.0
    while step < spec.schedule.steps:
        here, after = p[step, places[tuple(tokens)]], table[step + 1]
        active = [i for i in range(LENGTH) if table[step, i] != after[i]]
        masked = [i for i in active if tokens[i] == MASK]
        doubt = {i: doubt_of(here[i]) for i in masked}
        surest = sorted(masked, key=doubt.get)  # of equal ones, the first
        pace = len(masked) - int(sum(after[i] for i in active) / table[0, 0] + 1e-9)
        count = min(max(pace, 1), len(masked))
        if isinstance(rule, EntropyBound):
            while count < len(masked) and sum(doubt[i] for i in surest[:count]) <= rule.bound:
                count += 1
        for i in {*surest[:count], *(i for i in masked if after[i] == 0)}:
            nats -= np.log(here[i][text[i]])
            tokens[i] = text[i]
        step += 1
        if all(tokens[i] != MASK for i in range(LENGTH) if after[i] < table[0, i]):
            while step < spec.schedule.steps and begun[step + 1] == begun[step]:
                step += 1
    return nats


def likelihood_of(spec, network, rule):
    return PathLikelihood(name="order:own", sampler=Sampler(spec=spec, network=network), rule=rule)


@functools.cache
def nats_of(spec, network, rule):
    """−log p of all texts."""
    own, given = likelihood_of(spec, network, rule), np.zeros(TEXTS.shape, bool)
    keys, params = jax.random.split(jax.random.key(0), len(TEXTS)), network.init(SEED)
    run = quick_jit(lambda: likelihood.nats(own.sampler, own.rule, params, TEXTS, given, keys))
    return np.asarray(run(), np.float64)


@pytest.mark.parametrize(("schedule", "order", "alignment", "noise"), CASES)
def test_likelihoods_are_those_of_the_paths_and_add_up_to_1(schedule, order, alignment, noise):
    spec, rule = spec_at(schedule, alignment, noise), ORDERS[order]
    nats = nats_of(spec, NETWORK, rule)
    wanted = [path_nats(spec, NETWORK, rule, text) for text in TEXTS]
    np.testing.assert_allclose(nats, wanted, rtol=1e-5)
    assert np.exp(-nats).sum() == pytest.approx(1.0, abs=1e-5)
    if "several" not in order:  # and the case can tell the orders apart
        for other in DOUBTS.values():
            if other is not DOUBTS[type(rule)]:
                nats = [path_nats(spec, NETWORK, rule, text, other) for text in TEXTS]
                assert abs(np.subtract(nats, wanted)).max() > 0.01


@pytest.mark.parametrize(("schedule", "order", "alignment", "noise"), [CASES[4], CASES[7]])
def test_texts_are_drawn_with_their_likelihoods(schedule, order, alignment, noise):
    spec, rule, params = spec_at(schedule, alignment, noise), ORDERS[order], NETWORK.init(SEED)
    sampler, none = Sampler(spec=spec, network=NETWORK), prompts.nothing(DRAWS, LENGTH)
    keys = jax.random.split(jax.random.key(1), DRAWS)
    begun = loop.start(sampler, params, keys, none)
    drawn = quick_jit(lambda: loop.advance(sampler, rule, params, begun))()
    place = np.asarray(drawn.tokens) @ (N ** np.arange(LENGTH)[::-1])
    nats = nats_of(spec, NETWORK, rule)
    # Each text has the probability with which its tokens were drawn, and comes as often.
    np.testing.assert_allclose(-np.log(drawn.confidence).sum(1), nats[place], rtol=1e-5)
    counts, expected = np.bincount(place, minlength=len(TEXTS)), np.exp(-nats) * DRAWS
    likely = expected > 5
    scale = counts[likely].sum() / expected[likely].sum()
    assert chisquare(counts[likely], expected[likely] * scale).pvalue > 1e-5


class Tied(Reader):
    """A network that tells no position from another, and so is as sure of all of them."""

    def init(self, seed):
        params = super().init(seed)
        return params | {"position": np.zeros_like(params["position"])}

    def logits(self, params, features):
        return jnp.round(super().logits(params, features) * 64) / 64


def test_ties_go_to_the_first_position():
    spec, network = spec_at("flat"), Tied(vocab_size=N, length=LENGTH)
    nats = nats_of(spec, network, Margin())
    wanted = [path_nats(spec, network, Margin(), text) for text in TEXTS]
    np.testing.assert_allclose(nats, wanted, rtol=1e-5)
    # From the other end the texts would be as likely as those that are read backwards.
    backwards = nats.reshape((N,) * LENGTH).transpose().reshape(-1)
    assert abs(nats - backwards).max() > 0.1


def test_scores_and_given_tokens():
    """Scores are read as their prediction of the clean token; given tokens have no nats."""
    spec, params = spec_at("block", "shifted", parameterisation="score"), NETWORK.init(SEED)
    own, texts = likelihood_of(spec, NETWORK, Margin()), np.tile(TEXTS, (2, 1))
    given = (np.arange(len(texts)) >= len(TEXTS))[:, None] & (np.arange(LENGTH) == 1)
    keys = jax.random.split(jax.random.key(0), len(texts))
    nats = quick_jit(lambda: likelihood.nats(own.sampler, own.rule, params, texts, given, keys))()
    alone, behind = np.exp(-np.asarray(nats, np.float64)).reshape(2, N, N, N)
    assert alone.sum() == pytest.approx(1.0, abs=1e-5)
    np.testing.assert_allclose(behind.sum((0, 2)), 1.0, atol=1e-5)


@pytest.mark.parametrize(
    ("rule", "noise", "settings", "message"),
    [
        ("threshold", "absorbing", {}, "it chooses positions by the tokens drawn"),
        ("greedy", "absorbing", {}, "it chooses positions by the tokens drawn"),
        ("acs", "epsilon", {}, "it draws which positions it changes"),
        ("remdm", "absorbing", {}, "it draws which positions it changes"),
        ("ancestral", "epsilon", {}, "noise it changes shown tokens"),
        (
            "ancestral",
            "absorbing",
            {"parameterisation": "score"},
            "it draws positions by the scores",
        ),
        ("a subclass", "absorbing", {}, "it draws which positions it changes"),
        ("margin", "uniform", {}, "works on MASK"),
        ("margin:temperature=0.5", "absorbing", {}, "leave out temperature"),
    ],
)
def test_other_rules_are_refused_with_the_reason(rule, noise, settings, message):
    class Own(rules.Ancestral):
        """May move as it likes."""

    spec = spec_at("block", "aligned", noise, **settings)
    made = Own() if rule == "a subclass" else SamplingConfig.parse(rule).build()
    with pytest.raises(UserError, match=message):
        likelihood_of(spec, NETWORK, made)


def bound_by_enumeration(spec, network, text, runs):
    """−log p of a text under the ancestral rule, and E[−log of the mean over K runs], K < 4."""
    p, places, table = oracle(spec, network)
    chance, weight = [], []
    for path in itertools.product(range(spec.schedule.steps), repeat=LENGTH):
        falls = [(table[s, i] - table[s + 1, i]) / table[0, 0] for i, s in enumerate(path)]
        seen = [[text[j] if path[j] < s else MASK for j in range(LENGTH)] for s in path]
        shown = [
            p[s, places[tuple(z)], i, text[i]]
            for i, (s, z) in enumerate(zip(path, seen, strict=True))
        ]
        chance.append(np.prod(falls))
        weight.append(np.prod(shown))
    chance, weight = np.array(chance), np.array(weight)
    chance, weight = chance[chance > 0], weight[chance > 0]
    together, mean = chance, weight
    for _ in range(runs - 1):
        together = np.multiply.outer(together, chance)
        mean = np.add.outer(mean, weight)
    return -np.log(chance @ weight), -(together * np.log(mean / runs)).sum()


def test_bounds_of_many_orders_tighten_towards_the_likelihood():
    spec, params = spec_at("flat"), NETWORK.init(SEED)
    marginal = sampler_distribution(spec, NETWORK, params)[:N, :N, :N].reshape(-1)
    values = [[bound_by_enumeration(spec, NETWORK, text, k) for k in (1, 2, 3)] for text in TEXTS]
    np.testing.assert_allclose([-np.log(marginal)] * 3, np.array(values)[..., 0].T, rtol=1e-5)
    bounds = np.array(values)[..., 1]
    assert np.all(np.diff(bounds, axis=1) < 0)
    assert np.all(bounds[:, 2] > -np.log(marginal))
    worst = int(np.argmax(bounds[:, 0] - bounds[:, 2]))
    batch = {"tokens": np.tile(TEXTS[worst], (DRAWS, 1)), "valid": np.ones(DRAWS, bool)}
    own = likelihood_of(spec, NETWORK, rules.Ancestral())
    for k in (1, 3):
        found = evaluate_bound(
            spec, NETWORK, params, [batch], own, key=jax.random.key(k), draws=k, bytes_per_token=0
        )
        error = LENGTH * found.nll - bounds[worst, k - 1]
        assert abs(error) < 4 * LENGTH * found.nll_se
        assert 4 * LENGTH * found.nll_se < bounds[worst, 0] - bounds[worst, 1]


def test_records_that_end_early_have_no_such_likelihood():
    spec, ends = spec_at("block"), {"length": np.array([2]), "valid": np.ones(1, bool)}
    own = likelihood_of(spec, NETWORK, Margin())
    with pytest.raises(UserError, match="is that of whole records, and these end early"):
        evaluate_bound(
            spec, NETWORK, NETWORK.init(SEED), [{"tokens": TEXTS[:1], **ends}], own,
            key=jax.random.key(0), draws=1, bytes_per_token=0,
        )  # fmt: skip


def test_evaluate_prints_the_likelihood_of_an_order(ar, capsys):
    """Autoregression has one order: its likelihood is that of any rule."""
    model = hj.load(ar)
    plain = model.perplexity(records=6)
    command = [f"--workdir={ar}", "--records=6", "--batch_size=6"]
    assert evaluate.main([*command, "--likelihood=order:margin"]) == 0
    printed, label = capsys.readouterr().out, "exact likelihood of order:margin in 16 steps"
    assert label in printed
    assert f" = {plain.perplexity:.2f} ± {plain.perplexity_se:.2f} " in printed
    stored = ar / "evaluation" / printed.split()[-1]
    found = json.loads(stored.read_text(encoding="utf-8"))
    assert found["protocol"]["bound"] == found["estimate"]["bound"] == label
    assert found["estimate"]["nll"] == pytest.approx(plain.nll, rel=1e-5)
    assert found["estimate"]["draws"] == 1  # as of all that is exact
    for wrong, message in (
        ("order:threshold", "no likelihood from single runs, since it chooses positions by"),
        ("margin", "write order:RULE"),
        ("order:margin:eos=stop", "records as one text"),
    ):
        assert evaluate.main([*command, f"--likelihood={wrong}"]) == 2
        assert message in capsys.readouterr().err
    # Where all of a window is revealed in one step, no positions are drawn.
    for schedule, exact in (("quenched AR", True), ("block", False)):
        own = likelihood_of(spec_at(schedule), NETWORK, rules.Ancestral())
        assert own.exact is exact
