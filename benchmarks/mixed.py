"""One network for a row of hyperschedules, against a network for each; and ways from GPT to blocks.

    python benchmarks/mixed.py --text=input.txt --out=benchmarks/results/mixed.jsonl
    python benchmarks/mixed.py --text=input.txt --runs=adapted --out=adapted.jsonl

Text, windows, network and optimizer are those of benchmarks/shakespeare.py, with masking noise
and shifted rows. A specialist has all its steps on one hyperschedule, a mixed network shares them;
each is then bounded under every hyperschedule of the row. Runs that benchmarks/shakespeare.py
has in the same folder are not done again.

Of the runs "adapted", each is autoregression for half of its steps and then learns blocks of 16, in
one of the ways that the literature found to matter; beside them are blocks from the first step on,
with as many steps as take the same FLOPs. The learning rate falls over both halves together.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import char_runs
import command
import numpy as np
from char_runs import BATCH, CONTEXT, Run, Text

from hybrid_jax.runtime import compilation_cache
from hybrid_jax.runtime.command_line import Parser, path_of, within
from hybrid_jax.runtime.files import check_writable, expanded
from hybrid_jax.runtime.json_text import write_json

ROW = ("quenched_ar", "block:width=4", "block:width=16", "flat")
_SHIFTED = {"layout.alignment": "shifted", "layout.context": "causal"}  # as AR's rows
_ALSO = _SHIFTED | {"schedule.also": "quenched_ar,block:width=4,flat"}
_BLOCKS = "BD3-LM, blocks of 16"
Trained = dict[str, tuple[str, dict[str, str]]]  # by name: method, and settings that differ
MIXED: Trained = {
    "AR": ("AR", {}),
    "blocks of 4": ("BD3-LM, blocks of 4", _SHIFTED),
    "blocks of 16": (_BLOCKS, _SHIFTED),
    "flat": ("MDLM", _SHIFTED),
    "mixed, equal shares": (_BLOCKS, _ALSO),
    "mixed, half AR": (_BLOCKS, _ALSO | {"schedule.weights": "1/6,1/2,1/6,1/6"}),
    "AR first, then the others": (
        _BLOCKS, _ALSO | {"schedule.weights": "0,1,0,0 {4}:1/3,0,1/3,1/3"},
    ),
}  # fmt: skip


def _after_ar(weights: str, *also: str) -> tuple[str, dict[str, str]]:
    """Autoregression for half of the steps, then these weights of blocks, AR and `also`."""
    weights = f"0,1{',0' * len(also)} {{4}}:{weights}"
    others = ",".join(["quenched_ar", *also])
    return _BLOCKS, _SHIFTED | {"schedule.also": others, "schedule.weights": weights}


_NOTHING, _PLAIN = "blocks of 16 from nothing", "then blocks of 16"
ADAPTED: Trained = {
    _NOTHING: (_BLOCKS, _SHIFTED),
    _PLAIN: _after_ar("1,0"),
    "then blocks of 16 and a quarter AR": _after_ar("3/4,1/4"),
    "then blocks of 4, then of 16": _after_ar("0,0,1 {6}:1,0,0", "block:width=4"),
    "then causal windows, and fewer and fewer": _after_ar(
        "1/4,0,3/4 {5}:1/2,0,1/2 {6}:3/4,0,1/4 {7}:1,0,0", "block:width=16:causal_window=true"
    ),
    "then a slide of 16, then blocks of 16": _after_ar("0,0,1 {6}:1,0,0", "slide:width=16"),
}
_LEARNT = 3.2  # nats of characters alone, and more: no blocks have been learnt yet
RUNS = {"mixed": MIXED, "adapted": ADAPTED}


def plan(which: str, steps: int, seeds: int, size: int) -> list[tuple[str, Run]]:
    """Runs with the name of what they are trained on; those of the first seed first."""
    eighths = [part * steps // 8 for part in range(9)]  # as {4} in the settings above
    evaluated = (2, 4, 5, 6, 7, 8) if which == "adapted" else (8,)
    marks = tuple(eighths[part] for part in evaluated)
    found = []
    for seed in range(seeds):
        for name, (method, settings) in RUNS[which].items():
            own = {key: value.format(*eighths) for key, value in settings.items()}
            found.append((name, Run(method=method, seed=seed, marks=marks, settings=own)))
    if which != "adapted":
        return found
    nothing, plain = found[0][1], found[1][1]
    ratio = plain.step_flops(size) / nothing.step_flops(size)
    equal = tuple(round(mark * ratio) for mark in marks)
    return [
        (name, dataclasses.replace(run, marks=equal) if name == _NOTHING else run)
        for name, run in found
    ]


def bounds(run: Run, root: Path, text: Text) -> dict[str, Any]:
    """The bound under each hyperschedule of the row, by its name."""
    file = run.folder(root, text) / "row.json"
    known = json.loads(file.read_text("utf-8")) if file.exists() else {}
    left = [name for name in ROW if name not in known]
    if left:
        setup, state = run.restore(root, text)
        for name in left:
            windows = char_runs.every(text.valid, CONTEXT)
            known[name] = run.evaluate(setup, state, windows, schedule=name)
            write_json(file, known)
    return known


def rows_of(planned: list[tuple[str, Run]], root: Path, text: Text) -> list[dict[str, Any]]:
    """The runs that are done, as lines of the results."""
    return [
        {
            "trained on": name, "seed": run.seed, "steps": run.marks[-1],
            "tokens": run.marks[-1] * BATCH * CONTEXT,
            "tflop": round(run.marks[-1] * run.step_flops(text.size) / 1e12, 3),
            "bounds": bounds(run, root, text),
            "own": {  # by TFLOP of the training so far
                f"{run.flops(text.size, int(step)) / 1e12:.3f}": found
                for step, found in run.found(root, text).items()
            },
        }
        for name, run in planned
        if run.done(root, text)
    ]  # fmt: skip


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """A line for what was trained, a column for each hyperschedule that it is asked under."""
    lines = [f"| trained on | TFLOP | {' | '.join(ROW)} |", "|---" * (2 + len(ROW)) + "|"]
    for name in dict.fromkeys(row["trained on"] for row in rows):
        own = [row for row in rows if row["trained on"] == name]
        if own:
            cells = [_cell([row["bounds"][asked] for row in own]) for asked in ROW]
            lines.append(f"| {name} | {own[0]['tflop']:.1f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]]) -> bytes:
    """A PNG: a curve a run; the bound under blocks of 16 against FLOPs of the training so far."""
    lines = []
    for row in rows:
        nats = {float(spent): np.mean(at["nats"]) for spent, at in row["own"].items()}
        points = {spent: value for spent, value in nats.items() if value < _LEARNT}
        lines.append((row["trained on"], row["seed"], points))
    return char_runs.curves(lines, "TFLOP of training")


def _cell(found: list[dict[str, Any]]) -> str:
    """Mean and standard error over the seeds, and each."""
    each = [char_runs.mean_and_error(one["nats"])[0] for one in found]
    mean = char_runs.with_error(*char_runs.mean_and_error(each))
    return f"{mean} ({', '.join(f'{value:.3f}' for value in each)})" if len(each) > 1 else mean


def _run(options: argparse.Namespace) -> None:
    compilation_cache.use()
    if options.picture:
        check_writable(options.picture)
    text, root, out = Text.read(options.text), expanded(options.folder), expanded(options.out)
    planned = plan(options.runs, options.steps, options.seeds, text.size)
    runs = [run for _, run in planned]
    char_runs.publish(
        runs, root, text, out, lambda: rows_of(planned, root, text), as_markdown,
        {options.picture: draw} if options.picture else {}, options.first_seed,
    )  # fmt: skip


def main() -> int:
    parser = Parser(description="One network for several hyperschedules, against one for each.")
    add = parser.add_argument
    add("--text", type=path_of, required=True, help="tiny Shakespeare, input.txt")
    add("--runs", choices=list(RUNS), default="mixed", help="default: %(default)s")
    add("--steps", type=within(2), default=2000, help="default: %(default)s")
    add("--seeds", type=within(1), default=2, help="default: %(default)s")
    char_runs.add_first_seed(parser)
    add("--folder", type=path_of, default="runs/shakespeare", help="of runs (%(default)s)")
    add("--out", required=True, help="a run a line, .jsonl; the table beside it as .md")
    add("--picture", help="PNG file: the bound under blocks of 16 over the training")
    return command.run(parser, _run)


if __name__ == "__main__":
    sys.exit(main())
