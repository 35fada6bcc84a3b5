"""Runs on pairs of a prompt and an answer, as a user would start them, and what they got right."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from hybrid_jax.runtime.files import write_atomic
from hybrid_jax.runtime.json_text import json_text


def write_pairs(folder: Path, split: str, pairs: Iterable[tuple[str, str]]) -> None:
    """The file of a split, "train" or "valid", for `train`."""
    lines = (json_text({"prompt": prompt, "answer": answer}) + "\n" for prompt, answer in pairs)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / f"{split}.jsonl", "".join(lines))


def train(folder: Path, workdir: Path, config: str, *, length: int, settings: list[str]) -> None:
    """Trains on the files of a folder, with characters as tokens, or goes on where it was.

    Args:
      config: its name, with a size if it is not the least.
      length: tokens of prompt, answer and eos.
      settings: "SECTION.NAME=VALUE" of the config.
    """
    given = [
        f"data.source=pairs:{folder}/train.jsonl", f"data.valid_source=pairs:{folder}/valid.jsonl",
        "data.tokenizer=char", f"data.length={length}", f"data.dir={folder}/records",
        "objective.levels=uniform",  # as in the results that are stored
        *settings,
    ]  # fmt: skip
    run("main", f"--config={config}", f"--workdir={workdir}", *(f"--config.{s}" for s in given))


def run(name: str, *arguments: str) -> None:
    """Runs a command of the package."""
    subprocess.run(
        [sys.executable, "-m", f"hybrid_jax.{name}", *arguments],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """The mean of at least two values and its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))
