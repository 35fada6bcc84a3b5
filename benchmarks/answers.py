"""Exact match of models that were trained on answers alone, on prompts that they have not seen.

    python benchmarks/answers.py --task=reverse --out=benchmarks/results/answers-reverse.md

Each run is a `python -m hybrid_jax.main` on pairs, and its texts a `python -m hybrid_jax.generate`.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

import answer_runs
import command
import device
import numpy as np

from hybrid_jax.runtime.command_line import Parser, path_of, within
from hybrid_jax.runtime.files import write_atomic

LETTERS = "abcdefghij"
TASKS: dict[str, Callable[[str], str]] = {
    "copy": lambda word: word,
    "reverse": lambda word: word[::-1],
    "sort": lambda word: "".join(sorted(word)),
}
LENGTH = 24
RULES = ("ancestral", "greedy")
METHODS = {  # config and settings that differ from it
    "AR": ("ar", ["data.padded=false"]),
    "block ε": ("epsilon_hybrid", ["schedule.width=4", "sampling.rule=ancestral"]),
    "slide γ": ("slide", ["schedule.width=4"]),
}


def write_pairs(folder: Path, task: str, train: int, valid: int) -> None:
    """Pairs of words of 2 to 8 letters, each in one of the files train and valid alone."""
    draw = random.Random(0)
    words: dict[str, None] = {}
    while len(words) < train + valid:
        words["".join(draw.choices(LETTERS, k=draw.randint(2, 8)))] = None
    pairs = [(f"{word}=", TASKS[task](word)) for word in words]
    answer_runs.write_pairs(folder, "train", pairs[:train])
    answer_runs.write_pairs(folder, "valid", pairs[train:])


def exact_match(texts: Path, task: str) -> np.ndarray:
    """For each text of `hybrid_jax.generate`, whether it is the prompt and the right answer."""
    texts_found = (json.loads(line)["text"] for line in texts.read_text("utf-8").splitlines())
    return np.array([t == f"{(w := t.partition('=')[0])}={TASKS[task](w)}" for t in texts_found])


def _run(options: argparse.Namespace) -> None:
    folder = Path(options.folder) / options.task
    write_pairs(folder, options.task, options.pairs, options.prompts)
    lines = [
        f"Exact match on {options.prompts} prompts of the task {options.task}, none of them among "
        f"the {options.pairs:,} that were trained on, for {options.steps:,} steps of 32 pairs; "
        f"{device.origin()}",
        "",
        "| method | seed | ancestral | ± | greedy | ± |",
        "|---|---|---|---|---|---|",
    ]
    for method, (config, settings) in METHODS.items():
        for seed in range(options.seeds):
            workdir = folder / f"{config}-{options.steps}-{seed}"
            given = [
                "sampling.eos=stop", f"train.steps={options.steps}", f"train.seed={seed}", *settings
            ]  # fmt: skip
            answer_runs.train(folder, workdir, config, length=LENGTH, settings=given)
            row = f"| {method} | {seed} |"
            for rule in RULES:
                texts = workdir / f"answers-{rule}.jsonl"
                texts.unlink(missing_ok=True)
                answer_runs.run(
                    "generate", f"--workdir={workdir}", f"--prompt_file={folder}/valid.jsonl",
                    f"--out={texts}", "--batch_size=64", f"--seed={seed}", f"--rule={rule}",
                )  # fmt: skip
                share, error = answer_runs.mean_and_error(exact_match(texts, options.task))
                row += f" {share:.3f} | {error:.3f} |"
            print(row, flush=True)
            lines.append(row)
    write_atomic(options.out, "\n".join(lines) + "\n")


def main() -> int:
    parser = Parser(description="Exact match of models trained on answers alone.")
    add = parser.add_argument
    add("--task", choices=sorted(TASKS), required=True)
    add("--steps", type=within(1), default=1500)
    add("--seeds", type=within(1), default=2)
    add("--pairs", type=within(1), default=20_000, help="to train on")
    add("--prompts", type=within(1), default=500, help="to answer")
    add("--folder", type=path_of, default="runs/answers", help="for pairs and runs")
    add("--out", required=True, help="Markdown file for the table")
    return command.run(parser, _run)


if __name__ == "__main__":
    sys.exit(main())
