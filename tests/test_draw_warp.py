"""Temperature, top-k and top-p against their definitions; and what correction is spent on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_jax.errors import UserError
from hybrid_jax.sampling import rules
from hybrid_jax.sampling.draw import Warp
from hybrid_jax.sampling.rules import ACS, Threshold, proportional_chances
from hybrid_jax.sampling.setting import settings_of

P = np.array([0.1, 0.4, 0.05, 0.25, 0.2])


def warped(**settings):
    return np.exp(jax.jit(lambda w, x: w(x))(Warp(**settings), jnp.log(P)))


def only(*kept):
    share = np.where(np.isin(np.arange(5), kept), P, 0.0)
    return share / share.sum()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, P),
        ({"temperature": 1.0}, P),
        ({"temperature": 0.5}, P**2 / (P**2).sum()),
        ({"temperature": 2.0}, P**0.5 / (P**0.5).sum()),
        ({"temperature": 0.0}, only(1)),
        ({"top_k": 2}, only(1, 3)),
        ({"top_k": 9}, P),
        ({"top_p": 1.0}, P),
        ({"top_p": 0.64}, only(1, 3)),
        ({"top_p": 0.66}, only(1, 3, 4)),
        ({"top_p": 0.01}, only(1)),
        # Of the three likeliest, 0.4/0.85 and 0.25/0.85 have 0.76 together.
        ({"top_k": 3, "top_p": 0.75}, only(1, 3)),
        ({"top_k": 3, "top_p": 0.77}, only(1, 3, 4)),
        # After the temperature the likeliest has 0.16/0.275 = 0.58.
        ({"temperature": 0.5, "top_p": 0.57}, only(1)),
    ],
)
def test_warps(settings, expected):
    np.testing.assert_allclose(warped(**settings), expected, atol=1e-6)


def test_equally_likely_tokens_are_kept_together():
    log_p = jnp.log(jnp.array([0.3, 0.3, 0.3, 0.1]))
    np.testing.assert_allclose(np.exp(Warp(top_k=2)(log_p)), [1 / 3, 1 / 3, 1 / 3, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("weight", "expected", "chances"),
    [
        ([1.0, 1.0, 2.0, 0.0], 2.0, [0.5, 0.5, 1.0, 0.0]),
        # In proportion 4 would get 1.6: it gets 1, and the others share what is left.
        ([1.0, 1.0, 8.0, 0.0], 2.0, [0.5, 0.5, 1.0, 0.0]),
        ([0.0, 3.0, 1.0, 0.0], 0.5, [0.0, 0.375, 0.125, 0.0]),
        ([0.0, 3.0, 1.0, 0.0], 3.0, [0.0, 1.0, 1.0, 0.0]),
        ([2.0, 2.0, 2.0, 2.0], 4.0, [1.0, 1.0, 1.0, 1.0]),
        ([1.0, 2.0, 3.0, 4.0], 0.0, [0.0, 0.0, 0.0, 0.0]),
        ([0.0, 0.0, 0.0, 0.0], 1.0, [0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_chances_are_proportional_and_add_up(weight, expected, chances):
    found = jax.jit(proportional_chances)(jnp.array(weight), jnp.float32(expected))
    np.testing.assert_allclose(found, chances, atol=1e-6)


def test_chances_of_random_weights_add_up():
    random = np.random.default_rng(0)
    for _ in range(200):
        weight = random.random(8) ** 4 * (random.random(8) < 0.8)
        expected = random.random() * np.count_nonzero(weight)
        found = proportional_chances(jnp.float32(weight), jnp.float32(expected))
        assert float(found.sum()) == pytest.approx(expected, abs=1e-4)
        assert np.all((found >= 0) & (found <= 1))
        free = (weight > 0) & (np.asarray(found) < 1)
        if free.any():
            scale = np.asarray(found)[free] / weight[free]
            np.testing.assert_allclose(scale, scale.mean(), rtol=1e-3)


def test_values_of_another_kind_are_refused():
    known = settings_of(Warp)
    for name, value, message in (
        ("top_k", 2.5, "top_k must be a whole number, but is 2.5"),
        ("temperature", "0.5", "temperature must be a number, but is '0.5'"),
    ):
        with pytest.raises(UserError, match=message):
            known[name].check(value)
    for value in (3, np.int64(3), jnp.int32(3)):
        known["top_k"].check(value)
        known["temperature"].check(value)


def test_rules_by_name():
    warp = Warp(temperature=0.5)
    assert rules.make("acs", eta=0.5, sweeps=None, temperature=0.5) == ACS(eta=0.5, warp=warp)
    assert rules.make("greedy") == Threshold(threshold=1.0, warp=Warp(temperature=0.0))
    with pytest.raises(UserError, match="Rule greedy has no top_k"):
        rules.make("greedy", top_k=3)
    with pytest.raises(UserError, match="Rule speculative has no window_entropy: it belongs to"):
        rules.make("speculative", window_entropy=1.0)
    with pytest.raises(UserError, match="There is no rule 'gibbs': choose one of ancestral, "):
        rules.make("gibbs")
    with pytest.raises(UserError, match="Rule acs has no threshold: it belongs to threshold"):
        rules.make("acs", threshold=0.5)
    with pytest.raises(UserError, match="Rule acs has no rate: it belongs to no rule"):
        rules.make("acs", rate=1)
