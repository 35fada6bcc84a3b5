"""Update rules: what happens to the active positions in one generation step.

A rule is a pure function of (key, tokens, logits, levels, active) and knows nothing of the loop
around it. Whether a masked token is revealed at all is always drawn apart from which token it
becomes: probabilities close to 1 do not survive inside a draw over a large vocabulary.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from hybrid_jax import noising, objective
from hybrid_jax.noising import Kernel
from hybrid_jax.objective import Objective
from hybrid_jax.sampling.categorical import sample_categorical


def ancestral(
    kernel: Kernel,
    goal: Objective,
    key: jax.Array,
    tokens: jax.Array,
    logits: jax.Array,
    level: jax.Array,
    level_next: jax.Array,
    active: jax.Array,
) -> jax.Array:
    """The reverse step of the kernel itself, exact if the network's prediction is.

    Args:
      tokens: int32 [..., L], z_t.
      logits: float [..., L, V], output of the network for each position.
      level, level_next: float32, λ_t > λ_s where `active`; broadcast against tokens.
      active: bool, positions that move; the others are returned as they are.

    Returns:
      int32 [..., L], z_s.
    """
    level = jnp.broadcast_to(jnp.where(active, level, 0.5), tokens.shape)
    level_next = jnp.broadcast_to(jnp.where(active, level_next, 0.0), tokens.shape)
    rule = _from_score if goal.parameterisation == "score" else _from_mean
    moved = rule(kernel, goal, key, tokens, logits, level, level_next)
    return jnp.where(active, moved, tokens)


def _from_mean(kernel, goal, key, tokens, logits, level, level_next):
    key_clean, key_reveal, key_noise, key_token, key_choice = jax.random.split(key, 5)
    shape = tokens.shape

    def predict(logit, state, at):
        return objective.log_prediction(goal, kernel, logit, state, at)

    log_p = jnp.vectorize(predict, signature="(v),(),()->(n)")(logits, tokens, level)
    clean = sample_categorical(key_clean, log_p)
    noise = jax.random.randint(key_token, shape, 0, kernel.tokens, jnp.int32)
    after = kernel.survival(level_next)

    shown = jnp.where(jax.random.uniform(key_noise, shape) < after.replaced, noise, clean)
    reveal = noising.reveal_probability(kernel, level_next, level)
    revealed = jax.random.uniform(key_reveal, shape) < reveal
    from_mask = jnp.where(revealed, shown, tokens)
    if not kernel.replaces:
        return jnp.where(tokens == kernel.mask, from_mask, tokens)

    weight = noising.token_step(kernel, level_next, level)
    keep = weight.keep + jnp.where(clean == tokens, weight.keep_if_equal, 0.0)
    total = keep + weight.take_clean + weight.redraw_uniform
    choice = jax.random.uniform(key_choice, shape) * total
    moved = jnp.where(choice < keep + weight.take_clean, clean, noise)
    from_token = jnp.where(choice < keep, tokens, moved)
    return jnp.where(tokens == kernel.mask, from_mask, from_token)


def _from_score(kernel, goal, key, tokens, logits, level, level_next):
    key_reveal, key_token = jax.random.split(key)

    def one(logit, state, low, high):
        return objective.reverse_step(goal, kernel, logit, state, low, high)

    log_step = jnp.vectorize(one, signature="(v),(),(),()->(n)")(logits, tokens, level_next, level)
    stays = jax.random.uniform(key_reveal, tokens.shape) < jnp.exp(log_step[..., -1])
    drawn = sample_categorical(key_token, log_step[..., :-1])
    return jnp.where(stays, kernel.mask, drawn)
