"""The lines that begin every result: device, versions, day and command."""

from __future__ import annotations

import datetime
import platform
import re
import shlex
import sys
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


def versions() -> str:
    """Versions that speed depends on."""
    return f"Python {platform.python_version()}, jax {jax.__version__}"


def command() -> str:
    """The command line; of absolute paths the last name, the rest is one machine's own."""
    words = [re.sub(r"(^|[=:;,])/(?:[^/=:;,]*/)*", r"\1", word) for word in sys.argv[1:]]
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])


def origin() -> str:
    """Device, versions, day and command of a result, as Markdown."""
    return f"{name()}, {versions()}, {datetime.date.today().isoformat()}\n\n    {command()}\n"
