"""Devices that this machine does not have, described well enough to compile for them."""

import importlib.metadata
import importlib.util
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

from hybrid_jax.errors import UserError

EXAMPLES = "v5e:4x4, v5e:16x16, v4:2x2x4, v5p:2x2x2, v6e:4x4 or h100:8"

# Facts about an H100 SXM, from which XLA's GPU compiler works in place of one (GpuTargetConfig in
# text form; values as in the public threads openxla/xla#25919 and jax-ml/jax#28376).
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472 registers_per_core_limit: 65536 registers_per_block_limit: 65536
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 device_memory_size: 84929347584
  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 7 }
runtime_version { major: 12 minor: 8 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def devices(name: str) -> Sequence[Any]:
    """The devices of a topology, for compiling only.

    Args:
      name: of TPUs "GENERATION:CHIPS", such as "v5e:4x4" or "v4:2x2x4"; of GPUs "h100:GPUS" or
        "h100:HOSTSxGPUS".

    Raises:
      UserError: if there is no such topology, or its compiler is not installed.
    """
    family, _, shape = name.partition(":")
    gpus = family.lower() == "h100"
    _require("GPUs", "cuda", _CUDA) if gpus else _require("TPUs", "tpu", _TPU)
    try:
        return _gpus(shape) if gpus else _tpus(name, family, shape)
    except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError) as error:
        raise UserError(
            f"The compiler knows no topology {name!r}: write for example {EXAMPLES}."
        ) from error


def compiler() -> str:
    """Versions of JAX and of the compilers that are installed."""
    found = [f"jax {jax.__version__}"]
    for name in (*_TPU, *_CUDA):
        if importlib.util.find_spec(name.replace("-", "_")):
            found.append(f"{name} {importlib.metadata.version(name)}")
    return ", ".join(found)


_TPU = ("libtpu",)
_CUDA = ("jax-cuda12-plugin", "jax-cuda13-plugin")


def _require(what: str, extra: str, packages: Sequence[str]) -> None:
    if not any(importlib.util.find_spec(package.replace("-", "_")) for package in packages):
        raise UserError(
            f"The compiler for {what} is not installed: pip install 'hybrid_jax[{extra}]'."
        )


def _tpus(name: str, family: str, shape: str) -> Sequence[Any]:
    options: dict[str, Any] = {}
    if family == "v4":
        options["chip_config_name"] = "megacore"  # a device is a chip, as on Cloud TPU
    if set(shape) <= set("1x"):
        options["chips_per_host_bounds"] = (1, 1, 1)
    return topologies.get_topology_desc(name, "tpu", **options).devices


def _gpus(shape: str) -> Sequence[Any]:
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)?", shape):
        raise ValueError(shape)
    hosts, _, each = f"1x{shape}".rpartition("x")
    grid = f"1x{hosts.rpartition('x')[2]}x{each}"
    return topologies.get_topology_desc("", "cuda", target_config=_H100, topology=grid).devices
