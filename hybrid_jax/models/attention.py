"""Attention over rows. One function per backend, all of the same signature."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from hybrid_jax.models.cache import Cache

# Finite, so that a row with nothing to attend to sees everything equally and stays finite.
_HIDDEN = -0.7 * float(jnp.finfo(jnp.float32).max)


def dense(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array,
    cached: Cache | None = None,
) -> jax.Array:
    """Softmax attention with the whole score matrix: the reference for every other backend.

    Args:
      query: [B, R, H, K]; key, value: [B, R', H, K], any float type.
      mask: bool [B or 1, R, M + R'], True where a query may attend to a key, cached keys first.
      cached: keys and values of earlier rows, [B, H, M, K]; None for none (M = 0).

    Returns:
      [B, R, H, K] in the type of `value`; scores and softmax are float32.
    """
    query = query * query.shape[-1] ** -0.5
    scores = jnp.einsum("brhk,bmhk->bhrm", query, key, preferred_element_type=jnp.float32)
    if cached is not None:
        # The scores are joined, not the keys: joining keys would copy the whole cache.
        past = jnp.einsum("brhk,bhmk->bhrm", query, cached.key, preferred_element_type=jnp.float32)
        scores = jnp.concatenate([past, scores], axis=-1)
    scores = jnp.where(mask[:, None], scores, _HIDDEN)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    if cached is None:
        return jnp.einsum("bhrm,bmhk->brhk", weights, value)
    slots = cached.key.shape[-2]
    past = jnp.einsum("bhrm,bhmk->brhk", weights[..., :slots], cached.value)
    return past + jnp.einsum("bhrm,bmhk->brhk", weights[..., slots:], value)


def rotate(x: jax.Array, position: jax.Array, base: float = 10_000.0) -> jax.Array:
    """Rotary position embedding: x [B, R, H, K], position int32 [B or 1, R] -> like x.

    The two halves of the head dimension are the real and imaginary parts (RoFormer as in GPT-NeoX).
    """
    half = x.shape[-1] // 2
    frequency = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = position[..., None, None].astype(jnp.float32) * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    real, imaginary = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = (real * cos - imaginary * sin, real * sin + imaginary * cos)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)
