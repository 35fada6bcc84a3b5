"""The one place where tokens are drawn from logits."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def sample_categorical(key: jax.Array, logits: jax.Array) -> jax.Array:
    """Draws from softmax(logits) over the last axis: [..., N] -> int32 [...].

    Works in float32 with high-range Gumbel noise. JAX draws Gumbels in the type of the logits, and
    its float32 default cannot exceed 15.94: over 50k tokens, a tail of total probability 1% would
    be drawn a third too seldom, and bfloat16 logits would put all draws on the first ids.
    """
    wide = logits.astype(jnp.float32)
    noise = jax.random.gumbel(key, wide.shape, jnp.float32, mode="high")
    return jnp.argmax(wide + noise, axis=-1).astype(jnp.int32)
