"""A text in the terminal while it is generated."""

import sys
import time
from contextlib import AbstractContextManager
from typing import Any

from hybrid_jax.errors import UserError, require
from hybrid_jax.generation.driver import Round
from hybrid_jax.generation.frames import Frame, Recorder, TokenState
from hybrid_jax.generation.generator import Generator

STYLES: dict[TokenState, str] = {
    "given": "bold",
    "settled": "",
    "active": "cyan",
    "revealed": "bold cyan",
    "corrected": "black on yellow",
    "masked": "bright_black",
    "worthless": "bright_black",
}


# Terminals obey C0 and C1 controls, and marks of direction make text seem another.
_HIDDEN = (*range(9), *range(11, 32), *range(0x7F, 0xA0), 0x61C, 0x200E, 0x200F,
           *range(0x202A, 0x202F), *range(0x2066, 0x206A))  # fmt: skip
_ESCAPES = {code: repr(chr(code))[1:-1] for code in _HIDDEN}


def escaped(text: str) -> str:
    """A text whose controls are escapes, such as \\x1b; newlines and tabs stay."""
    return text.translate(_ESCAPES)


def shown(text: str) -> str:
    """A text to print: `escaped` where standard output is a terminal, else as it is."""
    return escaped(text) if sys.stdout.isatty() else text


def require_terminal() -> None:
    """Raises UserError if standard output is no terminal, or cannot be painted on."""
    if not sys.stdout.isatty():
        raise UserError("--watch needs a terminal, and standard output is none: leave it out.")
    require("rich.live", "watch")


class Watch(AbstractContextManager["Watch"]):
    """Shows the texts in the first place, one after the other. A context manager.

    Args:
      delay: least seconds between frames.
    """

    def __init__(self, generator: Generator, *, delay: float = 0.0) -> None:
        self._recorder = Recorder(generator)
        self._delay = delay
        self._live: Any = None

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def on_round(self, round_: Round) -> None:
        """Shows a round, if the place is taken."""
        if round_.numbers[0] < 0:
            return
        if self._live is None:
            self._live = require("rich.live", "watch").Live(
                auto_refresh=False, vertical_overflow="visible"
            )
            self._live.start()
        self._live.update(painted(self._recorder.frame(round_)), refresh=True)
        time.sleep(self._delay)
        if 0 in round_.texts:
            self._live.stop()
            self._live = None


def painted(frame: Frame) -> Any:
    """A frame with its legend and its counts, as a `rich.text.Text`."""
    text = require("rich.text", "watch").Text(overflow="fold")
    for state, run in frame.runs():
        text.append(escaped(run), style=STYLES[state])
    text.append("\n\n")
    for state, style in STYLES.items():
        text.append(state, style=style)
        text.append("  ")
    text.append(frame.counts, style="bright_black")
    return text
