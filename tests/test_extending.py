"""The program of docs/extending.md, run as it stands: its schedules, kernel and rule are right."""

import functools
import itertools
import re
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from conftest import REPOSITORY

from hybrid_jax.errors import UserError
from hybrid_jax.method import noising, objective
from hybrid_jax.sampling import prompts, update_rule
from hybrid_jax.sampling.loop import generate
from hybrid_jax.sampling.rules import ACS, Ancestral
from hybrid_jax.sampling.state import Sampler

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The names that the blocks of the document define."""
    text = (REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8")
    file = tmp_path_factory.mktemp("extending") / "extending.py"
    file.write_text("\n".join(re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)), "utf-8")
    return runpy.run_path(str(file), run_name="extending")


def trained(made, **parts):
    """A setup with other parts, and what two steps of training make of it."""
    setup = made["setup_of"](made["experiment"], vocab_size=64, **parts)
    return setup, made["train"](setup, [np.arange(512, dtype=np.int32).reshape(8, 64) % 64] * 2)


def texts_of(setup, params, rule):
    """Four texts of 64 tokens."""
    sampler = Sampler(spec=setup.spec, network=setup.network)
    keys = jax.random.split(jax.random.key(0), 4)
    texts = generate(sampler, rule, params, keys, prompts.nothing(4, 64))
    assert np.asarray(texts.tokens).max() < 64, "MASK is left"
    return texts


def test_the_table_is_the_cosine(made):
    cosine = made["cosine"](length=8, levels=64, steps=16)
    wanted = np.floor(64 * np.cos(np.linspace(0, np.pi / 2, 17)))
    np.testing.assert_array_equal(np.array(cosine.rows), wanted[:, None] * np.ones(8))
    assert cosine.width == 8
    cosine = made["cosine"](length=64, levels=64, steps=8)
    texts = texts_of(*trained(made, schedule=cosine), Ancestral())
    np.testing.assert_array_equal(texts.nfe, 8)


def test_windows_of_the_ramp_double(made):
    doubling = made["doubling"](length=31, levels=2)
    windows = [int(doubling.frontier(s + 1) - doubling.settled(s)) for s in range(0, 10, 2)]
    assert windows == [1, 2, 4, 8, 16]
    assert doubling.steps == 10
    assert doubling.settles_whole


def test_the_schedule_trains_and_generates(made):
    before = made["setup"].init().params
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), before, made["params"])
    assert max(jax.tree.leaves(moved)) > 1e-4
    tokens = np.asarray(made["texts"].tokens)
    assert tokens.shape == (4, 64)
    assert tokens.max() < 64, "MASK is left"
    np.testing.assert_array_equal(made["texts"].nfe, made["schedule"].steps)


def rates(beta, level, size):
    """The rate matrix of `Steady` at a level, per dλ, from its definition: [from, to]."""
    absorb, replace = np.zeros((2, size + 1, size + 1))
    absorb[:size, :size] -= np.eye(size)
    absorb[:size, size] = 1.0
    replace[:size, :size] = 1.0 / size - np.eye(size)
    # −d log A / dλ and −d log B / dλ.
    return absorb / (1 - level) + replace * beta / (1 - beta * level)


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.6), (0.2, 0.9)])
def test_the_kernel_is_the_exponential_of_its_rates(made, low, high):
    """The rates change with the level: a product of many short exponentials."""
    steady = made["Steady"](name="steady", vocab_size=4, beta=0.2)
    wanted = np.eye(5)
    for a, b in itertools.pairwise(np.linspace(low, high, 401)):
        wanted = wanted @ scipy.linalg.expm((b - a) * rates(0.2, (a + b) / 2, 4))
    found = [np.exp(noising.transition(steady, token, low, high)) for token in range(5)]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


def test_the_kernel_corrupts_to_its_marginal(made):
    steady = made["Steady"](name="steady", vocab_size=4, beta=0.5)
    draws, level, kept = 40_000, 0.4, 0.8  # B = 1 − βλ
    noisy = noising.corrupt(steady, jax.random.key(0), jnp.full(draws, 2), jnp.full(draws, level))
    tokens = np.full(4, (1 - kept) / 4) + kept * np.eye(4)[2]
    wanted = np.append((1 - level) * tokens, level)
    counts = np.bincount(noisy, minlength=5)
    assert scipy.stats.chisquare(counts, draws * wanted).pvalue > 1e-5


def test_the_score_entropy_of_the_kernel_integrates_to_the_entropy_of_the_data(made):
    """Continuous time, with the rates that the kernel defines and a network that knows p(x | z)."""
    steady = made["Steady"](name="steady", vocab_size=4, beta=0.5)
    data = np.array([0.5, 0.1, 0.15, 0.25])
    ids = jnp.arange(5)

    def expected(level):
        log_q = jax.vmap(lambda x: noising.marginal(steady, x, level))(ids[:4])  # [x, z]
        joint = jnp.exp(log_q) * jnp.asarray(data, jnp.float32)[:, None]
        logits = jnp.log(joint / joint.sum(0)).T
        term = functools.partial(objective.Objective().continuous_term, steady)
        of_tokens = jax.vmap(term, (None, 0, None, None))
        terms = jax.vmap(of_tokens, (0, None, 0, None))(logits, ids[:4], ids, level)  # [z, x]
        return jnp.sum(joint * terms.T)

    nodes, weights = np.polynomial.legendre.leggauss(100)
    nodes = jnp.asarray((nodes + 1) / 2, jnp.float32)
    found = np.asarray(jax.jit(jax.vmap(expected))(nodes), np.float64) @ weights / 2
    assert found == pytest.approx(-np.sum(data * np.log(data)), rel=1e-3)


def test_the_kernel_trains_in_continuous_time(made):
    continuous = objective.Objective(time="continuous")
    _, params = trained(made, kernel=made["steady"], objective=continuous)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_the_kernel_trains_and_generates(made):
    parts = trained(made, kernel=made["steady"])
    for rule in (Ancestral(), ACS(eta=0.5)):
        texts = texts_of(*parts, rule)
        assert np.asarray(texts.corrections).sum() > 0, "the kernel replaces, so tokens move"


def test_the_rule_reveals_from_left_to_right(made):
    assert np.asarray(made["leftmost"].tokens).max() < 64, "MASK is left"
    assert np.all(np.asarray(made["leftmost"].corrections) == 0)
    kernel = noising.absorbing(vocab_size=4)
    rule = made["Leftmost"](threshold=0.9)
    window = update_rule.Window(
        tokens=jnp.array([4, 2, 4, 4, 4, 4]),
        level=jnp.full(6, 0.75),
        level_next=jnp.full(6, 0.5),
        active=jnp.array([True, True, True, True, True, False]),
        confidence=jnp.zeros(6),
    )
    probability = jnp.array([0.1, 0.1, 0.2, 0.3, 0.95, 0.99])
    reading = update_rule.Prediction(
        token=jnp.zeros(6, int), probability=probability, current=probability, doubt=probability,
        nats=probability,
    )  # fmt: skip
    moved, confidence = rule.move(kernel, jax.random.key(0), window, reading)
    # Half of five active positions may stay masked: two go, and the one that is sure.
    np.testing.assert_array_equal(moved[:5], [0, 2, 0, 4, 0])
    np.testing.assert_allclose(confidence[:5], [0.1, 0.0, 0.2, 0.0, 0.95], rtol=1e-6)
    with pytest.raises(UserError, match="threshold must lie in"):
        made["Leftmost"](threshold=2.0).check(kernel, objective.Objective())
    with pytest.raises(UserError, match="never shows"):
        rule.check(noising.uniform(vocab_size=4), objective.Objective())
