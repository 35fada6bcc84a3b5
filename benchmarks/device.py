"""What a benchmark ran on."""

from __future__ import annotations

import platform
from pathlib import Path

import jax


def name() -> str:
    """The processor or accelerator, in words."""
    kind = jax.devices()[0].device_kind
    if jax.default_backend() != "cpu":
        return kind
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or kind
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(models)} × {models[0]}" if models else kind


def short_name() -> str:
    """For names of files: "cpu", or that of the accelerator."""
    if jax.default_backend() == "cpu":
        return "cpu"
    return "-".join(jax.devices()[0].device_kind.lower().split())


def versions() -> dict[str, str]:
    """Versions that speed depends on."""
    return {"python": platform.python_version(), "jax": jax.__version__}
