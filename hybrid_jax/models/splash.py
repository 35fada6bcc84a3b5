"""The splash kernel of Pallas for TPU: scores stay on the chip, empty blocks are not computed."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jaxtyping import Array, Bool, Float

from hybrid_jax.runtime import sharding

_TILE = 128  # the kernel's blocks are multiples of it
_LARGEST_BLOCK = 512
_AXES = ("batch", "heads", "whole", "whole")


def splash(
    query: Float[Array, "B H R K"],
    key: Float[Array, "B G R K"],
    value: Float[Array, "B G R K"],
    mask: Bool[np.ndarray, "R R"],
) -> Float[Array, "B H R K"]:
    """`attention.dense` for one mask that is known when the program is compiled.

    Off TPUs the kernel is interpreted, which is for tests: correct, and very slow.

    Args:
      mask: the same for all examples and heads. Rows that see nothing see themselves.
    """
    shared = query.shape[1] // key.shape[1]
    key, value = (jnp.repeat(x, shared, axis=1) if shared > 1 else x for x in (key, value))
    whole, block = _padded(mask)
    interpret = sharding.platform() != "tpu"
    sizes = kernels.BlockSizes(
        block_q=block, block_kv=block, block_kv_compute=block,
        block_q_dkv=block, block_kv_dkv=block, block_kv_dkv_compute=block,
        block_q_dq=block, block_kv_dq=block,
    )  # fmt: skip

    def local(query: Array, key: Array, value: Array) -> Array:
        heads, rows, head = query.shape[1:]
        kernel = kernels.make_splash_mha_single_device(
            masks.MultiHeadMask([masks.NumpyMask(whole)] * heads),
            block_sizes=sizes,
            interpret=interpret,
        )
        added = [(0, 0), (0, 0), (0, len(whole) - rows), (0, 0)]
        padded = (jnp.pad(x, added) for x in (query * head**-0.5, key, value))
        out: Array = jax.vmap(kernel)(*padded)
        return out[:, :, :rows]

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return local(query, key, value)
    # A kernel is no product of matrices that the compiler could cut: it runs on each part.
    spec = sharding.partition_spec(dict(mesh.shape), query.shape, _AXES)
    return jax.shard_map(local, in_specs=(spec,) * 3, out_specs=spec, check_vma=False)(
        query, key, value
    )


def _padded(mask: Bool[np.ndarray, "R R"]) -> tuple[Bool[np.ndarray, "P P"], int]:
    """The mask with as many rows as whole blocks take, and the size of a block."""
    block = min(_LARGEST_BLOCK, -(-len(mask) // _TILE) * _TILE)
    rows = -(-len(mask) // block) * block
    whole = np.zeros((rows, rows), bool)
    whole[: len(mask), : len(mask)] = mask
    alone = ~whole.any(axis=1)
    whole[alone, alone] = True
    return whole, block
