"""Drawing tokens: the right shares, also in the far tail of a real vocabulary and for bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from hybrid_jax.sampling.draw import sample_categorical

MANY = 50_304


@pytest.mark.parametrize("p", [[0.6, 0.25, 0.1, 0.05], [0.3, 0.2, 0.2, 0.1, 0.15, 0.05]])
def test_draws_follow_the_softmax(p):
    """Also where there are fewer groups of ids than ids in a group."""
    p, draws = np.array(p), 50_000
    logits = jnp.broadcast_to(jnp.log(p) + 3.0, (draws, len(p)))
    tokens = sample_categorical(jax.random.key(0), logits)
    assert tokens.dtype == jnp.int32
    test = scipy.stats.chisquare(np.bincount(tokens, minlength=len(p)), draws * p)
    assert test.pvalue > 1e-5


def test_impossible_tokens_are_never_drawn():
    logits = jnp.array([0.0, -jnp.inf, 0.0, -jnp.inf])
    tokens = sample_categorical(jax.random.key(0), jnp.broadcast_to(logits, (2000, 4)))
    assert set(np.unique(tokens)) == {0, 2}


def test_leading_axes_draw_independently():
    tokens = sample_categorical(jax.random.key(0), jnp.zeros((30, 40, 5)))
    assert tokens.shape == (30, 40)
    assert np.std(np.mean(tokens, axis=0)) > 0
    assert np.std(np.mean(tokens, axis=1)) > 0


def test_the_tail_of_a_confident_distribution_keeps_its_share():
    """0.3 % of the mass spread over 50,303 ids; low-range Gumbel noise draws a quarter of it."""
    tail, chunk, chunks = 0.003, 100, 120
    p = np.full(MANY, tail / (MANY - 1))
    p[17] = 1.0 - tail
    logits = jnp.broadcast_to(jnp.log(p).astype(jnp.float32), (chunk, MANY))
    # A hardware-style generator and full optimisation: 600 million numbers are needed.
    keys = jax.random.split(jax.random.key(0, impl="rbg"), chunks)
    draw = jax.jit(
        lambda keys, logits: jax.lax.map(lambda k: sample_categorical(k, logits), keys),
        compiler_options={"xla_backend_optimization_level": "3"},
    )
    drawn = np.asarray(draw(keys, logits)).ravel()
    wanted = tail * len(drawn)
    assert abs(np.sum(drawn != 17) - wanted) < 4 * np.sqrt(wanted)


def test_bfloat16_logits_are_drawn_with_full_precision():
    """Gumbel noise in bfloat16 has so few values that the first ids win all ties."""
    logits = jnp.zeros((400, MANY), jnp.bfloat16)
    tokens = np.asarray(sample_categorical(jax.random.key(0), logits))
    assert np.mean(tokens < MANY // 10) < 0.2
    assert np.mean(tokens >= MANY // 2) > 0.35
