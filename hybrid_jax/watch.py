"""A text in the terminal while it is generated."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import numpy as np
import rich.console
import rich.live
import rich.text

from hybrid_jax.data.tokenizers import Tokenizer
from hybrid_jax.errors import UserError
from hybrid_jax.kinds import Kind, kinds_of

# Like the colours of `figures.palette`, as far as a terminal has them. Text ends at the frontier.
STYLES: dict[Kind, str] = {
    "given": "bold",
    "settled": "",
    "active": "cyan",
    "revealed": "bold green",
    "corrected": "black on yellow",
    "masked": "bright_black",
}


def require_terminal() -> None:
    """Raises UserError if standard output is no terminal."""
    if not sys.stdout.isatty():
        raise UserError("--watch needs a terminal, and standard output is none: leave it out.")


class Watch:
    """Shows one text; a context manager. Each frame repaints the last.

    Args:
      tokenizer: of the text.
      frozen: bool [L], given tokens.
      delay: least seconds between frames.
      console: where to draw; standard output if None.

    Raises:
      UserError: if that is no terminal.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        frozen: np.ndarray,
        *,
        delay: float = 0.0,
        console: rich.console.Console | None = None,
    ):
        if console is None:
            require_terminal()
        self._tokenizer, self._frozen, self._delay = tokenizer, frozen, delay
        self._before: np.ndarray | None = None
        self._live = rich.live.Live(
            console=console, auto_refresh=False, vertical_overflow="visible"
        )

    def __enter__(self) -> Watch:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, tokens: np.ndarray, settled: int, frontier: int, status: str) -> None:
        """Paints a frame: tokens int32 [L], of which `settled` are final and `frontier` begun."""
        kinds = self.kinds(tokens, settled, frontier)
        self._before = np.array(tokens)
        frame = rich.text.Text(overflow="fold")
        for kind, ids in _runs(kinds, tokens):
            frame.append(self._tokenizer.decode(ids, mask_text="░"), style=STYLES[kind])
        frame.append("\n\n")
        for kind, style in STYLES.items():
            frame.append(kind, style=style)
            frame.append("  ")
        frame.append(status, style="bright_black")
        self._live.update(frame, refresh=True)
        time.sleep(self._delay)

    def kinds(self, tokens: np.ndarray, settled: int, frontier: int) -> list[Kind]:
        """The style of each position up to the frontier."""
        return kinds_of(
            tokens.tolist(),
            None if self._before is None else self._before.tolist(),
            mask=self._tokenizer.vocab_size,
            frozen=self._frozen.tolist(),
            settled=settled,
            frontier=frontier,
        )[: max(settled, frontier)]


def _runs(kinds: list[Kind], tokens: np.ndarray) -> Iterator[tuple[Kind, list[int]]]:
    """Neighbours of one kind together, so that characters of several tokens stay whole."""
    start = 0
    for end in range(1, len(kinds) + 1):
        if end == len(kinds) or kinds[end] != kinds[start]:
            yield kinds[start], [int(token) for token in tokens[start:end]]
            start = end
