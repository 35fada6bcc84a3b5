"""Closing sweeps over settled windows: what they repair, and the cache that is rolled back."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from enumeration import Reader, among_others, kernels, quick_jit
from oracle import chain as chains
from oracle.network import params_of, sampler_of

from hybrid_jax.errors import UserError
from hybrid_jax.method import hyperschedule
from hybrid_jax.method.layout import Layout
from hybrid_jax.method.loss import Spec
from hybrid_jax.method.objective import Objective
from hybrid_jax.sampling import cache_feed, closing, loop, prompts
from hybrid_jax.sampling.prompts import GAP
from hybrid_jax.sampling.rules import ACS
from hybrid_jax.sampling.state import Sampler
from hybrid_jax.sampling.windows import Windows

pytestmark = [pytest.mark.usefixtures("strict_promotion"), pytest.mark.slow]

N, LENGTH = 13, 14
ROWS = [[], [3], [1, 2, 3, 4, 5, 6, 7], [4, GAP, GAP, 6, 7, 8, 9, 1, 2, 3, GAP], [5] * 13]
NETWORK = Reader(vocab_size=N, length=LENGTH)
PARAMS = NETWORK.init(seed=3)
BLOCK = hyperschedule.block(length=LENGTH, width=3, levels=2)
SLIDE = hyperschedule.slide(length=LENGTH, width=4, levels=2)
RULE = ACS(eta=0.7, sweeps=2, horizon=2)
GIVEN = prompts.build(ROWS, length=LENGTH, vocab_size=N)


def spec_of(schedule, kernel="gamma .7", **layout):
    return Spec(schedule=schedule, kernel=kernels(N)[kernel], layout=Layout(**layout), bos=2,
                objective=Objective(), chunk=4)  # fmt: skip


def keys_of(count):
    return jax.random.split(jax.random.key(5), count)


@pytest.mark.parametrize(
    ("schedule", "layout"),
    [
        (BLOCK, {"alignment": "shifted", "context": "block_causal"}),
        (BLOCK, {}),
        (SLIDE, {"alignment": "shifted"}),
        (hyperschedule.block(length=LENGTH, width=3, levels=1), {}),
    ],
)
def test_texts_depend_neither_on_the_cache_nor_on_their_neighbours(schedule, layout):
    cached = Sampler(spec=spec_of(schedule, **layout), network=NETWORK, prefill=3)
    keys = keys_of(len(ROWS))
    texts, whole = (
        loop.generate(sampler, RULE, PARAMS, keys, GIVEN)
        for sampler in (cached, dataclasses.replace(cached, cached=False))
    )
    np.testing.assert_array_equal(texts.tokens, whole.tokens)
    np.testing.assert_array_equal(texts.corrections, whole.corrections)
    np.testing.assert_array_equal(texts.tokens[GIVEN.frozen], GIVEN.tokens[GIVEN.frozen])
    assert texts.tokens.max() < N
    # What is fed again takes no calls of its own; a jump over given windows does, as ever.
    np.testing.assert_array_equal(texts.nfe[:3], whole.nfe[:3])
    rows, keys, now, before = among_others(ROWS, keys)
    given = prompts.build(rows, length=LENGTH, vocab_size=N)
    again = loop.generate(cached, RULE, PARAMS, keys, given)
    np.testing.assert_array_equal(again.tokens[now], np.asarray(texts.tokens)[before])


@pytest.mark.parametrize(
    "layout", [{"alignment": "shifted"}, {"alignment": "shifted", "context": "block_causal"}]
)
def test_the_cache_is_always_that_of_the_tokens_as_they_are(layout):
    sampler = Sampler(spec=spec_of(BLOCK, **layout), network=NETWORK)
    slots = sampler.slots

    @quick_jit
    def afresh(state):
        """Keys and values of all settled tokens, in the slots that are filled."""
        empty = dataclasses.replace(state, filled=jnp.zeros_like(state.filled))
        found = cache_feed.show_new(sampler, PARAMS, empty, slots, window=False)
        wanted = cache_feed.commit(sampler, empty, found[1], found[2]).cache
        filled = jnp.arange(slots)[None] < state.filled[:, None]
        differs = jnp.abs(wanted - state.cache).max((0, 2, 4))
        return jnp.where(filled & (state.step < BLOCK.steps)[:, None], differs, 0.0).max()

    state = loop.start(sampler, PARAMS, keys_of(len(ROWS)), GIVEN)
    rolled, before = 0, np.array(state.filled)
    for _ in range(60):
        state = loop.advance(sampler, RULE, PARAMS, state, 1)
        assert afresh(state) < 1e-5
        rolled += int((np.asarray(state.filled) < before).sum())
        before = np.array(state.filled)
    assert rolled > 5
    assert np.all(state.step == BLOCK.steps)


def test_a_text_ends_when_its_sweeps_are_done():
    """A sweep may put the end token among settled ones, and the next one may take it away."""
    sampler = Sampler(spec=spec_of(BLOCK), network=NETWORK, eos=4)
    state = loop.start(sampler, PARAMS, keys_of(64), prompts.nothing(64, LENGTH))
    early = 0
    for _ in range(40):
        state = loop.advance(sampler, RULE, PARAMS, state, 1)
        done = np.asarray(state.step) == BLOCK.steps
        assert not np.asarray(state.sweep)[done].any()
        settled = np.arange(LENGTH) < np.asarray(BLOCK.settled(state.step))[:, None]
        early += int(((np.asarray(state.tokens) == 4) & settled & ~done[:, None]).sum())
    assert done.all()
    assert early > 0


def test_errors_within_the_horizon_are_repaired_and_others_stay():
    """With an exact network: wrong tokens in the third of three settled windows, and behind."""
    chain = chains.of_step(np.eye(6)[[1, 2, 3, 4, 5, 0]] + 0.02)
    blocks = hyperschedule.block(length=20, width=4, levels=4)
    spec = Spec(schedule=blocks, kernel=kernels(6)["epsilon"], layout=Layout(),
                objective=Objective())  # fmt: skip
    sampler, count = sampler_of(spec), 300
    draw = np.random.default_rng(0)
    true = chain.draw(draw, count, 20).astype(np.int32)
    wrong = true.copy()
    place = draw.integers(4, 8, count)
    row = np.arange(count)
    wrong[row, place] = (true[row, place] + draw.integers(2, 6, count)) % 6
    state = loop.start(sampler, params_of(chain), keys_of(count), prompts.nothing(count, 20))
    fresh = np.arange(20) >= 12
    state = dataclasses.replace(
        state, tokens=jnp.where(fresh[None], state.tokens, wrong), step=state.step + 3 * 4
    )
    shares = []
    for horizon in (1, 2):
        rule = ACS(eta=1.0, sweeps=3, horizon=horizon)
        copy = jax.tree.map(jnp.copy, state)
        found = loop.advance(sampler, rule, params_of(chain), copy, 3 + 4 + 3)
        after = np.asarray(found.tokens)
        np.testing.assert_array_equal(after[:, :4], wrong[:, :4])  # behind both horizons
        shares.append((after[row, place] == true[row, place]).mean())
    assert shares[0] == 0
    assert shares[1] > 0.8


def test_a_sweep_costs_the_rows_of_its_windows():
    for horizon, width in ((1, 6), (2, 9), (9, LENGTH)):
        assert closing.view(ACS(sweeps=1, horizon=horizon), BLOCK).width == width


@pytest.mark.parametrize(
    ("schedule", "settings", "message"),
    [
        (BLOCK, {"sweeps": 0}, "horizon is of closing sweeps: set sweeps too"),
        (BLOCK, {"horizon": -1}, "horizon must be 0 or more"),
        (hyperschedule.flat(length=LENGTH, levels=2), {}, r"flat\(T=2\) does not have"),
        (hyperschedule.quenched_ar(length=LENGTH), {}, "quenched AR does not have"),
        (BLOCK, {"windows": Windows(window_entropy=1.0)}, "adaptive block.* does not have"),
    ],
)
def test_a_horizon_without_meaning_is_refused(schedule, settings, message):
    rule = dataclasses.replace(RULE, **settings)
    spec = rule.spec(spec_of(schedule, "epsilon", alignment="shifted"))
    with pytest.raises(UserError, match=message):
        loop.check(Sampler(spec=spec, network=NETWORK), rule)


def test_causal_windows_have_no_horizon():
    spec = spec_of(BLOCK, "epsilon", alignment="shifted", causal_window=True)
    with pytest.raises(UserError, match=r"layout\.causal_window=false"):
        loop.check(Sampler(spec=spec, network=NETWORK), RULE)
