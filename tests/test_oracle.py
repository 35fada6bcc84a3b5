"""The oracle of benchmarks/oracle: exact predictions, and what samplers make of them."""

import argparse
import itertools
import re

import jax
import numpy as np
import oracle_table
import pytest
from conftest import REPOSITORY
from enumeration import all_sequences, dense_transition, kernels
from oracle import cells
from oracle import chain as chains
from oracle.joint import jointly
from oracle.network import Oracle, params_of, sampler_of
from scipy import special
from scipy.stats import chi2_contingency, chisquare

from hybrid_jax.errors import UserError
from hybrid_jax.method import hyperschedule, noising
from hybrid_jax.method.layout import Layout
from hybrid_jax.method.loss import Spec
from hybrid_jax.method.objective import Objective
from hybrid_jax.sampling import prompts, rules
from hybrid_jax.sampling.loop import generate

pytestmark = [pytest.mark.usefixtures("strict_promotion"), pytest.mark.slow]

TOKENS, LENGTH, DRAWS = 3, 4, 30_000
CHAIN = chains.of_step(np.array([[0.7, 0.2, 0.1], [0.05, 0.15, 0.8], [0.5, 0.4, 0.1]]))
TEXTS = all_sequences(TOKENS, LENGTH)
CHANCE = CHAIN.start[TEXTS[:, 0]] * CHAIN.step[TEXTS[:, :-1], TEXTS[:, 1:]].prod(1)
FLAT = {steps: hyperschedule.flat(length=LENGTH, levels=steps) for steps in (2, LENGTH)}


def clean_given(weights):
    """p(x_i | shown) of every position [L, V], where `weights` [L, V] are q(shown | x)."""
    joint = CHANCE * weights[np.arange(LENGTH), TEXTS].prod(1)
    marginal = np.stack([np.bincount(x, joint, TOKENS) for x in TEXTS.T])
    return marginal / joint.sum()


def sampler(schedule, kernel="absorbing", alignment="aligned", **settings):
    spec = Spec(
        schedule=schedule, kernel=kernels(TOKENS)[kernel], layout=Layout(alignment=alignment),
        objective=Objective(), chunk=3,
    )  # fmt: skip
    return sampler_of(spec, **settings)


def generated(sampler, rule, *, count=DRAWS, chain=CHAIN):
    keys = jax.random.split(jax.random.key(3), count)
    given = prompts.nothing(count, sampler.spec.schedule.length)
    return np.asarray(generate(sampler, rule, params_of(chain), keys, given).tokens)


def rule_of(text):
    name, *settings = text.split(":")
    return rules.make(name, **{k: float(v) for k, v in (s.split("=") for s in settings)})


def agrees(found, chance):
    """Asserts that counts are as probable as they should be, by χ²; rare outcomes together."""
    expected = chance * found.sum()
    likely = expected > 5
    found, expected = (np.append(x[likely], x[~likely].sum()) for x in (found, expected))
    kept = expected > 0
    assert not found[~kept].any()
    return bool(chisquare(found[kept], expected[kept]).pvalue > 1e-4)


def counts(tokens):
    return np.bincount(tokens @ TOKENS ** np.arange(LENGTH)[::-1], minlength=len(TEXTS))


@pytest.mark.parametrize("name", kernels(TOKENS))
@pytest.mark.parametrize("shift", [0, 1])
def test_predictions_are_those_of_enumeration(name, shift):
    kernel, draw = kernels(TOKENS)[name], np.random.default_rng(0)
    cases = 16
    # The last row is that of the token at −1, which tells nothing.
    position = np.array([2, 0, 3, 1, -1], np.int32)
    level = np.float32(draw.random((cases, LENGTH)))
    level[draw.random((cases, LENGTH)) < 0.2] = 0
    shown = draw.random((cases, LENGTH + 1)) < 0.8
    texts = TEXTS[draw.choice(len(TEXTS), cases, p=CHANCE)]
    noisy, exact = np.zeros_like(texts), []
    for case in range(cases):
        moves = [dense_transition(kernel, 0.0, float(at))[:TOKENS] for at in level[case]]
        for i in range(LENGTH):
            noisy[case, i] = draw.choice(TOKENS + 1, p=moves[i][texts[case, i]])
        weights = np.array([move[:, z] for move, z in zip(moves, noisy[case], strict=True)])
        exact.append(clean_given(np.where(shown[case, position.argsort()[1:], None], weights, 1.0)))
    mask = np.broadcast_to(shown[:, None] & shown[:, :, None], (cases, LENGTH + 1, LENGTH + 1))
    oracle = Oracle(kernel=kernel, length=LENGTH, shift=shift)
    found = oracle.features(
        params_of(CHAIN), noisy[:, position], position[None], mask,
        np.where(position < 0, np.float32(0), level[:, position]),
    )  # fmt: skip
    wanted = position + shift
    inside = (wanted >= 0) & (wanted < LENGTH)
    np.testing.assert_allclose(
        np.exp(found)[:, inside], np.array(exact)[:, wanted[inside]], atol=2e-6
    )


@pytest.mark.parametrize(
    ("schedule", "rule", "follows"),
    [
        (hyperschedule.quenched_ar(length=LENGTH), "ancestral", True),
        (FLAT[LENGTH], "entropy:bound=0", True),
        # Places are chosen by the tokens drawn for them, and likely ones come first.
        (FLAT[LENGTH], "threshold:threshold=1", False),
        (FLAT[LENGTH], "ancestral", False),
    ],
)
def test_one_position_at_a_time_follows_the_chain(schedule, rule, follows):
    found = counts(generated(sampler(schedule), rule_of(rule)))
    assert agrees(found, CHANCE) is follows


@pytest.mark.parametrize(
    ("kernel", "schedule", "rule", "follows"),
    [
        ("absorbing", FLAT[2], "remdm:eta=0.3", True),
        ("gamma .1", hyperschedule.slide(length=LENGTH, width=2, levels=2), "ancestral", True),
        ("uniform", FLAT[2], "ancestral", True),
        ("absorbing", FLAT[2], "threshold:threshold=1", False),
        # It takes its own clean draws for noisy ones.
        ("epsilon", FLAT[2], "acs:eta=0", False),
    ],
)
def test_exact_rules_lose_nothing_but_by_factorising(kernel, schedule, rule, follows):
    rule = jointly(rule_of(rule), params_of(CHAIN)["step"])
    found = counts(generated(sampler(schedule, kernel, ahead=True), rule))
    assert agrees(found, CHANCE) is follows


@pytest.mark.parametrize(("width", "steps"), [(4, 1), (4, 3), (2, 2)])
def test_cost_of_factorising_is_that_of_enumeration(width, steps):
    """Mean over shares shown of the entropies that are drawn alone, less that of the text."""
    cost = float(special.xlogy(CHANCE, CHANCE).sum())
    levels = np.arange(1, steps + 1) / steps
    for start, level in itertools.product(range(0, LENGTH, width), levels):
        for block in itertools.product([False, True], repeat=width):
            hidden = np.array([False] * start + [*block] + [True] * (LENGTH - width - start))
            chance = np.where(block, level, 1 - level).prod()
            for text, weight in zip(TEXTS, CHANCE, strict=True):
                p = clean_given(np.where(hidden[:, None], 1.0, np.eye(TOKENS)[text]))
                each = -special.xlogy(p, p)[start : start + width].sum()
                # Of what is hidden at this level, its step reveals one share.
                cost += chance * weight * each / (level * steps)
    found = chains.factorising_cost(CHAIN, LENGTH, width, steps)
    assert found * LENGTH == pytest.approx(cost, abs=1e-9)


def redrawn_by_acs(p, epsilon, steps):
    """p(x) of the only token of a text, with η = 1."""
    evidence = (1 - epsilon) * np.eye(TOKENS) + epsilon / TOKENS
    moved = evidence * p / (evidence @ p)[:, None]  # [shown, redrawn]
    shown, masked = np.zeros(TOKENS), 1.0
    for t in range(steps, 0, -1):
        redraw = (t - 1) / t
        shown = redraw * shown @ moved + (1 - redraw) * shown + masked / t * p
        masked *= 1 - 1 / t
    return shown


def test_acs_redraws_a_token_towards_the_likely_ones():
    """In the limit p ((1 − ε) p + ε/V), by detailed balance."""
    p, epsilon, steps = np.array([0.6, 0.3, 0.1]), 0.3, 32
    spec = Spec(
        schedule=hyperschedule.flat(length=1, levels=steps), layout=Layout(),
        kernel=noising.epsilon_hybrid(vocab_size=TOKENS, epsilon=epsilon), objective=Objective(),
    )  # fmt: skip
    rule = rule_of("acs:eta=1")
    found = generated(sampler_of(spec), rule, chain=CHAIN._replace(start=p))[:, 0]
    assert agrees(np.bincount(found, minlength=TOKENS), redrawn_by_acs(p, epsilon, steps))
    limit = p * ((1 - epsilon) * p + epsilon / TOKENS)
    limit /= limit.sum()
    np.testing.assert_allclose(redrawn_by_acs(p, epsilon, 10_000), limit, atol=1e-3)
    assert limit[0] > p[0] + 0.1


def simulated(draw, steps, count):
    """Texts of masked diffusion in few steps, without anything of the package."""
    known = np.full((count, LENGTH), -1)
    predictions = {}
    for left in range(steps, 0, -1):
        before = known.copy()
        for row, shown in zip(known, before, strict=True):
            key = tuple(shown)
            if key not in predictions:
                certain = np.eye(TOKENS)[shown]
                weights = np.where(shown[:, None] < 0, 1.0, certain)
                predictions[key] = np.cumsum(clean_given(weights), axis=1)[:, :-1]
            token = (draw.random((LENGTH, 1)) > predictions[key]).sum(1)
            reveal = (shown < 0) & (draw.random(LENGTH) < 1 / left)
            row[reveal] = token[reveal]
    return known


def test_few_steps_agree_with_an_independent_simulation():
    mine = counts(simulated(np.random.default_rng(1), 2, DRAWS))
    found = counts(generated(sampler(FLAT[2]), rules.Ancestral()))
    both = np.stack([mine, found])
    assert chi2_contingency(both[:, both.sum(0) > 20]).pvalue > 1e-4
    # Two steps are far too few for texts of the chain, and this number of texts shows it.
    true = counts(CHAIN.draw(np.random.default_rng(2), DRAWS, LENGTH))
    both = np.stack([true, found])
    assert chi2_contingency(both[:, both.sum(0) > 20]).pvalue < 1e-30


@pytest.mark.parametrize(
    ("schedule", "kernel", "alignment"),
    [
        (hyperschedule.slide(length=LENGTH, width=2, levels=2), "gamma .1", "shifted"),
        (hyperschedule.block(length=LENGTH, width=2, levels=2), "epsilon", "aligned"),
        (hyperschedule.quenched_ar(length=LENGTH), "absorbing", "shifted"),
    ],
)
def test_texts_do_not_depend_on_the_cache(schedule, kernel, alignment):
    texts = [
        generated(sampler(schedule, kernel, alignment, cached=cached), rules.Ancestral(), count=200)
        for cached in (True, False)
    ]
    assert (texts[0] == texts[1]).mean() > 0.999  # sums in another order may turn a draw


def test_causal_windows_are_refused():
    spec = Spec(
        schedule=FLAT[2], kernel=kernels(TOKENS)["absorbing"], objective=Objective(),
        layout=Layout(causal_window=True),
    )  # fmt: skip
    with pytest.raises(UserError, match="causal_window=False"):
        sampler_of(spec)


def test_distances_are_zero_for_the_chain_and_known_for_another():
    draw = np.random.default_rng(4)
    other = chains.of_step(CHAIN.step**0.7)
    texts = np.stack([CHAIN.draw(draw, 200, 30) for _ in range(20)])
    own = [chains.distances(CHAIN, one) for one in texts]
    for name, value in [("corrected kl", 0.0), ("entropy", CHAIN.entropy_rate)]:
        found = np.array([row[name] for row in own])
        assert abs(found.mean() - value) < 4 * found.std(ddof=1) / np.sqrt(len(own))
    # Of a mean, the jackknife has its standard error; the entropy is nearly one.
    error = chains.jackknife(CHAIN, texts)["entropy"][1]
    assert error == pytest.approx(found.std(ddof=1) / np.sqrt(len(own)), rel=0.1)
    # Without the correction KL is not 0.
    found = np.array([row["kl"] for row in own])
    assert found.mean() > 6 * found.std(ddof=1) / np.sqrt(len(own))
    pairs = other.start[:, None] * other.step
    far = chains.distances(CHAIN, other.draw(draw, 20_000, 30))
    kl = (pairs * np.log(other.step / CHAIN.step)).sum()
    tv = abs(pairs - other.start[:, None] * CHAIN.step).sum() / 2
    assert far["corrected kl"] == pytest.approx(kl, rel=0.02)
    assert far["tv"] == pytest.approx(tv, rel=0.02)
    assert far["unigram tv"] == pytest.approx(abs(other.start - CHAIN.start).sum() / 2, abs=2e-3)


def test_the_correction_also_serves_rare_pairs():
    draw = np.random.default_rng(0)
    chain = chains.of_step(draw.dirichlet(np.full(12, 0.5), 12) + 1e-3)
    rows = [chains.distances(chain, chain.draw(draw, 20, 30)) for _ in range(200)]
    found = np.array([row["corrected kl"] for row in rows])
    assert abs(found.mean()) < 4 * found.std(ddof=1) / np.sqrt(len(rows))
    assert np.mean([row["kl"] for row in rows]) > 0.1


OPTIONS = argparse.Namespace(length=8, texts=8, seeds=2, alphabet="letters")
HEAD = {"settings": {"length": 8}, "on": "a machine"}


def test_each_cell_of_the_table_is_a_number_or_a_reason(tmp_path):
    chain = chains.of_letters(["Abracadabra, said the cat."])
    wanted = [
        cells.cell("uniform", schedule, rule, calls, length=8, width=4)
        for schedule, rule, calls in [
            ("ar", "ancestral", 2), ("ar", "ancestral", 8), ("flat", "ancestral", 2),
            ("flat", "acs", 2),
        ]
    ]  # fmt: skip
    store = cells.Store(tmp_path / "cells.jsonl", HEAD)
    assert [cell for cell, _ in cells.measured(OPTIONS, chain, store, wanted)] == wanted
    floor = cells.floor(OPTIONS, chain)
    lines = list(oracle_table.lines_of(wanted, store.cells, floor))
    assert {line.count("|") for line in lines} == {10}
    assert [line.split(" | ")[3] for line in lines[3:]] == ["8.0", "2.0"]
    assert float(lines[3].split(" | ")[4].split(" ± ")[0]) > 0
    head, _, exact, acs, _, *reasons = oracle_table.overview(wanted, store.cells)
    assert {line.count("|") for line in (head, exact, acs)} == {6}
    assert exact.startswith("| uniform | ancestral | (1) | ")
    assert acs.endswith(" | (2) |")
    assert reasons[0] == "1. AR makes one call a position: give 8 calls."
    assert reasons[1].startswith("2. This rule works on MASK")


def test_an_interrupted_table_goes_on(tmp_path):
    chain, path = chains.of_letters(["Abracadabra, said the cat."]), tmp_path / "cells.jsonl"
    wanted = [cells.cell("uniform", "flat", f"acs:eta={eta}", 2, length=8) for eta in (0.1, 0.2)]
    assert len(list(cells.measured(OPTIONS, chain, cells.Store(path, HEAD), wanted))) == 2
    path.write_text(path.read_text()[:-9])  # a line is cut
    again = cells.Store(path, HEAD)
    assert [cell for cell, _ in cells.measured(OPTIONS, chain, again, wanted)] == wanted[1:]
    assert set(again.cells) == set(wanted)
    with pytest.raises(UserError, match="other settings"):
        cells.Store(path, {"settings": {"length": 9}})


def test_the_page_shows_the_stored_table():
    results = REPOSITORY / "benchmarks" / "results"
    (short,), (long,) = (results.glob(f"oracle-letters-{of}-*.md") for of in ("cpu", "1024-cpu"))
    text = short.read_text("utf-8")
    page = (REPOSITORY / "docs" / "samplers.md").read_text("utf-8")
    number = re.compile(r"-?\d\.\d{4} ± \d\.\d{4}")
    assert len(number.findall(page)) > 100
    assert set(number.findall(page)) <= set(number.findall(text + long.read_text("utf-8")))
    grid = text.partition("## grid: KL, corrected")[2].partition("##")[0]
    assert {line for line in grid.splitlines() if line} <= set(page.splitlines())


@pytest.mark.parametrize(
    ("family", "calls", "steps"), [("flat", 5, 5), ("block", 9, 8), ("slide", 9, 9)]
)
def test_schedules_use_the_calls_they_are_given(family, calls, steps):
    schedule = cells.schedule_of(family, 8, 2, calls)
    assert schedule.steps == steps
    with pytest.raises(UserError, match="fewer than windows of 2"):
        cells.schedule_of("slide", 8, 2, 2)
