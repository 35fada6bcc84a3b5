"""The one place where tokens are drawn from logits."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp


def sample_categorical(key: jax.Array, logits: jax.Array) -> jax.Array:
    """Draws from softmax(logits) over the last axis: [..., N] -> int32 [...].

    Works in float32 with high-range Gumbel noise. JAX draws Gumbels in the type of the logits, and
    its float32 default cannot exceed 15.94: over 50k tokens, a tail of total probability 1% would
    be drawn a third too seldom, and bfloat16 logits would put all draws on the first ids.

    The ids are cut into about √N groups, a group is drawn by its total weight and then an id in it:
    the same distribution for 2√N Gumbels instead of N, which at N = 50k would cost more than a
    small network.
    """
    wide = logits.astype(jnp.float32)
    size = 1 << max(0, math.ceil(math.log2(wide.shape[-1]) / 2))
    groups = -(-wide.shape[-1] // size)
    padding = [(0, 0)] * (wide.ndim - 1) + [(0, groups * size - wide.shape[-1])]
    grouped = jnp.pad(wide, padding, constant_values=-jnp.inf)
    grouped = grouped.reshape(*wide.shape[:-1], groups, size)
    key_group, key_member = jax.random.split(key)
    group = _gumbel_max(key_group, jax.nn.logsumexp(grouped, axis=-1))
    chosen = jnp.take_along_axis(grouped, group[..., None, None], axis=-2)[..., 0, :]
    return (group * size + _gumbel_max(key_member, chosen)).astype(jnp.int32)


def _gumbel_max(key: jax.Array, logits: jax.Array) -> jax.Array:
    noise = jax.random.gumbel(key, logits.shape, jnp.float32, mode="high")
    return jnp.argmax(logits + noise, axis=-1)
