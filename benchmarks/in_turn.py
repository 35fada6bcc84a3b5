"""Variants of one thing, timed in turn, and results written down.

Variants alternate, so that a machine that changes its speed changes all of them, and ratios are
taken between neighbours.
"""

from __future__ import annotations

import datetime
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import device
import jax

from hybrid_jax.runtime.files import write_atomic
from hybrid_jax.runtime.json_text import file_name


def milliseconds(
    variants: Mapping[str, Callable[[], Any]], *, repeats: int
) -> dict[str, list[float]]:
    """Times of each variant, in order; the first, which compiles, is left out."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for repeat in range(repeats + 1):
        for name, run in variants.items():
            begun = time.perf_counter()
            jax.block_until_ready(run())
            if repeat:
                times[name].append((time.perf_counter() - begun) * 1e3)
    return times


def spread(values: list[float], digits: int = 1) -> str:
    """Median, least and most."""
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f} – {high:.{digits}f})"


def ratios(slow: list[float], fast: list[float]) -> list[float]:
    """The ratio of times, pair by pair."""
    return [a / b for a, b in zip(slow, fast, strict=True)]


def compiled(function: Callable, *arguments: Any) -> tuple[Callable[[], Any], float]:
    """A program to call, and what it needs beside its arguments, in MB, as the compiler says."""
    program = jax.jit(function).lower(*arguments).compile()
    analysis = program.memory_analysis()
    megabytes = (analysis.temp_size_in_bytes + analysis.output_size_in_bytes) / 1e6
    return lambda: program(*arguments), megabytes


def store(kind: str, out: str, table: str, **shape: Any) -> str:
    """Writes a table, with what it depends on, named by kind, device, date and a digest of what it
    depends on; returns it.

    To be called after every row: what was measured stays when the time for the rest runs out.
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    today = datetime.date.today().isoformat()
    settings = ", ".join(f"{name} {value}" for name, value in shape.items())
    report = f"{kind} ({settings}) on {device.origin()}\n{table}\n"
    name = file_name(f"{kind}-{device.short_name()}-{today}", [kind, device.origin(), shape])
    write_atomic(folder / f"{name}.md", report)
    return report


def note(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)
