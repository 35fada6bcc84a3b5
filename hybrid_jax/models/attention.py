"""Attention over rows. One function per backend, all of the same meaning."""

import functools
import re
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float, Float32, Int

from hybrid_jax.method.mask_blocks import Pattern, spans
from hybrid_jax.models.cache import Cache
from hybrid_jax.runtime import sharding

Heads = Float[Array, "B H R K"]  # a vector of each head at each row
# Keys or values, at rows that may be others than the queries'. Each of the G heads is for H / G
# consecutive heads of queries.
Keys = Float[Array, "B G N K"]
Backend = Literal["auto", "dense", "blockwise", "fused", "splash"]

# Finite, so that a row with nothing to attend to sees everything equally and stays finite.
_HIDDEN = -0.7 * float(np.finfo(np.float32).max)
# Query rows whose scores exist at the same time: 128, or more where that makes above eight blocks,
# since each is a shape of its own for the compiler (docs/performance.md).
_BLOCK, _BLOCKS = 128, 8
_EVEN = 64  # rows that cuDNN takes under a mask are a multiple of 2; its tiles have this many
_FEWEST = 256  # cache slots that are read together at least


def attend(
    query: Heads,
    key: Keys,
    value: Keys,
    mask: Bool[Array, "#B R J"] | Pattern,
    cached: Cache | None = None,
    layer: Int[ArrayLike, ""] = 0,
    *,
    backend: Backend = "auto",
) -> Heads:
    """Softmax attention by the backend that suits the rows and the device.

    Args:
      query, key, value: of R rows, and of N rows, in any float type.
      mask: as for `dense`, or a `Pattern` of R = N rows.
      cached, layer: keys and values of earlier rows, which only `dense` takes.
      backend: "auto" for the choice of `choose`. Where the rows come with a mask, it is "dense",
        and where a kernel does not know the pattern, "blockwise".
    """
    if not isinstance(mask, Pattern):
        return dense(query, key, value, mask, cached, layer)
    chosen = choose(mask, query.dtype) if backend == "auto" else backend
    if chosen == "fused" and (sharding.platform() != "gpu" or _has_kernel(query.dtype)):
        return fused(query, key, value, mask)
    if chosen == "splash" and mask.constant:
        from hybrid_jax.models.splash import splash  # Pallas takes a while to import

        return splash(query, key, value, mask.constant_mask())
    if chosen == "dense" or mask.full:
        return dense(query, key, value, mask.mask())
    return blockwise(query, key, value, mask)


def choose(pattern: Pattern, dtype: DTypeLike) -> Backend:
    """The backend for rows of a pattern on the devices that the program is made for.

    "fused" where the device has a kernel for the type; otherwise "blockwise", which computes what a
    window can see and no more, but for rows that fit one block.
    """
    if sharding.platform() == "gpu" and _has_kernel(dtype):
        return "fused"
    return "dense" if pattern.full or pattern.regions.rows <= _BLOCK else "blockwise"


def dense(
    query: Heads,
    key: Keys,
    value: Keys,
    mask: Bool[Array, "#B R J"],
    cached: Cache | None = None,
    layer: Int[ArrayLike, ""] = 0,
) -> Heads:
    """Softmax attention with the whole score matrix: the reference for every other backend.

    Args:
      query, key, value: of R rows, and of N rows, in any float type.
      mask: True where a query may attend to a key, cached keys first.
      cached: keys and values of M earlier rows in every layer, [layers, B, G, M, K]; None for none
        (M = 0).
      layer: the layer that attends.

    Returns:
      [B, H, R, K] in the type of `value`; scores and softmax are float32.
    """
    if query.shape[1] != key.shape[1]:  # queries that share a head stand below one another
        shared = query.shape[1] // key.shape[1]
        whole = dense(
            query.reshape(*key.shape[:2], -1, query.shape[-1]), key, value,
            jnp.tile(mask, (1, shared, 1)), cached, layer,
        )  # fmt: skip
        return whole.reshape(query.shape)
    query = query * query.shape[-1] ** -0.5
    if cached is None:
        weights = jax.nn.softmax(_scores(query, key, mask), axis=-1).astype(value.dtype)
        return jnp.einsum("bhrm,bhmk->bhrk", weights, value)
    slots = cached.key.shape[-2]

    def first(count: int) -> Array:
        """Attention to the first slots alone."""
        old = cached.first(layer, count)
        seen = mask[..., :count], mask[..., slots:]
        # The scores are joined, not the keys: joining keys would copy the cache.
        scores = [_scores(query, k, m) for k, m in zip((old.key, key), seen, strict=True)]
        weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1).astype(value.dtype)
        past = jnp.einsum("bhrm,bhmk->bhrk", weights[..., :count], old.value)
        return past + jnp.einsum("bhrm,bhmk->bhrk", weights[..., count:], value)

    counts = _counts(slots)
    if len(counts) == 1:
        return first(slots)
    used = mask[..., :slots].any((0, 1))
    last = jnp.max(jnp.where(used, jnp.arange(1, slots + 1), 0))
    enough = jnp.searchsorted(jnp.asarray(counts), last)
    out: Array = jax.lax.switch(enough, [functools.partial(first, n) for n in counts])
    return out


def _scores(query: Heads, key: Keys, mask: Bool[Array, "#B R N"]) -> Float32[Array, "B H R N"]:
    scores = jnp.einsum("bhrk,bhmk->bhrm", query, key, preferred_element_type=jnp.float32)
    return jnp.where(mask[:, None], scores, _HIDDEN)


def _counts(slots: int) -> tuple[int, ...]:
    """Numbers of cache slots that attention reads, the smallest that holds what a mask shows.

    Only on CPUs, where reading costs more than a branch.
    """
    powers = range(_FEWEST.bit_length() - 1, (slots - 1).bit_length())
    on_cpu = sharding.platform() == "cpu"
    return (*(2**power for power in powers), slots) if on_cpu else (slots,)


def blockwise(
    query: Heads, key: Keys, value: Keys, pattern: Pattern, *, block: int | None = None
) -> Heads:
    """`dense` over the ranges of `pattern` alone: in one softmax, own window and clean prefix.

    For windows of ω positions and L clean rows about L² + Lω scores for each head instead of 4L²,
    and only `block` rows of them at a time. Sums are taken in another order than by `dense`.

    Args:
      block: query rows at a time; None for 128, or more where these would be above eight blocks.
    """
    block = block or _BLOCK * -(-pattern.regions.rows // (_BLOCK * _BLOCKS))
    parts = []
    for span in spans(pattern.layout, pattern.regions, block):
        keys, values = (
            jnp.concatenate([x[:, :, part] for part in span.keys], axis=2) for x in (key, value)
        )
        mask = pattern.part(span.queries, span.keys)
        parts.append(dense(query[:, :, span.queries], keys, values, mask))
    return jnp.concatenate(parts, axis=2)


def fused(query: Heads, key: Keys, value: Keys, pattern: Pattern) -> Heads:
    """`dense` by the device's own kernel (cuDNN on GPU, 16 bits), whose scores stay on the chip.

    It computes all pairs, and is told by a matrix of pairs to hide some, but where all rows up to
    the own one are seen, or all rows.
    """
    kernel: Literal["cudnn", "xla"] = "cudnn" if sharding.platform() == "gpu" else "xla"
    rows, mask = pattern.regions.rows, None
    if not (pattern.plain_causal or pattern.full):
        added = -rows % _EVEN
        mask = jnp.pad(pattern.mask(), [(0, 0), (0, added), (0, added)])[:, None]
        # Under a row that sees nothing cuDNN's gradients are not numbers: such a row sees itself.
        mask |= jnp.eye(rows + added, dtype=bool)[None, None] & ~mask.any(-1, keepdims=True)
        query, key, value = (
            jnp.pad(x, [(0, 0), (0, 0), (0, added), (0, 0)]) for x in (query, key, value)
        )
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
    found = jax.nn.dot_product_attention(
        query, key, value, mask=mask, is_causal=pattern.plain_causal, implementation=kernel
    )
    return found[:, :rows].swapaxes(1, 2)


def _has_kernel(dtype: DTypeLike) -> bool:
    """True if a GPU has cuDNN's kernel for a type: 16 bits, on compute capability 8.0 or above.

    Ahead of time the device is not there, and is taken for one that has it. AMD's capability is no
    number.
    """
    capability = getattr(jax.local_devices()[0], "compute_capability", "8.0")
    new = re.fullmatch(r"\d+\.\d+", capability) is not None and float(capability) >= 8.0
    return new and jnp.dtype(dtype).itemsize == 2
