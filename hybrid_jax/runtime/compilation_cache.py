"""Compiled programs on disk, so that a command need not compile what one before it compiled.

JAX keeps them, and its own variables win: ``JAX_COMPILATION_CACHE_DIR`` names another folder, and
``JAX_ENABLE_COMPILATION_CACHE=false`` turns it off. Commands call `use` or `avoid`; a program that
imports the package may call `use` itself.
"""

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import filelock

from hybrid_jax.runtime.workers import available

MOST_BYTES = 1 << 30
"""Size of the folder; programs that were not used for the longest time are removed first."""

_LEAST_SECONDS = 0.1  # of compilation: reading a program takes about a hundredth
_PATIENCE = 10.0  # seconds to wait for other processes that read and write


def folder() -> Path:
    """Folder of the programs, in the user's cache folder.

    Programs for CPUs are divided among the cores that they are compiled for, which JAX does not
    count among what makes them different. So each number of cores has a folder.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache, "hybrid_jax", f"compiled-{available()}-cores")


def use() -> None:
    """Keeps compiled programs in `folder`, if it can be written and JAX has no other.

    Processes that read or write at the same time wait for each other.
    """
    if os.environ.get("JAX_COMPILATION_CACHE_DIR") or _imported("jax_compilation_cache_dir"):
        return
    path = folder()
    if not path.is_absolute():  # there is no home folder
        return
    try:
        # A cached program is code that runs: nobody else may write it.
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        with filelock.FileLock(path / ".lockfile", timeout=_PATIENCE):  # JAX takes the same
            _tidy(path)
    except (OSError, NotImplementedError):  # read-only, full, or without locks
        return
    # A disk that fills up later costs time, and is no reason to say anything.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")
    _set("jax_compilation_cache_max_size", MOST_BYTES)
    _set("jax_persistent_cache_min_compile_time_secs", _LEAST_SECONDS)
    _set("jax_persistent_cache_min_entry_size_bytes", -1)
    _set("jax_compilation_cache_dir", str(path))


def in_use() -> bool:
    """True if JAX keeps programs in `folder`."""
    return bool(_imported("jax_compilation_cache_dir") == str(folder()))


def avoid() -> None:
    """Compiles everything anew, and keeps nothing."""
    _set("jax_enable_compilation_cache", False)


def _tidy(path: Path) -> None:
    """Removes programs whose writing was broken off: JAX writes the time of use after them."""
    for program in path.glob("*-cache"):
        if not program.with_name(f"{program.name.removesuffix('cache')}atime").exists():
            program.unlink()


def _imported(name: str) -> Any:
    """A setting of JAX; None while it is not imported."""
    return getattr(sys.modules["jax"].config, name) if "jax" in sys.modules else None


def _set(name: str, value: Any) -> None:
    """Sets JAX up without importing it, which takes a while."""
    if "jax" in sys.modules:
        sys.modules["jax"].config.update(name, value)
    else:
        os.environ[name.upper()] = str(value)
