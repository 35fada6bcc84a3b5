"""The use of correction: are wrong tokens repaired?

    python benchmarks/correction.py --workdir=runs/epsilon_hybrid --data=data/FOLDER \\
        --out=benchmarks/results/correction.md

In held-out records the first half is given; half of the next window is shown, and two of
the shown tokens are replaced by random others. Each rule finishes the window from there. Counted:
wrong tokens that end as the true one, wrong tokens that do not stay, and right ones that do not.

Whether texts get better at equal calls is what `hybrid_jax.evaluate --pareto` measures.

The data folder is one prepared by `hybrid_jax.data.prepare` with the models' tokenizer.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import command
import device
import jax.numpy as jnp
import numpy as np

from hybrid_jax.data.pipeline import Records
from hybrid_jax.generation import driver
from hybrid_jax.runtime.command_line import Parser
from hybrid_jax.runtime.files import write_atomic
from hybrid_jax.runtime.json_text import json_text
from hybrid_jax.sampling import loop, prompts
from hybrid_jax.sampling.rules import ACS, Ancestral, ReMDM
from hybrid_jax.sampling.state import Sampler
from hybrid_jax.training import pretrained
from hybrid_jax.training.statistics import mean_and_standard_error

RULES = {
    "ancestral": Ancestral(),
    "original (ACS η=0)": ACS(eta=0.0),
    "ACS η=0.25": ACS(eta=0.25),
    "ACS η=0.5": ACS(eta=0.5),
    "ACS η=1": ACS(eta=1.0),
    "ACS η=0.25, confidence": ACS(eta=0.25, guidance="confidence"),
    "ACS η=0.5, confidence": ACS(eta=0.5, guidance="confidence"),
    "ReMDM rescale η=0.1": ReMDM(eta=0.1, strategy="rescale"),
    "ReMDM rescale η=0.5": ReMDM(eta=0.5, strategy="rescale"),
}


def spoiled_windows(sampler: Sampler, records: np.ndarray, wrong: int, rng: np.random.Generator):
    """Records with a half-shown window in the middle, of which `wrong` shown tokens are wrong.

    Returns:
      the step, the tokens int32 [n, L] with MASK, and which of them are wrong and right, bool.
    """
    schedule, kernel = sampler.spec.schedule, sampler.spec.kernel
    steps = np.arange(schedule.steps)
    settled = np.asarray(schedule.settled(steps))
    frontier = np.asarray(schedule.frontier(steps + 1))
    begins = int(np.argmax(settled >= schedule.length // 2))
    step = begins + schedule.levels // 2
    window = np.arange(settled[step], frontier[step])
    shown = np.zeros(records.shape, bool)
    for row in shown:
        row[rng.permutation(window)[: len(window) // 2]] = True
    bad = np.zeros(records.shape, bool)
    for row, places in zip(bad, shown, strict=True):
        row[rng.permutation(np.flatnonzero(places))[:wrong]] = True
    offsets = rng.integers(1, kernel.vocab_size, records.shape)
    tokens = np.where(bad, (records + offsets) % kernel.vocab_size, records)
    known = shown | (np.arange(schedule.length) < window[0])
    return step, int(window[0]), np.where(known, tokens, kernel.mask), bad, shown & ~bad


def repair(model, records: np.ndarray, *, batch: int, wrong: int = 2) -> list[dict]:
    sampler = Sampler(spec=model.spec, network=model.network)
    schedule = sampler.spec.schedule
    step, first, tokens, bad, good = spoiled_windows(
        sampler, records, wrong, np.random.default_rng(0)
    )
    settles = int(np.argmax(np.asarray(schedule.settled(np.arange(schedule.steps + 1))) > first))
    rows = []
    for name, rule in RULES.items():
        finals = []
        for start in range(0, len(records), batch):
            part = slice(start, start + batch)
            given = prompts.build(
                [record[:first].tolist() for record in records[part]],
                length=schedule.length,
                vocab_size=sampler.spec.kernel.vocab_size,
            )
            keys = driver.keys_of(1, np.arange(start, start + batch))
            state = loop.start(sampler, model.params, keys, given)
            state = dataclasses.replace(
                state,
                tokens=jnp.asarray(tokens[part], jnp.int32),
                step=jnp.full_like(state.step, step),
            )
            state = loop.advance(sampler, rule, model.params, state, settles - step)
            finals.append(np.asarray(state.tokens))
        final = np.concatenate(finals)
        row = {"rule": name}
        for what, mask, hits in (
            ("repaired", bad, final == records),
            ("moved", bad, final != tokens),
            ("harmed", good, final != records),
        ):
            share = (mask & hits).sum(1) / mask.sum(1)
            row[what], row[f"{what}_error"] = mean_and_standard_error(share)
        rows.append(row)
        print(json_text(row), file=sys.stderr, flush=True)
    return rows


def as_markdown(rows: list[dict]) -> str:
    def number(row: dict, name: str) -> str:
        return f"{row[name]:.3f} ± {row[name + '_error']:.3f}"

    lines = [
        "| rule | wrong tokens repaired | wrong tokens moved | right tokens lost |",
        "|---|---|---|---|",
    ]
    for row in rows:
        cells = [number(row, name) for name in ("repaired", "moved", "harmed")]
        lines.append(f"| {row['rule']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    parser = Parser(description="Measures what correcting rules achieve.")
    add = parser.add_argument
    add("--workdir", required=True, help="run of a hybrid model")
    add("--data", required=True, help="prepared folder whose validation records are used")
    add("--windows", type=int, default=1024, help="spoiled windows")
    add("--batch_size", type=int, default=64)
    add("--out", required=True, help="Markdown file for the table")
    return command.run(parser, _run)


def _run(options: argparse.Namespace) -> None:
    model = pretrained.load(options.workdir)
    held_out = Records(options.data, "valid")
    count = min(len(held_out), options.windows)
    records = held_out.read(range(count // options.batch_size * options.batch_size))["tokens"]
    table = as_markdown(repair(model, records, batch=options.batch_size))
    what = (
        f"{Path(options.workdir).name}, step {model.step}: {model.spec.schedule.name}, "
        f"{model.spec.kernel.name}; {len(records)} windows"
    )
    print(table)
    write_atomic(options.out, f"{what}, on {device.origin()}\n{table}\n")


if __name__ == "__main__":
    sys.exit(main())
