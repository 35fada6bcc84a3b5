"""The key-value cache: what attention reads of rows that never change again.

An explicit pytree, passed in and out. Its leaves are [layers, B, H, M, K] with M slots: batch and
heads lead, so that scores against the cache are batched matrix products without a transposition.
Which slots hold something is the caller's knowledge (its attention mask), not the cache's.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

Tree = TypeVar("Tree")

AXES = ("whole", "batch", "heads", "whole", "whole")  # logical axes of a leaf (see `sharding`)


class Cache(NamedTuple):
    """Rotated keys and values, [layers, B, H, M, K]; inside a layer [B, H, M, K]."""

    key: jax.Array
    value: jax.Array


def commit(cache: Tree, new: Tree, slot: jax.Array) -> Tree:
    """Writes rows into slots.

    Args:
      cache: leaves [layers, B, H, M, K].
      new: the same with R rows in place of M slots.
      slot: int32 [B, R], where each row goes; rows whose slot is M or more are dropped.

    Returns:
      the cache with these rows, in place where its buffer may be reused.
    """
    batch = jnp.arange(slot.shape[0])[:, None]

    def write(old, rows):
        # Indices that are apart from one another put their axes, [B, R], in front.
        rows = jnp.moveaxis(rows, (1, -2), (0, 1))
        return old.at[:, batch, :, slot].set(rows.astype(old.dtype), mode="drop")

    return jax.tree.map(write, cache, new)
