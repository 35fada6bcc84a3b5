"""Draft and verify: the law is that of autoregression, whatever is drafted, and the cache exact."""

import dataclasses

import jax
import numpy as np
import pytest
import scipy.stats
from enumeration import Reader, all_logits, all_sequences, among_others, kernels

from hybrid_jax.errors import UserError
from hybrid_jax.method import hyperschedule
from hybrid_jax.method.layout import Layout
from hybrid_jax.method.loss import Spec
from hybrid_jax.method.objective import Objective
from hybrid_jax.sampling import likelihood, prompts, rules
from hybrid_jax.sampling.loop import generate
from hybrid_jax.sampling.prompts import GAP
from hybrid_jax.sampling.state import Sampler
from hybrid_jax.sampling.windows import Windows

pytestmark = [pytest.mark.usefixtures("strict_promotion"), pytest.mark.slow]


def spec_of(schedule, tokens, kernel="gamma .7", **layout):
    return Spec(
        schedule=schedule, kernel=kernels(tokens)[kernel], bos=1, chunk=3, objective=Objective(),
        layout=Layout(**{"alignment": "shifted", **layout}),
    )  # fmt: skip


def texts_of(rule, spec, network, params, given, **settings):
    sampler = Sampler(spec=rule.spec(spec), network=network, **settings)
    keys = jax.random.split(jax.random.key(1), len(given.tokens))
    return generate(sampler, rule, params, keys, given)


def autoregression(spec, network, params, temperature):
    """p of every text by its definition, from the network's logits behind every beginning."""
    tokens, length = spec.kernel.vocab_size, spec.schedule.length
    own = dataclasses.replace(spec, schedule=hyperschedule.quenched_ar(length=length))
    logits = np.asarray(all_logits(own, network, params), np.float64)[..., :tokens] / temperature
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    states = {
        tuple(state): number for number, state in enumerate(all_sequences(tokens + 1, length))
    }
    found = []
    for text in all_sequences(tokens, length):
        before = [(*text[:at], *(tokens,) * (length - at)) for at in range(length)]
        found.append(np.prod([p[at, states[b], at, text[at]] for at, b in enumerate(before)]))
    return np.array(found)


@pytest.mark.parametrize(
    ("schedule", "kernel", "causal", "temperature"),
    [
        (hyperschedule.block(length=4, width=3, levels=2), "absorbing", False, 1.0),
        (hyperschedule.block(length=4, width=2, levels=2), "gamma .7", True, 0.7),
        (hyperschedule.flat(length=4, levels=3), "epsilon", False, 1.0),
    ],
)
def test_the_law_is_that_of_autoregression(schedule, kernel, causal, temperature):
    network = Reader(vocab_size=3, length=4, strength=2.0)
    params = network.init(seed=5)
    spec = spec_of(schedule, 3, kernel, causal_window=causal)
    rule = rules.make("speculative", temperature=None if temperature == 1.0 else temperature)
    texts = texts_of(rule, spec, network, params, prompts.nothing(1 << 15, 4))
    p = autoregression(spec, network, params, temperature)
    assert p.sum() == pytest.approx(1.0)
    counts = np.bincount(np.asarray(texts.tokens) @ [27, 9, 3, 1], minlength=81)
    often = p * len(texts.tokens) > 5
    seen = [*counts[often], counts[~often].sum()], [*p[often], p[~often].sum()]
    assert scipy.stats.chisquare(seen[0], np.array(seen[1]) * len(texts.tokens)).pvalue > 1e-3
    # Drafts are neither all kept nor all refused.
    nfe = np.asarray(texts.nfe)
    assert nfe.min() < nfe.mean() < nfe.max()


N, LENGTH = 13, 12
NETWORK = Reader(vocab_size=N, length=LENGTH, strength=1.0)
PARAMS = NETWORK.init(seed=3)
BLOCKS = hyperschedule.block(length=LENGTH, width=5, levels=3)
ROWS = [
    [], [3], [1, 2, 3, 4, 5, 6, 7], [4, GAP, GAP, 6, 7, 8, 9, 1, 2, 3, GAP],
    [GAP, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, GAP], [5] * 11,
]  # fmt: skip


def test_texts_depend_neither_on_the_cache_nor_on_their_neighbours():
    rule, spec = rules.make("speculative"), spec_of(BLOCKS, N)
    given = prompts.build(ROWS, length=LENGTH, vocab_size=N)
    cached = texts_of(rule, spec, NETWORK, PARAMS, given)
    whole = texts_of(rule, spec, NETWORK, PARAMS, given, cached=False)
    for name in ("tokens", "nfe"):
        np.testing.assert_array_equal(getattr(cached, name)[:2], getattr(whole, name)[:2])
    np.testing.assert_array_equal(cached.tokens, whole.tokens)
    assert cached.tokens.max() < N
    np.testing.assert_array_equal(cached.tokens[given.frozen], given.tokens[given.frozen])
    sampler = Sampler(spec=rule.spec(spec), network=NETWORK)
    keys = jax.random.split(jax.random.key(1), len(ROWS))
    rows, keys, now, before = among_others(ROWS, keys)
    again = generate(sampler, rule, PARAMS, keys, prompts.build(rows, length=LENGTH, vocab_size=N))
    np.testing.assert_array_equal(again.tokens[now], np.asarray(cached.tokens)[before])


def test_a_text_ends_at_eos_and_where_it_is_told_to():
    rule, spec = rules.make("speculative"), spec_of(BLOCKS, N)
    on = texts_of(rule, spec, NETWORK, PARAMS, prompts.nothing(64, LENGTH))
    ended = texts_of(rule, spec, NETWORK, PARAMS, prompts.nothing(64, LENGTH), eos=4)
    for text, length, whole in zip(ended.tokens, ended.length, on.tokens, strict=True):
        where = np.flatnonzero(np.asarray(whole) == 4)
        assert length == (where[0] + 1 if len(where) else LENGTH)
        np.testing.assert_array_equal(text[:length], whole[:length])
    assert (ended.nfe < on.nfe).sum() > 5
    short = prompts.build([[]] * 64, length=LENGTH, vocab_size=N, stop=3)
    begun = texts_of(rule, spec, NETWORK, PARAMS, short)
    np.testing.assert_array_equal(begun.tokens[:, :3], on.tokens[:, :3])
    assert (begun.length == 3).all()
    assert begun.nfe.max() <= 6


@pytest.mark.parametrize(
    ("schedule", "layout", "settings", "said"),
    [
        (BLOCKS, {"alignment": "aligned"}, {}, "layout.alignment=shifted"),
        (BLOCKS, {"context": "block_causal"}, {}, "layout.context=causal"),
        (hyperschedule.quenched_ar(length=LENGTH), {}, {}, "quenched AR has none"),
        (hyperschedule.slide(length=LENGTH, width=4, levels=4), {}, {}, "slide.* has none"),
        (BLOCKS, {}, {"window_entropy": 1.0}, "window_entropy has no effect"),
    ],
)
def test_what_it_does_not_go_with(schedule, layout, settings, said):
    rule = rules.Speculative(windows=Windows(**settings))
    with pytest.raises(UserError, match=said):
        rule.spec(spec_of(schedule, N, **layout))
    with pytest.raises(UserError, match="works on MASK"):
        rules.make("speculative").check(kernels(N)["uniform"], Objective())


def test_its_likelihood_is_asked_of_autoregression():
    rule = rules.make("speculative")
    sampler = Sampler(spec=rule.spec(spec_of(BLOCKS, N)), network=NETWORK)
    with pytest.raises(UserError, match="that of --schedule=quenched_ar"):
        likelihood.PathLikelihood(name="order:speculative", sampler=sampler, rule=rule)
