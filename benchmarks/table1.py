"""The paper's table in miniature: every method at one budget, evaluated on text new to it.

    python benchmarks/table1.py --data=FOLDER --out=benchmarks/results/table1.json

Each row is `python -m hybrid_jax.main` with one config file and `python -m hybrid_jax.evaluate`,
both in processes of their own, so a row is what a user would get, and every row has the same model
size, tokens, order of the data and optimiser. A killed run goes on where it was: rows that are
finished are read from their workdirs.

FOLDER holds gutenberg/{train-*,valid,test}.jsonl.xz, wikitext2/test.txt and lambada/test.jsonl.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import char_runs
import command
import device
from tqdm import tqdm

import hybrid_jax as hj
from hybrid_jax.errors import UserError
from hybrid_jax.runtime.command_line import Parser, within
from hybrid_jax.runtime.files import write_atomic
from hybrid_jax.runtime.json_text import json_text
from hybrid_jax.training import flops

ROOT = Path(__file__).resolve().parents[1]

# What all rows of a size share. "cpu" and "mini" are for two processor cores, "gpu" for minutes of
# one accelerator that all rows share (--at_once).
SIZES: dict[str, tuple[str, dict[str, Any]]] = {
    "cpu": (
        "tiny",
        {
            "data.tokenizer": "byte",
            "data.length": 128,
            "objective.levels": "uniform",
            "train.batch_size": 16,
            "train.steps": 1000,
            "train.eval_every": 1000,
            "train.checkpoint_every": 250,
            "evaluation.records": 256,
            "evaluation.final_records": 256,
        },
    ),
    "mini": (
        "tiny",
        {
            "data.tokenizer": "byte",
            "data.length": 128,
            "objective.levels": "uniform",
            "model.layers": 2,
            "model.width": 64,
            "model.unroll": 2,
            "train.batch_size": 16,
            "train.steps": 5000,
            "train.eval_every": 5000,
            "train.checkpoint_every": 1000,
            "evaluation.records": 256,
            "evaluation.final_records": 256,
        },
    ),
    "gpu": (
        "small",
        {
            "data.tokenizer": "byte",
            "data.length": 256,
            "objective.levels": "uniform",
            "model.layers": 4,
            "model.width": 256,
            "model.heads": 4,
            "optimizer.learning_rate": 0.005,
            "optimizer.warmup_steps": 100,
            "train.steps": 3000,
            "train.eval_every": 3000,
            "train.checkpoint_every": 1000,
            "evaluation.records": 256,
            "evaluation.final_records": 256,
        },
    ),
}
SOURCES = {
    "gutenberg": "files:{data}/gutenberg/test.jsonl.xz",
    "wikitext": "files:{data}/wikitext2/test.txt",
    "lambada": "files:{data}/lambada/test.jsonl",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A trained model of the table.

    Attributes:
      config: of `configs/`.
      settings: that differ from the config file's.
      seeds: how many runs.
    """

    config: str
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    seeds: int = 1


_FLAT = {"schedule.family": "flat"}
_BLOCK = {"schedule.family": "block", "schedule.width": 16, "schedule.levels": 16}
_SCORE = {"objective.parameterisation": "score", "model.condition": 32}
TABLE = {
    "AR": Row(config="ar"),
    "SEDD": Row(config="sedd", seeds=2),
    "MDLM": Row(config="mdlm", seeds=2),
    "BD3-LM": Row(config="bd3lm", settings=_BLOCK),
    "γ-hybrid": Row(config="gamma_hybrid", settings=_FLAT, seeds=2),
    "ε-hybrid": Row(config="epsilon_hybrid", settings=_FLAT, seeds=2),
    "γ-hybrid, block": Row(config="gamma_hybrid", settings=_BLOCK),
    "ε-hybrid, block": Row(config="epsilon_hybrid", settings=_BLOCK),
    "γ-hybrid, slide": Row(config="slide", settings={**_BLOCK, "schedule.family": "slide"}),
}
# γ = 0 and ε = 0 are MDLM, and SEDD with scores: the rows of the table.
ABLATIONS = {
    "γ = 0.05": Row(config="gamma_hybrid", settings={**_FLAT, "noise.gamma": 0.05}),
    "γ = 0.1": Row(config="gamma_hybrid", settings={**_FLAT, "noise.gamma": 0.1}),
    "γ = 0.01, scores": Row(config="gamma_hybrid", settings=_FLAT | _SCORE),
    "γ = 0.1, scores": Row(config="gamma_hybrid", settings={**_FLAT, **_SCORE, "noise.gamma": 0.1}),
    "γ = 0.01, mean": Row(
        config="gamma_hybrid", settings={**_FLAT, "objective.parameterisation": "mean"}
    ),
    "ε = 0.05": Row(config="epsilon_hybrid", settings={**_FLAT, "noise.epsilon": 0.05}),
    "ε = 0.01, λ_w = 0.1": Row(
        config="epsilon_hybrid", settings={**_FLAT, "objective.shown_weight": 0.1}
    ),
    "ε = 0.01, λ_w = 0": Row(
        config="epsilon_hybrid", settings={**_FLAT, "objective.shown_weight": 0.0}
    ),
    "γ = 0.01, cross-entropy": Row(
        config="gamma_hybrid", settings={**_FLAT, "objective.loss": "weighted_cross_entropy"}
    ),
    "ε-hybrid, block, shifted": Row(
        config="epsilon_hybrid", settings={**_BLOCK, "layout.alignment": "shifted"}
    ),
}
# Training losses of different levels are not comparable, so these rows are evaluated often.
_OFTEN = {"train.eval_every": 50, "evaluation.records": 128}
LEVELS = {
    f"{name}, {levels}": Row(
        config=config, settings=schedule | _OFTEN | {"objective.levels": levels}, seeds=2
    )
    for name, config, schedule in (
        ("γ-hybrid", "gamma_hybrid", _FLAT),
        ("MDLM", "mdlm", _FLAT),
        ("γ-hybrid, block", "gamma_hybrid", _BLOCK),
    )
    for levels in ("bell", "uniform")
}
# The learning rate stays where it is, so that each point of a curve is the end of a shorter run.
_STAYS = {
    "optimizer.schedule": "constant",
    "optimizer.final_fraction": "none",
    "optimizer.learning_rate": 0.005,
    "train.ema_decay": 0.99,
    "train.eval_every": 250,
}
_BELL = {"objective.levels": "bell"}
LONG = {
    name: Row(config=config, settings=schedule | levels | _STAYS, seeds=2)
    for name, config, schedule, levels in (
        ("AR", "ar", {}, {}),
        ("MDLM", "mdlm", {}, _BELL),
        ("γ-hybrid", "gamma_hybrid", _FLAT, _BELL),
        ("ε-hybrid", "epsilon_hybrid", _FLAT, _BELL),
        ("MDLM, uniform", "mdlm", {}, {}),
        ("γ-hybrid, uniform", "gamma_hybrid", _FLAT, {}),
        ("BD3-LM", "bd3lm", _BLOCK, _BELL),
        ("γ-hybrid, block", "gamma_hybrid", _BLOCK, _BELL),
        ("ε-hybrid, block", "epsilon_hybrid", _BLOCK, _BELL),
        ("SEDD", "sedd", {}, _BELL),
    )
}
GROUPS = {"table": TABLE, "ablations": ABLATIONS, "levels": LEVELS, "long": LONG}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One run: a row with one seed."""

    name: str
    row: Row
    seed: int
    workdir: Path
    flags: tuple[str, ...]
    steps: int


def jobs(options: argparse.Namespace) -> list[Job]:
    """All runs, first seeds first: a table without spreads is better than half a table."""
    size, shared = SIZES[options.size]
    data = Path(options.data).resolve()
    common = {
        "data.source": f"files:{data}/gutenberg/{options.shards}",
        "data.valid_source": f"files:{data}/gutenberg/valid.jsonl.xz",
        "sampling.count": 0,
        **shared,
    }
    if options.steps:
        common["train.steps"] = common["train.eval_every"] = options.steps
    rows = GROUPS[options.group]
    wanted = options.rows.split(";") if options.rows else list(rows)
    for name in wanted:
        if name not in rows:
            raise UserError(f"--rows: {name!r} is not one of {'; '.join(rows)}.")
    found = []
    for name in wanted:
        row = rows[name]
        settings = common | row.settings
        every = min(settings["train.eval_every"], settings["train.steps"])
        settings["train.eval_every"] = every
        for seed in range(row.seeds):
            folder = "".join(c if c.isalnum() else "-" for c in name).strip("-")
            flags = [f"--config=configs/{row.config}.py:{size}"]
            flags += [f"--config.{k}={v}" for k, v in settings.items()]
            flags += [f"--config.train.seed={seed}"]
            found.append(
                Job(
                    name=name,
                    row=row,
                    seed=seed,
                    workdir=Path(options.workdir) / f"{folder}-{seed}",
                    flags=tuple(flags),
                    steps=settings["train.steps"],
                )
            )
    return sorted(found, key=lambda job: job.seed)


def run(job: Job, options: argparse.Namespace) -> None:
    """Trains and evaluates, as far as that is not done."""
    workdir = str(job.workdir.resolve())
    result = job.workdir / "result.json"
    if not result.exists() or json.loads(result.read_text())["step"] != job.steps:
        _call("hybrid_jax.main", f"--workdir={workdir}", *job.flags, log=job.workdir)
    wanted = {
        name: source for name, source in SOURCES.items() if not is_evaluated(job, name, options)
    }
    if wanted:
        data = Path(options.data).resolve()
        sets = ",".join(f"{name}={source.format(data=data)}" for name, source in wanted.items())
        _call(
            "hybrid_jax.evaluate",
            f"--workdir={workdir}",
            f"--datasets={sets}",
            f"--records={options.records}",
            f"--draws={options.draws}",
            log=job.workdir,
        )


def _call(module: str, *arguments: str, log: Path) -> None:
    """Runs a command of the package; what it says goes to a file beside the workdir."""
    log.parent.mkdir(parents=True, exist_ok=True)
    file = log.with_name(f"{log.name}.log")
    command = [sys.executable, "-m", module, *arguments]
    with open(file, "a", encoding="utf-8") as out:
        out.write(" ".join(command) + "\n")
        out.flush()
        begun = time.monotonic()
        done = subprocess.run(command, cwd=ROOT, stdout=out, stderr=out, check=False)
        out.write(f"{module} took {time.monotonic() - begun:.0f} s\n")
    if done.returncode:
        raise UserError(f"{module} ended with status {done.returncode}: see {file}.")


def results(todo: list[Job], options: argparse.Namespace) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Runs, as they end, with their numbers; no other begins after one that failed."""

    def one(job: Job) -> dict[str, Any]:
        run(job, options)
        return measured(job)

    with ThreadPoolExecutor(options.at_once) as pool:
        begun = {pool.submit(one, job): job for job in todo}
        try:
            for done in as_completed(begun):
                yield begun[done], done.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def is_flat(row: Row) -> bool:
    """True if all positions are noised together; in other runs some are clean at every step."""
    return row.config in ("sedd", "mdlm") or row.settings.get("schedule.family") == "flat"


def evaluation(job: Job, dataset: str) -> dict[str, Any]:
    """The newest measurement of a run on a data set; {} without one."""
    files = (job.workdir / "evaluation").glob(f"{dataset}-*.json")
    newest = max(files, key=lambda file: file.stat().st_mtime_ns, default=None)
    return {} if newest is None else json.loads(newest.read_text(encoding="utf-8"))


def is_evaluated(job: Job, dataset: str, options: argparse.Namespace) -> bool:
    """True if the newest measurement is what the options ask for."""
    found = evaluation(job, dataset)
    if not found or found["step"] != job.steps:
        return False
    exact = found["protocol"]["bound"] == "exact likelihood"
    asked = {"records": options.records, "draws": 1 if exact else options.draws}
    return all(found["protocol"][name] == value for name, value in asked.items())


def measured(job: Job) -> dict[str, Any]:
    """The numbers of a finished run that the table and the learning curves are drawn from."""
    row: dict[str, Any] = {"name": job.name, "seed": job.seed, "flat": is_flat(job.row)}
    measurements = {"validation": json.loads((job.workdir / "result.json").read_text())}
    measurements |= {dataset: evaluation(job, dataset)["values"] for dataset in SOURCES}
    for text, values in measurements.items():
        error = values["nll_se"]  # null for one record
        row[text], row[f"{text}_error"] = values["nll"], math.nan if error is None else error
    lines = map(json.loads, (job.workdir / "metrics.jsonl").read_text().splitlines())
    logged = list(lines)
    row["losses"] = {line["step"]: line["loss"] for line in logged if "tokens_per_second" in line}
    row["bounds"] = {line["step"]: line["nll"] for line in logged if line["kind"] == "valid"}
    row["tflop"] = flops.budget(hj.load(job.workdir))["flops"] / 1e12
    return row


def as_json(rows: list[dict[str, Any]]) -> str:
    """A run a line; its bounds in nats."""
    return "[\n" + ",\n".join(map(json_text, rows)) + "\n]\n"


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """One line a method: perplexity with its error; of several runs also the least and the most.

    Columns are the texts on which all runs were measured.
    """
    names = list(dict.fromkeys(row["name"] for row in rows))
    texts = [text for text in ("validation", *SOURCES) if all(text in row for row in rows)]
    lines = [f"| method | seeds | {' | '.join(texts)} |", f"|---|---|{'---|' * len(texts)}"]
    for name in names:
        runs = [row for row in rows if row["name"] == name]
        cells = []
        for text in texts:
            nats = [row[text] for row in runs]
            mean = sum(nats) / len(nats)
            error = math.sqrt(sum(row[f"{text}_error"] ** 2 for row in runs)) / len(runs)
            spread = ""
            if len(nats) > 1:
                low, high = (math.exp(x) for x in (min(nats), max(nats)))
                spread = f" ({low:.2f} – {high:.2f})"
            sign = "" if name == "AR" else "≤ "
            cells.append(f"{sign}{math.exp(mean):.2f} ± {math.exp(mean) * error:.2f}{spread}")
        lines.append(f"| {name} | {len(runs)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def curves_as_markdown(rows: list[dict[str, Any]]) -> str:
    """One line a method: validation perplexity at every doubling of the training and at its end,
    the mean and each run; and the nats that a doubling gains."""
    steps = sorted({step for row in rows for step in row["bounds"]})
    marks = [step for step in steps[:-1] if (step / steps[0]).is_integer()]
    marks = [step for step in marks if (step // steps[0]).bit_count() == 1] + steps[-1:]
    lines = [
        f"| method | TFLOP a step | {' | '.join(f'{step:,} steps' for step in marks)} | "
        "nats gained a doubling |",
        "|---" * (3 + len(marks)) + "|",
    ]
    for name in dict.fromkeys(row["name"] for row in rows):
        runs = [row for row in rows if row["name"] == name]
        cells = []
        for step in marks:
            nats = [row["bounds"][step] for row in runs if step in row["bounds"]]
            each = ", ".join(f"{math.exp(x):.2f}" for x in nats)
            mean = f"{math.exp(sum(nats) / len(nats)):.2f} ({each})" if len(nats) > 1 else each
            cells.append(mean or "–")
        cost = runs[0]["tflop"] / max(runs[0]["bounds"])
        gains = ", ".join(f"{gained_a_doubling(row['bounds']):.3f}" for row in runs)
        lines.append(f"| {name} | {cost:.4f} | {' | '.join(cells)} | {gains} |")
    return "\n".join(lines)


def gained_a_doubling(bounds: dict[int, float]) -> float:
    """Nats by which a bound falls as the training doubles: the slope of the line through the last
    two doublings, by least squares; not a number for fewer than two points."""
    late = {step: nats for step, nats in bounds.items() if step >= max(bounds) / 4}
    if len(late) < 2:
        return math.nan
    across = [math.log2(step) for step in late]
    return -statistics.linear_regression(across, list(late.values())).slope


def main() -> int:
    parser = Parser(description="Trains and evaluates the rows of the paper's table at one budget.")
    add = parser.add_argument
    add("--data", required=True, help="folder with gutenberg, wikitext2 and lambada")
    add("--workdir", default="runs/table1", help="folder of the runs (default: %(default)s)")
    add("--out", required=True, help="JSON file, a run a line; the table beside it as .md")
    add("--size", choices=SIZES, default="cpu")
    add("--group", choices=GROUPS, default="table", help="of rows (default: %(default)s)")
    add("--rows", default="", help="names of rows separated by ';' (default: all of the group)")
    add("--shards", default="train-00000.jsonl.xz", help="of gutenberg to train on")
    add("--steps", type=int, default=0, help="another budget than the size's")
    char_runs.add_first_seed(parser)
    add("--records", type=int, default=1024, help="of each data set")
    add("--draws", type=int, default=4, help="of noise for each record")
    add(
        "--at_once", type=within(1), default=1, help="runs beside each other (default: %(default)s)"
    )
    return command.run(parser, _run)


def _run(options: argparse.Namespace) -> None:
    # Processes that share an accelerator, this one too, take of its memory only what they need.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    todo = [job for job in jobs(options) if job.seed >= options.first_seed]
    begun = time.monotonic()
    earlier = char_runs.earlier_rows(Path(options.out), options.first_seed, json.loads)
    for row in earlier:
        row["bounds"] = {int(step): nats for step, nats in row["bounds"].items()}
    found: dict[Path, dict[str, Any]] = {}
    for number, (job, row) in enumerate(results(todo, options)):
        found[job.workdir] = row
        rows = earlier + [found[job.workdir] for job in todo if job.workdir in found]
        spent = time.monotonic() - begun
        left = spent / (number + 1) * (len(todo) - number - 1)
        print(
            f"{number + 1}/{len(todo)} {job.name}, seed {job.seed}: "
            f"{math.exp(row['gutenberg']):.2f} on gutenberg; "
            f"elapsed {tqdm.format_interval(spent)}, ETA {tqdm.format_interval(left)}",
            file=sys.stderr,
            flush=True,
        )
        write_atomic(options.out, as_json(rows))
        report = f"{device.origin()}\n{as_markdown(rows)}\n\n"
        if options.group == "long":
            report += f"Validation records, over the training:\n\n{curves_as_markdown(rows)}\n\n"
        report += "SHA-256 of the texts:\n\n"
        report += "".join(f"- {name}: {evaluation(job, name)['sha256']}\n" for name in SOURCES)
        write_atomic(Path(options.out).with_suffix(".md"), report)
    print(as_markdown(rows))


if __name__ == "__main__":
    sys.exit(main())
