"""Generation: one compiled loop over the steps of a hyperschedule."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hybrid_jax import layout as layouts
from hybrid_jax.estimator import Network, Problem
from hybrid_jax.sampling import rules


class Generation(NamedTuple):
    """State of the loop. step int32 scalar, tokens int32 [B, L]."""

    step: jax.Array
    tokens: jax.Array


@functools.partial(jax.jit, static_argnums=(0, 1))
def generate(
    problem: Problem,
    network: Network,
    params,
    key: jax.Array,
    tokens: jax.Array,
    frozen: jax.Array,
) -> jax.Array:
    """Generates with the ancestral rule, computing every row anew at every step.

    Args:
      tokens: int32 [B, L]; read only where frozen.
      frozen: bool [B, L], given tokens, which never change.

    Returns:
      int32 [B, L] without MASK.
    """
    schedule, kernel, layout = problem.schedule, problem.kernel, problem.layout
    position = jnp.arange(schedule.length)
    key_steps, key_noise, key_mask = jax.random.split(key, 3)
    # Full noise: MASK, or uniform tokens for a kernel that never masks.
    noise = jax.random.randint(key_noise, tokens.shape, 0, kernel.tokens, jnp.int32)
    masked = jax.random.uniform(key_mask, tokens.shape) < kernel.survival(1.0).masked
    start = jnp.where(masked, kernel.mask, noise)

    def move(state: Generation) -> Generation:
        step = state.step
        rows = layouts.generation_rows(layout, schedule, step)
        level = schedule.level(step, position) / schedule.levels
        level_next = schedule.level(step + 1, position) / schedule.levels
        held = jax.vmap(lambda z: layouts.row_tokens(rows, z, z, problem.bos))(state.tokens)
        row_level = jnp.broadcast_to(layouts.row_levels(rows, level), held.shape)
        mask = layouts.attention_mask(layout, rows)[None]
        features = network.features(params, held, rows.position[None], mask, row_level)
        source, exists = layouts.predictors(rows, schedule.length)
        logits = network.logits(params, features[:, source])
        moved = rules.ancestral(
            kernel,
            problem.objective,
            jax.random.fold_in(key_steps, step),
            state.tokens,
            logits,
            level,
            level_next,
            exists & (level != level_next) & ~frozen,
        )
        return Generation(step + 1, moved)

    first = Generation(jnp.int32(0), jnp.where(frozen, tokens, start))
    return jax.lax.while_loop(lambda g: g.step < schedule.steps, move, first).tokens
