"""A failed save as one message, for programs that report it themselves.

When a write fails, Orbax raises the error. It also logs it with tracebacks from each of its
threads, and abandons its other writes: asyncio warns when they are collected, and TensorStore
reports to `sys.unraisablehook` that nothing awaits them.
"""

import logging
import os
import sys
import warnings
from pathlib import Path

import orbax.checkpoint

_ORBAX = str(Path(orbax.checkpoint.__file__).parent) + os.sep


def quieten_orbax() -> None:
    """Suppresses what Orbax prints and logs beside its errors. For commands, not libraries."""
    before = sys.unraisablehook

    def hook(failure: "sys.UnraisableHookArgs") -> None:
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
