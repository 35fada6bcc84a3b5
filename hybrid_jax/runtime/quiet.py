"""Keeps a failed save to one message, in programs that report it themselves.

When a write fails, Orbax raises the error. But it also logs it, with tracebacks, from each of its
threads; it abandons its other writes, of which asyncio complains when they are collected; and
TensorStore complains to `sys.unraisablehook` that nobody listens to these writes any more.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path

import orbax.checkpoint

_ORBAX = str(Path(orbax.checkpoint.__file__).parent) + os.sep


def quieten_orbax() -> None:
    """Drops, from now on, what Orbax says besides raising errors. For commands, not libraries."""
    before = sys.unraisablehook

    def hook(failure: sys.UnraisableHookArgs) -> None:
        value = failure.exc_value
        if not (isinstance(value, RuntimeError) and str(value) == "Event loop is closed"):
            before(failure)

    sys.unraisablehook = hook
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_not_orbax)


def _not_orbax(record: logging.LogRecord) -> bool:
    said_there = record.pathname.startswith(_ORBAX)
    abandoned = record.name == "asyncio" and "orbax" in record.getMessage()
    return not (said_there or abandoned)
