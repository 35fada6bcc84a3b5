"""The oracle of benchmarks/oracle: exact predictions, and what samplers make of them."""

import argparse

import jax
import numpy as np
import oracle_table
import pytest
from enumeration import all_sequences, dense_transition, kernels
from oracle import chain as chains
from oracle.network import Oracle, params_of, sampler_of
from scipy.stats import chi2_contingency, chisquare

from hybrid_jax.errors import UserError
from hybrid_jax.method import hyperschedule
from hybrid_jax.method.layout import Layout
from hybrid_jax.method.loss import Spec
from hybrid_jax.method.objective import Objective
from hybrid_jax.sampling import prompts, rules
from hybrid_jax.sampling.loop import generate

pytestmark = pytest.mark.usefixtures("strict_promotion")

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


def generated(sampler, rule, *, count=DRAWS):
    keys = jax.random.split(jax.random.key(3), count)
    given = prompts.nothing(count, LENGTH)
    return np.asarray(generate(sampler, rule, params_of(CHAIN), keys, given).tokens)


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
    name, *settings = rule.split(":")
    rule = rules.make(name, **{k: float(v) for k, v in (s.split("=") for s in settings)})
    found = counts(generated(sampler(schedule), rule))
    likely = CHANCE * DRAWS > 5
    expected = np.append(CHANCE[likely], CHANCE[~likely].sum()) * DRAWS
    found = np.append(found[likely], found[~likely].sum())
    assert bool(chisquare(found, expected).pvalue > 1e-4) is follows


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
    own = [chains.distances(CHAIN, CHAIN.draw(draw, 200, 30)) for _ in range(20)]
    for name, value in [("corrected kl", 0.0), ("entropy", CHAIN.entropy_rate)]:
        found = np.array([row[name] for row in own])
        assert abs(found.mean() - value) < 4 * found.std(ddof=1) / np.sqrt(len(own))
    # Without the correction it is not.
    found = np.array([row["kl"] for row in own])
    assert found.mean() > 6 * found.std(ddof=1) / np.sqrt(len(own))
    pairs = other.start[:, None] * other.step
    far = chains.distances(CHAIN, other.draw(draw, 20_000, 30))
    kl = (pairs * np.log(other.step / CHAIN.step)).sum()
    tv = abs(pairs - other.start[:, None] * CHAIN.step).sum() / 2
    assert far["corrected kl"] == pytest.approx(kl, rel=0.02)
    assert far["tv"] == pytest.approx(tv, rel=0.02)
    assert far["unigram tv"] == pytest.approx(abs(other.start - CHAIN.start).sum() / 2, abs=2e-3)


def test_each_cell_of_the_table_is_a_number_or_a_reason():
    options = argparse.Namespace(
        length=8, width=4, texts=8, seeds=2, kernels=["uniform"], schedules=["ar"],
        rules=["ancestral", "acs"], calls=[2, 4, 8],
    )  # fmt: skip
    chain = chains.of_texts(["Abracadabra, said the cat."])
    head, _, floor, *lines = oracle_table.lines_of(options, chain)
    assert {line.count("|") for line in (head, floor, *lines)} == {10}
    found = [[cell.strip() for cell in line.split("|")[3:6]] for line in lines]
    assert found[0][:2] == ["ancestral", "AR makes one call a position: give 8 calls."]
    assert found[1][:2] == ["ancestral", "8.0"]
    assert float(found[1][2].split(" ± ")[0]) > 0
    assert found[2][1].startswith("This rule works on MASK")
    assert len(found) == 3


@pytest.mark.parametrize(
    ("family", "calls", "steps"), [("flat", 5, 5), ("block", 9, 8), ("slide", 9, 9)]
)
def test_schedules_use_the_calls_they_are_given(family, calls, steps):
    schedule = oracle_table.schedule_of(family, 8, 2, calls)
    assert schedule.steps == steps
    with pytest.raises(UserError, match="fewer than windows of 2"):
        oracle_table.schedule_of("slide", 8, 2, 2)
