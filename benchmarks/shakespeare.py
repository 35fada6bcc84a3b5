"""nanoGPT's line for processors, and beside it the bound of every method at equal cost.

    python benchmarks/shakespeare.py --text=input.txt --out=benchmarks/results/shakespeare.jsonl

nanoGPT's README tells that

    python train.py config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 \
      --log_interval=1 --block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 \
      --max_iters=2000 --lr_decay_iters=2000 --dropout=0.0

takes about three minutes and reaches 1.88 nats a character. Text, split, windows and optimizer are
the same here, and so is the network of one row. The package's own has the same size, with rotary
positions and a head of its own that begins at 0. The text is
https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt

Each method is trained on the tokens of that command and, where its rows cost more than those of AR,
once more on fewer tokens, for the FLOPs of AR. What is done is stored and not done again; a killed
run goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import char_runs
import command
from char_runs import BATCH, CONTEXT, METHODS, NANOGPT, Run, Text, step_flops

from hybrid_jax.figures import canvas
from hybrid_jax.figures.palette import FAINT, INK
from hybrid_jax.runtime import compilation_cache
from hybrid_jax.runtime.command_line import Parser, path_of, within
from hybrid_jax.runtime.files import check_writable, expanded
from hybrid_jax.runtime.json_text import write_json

STEPS, PUBLISHED = 2000, 1.88
_EQUAL = 1.05  # FLOPs this near to those of AR are equal
_SLIDE = "γ-hybrid, slide of 16"


def plan(text: Text, steps: int, seeds: int) -> list[tuple[str, Run]]:
    """Runs and what they have in common with AR: "tokens", "FLOPs" or "both".

    First come those that cost about as much as AR. Of those that cost more there is one seed less,
    and none of sliding windows, whose steps take the most time for their FLOPs.
    """
    found = []
    for method in METHODS:
        ratio = step_flops(method, text.size) / step_flops("AR", text.size)
        budgets = {"tokens": steps, "FLOPs": round(steps / ratio)}
        if ratio < _EQUAL:
            budgets = {"both": steps}
        elif method == _SLIDE:
            del budgets["tokens"]
        for kind, number in budgets.items():
            late = method == _SLIDE or kind == ("tokens" if ratio > 1.5 else "FLOPs")
            for seed in range(max(1, seeds - late)):
                run = Run(method=method, seed=seed, marks=(number,))
                found.append(((late, seed), kind, run))
    return [(kind, run) for _, kind, run in sorted(found, key=lambda one: one[0])]


def as_nanogpt(run: Run, root: Path, text: Text, *, whole: bool) -> dict[str, Any]:
    """The exact likelihood of AR on nanoGPT's estimate, 20 batches of random windows, and if
    `whole` of the first seed on what that estimates: all windows at all places."""
    wanted = {"estimate": char_runs.drawn(text.valid, 20 * BATCH, run.seed, STEPS)}
    if whole and run.seed == 0:
        wanted["all windows"] = char_runs.every(text.valid)
    file = run.folder(root, text) / "nanogpt.json"
    known = json.loads(file.read_text("utf-8")) if file.exists() else {}
    for name in wanted.keys() - known.keys():
        found = run.evaluate(*run.restore(root, text), wanted[name])
        known[name] = [found["nats"][0], found["error"]]
        write_json(file, known)
    return known


def rows_of(planned: list[tuple[str, Run]], root: Path, text: Text) -> list[dict[str, Any]]:
    """The runs that are done, as lines of the results."""
    rows, whole = [], all(run.done(root, text) for _, run in planned)
    for kind, run in planned:
        steps, exact = run.marks[-1], run.method in ("AR", NANOGPT)
        if run.done(root, text):
            rows.append({
                "method": run.method, "seed": run.seed, "same": kind, "steps": steps,
                "tokens": steps * BATCH * CONTEXT,
                "tflop": round(steps * step_flops(run.method, text.size) / 1e12, 3),
                **run.found(root, text)[str(steps)],
                **(as_nanogpt(run, root, text, whole=whole) if exact else {}),
            })  # fmt: skip
    return rows


def cells(rows: list[dict[str, Any]], method: str, kind: str) -> list[dict[str, Any]]:
    """The runs of a method that have tokens, or FLOPs, in common with AR."""
    return [row for row in rows if row["method"] == method and row["same"] in (kind, "both")]


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """A line a method."""
    lines = [
        "| method | bound under | of AR's FLOPs, same tokens | nats a character, same tokens | "
        "steps with AR's FLOPs | nats a character, same FLOPs |",
        "|---|---|---|---|---|---|",
    ]
    ar = cells(rows, "AR", "tokens")[0]
    for method in METHODS:
        same, equal = (cells(rows, method, kind) for kind in ("tokens", "FLOPs"))
        if same or equal:
            ratio = f"{same[0]['tflop'] / ar['tflop']:.2f}" if same else "–"
            steps = f"{equal[0]['steps']:,}" if equal else "–"
            bound = (same or equal)[0]["bound"]
            lines.append(
                f"| {method} | {bound} | {ratio} | {_cell(same)} | {steps} | {_cell(equal)} |"
            )
    return "\n".join(lines)


def _cell(runs: list[dict[str, Any]]) -> str:
    """Mean and standard error over seeds, each seed, and the largest error over draws."""
    if not runs:
        return "–"
    each = [char_runs.mean_and_error(run["nats"]) for run in runs]
    mean = char_runs.with_error(*char_runs.mean_and_error([value for value, _ in each]))
    draws = max((error for _, error in each), key=lambda e: -1 if math.isnan(e) else e)
    sign, of_draws = ("", "") if math.isnan(draws) else ("≤ ", f"; draws ± {draws:.3f}")
    return f"{sign}{mean} ({', '.join(f'{value:.3f}' for value, _ in each)}{of_draws})"


def draw(rows: list[dict[str, Any]]) -> bytes:
    """A PNG: a line a method; nats at the same tokens and at the same FLOPs, and each seed."""
    methods = [name for name in METHODS if any(row["method"] == name for row in rows)]
    figure = canvas.figure(8, 4.6, "")
    axes = figure.subplots()
    looks = {"tokens": ("#0072b2", "o", -0.13), "FLOPs": ("#d55e00", "D", 0.13)}
    for kind, (colour, marker, aside) in looks.items():
        for place, method in enumerate(methods):
            if own := cells(rows, method, kind):
                each = [char_runs.mean_and_error(row["nats"])[0] for row in own]
                mean, error = char_runs.mean_and_error(each)
                axes.plot(each, [place + aside] * len(each), "|", color=colour, ms=9)
                axes.errorbar(
                    mean, place + aside, xerr=error, color=colour, marker=marker, ms=5, capsize=2,
                    label=f"with the {kind} of AR" if method == methods[0] else None,
                )  # fmt: skip
    axes.axvline(PUBLISHED, color=FAINT, ls="--", lw=1.2, label="nanoGPT's README")
    axes.set_yticks(range(len(methods)), methods, color=INK)
    axes.invert_yaxis()
    axes.set_xlabel("nats per character of validation text (bounds; AR: exact)")
    axes.grid(visible=True, alpha=0.25)
    axes.legend(fontsize=8)
    return canvas.png(figure)


def _run(options: argparse.Namespace) -> None:
    if options.picture:
        check_writable(options.picture)
    compilation_cache.use()
    text, root, out = Text.read(options.text), expanded(options.folder), expanded(options.out)
    planned = plan(text, options.steps, options.seeds)

    def rows() -> list[dict[str, Any]]:
        found = rows_of(planned, root, text)
        return found if found and found[0]["method"] == "AR" else []  # which the table is built on

    char_runs.publish(
        [run for _, run in planned], root, text, out, rows, as_markdown,
        {options.picture: draw} if options.picture else {}, options.first_seed,
    )  # fmt: skip


def main() -> int:
    parser = Parser(description="nanoGPT's line for processors, by every method.")
    add = parser.add_argument
    add("--text", type=path_of, required=True, help="tiny Shakespeare, input.txt")
    add("--steps", type=within(2), default=STEPS, help="of AR (default: %(default)s)")
    add("--seeds", type=within(1), default=3, help="default: %(default)s")
    char_runs.add_first_seed(parser)
    add("--folder", type=path_of, default="runs/shakespeare", help="of runs (%(default)s)")
    add("--out", required=True, help="a run a line, .jsonl; the table beside it as .md")
    add("--picture", help="PNG file")
    return command.run(parser, _run)


if __name__ == "__main__":
    sys.exit(main())
