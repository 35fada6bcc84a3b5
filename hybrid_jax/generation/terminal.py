"""A text in the terminal while it is generated."""

from __future__ import annotations

import sys
import time

import rich.console
import rich.live
import rich.text

from hybrid_jax.errors import UserError
from hybrid_jax.generation.frames import Frame

STYLES = {
    "given": "bold",
    "settled": "",
    "active": "cyan",
    "corrected": "black on yellow",
    "masked": "bright_black",
    "worthless": "bright_black",
}


def require_terminal() -> None:
    """Raises UserError if standard output is no terminal."""
    if not sys.stdout.isatty():
        raise UserError("--watch needs a terminal, and standard output is none: leave it out.")


class Watch:
    """Shows one text; a context manager. Each frame repaints the last.

    Args:
      delay: least seconds between frames.
      console: where to draw; standard output if None.

    Raises:
      UserError: if that is no terminal.
    """

    def __init__(self, *, delay: float = 0.0, console: rich.console.Console | None = None):
        if console is None:
            require_terminal()
        self._delay = delay
        self._live = rich.live.Live(
            console=console, auto_refresh=False, vertical_overflow="visible"
        )

    def __enter__(self) -> Watch:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, frame: Frame) -> None:
        """Paints a frame."""
        painted = rich.text.Text(overflow="fold")
        for kind, text in frame.runs:
            painted.append(text, style=STYLES[kind])
        painted.append("\n\n")
        for kind, style in STYLES.items():
            painted.append(kind, style=style)
            painted.append("  ")
        painted.append(
            f"step {frame.step}/{frame.steps}, call {frame.nfe}, {frame.corrections} corrections",
            style="bright_black",
        )
        self._live.update(painted, refresh=True)
        time.sleep(self._delay)
