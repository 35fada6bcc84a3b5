"""The cached loop against full recomputation, and what may influence a text: its own key and
prompt, and nothing else."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from enumeration import Reader, among_others, kernels, quick_jit

from hybrid_jax.errors import UserError
from hybrid_jax.method import hyperschedule
from hybrid_jax.method import layout as layouts
from hybrid_jax.method.layout import Layout
from hybrid_jax.method.loss import Spec
from hybrid_jax.method.objective import Objective
from hybrid_jax.models.transformer import Transformer
from hybrid_jax.sampling import cache_feed, loop, prompts, rules
from hybrid_jax.sampling.draw import Warp
from hybrid_jax.sampling.loop import generate
from hybrid_jax.sampling.prompts import GAP
from hybrid_jax.sampling.rules import ACS, Ancestral, EntropyBound, Psi, ReMDM, Threshold
from hybrid_jax.sampling.state import Sampler

pytestmark = [pytest.mark.usefixtures("strict_promotion"), pytest.mark.slow]

N, LENGTH = 13, 12

SCHEDULES = {
    "quenched AR": hyperschedule.quenched_ar(length=LENGTH),
    "flat": hyperschedule.flat(length=LENGTH, levels=5),
    "block": hyperschedule.block(length=LENGTH, width=5, levels=3),
    "slide": hyperschedule.slide(length=LENGTH, width=4, levels=6),
    "fast slide": hyperschedule.slide(length=LENGTH, width=4, levels=2),
    "custom": hyperschedule.custom(
        [[3] * 12, [2] * 4 + [3] * 8, [0] * 3 + [2] + [3] * 8, [0] * 4 + [1] * 3 + [2] + [3] * 4,
         [0] * 8 + [1] * 3 + [2], [0] * 8 + [1] * 4, [0] * 12]
    ),
}  # fmt: skip
LAYOUTS = {
    "aligned": Layout(),
    "shifted": Layout(alignment="shifted"),
    "aligned, block-causal": Layout(context="block_causal"),
    "shifted, block-causal": Layout(alignment="shifted", context="block_causal"),
    "causal window": Layout(alignment="shifted", causal_window=True),
}
RULES = {
    "ancestral": Ancestral(),
    "acs": ACS(eta=0.8, sweeps=2),
    "acs, confidence": ACS(eta=0.5, guidance="confidence", warp=Warp(temperature=0.7)),
    "remdm": ReMDM(eta=0.4, strategy="confidence", warp=Warp(top_k=5, top_p=0.9)),
    "threshold": Threshold(threshold=0.3),
    "entropy": EntropyBound(bound=2.0),
    "greedy": rules.make("greedy"),
}
# Prompts of several lengths, one of them with gaps, and windows that need nothing at all.
ROWS = [
    [],
    [3],
    [1, 2, 3, 4, 5, 6, 7],
    [4, GAP, GAP, 6, 7, 8, 9, 1, 2, 3, GAP],
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10],
    [GAP, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, GAP],
]


def spec_of(schedule, how, kernel="gamma .7", **settings):
    return Spec(
        schedule=SCHEDULES[schedule],
        kernel=kernels(N)[kernel],
        layout=LAYOUTS[how],
        objective=Objective(**settings),
        bos=2,
        chunk=3,
    )


@functools.cache
def transformer(**settings):
    """A small transformer with large random weights."""
    network = Transformer(vocab_size=N, layers=2, width=16, heads=2, condition=6, qk_norm=True)
    network = dataclasses.replace(network, **settings)
    leaves, tree = jax.tree.flatten(jax.jit(network.init)(jax.random.key(7)))
    keys = jax.random.split(jax.random.key(3), len(leaves))
    wild = [x + 0.4 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return network, jax.tree.unflatten(tree, wild)


@functools.cache
def reader():
    network = Reader(vocab_size=N, length=LENGTH)
    return network, network.init(seed=3)


def given(rows=ROWS, **settings):
    return prompts.build(rows, length=LENGTH, vocab_size=N, **settings)


def keys_of(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


# Every schedule, in alternating alignments; the transformer where its own cache differs.
PAIRS = [
    *((schedule, ("shifted", "aligned")[i % 2], reader) for i, schedule in enumerate(SCHEDULES)),
    ("block", "shifted, block-causal", reader),
    ("slide", "causal window", transformer),
    ("block", "shifted", transformer),
]
# Every rule, every schedule, and every layout.
CASES = [
    ("quenched AR", "aligned", "ancestral", "mean"),
    ("flat", "aligned", "greedy", "mean"),
    ("block", "aligned, block-causal", "acs", "score"),
    ("block", "shifted", "threshold", "mean"),
    ("slide", "causal window", "acs, confidence", "mean"),
    ("slide", "shifted", "remdm", "score"),
    ("custom", "aligned", "entropy", "mean"),
]

# ---------------------------------------------------------------------------------------------
# The cache.


@pytest.mark.parametrize(("schedule", "how", "made"), PAIRS)
def test_cached_logits_are_those_of_full_recomputation_at_every_step(schedule, how, made):
    network, params = made()
    cached = Sampler(spec=spec_of(schedule, how), network=network, prefill=1)
    whole = dataclasses.replace(cached, cached=False)
    rule = Ancestral()

    @quick_jit
    def compare(state):
        features, ready, _ = cache_feed.show(cached, params, state)
        wanted, _, _ = cache_feed.show(whole, params, state)
        step = jnp.minimum(state.step, cached.spec.schedule.steps - 1)
        _, inside = layouts.window_positions(cached.spec.schedule, step)
        counts = inside & (ready & (state.step < cached.spec.schedule.steps))[:, None]
        difference = network.logits(params, features) - network.logits(params, wanted)
        scale = jnp.abs(network.logits(params, wanted)).max()
        return jnp.where(counts[..., None], jnp.abs(difference), 0.0).max(), scale, counts.sum()

    state = loop.start(cached, params, keys_of(len(ROWS)), given())
    compared = 0
    for _ in range(100):
        if np.all(state.step == cached.spec.schedule.steps):
            break
        worst, scale, count = compare(state)
        assert worst < 1e-5 * max(1.0, scale)
        compared += int(count)
        state = loop.advance(cached, rule, params, state, 1)
    assert np.all(state.step == cached.spec.schedule.steps)
    assert state.nfe[0] == cached.spec.schedule.steps  # from nothing, one call a step
    assert compared > LENGTH * len(ROWS) / 3


@pytest.mark.parametrize(("schedule", "how", "rule", "parameterisation"), CASES)
def test_cached_texts_are_those_of_full_recomputation(schedule, how, rule, parameterisation):
    """For the same keys, to the last token, and beside any neighbours; no MASK is left, and given
    tokens stand where others are corrected."""
    network, params = reader()
    spec = spec_of(schedule, how, parameterisation=parameterisation)
    cached = Sampler(spec=spec, network=network, prefill=3)
    keys, prompt = keys_of(len(ROWS), seed=len(rule)), given()
    texts, whole = (
        generate(sampler, RULES[rule], params, keys, prompt)
        for sampler in (cached, dataclasses.replace(cached, cached=False))
    )
    np.testing.assert_array_equal(texts.tokens, whole.tokens)
    np.testing.assert_array_equal(texts.corrections, whole.corrections)
    assert texts.tokens.max() < N
    if rule.startswith(("acs", "remdm")):
        assert texts.corrections.sum() > 0
    np.testing.assert_array_equal(texts.tokens[prompt.frozen], prompt.tokens[prompt.frozen])
    rows, keys, now, before = among_others(ROWS, keys)
    again = generate(cached, RULES[rule], params, keys, given(rows))
    for name in ("tokens", "corrections", "nfe"):
        found, wanted = (np.asarray(getattr(x, name)) for x in (again, texts))
        np.testing.assert_array_equal(found[now], wanted[before])


@pytest.mark.parametrize(("schedule", "how", "rule"), [CASES[3][:3], CASES[4][:3]])
def test_a_text_alone_is_the_text_in_a_batch(schedule, how, rule):
    network, params = transformer()
    sampler = Sampler(spec=spec_of(schedule, how), network=network, prefill=3)
    # Nothing tells the positions of a text of MASKs alone apart: rounding would pick the surest.
    keys = keys_of(5)
    together = generate(sampler, RULES[rule], params, keys, given(ROWS[1:]))
    for row in (2, 3):
        alone = generate(sampler, RULES[rule], params, keys[row : row + 1], given([ROWS[row + 1]]))
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[row])
        assert alone.corrections[0] == together.corrections[row]


def test_a_text_does_not_depend_on_how_its_prompt_was_fed():
    network, params = reader()
    spec = spec_of("block", "shifted, block-causal")
    one, all_ = (
        generate(Sampler(spec=spec, network=network, prefill=size), ACS(), params,
                 keys_of(6), given()).tokens
        for size in (1, 256)
    )  # fmt: skip
    np.testing.assert_array_equal(one, all_)


def test_bfloat16_caches_hold_bfloat16():
    network, params = transformer(dtype="bfloat16")
    sampler = Sampler(spec=spec_of("block", "aligned"), network=network)
    state = jax.eval_shape(lambda: loop.start(sampler, params, keys_of(6), given()))
    after = jax.eval_shape(lambda state: loop.advance(sampler, ACS(), params, state), state)
    for cache in (state.cache, after.cache):
        assert {leaf.dtype for leaf in jax.tree.leaves(cache)} == {jnp.dtype(jnp.bfloat16)}


# ---------------------------------------------------------------------------------------------
# What a text depends on.


def test_texts_differ_by_their_keys():
    network, params = reader()
    sampler = Sampler(spec=spec_of("block", "aligned"), network=network)
    one = generate(sampler, Ancestral(), params, keys_of(6), given()).tokens
    two = generate(sampler, Ancestral(), params, keys_of(6, seed=1), given()).tokens
    assert np.all(np.any(one != two, axis=1)[:3])


def test_one_compilation_serves_all_prompts_keys_and_numbers():
    network, params = reader()
    sampler = Sampler(spec=spec_of("slide", "shifted"), network=network)
    chex.clear_trace_counter()

    def whole(rule, params, keys, given):
        return loop._generate.__wrapped__(sampler, rule, params, keys, given)

    run = jax.jit(chex.assert_max_traces(whole, n=1))
    for seed, (eta, temperature, rows) in enumerate(
        [(0.2, 1.0, ROWS), (0.9, 0.3, ROWS[::-1]), (1.0, 0.0, [[]] * len(ROWS))]
    ):
        rule = ACS(eta=eta, warp=Warp(temperature=temperature))
        run(rule, params, keys_of(len(ROWS), seed), given(rows))


# ---------------------------------------------------------------------------------------------
# GPT.


def plain_gpt_decode(network, params, bos, prompt, length):
    """Greedy decoding with a key-value cache, written out in numpy: tokens and all logits."""
    p = jax.tree.map(np.asarray, params)
    heads, width = network.heads, network.width
    head = width // heads
    keys = [[] for _ in range(network.layers)]
    values = [[] for _ in range(network.layers)]

    def norm(x, scale):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * scale

    def turn(x, position):
        half = head // 2
        angle = position * 10_000.0 ** (-np.arange(half) / half)
        a, b = x[..., :half], x[..., half:]
        return np.concatenate([a * np.cos(angle) - b * np.sin(angle),
                               a * np.sin(angle) + b * np.cos(angle)], -1)  # fmt: skip

    def feed(token, position):
        x = p["embedding"][token].astype(np.float64)
        for n in range(network.layers):
            w = {name: value[n] for name, value in p["layers"].items()}
            q, k, v = np.split(norm(x, w["norm_attention"]) @ w["qkv"].reshape(len(x), -1), 3)
            q, k, v = (part.reshape(heads, head) for part in (q, k, v))
            keys[n].append(turn(norm(k, w["norm_k"]), position))
            values[n].append(v)
            q = turn(norm(q, w["norm_q"]), position)
            scores = np.einsum("hk,mhk->hm", q, np.stack(keys[n])) / np.sqrt(head)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            x = x + np.einsum("hm,mhk->hk", weights, np.stack(values[n])).reshape(-1) @ w["out"]
            y = norm(x, w["norm_mlp"]) @ w["mlp_in"] + w["mlp_in_bias"]
            y = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
            x = x + y @ w["mlp_out"] + w["mlp_out_bias"]
        return norm(x, p["norm"]) @ p["head"]["kernel"] + p["head"]["bias"]

    text, logits = [], []
    for position in range(length):
        said = feed(text[-1] if text else bos, position - 1)[: network.vocab_size]
        logits.append(said)
        given = position < len(prompt)
        text.append(prompt[position] if given else int(said.argmax()))
    return text, np.stack(logits)


def test_shifted_autoregression_is_a_plain_gpt_decode():
    network, params = transformer(condition=0)
    spec = spec_of("quenched AR", "shifted", "absorbing")
    sampler = Sampler(spec=spec, network=network, prefill=4)
    rows = [[], [3, 1, 4, 1, 5], [2] * 11]

    @quick_jit
    def said(state):
        features, _, _ = cache_feed.show(sampler, params, state)
        return network.logits(params, features)[0, 0, :N]

    state = loop.start(sampler, params, keys_of(3), given(rows))
    _, logits = plain_gpt_decode(network, params, spec.bos, [], LENGTH)
    for position in range(LENGTH):
        np.testing.assert_allclose(said(state), logits[position], rtol=1e-4, atol=1e-4)
        state = loop.advance(sampler, rules.make("greedy"), params, state, 1)
    texts = loop.finish(sampler, state)
    for row, text in zip(rows, texts.tokens, strict=True):
        wanted, _ = plain_gpt_decode(network, params, spec.bos, row, LENGTH)
        np.testing.assert_array_equal(text, wanted)
    # One call a new token, and rounds that only feed a prompt are none of them.
    np.testing.assert_array_equal(texts.nfe, [LENGTH - len(row) for row in rows])


# ---------------------------------------------------------------------------------------------
# Calls, ends, and what is left out.


def nfe(schedule, rule, rows, how="aligned", **settings):
    network, params = reader()
    sampler = Sampler(spec=spec_of(schedule, how), network=network)
    return generate(sampler, rule, params, keys_of(len(rows)), given(rows, **settings)).nfe


def test_steps_that_move_nothing_are_left_out():
    """Blocks of 5, 5 and 2 positions, three steps each."""
    rows = [[], [1] * 5, [1] * 6, [1] * 10, [1] * 4 + [GAP] + [1] * 7, [GAP] + [1] * 10]
    # The last has two gaps with a given block between them, which takes one round to be fed.
    np.testing.assert_array_equal(nfe("block", Ancestral(), rows), [9, 6, 6, 3, 3, 3 + 1 + 3])


def test_a_text_stops_where_it_was_asked_to():
    network, params = reader()
    sampler = Sampler(spec=spec_of("block", "aligned"), network=network)
    prompt = given([[], [1], []] * 2, stop=[5, 6, 12] * 2)
    texts = generate(sampler, Ancestral(), params, keys_of(6), prompt)
    np.testing.assert_array_equal(texts.length, [5, 6, 12] * 2)
    np.testing.assert_array_equal(texts.nfe, [3, 6, 9] * 2)
    assert np.all(texts.tokens[0, 5:] == sampler.spec.bos)


def test_a_text_ends_at_eos_behind_the_last_given_token():
    network, params = reader()
    eos = 5
    sampler = Sampler(spec=spec_of("block", "aligned"), network=network, eos=eos)
    rows = [[GAP, GAP, eos, GAP, 1]] * 64 + [[]] * 64
    texts = generate(sampler, Ancestral(), params, keys_of(128), given(rows))
    on = generate(dataclasses.replace(sampler, eos=None), Ancestral(), params, keys_of(128),
                  given(rows))  # fmt: skip
    ended = 0
    for row, text, length, used in zip(rows, texts.tokens, texts.length, texts.nfe, strict=True):
        tail = np.asarray(text[len(row) :])
        where = np.flatnonzero(tail == eos)
        if len(where):
            ended += 1
            assert length == len(row) + where[0] + 1
            assert np.all(text[length:] == sampler.spec.bos)
            assert used == 3 * (-(-int(length) // 5))
        else:
            assert length == LENGTH
    assert 10 < ended < 128
    for text, other, length in zip(texts.tokens, on.tokens, texts.length, strict=True):
        np.testing.assert_array_equal(text[:length], other[:length])


def test_adaptive_rules_move_on_early_and_keep_pace_at_the_latest():
    rows = [[]] * 4
    np.testing.assert_array_equal(nfe("block", Threshold(threshold=0.0), rows), 3)
    np.testing.assert_array_equal(nfe("flat", EntropyBound(bound=1e9), rows), 1)
    # At least one token a step: the last block has two.
    slow = nfe("block", Threshold(threshold=1.0), rows)
    np.testing.assert_array_equal(slow, 3 + 3 + 2)
    some = nfe("flat", EntropyBound(bound=4.0), rows)
    assert np.all((some > 1) & (some < 5))


def test_closing_sweeps_are_counted_and_end_when_nothing_changes():
    rows = [[]] * 16
    few = nfe("block", ACS(eta=1.0, sweeps=2), rows)
    assert np.all((few > 9) & (few <= 9 + 3 * 2))
    # A greedy network says again what it has settled on, and the sweeps end; but drawing all tokens
    # at once may also go round in circles, until the budget ends.
    cold = nfe("block", ACS(eta=1.0, sweeps=50, warp=Warp(temperature=0.0)), rows)
    assert np.all(cold <= 9 + 3 * 50)
    assert np.mean(cold < 9 + 3 * 50) > 0.4


def test_corrections_are_counted():
    network, params = reader()
    sampler = Sampler(spec=spec_of("flat", "aligned", "epsilon"), network=network)
    state = loop.start(sampler, params, keys_of(50), given([[]] * 50))
    seen = np.zeros(50, int)
    for _ in range(5):
        before = np.asarray(state.tokens)
        state = loop.advance(sampler, ACS(eta=0.9), params, state, 1)
        after = np.asarray(state.tokens)
        seen += ((before != N) & (before != after)).sum(1)
    np.testing.assert_array_equal(state.corrections, seen)
    assert seen.sum() > 50


# ---------------------------------------------------------------------------------------------
# Errors.


@pytest.mark.parametrize(
    ("rows", "stop", "message"),
    [
        ([], None, "no prompts"),
        ([[1] * 13], None, "has 13 tokens, which does not fit a text of 12: shorten it"),
        ([[1] * 8], 6, "has 8 tokens, which does not fit a text of 6.*ask for a longer"),
        ([[1] * 12], None, "leaves nothing to generate"),
        ([[], [1, 13]], None, "Prompt 2 holds the token id 13, which is outside 0 … 12"),
        ([[1, -2]], None, "token id -2"),
        ([[1]], 13, "asks for a text of 13 tokens, but the model writes 1 to 12"),
        ([[1]], 0, "asks for a text of 0 tokens"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(rows, stop, message):
    with pytest.raises(UserError, match=message):
        given(rows, stop=stop)


@pytest.mark.parametrize(
    ("rule", "kernel", "message"),
    [
        (ACS(eta=1.2), "epsilon", r"eta must lie in \[0, 1\], but is 1.2"),
        (ACS(eta=-0.1), "epsilon", "eta must lie in"),
        (ACS(), "absorbing", "never learnt to judge: choose rule remdm"),
        (ACS(), "uniform", "works on MASK"),
        (ACS(guidance="doubt"), "epsilon", "guidance must be"),
        (ACS(sweeps=-1), "epsilon", "sweeps must be 0 or more"),
        (ACS(eta=0.0, sweeps=2), "epsilon", "sweeps is of corrections"),
        (ACS(eta=0.0, correction="remask"), "epsilon", "correction is of corrections"),
        (ACS(sweeps=1, correction="remask"), "epsilon", "nothing reveals what they would mask"),
        (Psi(kappa=1.5), "uniform", r"kappa must lie in \[0, 1\], but is 1.5"),
        (ReMDM(eta=2.0), "absorbing", "eta must lie in"),
        (ReMDM(strategy="loop"), "absorbing", "strategy must be"),
        (ReMDM(), "uniform", "works on MASK"),
        (Threshold(threshold=1.5), "absorbing", "threshold must lie in"),
        (Threshold(), "uniform", "works on MASK"),
        (EntropyBound(bound=-1.0), "absorbing", "bound must be 0 or more"),
        (EntropyBound(), "uniform", "works on MASK"),
        (Ancestral(warp=Warp(temperature=-1.0)), "absorbing", "temperature must be 0 or more"),
        (Ancestral(warp=Warp(top_k=0)), "absorbing", "top_k must be 1 or more"),
        (Ancestral(warp=Warp(top_p=0.0)), "absorbing", r"top_p must lie in \(0, 1\]"),
    ],
)
def test_rules_that_cannot_work_are_refused(rule, kernel, message):
    network, params = reader()
    sampler = Sampler(spec=spec_of("block", "aligned", kernel), network=network)
    with pytest.raises(UserError, match=message):
        generate(sampler, rule, params, keys_of(1), given([[]]))


def test_masked_noise_may_use_the_original_sampler():
    ACS(eta=0.0).check(kernels(N)["absorbing"], Objective())


def test_samplers_without_meaning_are_refused():
    network, _ = reader()
    sampler = Sampler(spec=spec_of("block", "aligned"), network=network)
    for change, message in (({"prefill": 0}, "prefill must be"), ({"eos": N}, "end token 13")):
        with pytest.raises(UserError, match=message):
            loop.check(dataclasses.replace(sampler, **change), Ancestral())
