"""Attention over rows. One function per backend, all of the same signature."""

from __future__ import annotations

import jax
import jax.numpy as jnp

# Finite, so that a row with nothing to attend to sees everything equally and stays finite.
_HIDDEN = -0.7 * float(jnp.finfo(jnp.float32).max)


def dense(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array) -> jax.Array:
    """Softmax attention with the whole score matrix: the reference for every other backend.

    Args:
      query: [B, R, H, K]; key, value: [B, M, H, K], any float type.
      mask: bool [B or 1, R, M], True where a query may attend to a key.

    Returns:
      [B, R, H, K] in the type of `value`; scores and softmax are float32.
    """
    scale = query.shape[-1] ** -0.5
    scores = jnp.einsum("brhk,bmhk->bhrm", query * scale, key, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, None], scores, _HIDDEN)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("bhrm,bmhk->brhk", weights, value)


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
