"""Adaptive windows: their steps, the widths chosen, the law of their texts, and the cache."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from enumeration import Reader, among_others, kernels
from oracle import chain as chains
from oracle.network import params_of, sampler_of

from hybrid_jax.errors import UserError
from hybrid_jax.method import hyperschedule, objective
from hybrid_jax.method import layout as layouts
from hybrid_jax.method.adaptive import Adaptive
from hybrid_jax.method.layout import Layout
from hybrid_jax.method.loss import Spec
from hybrid_jax.method.objective import Objective
from hybrid_jax.sampling import likelihood, prompts, rules
from hybrid_jax.sampling.loop import generate
from hybrid_jax.sampling.prompts import GAP
from hybrid_jax.sampling.state import Place, Sampler
from hybrid_jax.sampling.windows import Windows

pytestmark = [pytest.mark.usefixtures("strict_promotion"), pytest.mark.slow]

N, LENGTH, WIDTH = 13, 12, 5
BLOCKS = hyperschedule.block(length=LENGTH, width=WIDTH, levels=3)
STEPS = Adaptive(blocks=hyperschedule.block(length=5, width=3, levels=2))
# Nothing, prompts shorter and longer than a window, and gaps with given windows between them.
ROWS = [
    [], [3], [1, 2, 3, 4, 5, 6, 7], [4, GAP, GAP, 6, 7, 8, 9, 1, 2, 3, GAP],
    [GAP, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, GAP], [5] * 11,
]  # fmt: skip
NETWORK = Reader(vocab_size=N, length=LENGTH, strength=2.0)
PARAMS = NETWORK.init(seed=3)


def spec_of(alignment="aligned", kernel="gamma .7", schedule=BLOCKS, **layout):
    return Spec(
        schedule=schedule, kernel=kernels(N)[kernel], bos=2, chunk=3, objective=Objective(),
        layout=Layout(alignment=alignment, **layout),
    )  # fmt: skip


def texts_of(rule, spec, rows=ROWS, count=None, **settings):
    sampler = Sampler(spec=rule.spec(spec), network=NETWORK, **settings)
    given = prompts.build(rows, length=LENGTH, vocab_size=N)
    keys = jax.random.split(jax.random.key(1), len(ROWS) if count is None else count)
    return given, generate(sampler, rule, PARAMS, keys[: len(rows)], given)


def test_steps_are_those_of_windows_of_every_width_at_every_place():
    step = jnp.arange(STEPS.steps)
    at = [np.asarray(part) for part in STEPS.at(step)]
    table = np.asarray(STEPS.level(step[:, None], jnp.arange(5)[None]))
    settled, frontier, closed = (
        np.asarray(f(step)) for f in (STEPS.settled, STEPS.frontier, STEPS.closed)
    )
    assert len({tuple(map(int, one)) for one in zip(*at, strict=True)}) == 5 * 4 * 3
    for s, (first, width, done) in enumerate(zip(*at, strict=True)):
        shown = width or 3
        wanted = [0 if i < first else 2 - done if i < first + shown else 2 for i in range(5)]
        assert table[s].tolist() == wanted
        if width or done < 2:  # an open window without a width never settles
            assert settled[s] == wanted.count(0)
        assert frontier[s] == 5 - wanted.count(2)
        assert closed[s] == STEPS.number(int(first), int(width), 2)
    assert STEPS.settled(STEPS.steps) == 5
    # Draws of different windows never share a number, whatever comes before.
    drawn = {int(STEPS.block_step(STEPS.number(f, 0, d))) for f in range(5) for d in range(2)}
    assert len(drawn) == 5 * 2


def test_training_sees_the_blocks():
    phase = jnp.array([1, 0])
    for layout in (Layout(), Layout(alignment="shifted")):
        ours, theirs = (
            layouts.training_rows(layout, schedule, phase) for schedule in (STEPS, STEPS.blocks)
        )
        noisy = np.asarray(theirs.noisy)
        for name in ("position", "target", "valid", "first"):
            a, b = (np.asarray(getattr(rows, name)) for rows in (ours, theirs))
            clean = slice(-int(theirs.valid[~noisy].sum()), None) if name != "first" else None
            np.testing.assert_array_equal(a[: len(noisy)][noisy], b[noisy])
            assert clean is None or set(b[clean]) <= set(a[~np.asarray(ours.noisy)])


@pytest.mark.parametrize(
    ("alignment", "rule"),
    [
        ("shifted", rules.make("acs", eta=0.8, sweeps=2, window_entropy=0.0, window_least=5)),
        ("aligned", rules.make("entropy", bound=2.0, window_entropy=1e9)),
    ],
)
def test_windows_of_the_greatest_width_are_the_blocks_draw_by_draw(alignment, rule):
    _, own = texts_of(rule, spec_of(alignment), eos=4)
    fixed = dataclasses.replace(rule, windows=Windows())
    _, theirs = texts_of(fixed, spec_of(alignment), eos=4)
    for name in ("tokens", "length", "nfe", "corrections"):
        np.testing.assert_array_equal(getattr(own, name), getattr(theirs, name))


@pytest.mark.parametrize(
    ("alignment", "name", "settings"),
    [
        ("shifted", "acs", {"eta": 0.8, "sweeps": 2}),
        ("aligned", "threshold", {"threshold": 0.3}),
        ("aligned", "ancestral", {}),
    ],
)
def test_texts_depend_neither_on_the_cache_nor_on_their_neighbours(alignment, name, settings):
    rule = rules.make(name, window_entropy=1.0, **settings)
    given, cached = texts_of(rule, spec_of(alignment))
    _, whole = texts_of(rule, spec_of(alignment), cached=False)
    np.testing.assert_array_equal(cached.tokens, whole.tokens)
    assert cached.tokens.max() < N
    np.testing.assert_array_equal(cached.tokens[given.frozen], given.tokens[given.frozen])
    # Windows are neither all of one width nor all of another.
    wide, narrow = (
        texts_of(dataclasses.replace(rule, windows=Windows(window_entropy=bound)),
                 spec_of(alignment))[1].nfe.sum()
        for bound in (1e9, 0.0)
    )  # fmt: skip
    assert wide < cached.nfe.sum() < narrow
    sampler = Sampler(spec=rule.spec(spec_of(alignment)), network=NETWORK)
    keys = jax.random.split(jax.random.key(1), len(ROWS))
    rows, keys, now, before = among_others(ROWS, keys)
    again = generate(sampler, rule, PARAMS, keys, prompts.build(rows, length=LENGTH, vocab_size=N))
    np.testing.assert_array_equal(again.tokens[now], np.asarray(cached.tokens)[before])


def test_given_windows_are_left_out():
    """Windows of one token, three calls each; those that are given cost at most their feeding."""
    rule = rules.make("ancestral", window_entropy=0.0)
    _, texts = texts_of(rule, spec_of())
    # From position 5 on in the third, where a block begins: its first window has two given tokens.
    np.testing.assert_array_equal(texts.nfe[:3], 3 * np.array([12, 11, 5]))
    assert texts.nfe[4] == 3 + 3 + 1
    assert texts.nfe[5] == 3


def test_a_text_ends_at_eos():
    rule = rules.make("ancestral", window_entropy=1.0)
    rows = [[]] * 64
    _, on = texts_of(rule, spec_of(), rows, 64)
    _, ended = texts_of(rule, spec_of(), rows, 64, eos=4)
    for text, length, whole in zip(ended.tokens, ended.length, on.tokens, strict=True):
        where = np.flatnonzero(np.asarray(whole) == 4)
        assert length == (where[0] + 1 if len(where) else LENGTH)
        np.testing.assert_array_equal(text[:length], whole[:length])
    assert (ended.nfe < on.nfe).sum() > 5


@pytest.mark.parametrize(
    ("bound", "least", "width"), [(0.0, 1, 3), (1.1, 1, 4), (1.3, 1, 5), (9.0, 1, 6), (0.0, 5, 5)]
)
def test_the_width_is_where_drawing_together_costs_the_bound(bound, least, width):
    """The second position is given and costs nothing, and the last is behind the text."""
    schedule = Adaptive(blocks=hyperschedule.block(length=20, width=7, levels=3))
    inside = np.arange(7) < 6
    place = Place(
        position=jnp.zeros((1, 7), int), inside=jnp.asarray(inside)[None],
        changes=jnp.asarray(inside)[None], level=jnp.ones((1, 7)), level_next=jnp.ones((1, 7)),
        active=jnp.asarray(inside & (np.arange(7) != 1))[None],
    )  # fmt: skip
    nats = jnp.array([[0.5, 9.0, 0.0, 0.7, 1.0, 2.0, 0.1]])
    rule = Windows(window_entropy=bound, window_least=least)
    first = jnp.array([14])
    for before, moves, wanted in ((0, True, width), (0, False, 0), (2, True, 2)):  # chosen once
        step = schedule.number(first, before)
        found = rule.chosen(schedule, step, jnp.array([moves]), place, nats)
        assert [int(part[0]) for part in schedule.at(found)] == [14, wanted, 0]


@pytest.mark.parametrize("time", ["discrete", "continuous"])
def test_training_draws_the_levels_of_the_blocks(time):
    uniform = jnp.array([0.1, 0.4, 0.8])
    (_, wanted), (_, found) = (
        objective.draw(schedule, kernels(N)["absorbing"], time, uniform)
        for schedule in (BLOCKS, Adaptive(blocks=BLOCKS))
    )
    for one, other in zip(wanted, found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_law_is_that_of_windows_chosen_by_what_is_before_them():
    """With an exact network of a chain and one call a window, against its powers alone."""
    chain = chains.of_step(np.random.default_rng(2).dirichlet(np.full(4, 0.1), 4) + 5e-3)
    length, most, bound = 24, 4, 1.0
    schedule = hyperschedule.block(length=length, width=most, levels=1)
    rule = rules.make("ancestral", window_entropy=bound)
    spec = dataclasses.replace(
        spec_of(kernel="absorbing", schedule=schedule), kernel=kernels(4)["absorbing"]
    )
    sampler = sampler_of(rule.spec(spec))
    own = likelihood.PathLikelihood(name="order:own", sampler=sampler, rule=rule)
    assert own.label == "exact likelihood of order:own on adaptive block(ω=4, T=1)"
    texts = np.random.default_rng(0).integers(0, 4, (32, length))
    powers = [np.linalg.matrix_power(chain.step, k + 1) for k in range(most)]
    wanted, widths = np.zeros(len(texts)), set()
    for row, text in enumerate(texts):
        at = 0
        while at < length:
            p = [chain.start if at == 0 else power[text[at - 1]] for power in powers]
            p = np.array(p[: length - at])
            nats = -(p * np.log(p)).sum(1)
            fits = np.cumsum(nats) - np.maximum.accumulate(nats) <= bound
            width = int(fits.sum())
            wanted[row] -= np.log(p[np.arange(width), text[at : at + width]]).sum()
            widths.add(width)
            at += width
    assert len(widths) > 2
    keys = jax.random.split(jax.random.key(0), len(texts))
    given = np.zeros(texts.shape, bool)
    found = likelihood.nats(sampler, rule, params_of(chain), texts.astype(np.int32), given, keys)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


@pytest.mark.parametrize(
    ("schedule", "settings", "message"),
    [
        (hyperschedule.quenched_ar(length=LENGTH), {}, "quenched AR has none: leave it out"),
        (hyperschedule.flat(length=LENGTH, levels=4), {}, r"flat\(T=4\) has none"),
        (hyperschedule.slide(length=LENGTH, width=4, levels=4), {}, "slide.* has none"),
        (BLOCKS, {"window_least": 6}, "at most the 5 positions of a window, but is 6"),
        (BLOCKS, {"window_least": 0}, "window_least must be 1 or more"),
        (BLOCKS, {"window_entropy": -1.0}, "window_entropy must be 0 or more"),
        (BLOCKS, {"window_entropy": None, "window_least": 2}, "no effect without window_entropy"),
    ],
)
def test_windows_without_meaning_are_refused(schedule, settings, message):
    rule = rules.make("ancestral", **{"window_entropy": 1.0, **settings})
    with pytest.raises(UserError, match=message):
        texts_of(rule, spec_of(schedule=schedule))


def test_what_adaptive_windows_do_not_go_with():
    rule = rules.make("ancestral", window_entropy=1.0)
    with pytest.raises(UserError, match="choose context=causal"):
        texts_of(rule, spec_of(context="block_causal"))
    sampler = Sampler(spec=spec_of(), network=NETWORK)
    with pytest.raises(UserError, match="a rule and a schedule for it together"):
        generate(sampler, rule, PARAMS, jax.random.split(jax.random.key(0), 1),
                 prompts.nothing(1, LENGTH))  # fmt: skip
