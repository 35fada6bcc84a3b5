"""Rotary position embedding (RoFormer, arXiv 2104.09864), and its stretching to longer texts."""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from hybrid_jax.errors import UserError


class Llama3(NamedTuple):
    """Scaling of wavelengths as in Llama 3.1.

    Those above `original` / `low` positions become `factor` times as long, those below `original` /
    `high` stay, and between the two it is interpolated.
    """

    factor: float
    low: float
    high: float
    original: float


def scaling(text: str | None) -> Llama3 | None:
    """The scaling that a setting means.

    Args:
      text: "llama3:FACTOR,LOW,HIGH,ORIGINAL", or None for none.

    Raises:
      UserError: for anything else.
    """
    if text is None:
        return None
    kind, _, numbers = text.partition(":")
    try:
        found = Llama3(*map(float, numbers.split(",")))
    except (TypeError, ValueError):
        found = None
    if kind != "llama3" or found is None or not (0 < found.low < found.high and min(found) > 0):
        raise UserError(
            f"model.rope_scaling={text!r} is not known: give llama3:FACTOR,LOW,HIGH,ORIGINAL, such "
            "as llama3:8,1,4,8192."
        )
    return found


def frequencies(half: int, theta: float, stretch: Llama3 | None = None) -> Float32[Array, "half"]:
    """Radians per position of each of the `half` pairs of a head, the fastest first."""
    found = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if stretch is None:
        return found
    turns = found * (stretch.original / (2.0 * math.pi))  # within the original length
    kept = jnp.clip((turns - stretch.low) / (stretch.high - stretch.low), 0.0, 1.0)
    return found * (kept + (1.0 - kept) / stretch.factor)


def rotate(
    x: Float[Array, "B H R K"], position: Int[Array, "#B R"], frequency: Float32[Array, "half"]
) -> Float[Array, "B H R K"]:
    """Vectors turned by their positions.

    The two halves of the head dimension are the real and imaginary parts, as in GPT-NeoX and Llama.
    """
    angle = position[:, None, :, None].astype(jnp.float32) * frequency[None, None, None]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    real, imaginary = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = (real * cos - imaginary * sin, real * sin + imaginary * cos)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)
