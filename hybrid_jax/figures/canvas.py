"""Shared parts of pictures: matplotlib where it is installed, and the bytes of a PNG."""

import functools
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hybrid_jax.errors import require
from hybrid_jax.figures.palette import INK, PAPER


def module(name: str) -> Any:
    """A module of matplotlib or Pillow, which matplotlib brings. Raises UserError without them."""
    return require(name, "eval")


def figure(width: float, height: float, title: str) -> Any:
    """An empty matplotlib figure on opaque paper; inches."""
    made = module("matplotlib.figure").Figure(
        figsize=(width, height), facecolor=PAPER, layout="constrained"
    )
    made.suptitle(title, fontsize=11, color=INK)
    return made


def panels(
    shown: Sequence[Any],
    draw: Callable[[Any, Any], None],
    *,
    size: tuple[float, float],
    title: str,
    legend: Mapping[str, Mapping[str, Any]],
) -> bytes:
    """A PNG of four panels, two in a row.

    Args:
      draw: (axes, one of `shown`) -> None.
      size: width and height, inches.
      legend: under the panels: texts, and how their boxes look.
    """
    made = figure(*size, title)
    for axes, one in zip(made.subplots(2, 2).flat, shown, strict=True):
        draw(axes, one)
    box = functools.partial(module("matplotlib.patches").Patch, edgecolor="#767676", linewidth=0.6)
    made.legend(
        handles=[box(**{"label": text, **look}) for text, look in legend.items()],
        loc="outside lower center", ncols=len(legend), fontsize=9, frameon=False,
    )  # fmt: skip
    return png(made)


def grid_axes(axes: Any, columns: int, rows: int, title: str) -> None:
    """Turns axes into a table of unit cells, the first row on top, without frame and ticks."""
    axes.set(xlim=(-0.02, columns + 0.02), ylim=(rows + 0.02, -0.02))
    axes.tick_params(length=0, labelsize=8, colors=INK)
    axes.set_title(title, fontsize=10, color=INK)
    for spine in axes.spines.values():
        spine.set_visible(False)


def cell(
    axes: Any, column: float, row: float, fill: str, text: str = "", hatch: str = "", **look: Any
) -> None:
    """Fills a cell of such a table, and writes into its middle; `look` is that of the text."""
    box = module("matplotlib.patches").Rectangle
    look_of_box = {"facecolor": fill, "edgecolor": "#b5b5b5", "linewidth": 0.5, "hatch": hatch}
    axes.add_patch(box((column, row), 1, 1, **look_of_box))
    if text:
        axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", **look)


def png(figure: Any) -> bytes:
    """The figure as a PNG file of 64 colours, which is plenty for boxes and letters and small."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    image = module("PIL.Image").open(buffer).convert("RGB").quantize(64, dither=0)
    small = io.BytesIO()
    image.save(small, format="png", optimize=True)
    return small.getvalue()
