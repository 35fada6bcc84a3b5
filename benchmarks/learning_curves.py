"""A picture of when runs of a table begin to learn, and how far they get.

    python benchmarks/learning_curves.py --table=benchmarks/results/table1.json --out=curves.png
    python benchmarks/learning_curves.py --table=table1-long.json --show=bounds --out=bounds.png

What a method minimises is its own (a bound for most, a weighted cross-entropy for the ε-hybrid), so
training losses tell when a run leaves its plateau, and not which bound is the lowest in the end.
Bounds on validation records, of tables that have them, tell that too.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import command

from hybrid_jax.errors import UserError
from hybrid_jax.figures import canvas
from hybrid_jax.figures.palette import INK
from hybrid_jax.runtime.command_line import Parser
from hybrid_jax.runtime.files import write_atomic

_PLATEAU = 2.8  # nats a byte; bytes alone have about 3.05


def draw_losses(rows: list[dict[str, Any]]) -> bytes:
    """A PNG: flat runs left, the others right; a method has its colour, a seed its line."""
    figure = canvas.figure(11, 4.4, "Training losses, means of 50 steps")
    kinds = [("all positions together", True), ("one by one, or in windows", False)]
    for axes, (title, flat) in zip(figure.subplots(1, 2, sharey=True), kinds, strict=True):
        chosen = [row for row in rows if row["flat"] == flat]
        names = list(dict.fromkeys(row["name"] for row in chosen))
        for row in chosen:
            number = names.index(row["name"])
            axes.plot(
                [int(step) for step in row["losses"]],
                list(row["losses"].values()),
                color=f"C{number}",
                linestyle=("-", "--", ":", "-.")[row["seed"] % 4],
                marker="osD^v<>P"[number % 8],
                markersize=3,
                linewidth=1.2,
                label=f"{row['name']}, seed {row['seed']}",
            )
        axes.set_title(title, fontsize=10, color=INK)
        axes.set_xlabel("step")
        axes.grid(visible=True, alpha=0.25)
        # Curves fall: where all of them stay high, the corner below is free.
        axes.legend(fontsize=7, loc="lower left" if flat else "upper right")
    figure.axes[0].set_ylabel("training loss (nats per token)")
    return canvas.png(figure)


def draw_bounds(rows: list[dict[str, Any]]) -> bytes:
    """A PNG: validation bounds by tokens left, by FLOPs right, from the end of the plateau on."""
    figure = canvas.figure(11, 5, "Bounds on validation records (AR: exact)")
    left, right = figure.subplots(1, 2, sharey=True)
    names = list(dict.fromkeys(row["name"] for row in rows))
    for row in rows:
        number, last = names.index(row["name"]), max(map(int, row["bounds"]))
        learnt = {int(step): nats for step, nats in row["bounds"].items() if nats < _PLATEAU}
        for axes, of_a_step in ((left, 1.0), (right, row["tflop"] / last)):
            axes.plot(
                [step * of_a_step for step in learnt], list(learnt.values()), color=f"C{number}",
                linestyle=("-", "--", ":", "-.")[row["seed"] % 4], marker="osD^v<>Phd"[number % 10],
                markersize=3, linewidth=1.2, label=row["name"] if row["seed"] == 0 else None,
            )  # fmt: skip
    for axes, across in ((left, "step"), (right, "TFLOP of training")):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel(across, color=INK)
        axes.grid(visible=True, alpha=0.25)
    left.set_ylabel("nats per byte")
    right.legend(fontsize=7)
    return canvas.png(figure)


PICTURES = {
    "losses": (draw_losses, ("flat", "losses")),
    "bounds": (draw_bounds, ("bounds", "tflop")),
}


def main() -> int:
    parser = Parser(description="Draws curves of the runs of benchmarks/table1.py.")
    parser.add_argument("--table", required=True, help="JSON file of benchmarks/table1.py")
    parser.add_argument("--show", choices=PICTURES, default="losses", help="default: %(default)s")
    parser.add_argument("--out", required=True, help="PNG file")
    return command.run(parser, _run)


def _run(options: argparse.Namespace) -> None:
    try:
        stored = json.loads(Path(options.table).read_text(encoding="utf-8"))
        picture, keys = PICTURES[options.show]
        rows = [{key: row[key] for key in ("name", "seed", *keys)} for row in stored]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{options.table} is no table that benchmarks/table1.py wrote ({error})."
        ) from error
    write_atomic(options.out, picture(rows))


if __name__ == "__main__":
    sys.exit(main())
