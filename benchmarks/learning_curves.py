"""When runs of a table begin to learn: their training losses, step by step, as a picture.

    python benchmarks/learning_curves.py --table=benchmarks/results/table1.json --out=curves.png

What a method minimises is its own (a bound for most, a weighted cross-entropy for the ε-hybrid), so
curves tell when a run leaves its plateau, and not which bound is the lowest in the end.
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


def draw(rows: list[dict[str, Any]]) -> bytes:
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


def main() -> int:
    parser = Parser(description="Draws training losses of benchmarks/table1.py.")
    parser.add_argument("--table", required=True, help="JSON file of benchmarks/table1.py")
    parser.add_argument("--out", required=True, help="PNG file")
    return command.run(parser, _run)


def _run(options: argparse.Namespace) -> None:
    try:
        stored = json.loads(Path(options.table).read_text(encoding="utf-8"))
        rows = [{key: row[key] for key in ("name", "seed", "flat", "losses")} for row in stored]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{options.table} is no table that benchmarks/table1.py wrote ({error})."
        ) from error
    write_atomic(options.out, draw(rows))


if __name__ == "__main__":
    sys.exit(main())
