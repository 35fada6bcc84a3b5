"""Many epochs on little data: the bound on unseen text after 1, 2, 4 … epochs on the same text.

    python benchmarks/epochs.py --text=input.txt --out=benchmarks/results/epochs.jsonl

Network, windows, batch and optimizer are those of benchmarks/shakespeare.py, on the first
characters of its text; validation is on the same last tenth. A method has one run, with a constant
learning rate after the warm-up, so that each point of a curve is what a run that ends there would
have had. An epoch is as many predicted characters as there are to train on.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import Any

import char_runs
import command
from char_runs import BATCH, CONTEXT, Run, Text, step_flops

from hybrid_jax.runtime import compilation_cache
from hybrid_jax.runtime.command_line import Parser, path_of, within
from hybrid_jax.runtime.files import check_writable, expanded

METHODS = ("AR", "MDLM", "BD3-LM, blocks of 16", "γ-hybrid, flat", "ε-hybrid, flat")
CONSTANT = {"optimizer.schedule": "constant", "optimizer.final_fraction": "none"}


def marks(characters: int, most: int) -> dict[int, int]:
    """The step after each of 1, 2, 4 … epochs."""
    epochs = [1 << power for power in range(most.bit_length())]
    return {epoch: round(epoch * characters / (BATCH * CONTEXT)) for epoch in epochs}


def rows_of(runs: list[Run], options: argparse.Namespace, text: Text) -> list[dict[str, Any]]:
    """Runs that have begun, as lines of the results."""
    steps = marks(options.characters, options.epochs)
    rows = []
    for run in runs:
        found = run.found(expanded(options.folder), text)
        if found:
            rows.append({
                "method": run.method, "seed": run.seed, "characters": options.characters,
                "gflop_a_step": round(step_flops(run.method, text.size) / 1e9, 3),
                "curve": [
                    {"epoch": epoch, "step": step, **found[str(step)]}
                    for epoch, step in steps.items() if str(step) in found
                ],
            })  # fmt: skip
    return rows


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """A line a method, a column an epoch; the mean of the seeds that got there, and each."""
    epochs = sorted({epoch for row in rows for epoch in _nats(row)})
    lines = [
        f"| method | {' | '.join(f'after {epoch}' for epoch in epochs)} |",
        "|---" * (1 + len(epochs)) + "|",
    ]
    for method in METHODS:
        own = [row for row in rows if row["method"] == method]
        cells = []
        for epoch in epochs:
            each = [_nats(row)[epoch] for row in own if epoch in _nats(row)]
            mean = f"{sum(each) / len(each):.3f} " if len(each) > 1 else ""
            shown = ", ".join(f"{value:.3f}" for value in each)
            cells.append(f"{mean}({shown})" if mean else shown or "–")
        if own:
            lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _nats(row: dict[str, Any]) -> dict[float, float]:
    """Bounds by epoch."""
    return {p["epoch"]: char_runs.mean_and_error(p["nats"])[0] for p in row["curve"]}


def draw(rows: list[dict[str, Any]]) -> bytes:
    """A PNG: a curve a run."""
    lines = [(row["method"], row["seed"], _nats(row)) for row in rows]
    return char_runs.curves(lines, "epochs", doubles=True)


def _run(options: argparse.Namespace) -> None:
    if options.picture:
        check_writable(options.picture)
    compilation_cache.use()
    whole, out = Text.read(options.text), expanded(options.out)
    text = dataclasses.replace(whole, train=whole.train[: options.characters])
    steps = tuple(marks(options.characters, options.epochs).values())
    runs = [
        Run(method=method, seed=seed, marks=steps, settings=CONSTANT, draws=2)
        for seed in range(options.seeds)
        for method in METHODS
    ]
    char_runs.publish(
        runs, expanded(options.folder), text, out, lambda: rows_of(runs, options, text),
        as_markdown, {options.picture: draw} if options.picture else {}, options.first_seed,
    )  # fmt: skip


def main() -> int:
    parser = Parser(description="Bounds after many epochs on little data.")
    add = parser.add_argument
    add("--text", type=path_of, required=True, help="tiny Shakespeare, input.txt")
    add("--characters", type=within(1000), default=50_000, help="of training (%(default)s)")
    add("--epochs", type=within(1), default=64, help="at most (default: %(default)s)")
    add("--seeds", type=within(1), default=2, help="default: %(default)s")
    char_runs.add_first_seed(parser)
    add("--folder", type=path_of, default="runs/epochs", help="of runs (%(default)s)")
    add("--out", required=True, help="a run a line, .jsonl; the table beside it as .md")
    add("--picture", help="PNG file")
    return command.run(parser, _run)


if __name__ == "__main__":
    sys.exit(main())
