"""Sudoku: the share of unseen puzzles that each method solves, with every rule, against NFE.

    python benchmarks/sudoku.py --side=4 --out=benchmarks/results/sudoku-4.md
    python benchmarks/sudoku.py --side=9 --size=gpu --threads=4 --out=benchmarks/results/sudoku-9.md

A prompt is a puzzle and the answer its one solution (see `sudoku_grids`). Both are lines of cells
that end in "/", those of a band's last row in "|", which show the network where a cell is: its
positions are relative ones. When a puzzle is solved the ends are given, and all cells are to be
written, also those that the puzzle shows. A solution is either in the puzzles that are trained on
or in those to solve; so is a puzzle, which has one solution.

Each run is a `python -m hybrid_jax.main`. Whatever is done is stored at once and not done again, so
commands that name different methods, seeds or rules share the work of one table.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import answer_runs
import command
import device
import filelock
import in_turn
import numpy as np
import sudoku_grids
from sudoku_grids import BOARDS, Board

import hybrid_jax as hj
from hybrid_jax.errors import UserError
from hybrid_jax.eval import pareto
from hybrid_jax.generation import driver, generator
from hybrid_jax.generation.requests import Request
from hybrid_jax.runtime import compilation_cache
from hybrid_jax.runtime.command_line import Parser, path_of, within
from hybrid_jax.runtime.files import write_atomic
from hybrid_jax.runtime.json_text import file_name, json_text
from hybrid_jax.sampling import rules
from hybrid_jax.sampling.prompts import GAP
from hybrid_jax.sampling.settings import SamplingConfig

METHODS = {  # config, schedule of a board
    "AR": ("ar", "quenched_ar"),
    "MDLM": ("mdlm", "flat"),
    "BD3-LM, rows": ("bd3lm", "block"),
    "γ, flat": ("gamma_hybrid", "flat"),
    "γ, rows": ("gamma_hybrid", "block"),
    "ε, flat": ("epsilon_hybrid", "flat"),
    "ε, rows": ("epsilon_hybrid", "block"),
}
SIZES: dict[str, dict[str, Any]] = {  # settings of the tiny configs
    "cpu": {
        "model.width": 64, "model.heads": 4, "train.batch_size": 64, "train.checkpoint_every": 200
    },
    "gpu": {
        "model.layers": 8, "model.width": 256, "model.heads": 4, "model.dtype": "bfloat16",
        "model.unroll": 1, "train.batch_size": 256, "train.checkpoint_every": 1000,
        "optimizer.learning_rate": 0.005, "optimizer.warmup_steps": 100, "train.ema_decay": 0.99,
    },
}  # fmt: skip
# Where one answer is right, each rule takes the likeliest token; it decides where and when.
RULES = [
    "ancestral",
    *(
        f"{name}:temperature=0" if "temperature" in named.settings else name
        for name, named in rules.NAMED.items()
    ),
    "acs:eta=0:temperature=0",  # what corrections are compared with
    "acs:eta=0.5:guidance=confidence:temperature=0",
    "acs:eta=1:guidance=confidence:temperature=0",
]


def texts(board: Board, grids: np.ndarray) -> list[str]:
    """Grids as prompts or answers.

    Args:
      grids: uint8 [n, cells].
    """
    lines = np.full((len(grids), board.side, board.side + 1), ord("/"), np.uint8)
    lines[:, board.tall - 1 :: board.tall, -1] = ord("|")
    cells = grids.reshape(-1, board.side, board.side)
    lines[:, :, :-1] = np.where(cells == 0, ord("."), ord("0") + cells)
    return [grid.tobytes().decode("ascii") for grid in lines]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A method with one seed."""

    method: str
    seed: int
    board: Board
    folder: Path
    settings: dict[str, Any]

    @property
    def width(self) -> int:
        """Cells that are open together."""
        family = METHODS[self.method][1]
        return {"quenched_ar": 1, "flat": self.board.cells, "block": self.board.side}[family]

    @property
    def workdir(self) -> Path:
        config, family = METHODS[self.method]
        return self.folder / file_name(f"{config}-{family}-{self.seed}", self.settings)

    def train(self) -> None:
        """Trains, if that is not done."""
        config, family = METHODS[self.method]
        line = self.board.side + 1
        length = 2 * self.board.side * line + 1
        values = {
            "schedule.family": family, "train.seed": self.seed, "train.loss_chunk": length,
            "sampling.count": 0, "evaluation.records": 256, "evaluation.final_records": 256,
            **({"schedule.width": line} if family == "block" else {}), **self.settings,
        }  # fmt: skip
        if not (self.workdir / "result.json").exists():
            settings = [f"{name}={value}" for name, value in values.items()]
            answer_runs.train(self.folder, self.workdir, config, length=length, settings=settings)


def solve(
    model: hj.Model, board: Board, pairs: np.ndarray, rule: str, levels: int | None, *,
    seed: int, batch_size: int,
) -> dict[str, Any]:  # fmt: skip
    """Shares of puzzles solved and of empty cells right, NFE and corrections a puzzle, and errors.

    Args:
      pairs: puzzles and solutions, uint8 [n, 2, cells].
      levels: steps of a window; None for as many as trained.
    """
    tokenizer = model.tokenizer
    own = generator.build(model, SamplingConfig.parse(rule), levels=levels)
    (form,) = texts(board, np.zeros((1, board.cells), np.uint8))
    open_ = [character == "." for character in form]
    given = [GAP if gap else int(i) for i, gap in zip(tokenizer.encode(form), open_, strict=True)]
    requests = []
    for prompt in texts(board, pairs[:, 0]):
        ids = [*map(int, tokenizer.encode(prompt)), *given, tokenizer.eos]
        requests.append(Request(prompt=prompt, ids=ids, stop=len(ids)))
    found = driver.run(own, requests, seed=seed, batch_size=batch_size)
    written = np.array([one.tokens for one in found])[:, len(form) : -1][:, open_]
    digits = tokenizer.encode("".join(map(str, range(1, board.side + 1))))
    right = written == digits[pairs[:, 1].astype(int) - 1]
    empty = pairs[:, 0] == 0
    values = {
        "solved": right.all(1),
        "cells": (right & empty).sum(1) / empty.sum(1),
        "nfe": np.array([one.nfe for one in found]),
        "corrections": np.array([one.corrections for one in found]),
    }
    return {name: answer_runs.mean_and_error(np.asarray(v, float)) for name, v in values.items()}


def measure(run: Run, pairs: np.ndarray, options: argparse.Namespace) -> Iterator[None]:
    """Solves the puzzles with every rule at every number of cells a call; stores what it finds.

    Yields whenever a row of the table is stored.
    """
    model = hj.load(run.workdir)
    fit, reasons = pareto.fitting(model, options.rules)
    for reason in reasons:
        in_turn.note(f"{run.method}: not {reason}")
    if run.width == 1:  # the other rules choose among positions
        fit = [rule for rule in fit if rule in ("ancestral", "greedy")]
    rows = [(rule, n) for n in options.cells_a_call if run.width % n == 0 for rule in fit]
    files = [(rule, n, stored(run, rule, n, options)) for rule, n in rows]
    todo = [job for job in files if not job[2].exists()]

    def one(job: tuple[str, int, Path]) -> None:
        rule, cells, file = job
        levels = None if METHODS[run.method][1] == "quenched_ar" else run.width // cells
        found = solve(
            model, run.board, pairs, rule, levels, seed=run.seed, batch_size=options.batch_size
        )
        row = {"method": run.method, "seed": run.seed, "rule": rule, "cells_a_call": cells}
        write_atomic(file, json_text({**common(options), **row, **found}) + "\n")
        in_turn.note(f"{row}: solved {found['solved'][0]:.3f}, cells {found['cells'][0]:.3f}")

    with ThreadPoolExecutor(options.threads) as pool:  # compile at the same time
        for _ in pool.map(one, todo):
            yield


def common(options: argparse.Namespace) -> dict[str, Any]:
    """The options that all rows of a table share."""
    names = ("side", "size", "steps", "train", "puzzles", "set")
    return {name: getattr(options, name) for name in names}


def stored(run: Run, rule: str, cells: int, options: argparse.Namespace) -> Path:
    """The file of a row."""
    name = file_name(f"{rule}-{cells}", [rule, cells, run.seed, common(options)])
    return run.workdir / f"{name}.json"


def table(folder: Path, options: argparse.Namespace) -> str:
    """All rows stored that have the options' steps, puzzles and settings, as Markdown."""
    files = [json.loads(file.read_text("utf-8")) for file in folder.glob("*/*-*.json")]
    shared = json.loads(json_text(common(options)))
    rows: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for row in sorted((r for r in files if shared.items() <= r.items()), key=lambda r: r["seed"]):
        rows.setdefault((row["method"], row["rule"], row["cells_a_call"]), []).append(row)
    lines = [
        "| method | rule | cells a call | NFE | corrections | solved, seed by seed | "
        "empty cells right |",
        "|---|---|---|---|---|---|---|",
    ]
    order = [*RULES, *sorted({rule for _, rule, _ in rows} - set(RULES))]
    for key in sorted(rows, key=lambda k: (list(METHODS).index(k[0]), order.index(k[1]), k[2])):
        found = rows[key]
        counts = (statistics.mean(r[name][0] for r in found) for name in ("nfe", "corrections"))
        shares = (
            ", ".join("{:.3f} ± {:.3f}".format(*r[name]) for r in found)
            for name in ("solved", "cells")
        )
        cells = [*key, *(f"{count:.1f}" for count in counts), *shares]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _run(options: argparse.Namespace) -> None:
    compilation_cache.use()
    board = BOARDS[options.side]
    folder = Path(options.folder) / f"{options.side}-{options.train}-{options.puzzles}"
    pairs = write_pairs(board, folder, options)
    settings = SIZES[options.size] | {
        "train.steps": options.steps, "train.eval_every": options.steps,
        **dict(setting.split("=", 1) for setting in options.set),
    }  # fmt: skip
    title = (
        f"Sudoku of {board.cells} cells: {options.puzzles:,} unseen puzzles of {board.clues[0]} to "
        f"{board.clues[1]} clues, after {options.steps:,} steps on {options.train:,} others; "
        f"{device.origin()}"
    )
    for seed in options.seeds:
        for method in options.methods:
            run = Run(method=method, seed=seed, board=board, folder=folder, settings=settings)
            run.train()
            for _ in measure(run, pairs, options):
                write_atomic(options.out, f"{title}\n{table(folder, options)}\n")
    write_atomic(options.out, f"{title}\n{table(folder, options)}\n")  # all may be done already
    print(table(folder, options))


def write_pairs(board: Board, folder: Path, options: argparse.Namespace) -> np.ndarray:
    """Draws the puzzles and writes them for training, if that is not done; those to solve."""
    file = folder / "valid.npy"
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder / "pairs.lock"):  # the first of several commands does it
        if not file.exists():
            in_turn.note("drawing puzzles")
            found = sudoku_grids.draw_pairs(board, train=options.train, valid=options.puzzles)
            for split, pairs in found.items():
                both = zip(*(texts(board, grids) for grids in pairs.swapaxes(0, 1)), strict=True)
                answer_runs.write_pairs(folder, split, both)
            np.save(file, found["valid"])
    return np.load(file)


def _list_of(read: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """A reader of values between ";"."""
    return lambda words: [read(word) for word in words.split(";")]


def _method(name: str) -> str:
    if name not in METHODS:
        raise UserError(f"Method {name!r} is not one of {'; '.join(METHODS)}.")
    return name


def _rule(label: str) -> str:
    SamplingConfig.parse(label)
    return label


def _setting(text: str) -> str:
    if "=" not in text:
        raise UserError(f"{text!r} is no setting: write SECTION.NAME=VALUE.")
    return text


def main() -> int:
    parser = Parser(description="Sudoku by every method and rule.")
    add = parser.add_argument
    add("--side", type=int, choices=list(BOARDS), default=4, help="of the grid")
    add("--size", choices=list(SIZES), default="cpu", help="of network and batch")
    add("--steps", type=within(1), default=2000)
    add("--train", type=within(1), default=100_000, help="puzzles to train on")
    add("--puzzles", type=within(2), default=1000, help="to solve")
    add("--set", type=_setting, action="append", default=[], metavar="SECTION.NAME=VALUE",
        help="of the config; may be repeated")  # fmt: skip
    add("--methods", type=_list_of(_method), default=list(METHODS), metavar="A;B")
    add("--rules", type=_list_of(_rule), default=RULES, metavar="A;B")
    add("--cells_a_call", type=_list_of(within(1)), default=[1, 3], metavar="M;N",
        help="that a step reveals; rules that move on by themselves may reveal more")  # fmt: skip
    add("--seeds", type=_list_of(within(0)), default=[0, 1], metavar="M;N")
    add("--batch_size", type=within(1), default=256, help="puzzles at a time")
    add("--threads", type=within(1), default=1, help="rules compiled at the same time")
    add("--folder", type=path_of, default="runs/sudoku", help="for puzzles and runs")
    add("--out", required=True, help="Markdown file for the table")
    return command.run(parser, _run)


if __name__ == "__main__":
    sys.exit(main())
