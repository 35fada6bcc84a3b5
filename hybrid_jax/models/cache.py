"""The key-value cache: keys and values of rows that never change again.

An explicit pytree, passed in and out. Its leaves are [layers, B, G, M, K] with M slots: batch and
heads lead, so that scores against the cache are batched matrix products without a transposition.
The caller knows which slots are filled (by its attention mask); the cache does not.
"""

from typing import NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

Tree = TypeVar("Tree")

AXES = ("whole", "batch", "heads", "whole", "whole")  # logical axes of a leaf (see `sharding`)


class Cache(NamedTuple):
    """Rotated keys and values; what a layer adds has no axis of layers."""

    key: Float[Array, "*layers B G M K"]
    value: Float[Array, "*layers B G M K"]

    def first(self, layer: Int[ArrayLike, ""], count: int) -> "Cache":
        """The first slots of a layer, [B, G, count, K]: a copy of these and no others."""

        def cut(x: Array) -> Array:
            start = (layer, *(0,) * (x.ndim - 1))
            return jax.lax.dynamic_slice(x, start, (1, *x.shape[1:-2], count, x.shape[-1]))[0]

        return Cache(*map(cut, self))


def commit(cache: Tree, new: Tree, slot: Int[Array, "B R"]) -> Tree:
    """Writes rows into slots.

    Args:
      cache: leaves [layers, B, G, M, K].
      new: the same with R rows in place of M slots.
      slot: the slot of each row; rows whose slot is M or more are dropped.

    Returns:
      the cache with these rows, in place where its buffer may be reused.
    """
    batch = jnp.arange(slot.shape[0])[:, None]

    def write(old: Array, rows: Array) -> Array:
        # Indices that are apart from one another put their axes, [B, R], in front.
        rows = jnp.moveaxis(rows, (1, -2), (0, 1))
        return old.at[:, batch, :, slot].set(rows.astype(old.dtype), mode="drop")

    return cast(Tree, jax.tree.map(write, cache, new))
