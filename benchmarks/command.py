"""The command line of a benchmark: mistakes, and results that could not be written, come first."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from hybrid_jax.errors import exit_status
from hybrid_jax.runtime.allocator import keep_freed_memory
from hybrid_jax.runtime.command_line import parse
from hybrid_jax.runtime.files import check_writable


def run(
    parser: argparse.ArgumentParser,
    work: Callable[[argparse.Namespace], None],
    *,
    folder: bool = False,
) -> int:
    """Runs `work` with the options of the command line; returns the exit status.

    Args:
      folder: whether --out names a folder.
    """

    def command() -> None:
        options = parse(parser, None)
        if options.out:
            check_writable(options.out, folder=folder)
        keep_freed_memory()  # as the commands do
        work(options)

    return exit_status(command, interrupted="what was stored stays")
