"""The player of pages that show texts while they are generated: player.html, .css and .js."""

import importlib.resources

from hybrid_jax.generation.frames import STATES, Frame
from hybrid_jax.generation.terminal import escaped

assert len({state[0] for state in STATES}) == len(STATES)  # a first letter stands for its state


def read(file: str, package: str = __package__) -> str:
    """A file of a page that lies in a package. `<!--player-->` in it becomes the controls."""
    text = importlib.resources.files(package).joinpath(file).read_text(encoding="utf-8")
    return text.replace("<!--player-->", read("player.html")) if file != "player.html" else text


def changes(frame: Frame, before: Frame | None) -> list[object]:
    """A frame as player.js reads it, less what it knows from the frame before.

    Returns:
      the first letters of the states; the cells that differ, as position and text in turn; counts.
    """
    old = ("",) * len(frame.cells) if before is None else before.cells
    cells: list[int | str] = []
    for i, (was, text) in enumerate(zip(old, frame.cells, strict=True)):
        if before is None or was != text:
            cells += [i, escaped(text)]
    return ["".join(state[0] for state in frame.states), cells, frame.counts]
