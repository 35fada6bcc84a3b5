"""The audit of bounds: each number is on the side of the exact likelihood that its page says."""

import functools
import sys

import numpy as np
import pytest
from conftest import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "benchmarks"))
import bounds

STEPS = (1, 4, 64, 128, 256)
DATA = bounds.markov_texts(2, 3)


@functools.cache
def rows(errors):
    found = bounds.audit(DATA, 2, 3, errors=errors, steps=STEPS, gammas=(0.1,), draws=2048)
    return {row.name: row for row in found}


@pytest.mark.parametrize("errors", bounds.NETWORKS.values(), ids=bounds.NETWORKS)
def test_bounds_of_every_text_are_bounds(errors):
    found = [row for row in rows(errors).values() if row.kind == "bound"]
    assert len(found) == len(STEPS) + 5
    for row in found:
        assert row.worst > -2e-5, row
    assert rows(errors)["autoregression"].excess == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("errors", bounds.NETWORKS.values(), ids=bounds.NETWORKS)
def test_the_continuous_bound_is_the_limit_of_the_discrete_ones(errors):
    found = rows(errors)
    for noise in ("masking", "γ = 0.1"):
        limit = found[f"{noise}, continuous time"].value
        gap = found[f"{noise}, T = {STEPS[-1]}"].value - limit
        assert 5e-4 < gap < 5e-3
    gaps = [found[f"masking, T = {count}"].value for count in STEPS[-2:]]
    halved = np.divide(*(gaps - np.float64(found["masking, continuous time"].value)))
    assert halved == pytest.approx(2.0, rel=0.05)


def test_the_perfect_network_ends_at_the_entropy_of_the_data():
    found = rows(0.0)
    entropy = bounds.entropy(DATA)
    for noise in ("masking", "γ = 0.1"):
        row = found[f"{noise}, continuous time"]
        assert row.value == pytest.approx(entropy, abs=2e-5)
        assert row.exact == pytest.approx(entropy, abs=2e-5)


def test_infinitely_many_steps_reveal_one_token_after_the_other_in_any_order():
    """The extrapolated −log p(x) against a sum over all orders of the same network."""
    network = bounds.Table(kernel=bounds.noising.absorbing(vocab_size=2), length=3)
    p = np.exp(bounds.masked_logits(network, network.params(DATA, bounds.ERRORS)))

    def chance(text, hidden):
        if not hidden:
            return 1.0
        shown = [2 if i in hidden else text[i] for i in range(3)]
        state = np.dot(shown, [9, 3, 1])
        each = [p[state, i, text[i]] * chance(text, hidden - {i}) for i in hidden]
        return sum(each) / len(hidden)

    exact = [-np.log(chance(text, frozenset(range(3)))) for text in bounds.sequences(2, 3)]
    found = rows(bounds.ERRORS)["masking, continuous time"].exact
    assert found == pytest.approx(DATA @ exact, abs=1e-5)


def test_what_is_no_bound_lies_below():
    """Below the exact value of the perfect network, so below the entropy or that of few steps."""
    below = [row for row in rows(0.0).values() if row.kind == "no bound"]
    assert len(below) == 6
    for row in below:
        assert row.excess < -5e-3, row
    (above,) = [row for row in rows(0.0).values() if row.kind == "above"]
    assert above.excess > 5e-3


def test_estimates_agree_with_their_bounds():
    for row in rows(0.0).values():
        if row.kind == "estimate":
            bound = rows(0.0)[row.name.rpartition(", mean")[0]]
            assert abs(row.value - bound.value) < 4 * row.error


def test_ratios_of_the_pure_noises_integrate_to_less_than_the_entropy():
    """The values that a sum over all states in float64 gives for this distribution."""
    assert bounds.entropy(bounds.ONE_TOKEN) == pytest.approx(1.1123, abs=5e-5)
    for (_, bound, released), wanted in zip(
        bounds.one_token(bounds.ONE_TOKEN, (0.01, 0.1)), (1.1035, 1.0373), strict=True
    ):
        assert bound == pytest.approx(1.1123, abs=2e-4)
        assert released == pytest.approx(wanted, abs=2e-4)


def test_the_page_shows_the_stored_table():
    (stored,) = (REPOSITORY / "benchmarks" / "results").glob("bounds-cpu-*.md")
    table = [line for line in stored.read_text("utf-8").splitlines() if line.startswith("|")]
    page = (REPOSITORY / "docs" / "bounds.md").read_text("utf-8").splitlines()
    assert len(table) > 20
    assert set(table) <= set(page)
