"""Share of puzzles solved against NFE, by method and rule, from tables of benchmarks/sudoku.py.

python benchmarks/sudoku_picture.py --tables='sudoku-4.md;sudoku-6.md' --out=sudoku.png
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any, NamedTuple

import command
from oracle.pictures import LOOKS

from hybrid_jax.errors import UserError
from hybrid_jax.figures import canvas
from hybrid_jax.figures.palette import FAINT, INK
from hybrid_jax.runtime.command_line import Parser
from hybrid_jax.runtime.files import write_atomic

RULES = {  # of the tables, and what they do
    "greedy": "likeliest token, surest position",
    "threshold:temperature=0": "likeliest tokens above a threshold",
    "acs:eta=0:temperature=0": "likeliest token, random order",
    "acs:eta=0.5:guidance=confidence:temperature=0": "the same with ACS, confidence, η = 0.5",
    "ancestral": "ancestral",
}


class Point(NamedTuple):
    """A line of a table; `solved` has the share of each seed."""

    method: str
    rule: str
    nfe: float
    solved: list[float]


def points(path: str) -> tuple[str, list[Point]]:
    """The subject of a table, and its lines. Raises UserError for another file."""
    found = []
    try:
        text = Path(path).read_text("utf-8")
        for line in text.splitlines():
            words = [word.strip() for word in line.split("|")[1:-1]]
            if len(words) == 7 and words[2].isdecimal():
                seeds = [float(share.split("±")[0]) for share in words[5].split(",")]
                found.append(Point(words[0], words[1], float(words[3]), seeds))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): name a table of sudoku.py.") from error
    if not found:
        raise UserError(f"{path} is no table that benchmarks/sudoku.py wrote: name one.")
    return text.partition(":")[0], found


def draw(tables: list[tuple[str, list[Point]]]) -> bytes:
    """A PNG: a row a table, a panel a method; every panel has the best of AR. Bars reach from the
    worst to the best seed."""
    flat = [point.method for _, found in tables for point in found if point.method != "AR"]
    methods = list(dict.fromkeys(flat))
    figure = canvas.figure(2.9 * len(methods), 2.9 * len(tables), "")
    panels = figure.subplots(len(tables), len(methods), sharex="row", sharey=True, squeeze=False)
    handles: dict[str, Any] = {}
    for row, (title, found) in zip(panels, tables, strict=True):
        row[0].set_ylabel(f"{title}: share solved", fontsize=9)
        left = max((p for p in found if p.method == "AR"), key=lambda p: statistics.mean(p.solved))
        for axes, method in zip(row, methods, strict=True):
            own = [point for point in found if point.method == method]
            axes.set_visible(bool(own))
            axes.axhline(statistics.mean(left.solved), color=FAINT, ls="--", lw=1.2,
                         label="AR, the better of its rules")  # fmt: skip
            for rule, name in RULES.items():
                _line(axes, [point for point in own if point.rule == rule], rule, name)
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter("{x:g}")
            axes.set_title(method, fontsize=10, color=INK)
            axes.set_xlabel("calls of the network (NFE)", fontsize=9)
            axes.grid(visible=True, alpha=0.25)
            handles |= dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    panels[0, 0].set_ylim(0, 1)
    figure.legend(
        handles.values(), handles, loc="outside lower center", ncols=3, fontsize=8, frameon=False
    )
    return canvas.png(figure)


def _line(axes: Any, own: list[Point], rule: str, name: str) -> None:
    own = sorted(own, key=lambda point: point.nfe)
    if own:
        means = [statistics.mean(point.solved) for point in own]
        ends = [(m - min(p.solved), max(p.solved) - m) for p, m in zip(own, means, strict=True)]
        colour, marker = LOOKS[rule.removesuffix(":temperature=0")]
        axes.errorbar(
            [point.nfe for point in own], means, yerr=list(zip(*ends, strict=True)), label=name,
            color=colour, marker=marker, ms=5, lw=1.2, capsize=2,
        )  # fmt: skip


def main() -> int:
    parser = Parser(description="Draws tables of benchmarks/sudoku.py.")
    parser.add_argument("--tables", required=True, metavar="A.md;B.md")
    parser.add_argument("--out", required=True, help="PNG file")
    return command.run(parser, _run)


def _run(options: argparse.Namespace) -> None:
    write_atomic(options.out, draw([points(path) for path in options.tables.split(";")]))


if __name__ == "__main__":
    sys.exit(main())
