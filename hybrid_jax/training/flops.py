"""Work of a model in FLOPs, and the peak rate and memory of devices.

Counted are the multiplications and additions of matrix products that the model's definition asks
for, 2·m·n·k for a product of [m, k] and [k, n]. Not counted: what the implementation adds (layers
computed again in the backward pass, hidden pairs of dense attention, padded vocabulary), norms,
softmax, noise and the optimizer. Divided by the time of a step and by what the devices could do,
this is the *model FLOPs utilisation* (MFU; Chowdhery et al. 2022, arXiv 2204.02311, appendix B).
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Int32

from hybrid_jax.data import mixture
from hybrid_jax.method import layout as layouts
from hybrid_jax.method.loss import Spec
from hybrid_jax.models.transformer import Transformer
from hybrid_jax.optim import is_hidden_matrix
from hybrid_jax.runtime.checkpoint import named_leaves
from hybrid_jax.training.pretrained import Pretrained

# More phases than this are represented by as many, evenly spread.
_MOST_PHASES = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flops:
    """FLOPs of one forward pass over one example.

    Attributes:
      rows: rows fed to the network, noisy and clean.
      pairs: of rows that attend to one another, the mean over the schedule's phases; as if
        documents were joined.
      matmul: of the layers' weights, and of the conditioning on levels.
      attention: scores and weighted values of the `pairs` that the mask allows.
      head: logits of the L predicted positions over the N + 1 tokens.
    """

    rows: int
    pairs: float
    matmul: float
    attention: float
    head: float

    @property
    def total(self) -> float:
        return self.matmul + self.attention + self.head


def forward_flops(network: Transformer, spec: Spec) -> Flops:
    """FLOPs of a forward pass over one training example of L positions.

    Computes masks on the default device, so call it outside of a mesh.
    """
    rows, pairs = _rows_and_pairs(spec)
    shapes = network.shapes
    # Every entry of a weight matrix takes one multiplication and one addition for each row.
    weights = [x for name, x in named_leaves(shapes).items() if is_hidden_matrix(name, x)]
    weights += [leaf for leaf in jax.tree.leaves(shapes.get("level", ())) if leaf.ndim > 1]
    width = network.width
    return Flops(
        rows=rows,
        pairs=pairs,
        matmul=2.0 * rows * sum(leaf.size for leaf in weights),
        # Scores, then the weighted sum of values: 2·H·K each.
        attention=4.0 * pairs * network.heads * network.head_size * network.layers,
        head=2.0 * spec.schedule.length * width * (network.vocab_size + 1),
    )


def training_flops(network: Transformer, spec: Spec) -> float:
    """FLOPs of one training example: forward, and twice as much backward.

    Layers that are computed again in the backward pass (``model.remat``) are not counted again.
    """
    return 3.0 * forward_flops(network, spec).total


def _rows_and_pairs(spec: Spec) -> tuple[int, float]:
    """Rows of a training example, and the mean number of pairs that its mask allows."""
    schedule, layout = spec.schedule, spec.layout
    # Windows that settle whole do not move with the phase.
    count = 1 if schedule.settles_whole else min(schedule.phases, _MOST_PHASES)
    phases = np.arange(count) * schedule.phases // count

    @jax.jit
    def pairs(phase: Int32[Array, ""]) -> tuple[Bool[Array, "R"], Int[Array, ""]]:
        groups = jnp.broadcast_to(phase, (schedule.phase_groups,))
        rows = layouts.training_rows(layout, schedule, groups)
        return rows.valid, layouts.attention_mask(layout, rows).sum()

    found = [pairs(jnp.int32(phase)) for phase in phases]
    return found[0][0].shape[0], float(np.mean([int(number) for _, number in found]))


# ---------------------------------------------------------------------------------------------
# Devices.

_GIB, _GB = 2**30, 10**9
DEVICES: Mapping[str, tuple[float | None, float | None]] = MappingProxyType({
    # Dense bfloat16 FLOP/s of what JAX calls a device, as generally quoted for each chip ("with
    # sparsity" halved); not compared with the vendor's pages one by one. Bytes that a program can
    # have: of TPUs, what the compiler (libtpu 0.0.42) says is available when it refuses a program;
    # of GPUs, as they are sold. JAX takes three quarters of a GPU's unless
    # XLA_PYTHON_CLIENT_MEM_FRACTION asks for more.
    "TPU v2": (45e12 / 2, 7.48 * _GIB),  # a device is one of two cores
    "TPU v3": (123e12 / 2, 15.48 * _GIB),  # the same
    "TPU v4": (275e12, 30.75 * _GIB),  # a chip ("megacore"), as on Cloud; one core where it is off
    "TPU v5 lite": (197e12, 15.75 * _GIB),  # v5e
    "TPU v5e": (197e12, 15.75 * _GIB),
    "TPU v5": (459e12, 95.74 * _GIB),  # v5p; a device is a chip
    "TPU v5p": (459e12, 95.74 * _GIB),
    "TPU v6 lite": (918e12, 31.25 * _GIB),  # v6e
    "TPU v6e": (918e12, 31.25 * _GIB),
    # A device is one of two chiplets. By the topology that the compiler describes, and not yet
    # checked on hardware.
    "TPU7x": (2307e12 / 2, 94.75 * _GIB),
    "A100": (312e12, None),
    "A100-SXM4-40GB": (312e12, 40 * _GB),
    "A100-PCIE-40GB": (312e12, 40 * _GB),
    "A100-SXM4-80GB": (312e12, 80 * _GB),
    "A100 80GB PCIe": (312e12, 80 * _GB),
    "L4": (121e12, 24 * _GB),
    "L40S": (362e12, 48 * _GB),
    "H100 80GB HBM3": (989e12, 80 * _GB),  # SXM
    "H100 PCIe": (756e12, 80 * _GB),
    "H100 NVL": (835e12, 94 * _GB),
    "H200": (989e12, 141 * _GB),  # SXM
    "H200 NVL": (835e12, 141 * _GB),
    "GH200": (989e12, 96 * _GB),  # the smaller of two sizes
    "B200": (2250e12, 180 * _GB),
})  # fmt: skip
"""By a part of `jax.Device.device_kind`; the longest part that occurs counts."""


def peak_flops(device: jax.Device) -> float | None:
    """Dense bfloat16 FLOP/s that a device can do at most; None if it is not known."""
    return _known(device)[0]


def memory_bytes(device: jax.Device) -> int | None:
    """Bytes that a program can have on a device; None if it is not known."""
    size = _known(device)[1]
    return None if size is None else int(size)


def _known(device: jax.Device) -> tuple[float | None, float | None]:
    parts = [part for part in DEVICES if part in device.device_kind]
    return DEVICES[max(parts, key=len)] if parts else (None, None)


def budget(model: Pretrained) -> dict[str, float]:
    """Tokens and FLOPs of a model's training."""
    experiment, spec = model.experiment, model.spec
    each = [own.spec(model.tokenizer.vocab_size, spec.bos, spec.eos) for own in experiment.each]
    counts = mixture.counts(experiment.shares, 1, model.step) * experiment.train.batch_size
    flops = sum(
        int(texts) * training_flops(model.network, own)
        for texts, own in zip(counts, each, strict=True)
    )
    return {"tokens": int(counts.sum()) * spec.schedule.length, "flops": flops}
