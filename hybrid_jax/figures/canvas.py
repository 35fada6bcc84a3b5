"""Shared parts of pictures: matplotlib where it is installed, and the bytes of a PNG."""

from __future__ import annotations

import io
from typing import Any

from hybrid_jax.errors import require
from hybrid_jax.figures.palette import INK, PAPER


def module(name: str) -> Any:
    """A module of matplotlib or Pillow (which matplotlib brings).

    Raises:
      UserError: if it is not installed.
    """
    return require(name, "eval")


def figure(width: float, height: float, title: str) -> Any:
    """An empty matplotlib figure on opaque paper; inches."""
    made = module("matplotlib.figure").Figure(
        figsize=(width, height), facecolor=PAPER, layout="constrained"
    )
    if title:
        made.suptitle(title, fontsize=11, color=INK)
    return made


def grid_axes(axes: Any, columns: int, rows: int) -> None:
    """Turns axes into a table of unit cells, the first row on top, without frame and ticks."""
    axes.set(xlim=(-0.02, columns + 0.02), ylim=(rows + 0.02, -0.02))
    axes.tick_params(length=0, labelsize=8, colors=INK)
    for spine in axes.spines.values():
        spine.set_visible(False)


def cell(axes: Any, column: float, row: float, fill: str, *, width: float = 1, **look: Any) -> None:
    """Fills a cell of such a table."""
    box = module("matplotlib.patches").Rectangle(
        (column, row),
        width,
        1,
        facecolor=fill,
        **({"edgecolor": "#b5b5b5", "linewidth": 0.5} | look),
    )
    axes.add_patch(box)


def legend(figure: Any, entries: list[tuple[str, dict[str, Any]]]) -> None:
    """A legend under the figure: texts, and how their boxes look."""
    patches = module("matplotlib.patches")
    handles = [
        patches.Patch(label=text, **({"edgecolor": "#767676", "linewidth": 0.6} | look))
        for text, look in entries
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9, frameon=False
    )


def png(figure: Any) -> bytes:
    """The figure as a PNG file of 64 colours, which is plenty for boxes and letters and small."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    image = module("PIL.Image").open(buffer).convert("RGB").quantize(64, dither=0)
    small = io.BytesIO()
    image.save(small, format="png", optimize=True)
    return small.getvalue()
