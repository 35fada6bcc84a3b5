"""MAUVE against values computed by hand, and of clouds of features."""

import math
import sys

import numpy as np
import pytest

from hybrid_jax.errors import UserError
from hybrid_jax.eval.mauve import area, mauve


def test_the_area_of_histograms_computed_by_hand():
    p, q = np.array([0.5, 0.5, 0, 0]), np.array([0, 0, 0.25, 0.75])
    assert area(p, p) == pytest.approx(1)
    # Apart, KL(P‖R) = −log λ, so the curve is ((1 − λ)^c, λ^c), with c·B(c + 1, c) under it.
    for c in (1, 2, 5):
        wanted = c * math.gamma(c + 1) * math.gamma(c) / math.gamma(2 * c + 1)
        assert area(p, q, scaling=c, points=20_001) == pytest.approx(wanted, rel=1e-6)
        assert area(p, q, scaling=c) == pytest.approx(wanted, rel=0.03)  # 25 points
    assert area(p, q) == pytest.approx(1 / 252, rel=0.03)
    # The same distribution but for a share of 1/2 in a bucket of its own, each: by symmetry
    # KL(P‖R) = ½ log(1 / λ), which is a scaling of c/2.
    p, q = np.array([0.5, 0.5, 0]), np.array([0.5, 0, 0.5])
    assert area(p, q, scaling=4) == pytest.approx(area([1, 0], [0, 1], scaling=2))
    p, q = np.array([0.9, 0.1]), np.array([0.2, 0.8])
    assert area(p, q) == pytest.approx(area(q, p))


def test_the_area_against_an_integral():
    """Of the definition, by a fine sum over λ that shares nothing with the code."""
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.3, 0.3, 0.4])
    inside, before = 0.0, None
    for step in range(1, 100_000):
        w = step / 100_000
        r = [w * a + (1 - w) * b for a, b in zip(p, q, strict=True)]
        x = math.exp(-5 * sum(b * math.log(b / c) for b, c in zip(q, r, strict=True)))
        y = math.exp(-5 * sum(a * math.log(a / c) for a, c in zip(p, r, strict=True)))
        if before is not None:
            inside += (before - x) * y
        before = x
    wanted = inside + before  # left of the last point the curve is at height 1
    assert area(p, q, points=2001) == pytest.approx(wanted, abs=1e-4)
    assert area(p, q) == pytest.approx(wanted, abs=5e-3)


def clouds(count, shift=0.0, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, 6)) + shift * np.eye(6)[0]


def test_mauve_falls_from_one_as_features_part():
    same = mauve(clouds(200), clouds(200))
    assert same.value == pytest.approx(1)
    assert same.spread == pytest.approx(0, abs=1e-12)
    assert same.buckets == 20
    values = [mauve(clouds(200, x), clouds(200, seed=1)).value for x in (0.0, 1.0, 3.0)]
    assert values[0] > 0.8 > values[1] > values[2] + 0.1
    apart = mauve(clouds(200, 50.0), -clouds(200, 50.0, seed=1))
    assert apart.value == pytest.approx(1 / 252, rel=0.03)


def test_mauve_gives_the_spread_over_seeds():
    sets = clouds(150, 0.8), clouds(150, seed=1)
    found = mauve(*sets, seeds=(1, 2, 3, 4))
    single = [mauve(*sets, seeds=(seed,)) for seed in (1, 2, 3, 4)]
    assert found.by_seed == tuple(one.value for one in single)
    assert found.value == pytest.approx(np.mean(found.by_seed))
    assert found.spread == pytest.approx(np.std(found.by_seed, ddof=1))
    assert found.spread > 0
    assert math.isnan(single[0].spread)


def test_mauve_keeps_the_variance_it_says_and_ignores_the_length_of_features():
    rng = np.random.default_rng(0)
    strong = rng.normal(size=(300, 2)) @ np.eye(2, 10)
    features = strong + 1e-3 * rng.normal(size=(300, 10))
    found = mauve(features, features[::-1])
    assert found.dimensions == 2
    scaled = features * rng.uniform(0.5, 2.0, size=(300, 1))
    assert mauve(scaled, features).value == pytest.approx(1)


def test_mauve_of_one_text_over_and_over():
    one, other = np.ones((30, 4)), np.tile([1.0, -1.0, 0.0, 0.0], (30, 1))
    assert mauve(one, one).value == 1.0
    assert mauve(one, one).buckets == 1
    assert mauve(one, other).value == pytest.approx(1 / 252, rel=0.03)


@pytest.mark.parametrize(
    ("features", "options", "said"),
    [
        ((clouds(1), clouds(9)), {}, "at least two texts"),
        ((clouds(9), clouds(9)[:, :5]), {}, "one width"),
        ((clouds(9) * np.nan, clouds(9)), {}, "not finite"),
        ((clouds(9), clouds(9)), {"seeds": ()}, "one seed"),
    ],
)
def test_features_without_a_mauve_are_refused(features, options, said):
    with pytest.raises(UserError, match=said):
        mauve(*features, **options)


def test_mauve_without_scikit_learn_is_refused_in_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.decomposition", None)
    with pytest.raises(UserError, match="needs sklearn: install it with pip install"):
        mauve(clouds(9), clouds(9))
