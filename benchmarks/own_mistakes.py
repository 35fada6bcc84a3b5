"""Wrong tokens that networks make themselves: are they known, and repaired?

    python benchmarks/own_mistakes.py --workdirs=runs/a,runs/b --other=runs/other \\
        --data=data/FOLDER --out=own_mistakes.json

The windows of `benchmarks/correction.py`: half shown, two shown tokens wrong. These are uniform
noise; draws of another network with the rest in sight ("late") or with the whole window masked
("early"), always wrong ones; or early draws of the network itself. Measured for each: the area
under the ROC curve by which p(z) tells wrong shown tokens from right ones, nats of the truth at
both, and shares of wrong tokens repaired and moved, and of right ones lost, by rule.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import command
import correction
import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import rankdata

from hybrid_jax.data.pipeline import Records
from hybrid_jax.generation import driver
from hybrid_jax.method import loss as estimator
from hybrid_jax.method.objective import Draw
from hybrid_jax.runtime.command_line import Parser
from hybrid_jax.runtime.files import write_atomic
from hybrid_jax.runtime.json_text import json_text
from hybrid_jax.sampling import loop, prompts
from hybrid_jax.sampling.rules import ACS
from hybrid_jax.sampling.state import Sampler
from hybrid_jax.training import pretrained

RULES = {
    "ACS η=0.25, confidence": ACS(eta=0.25, guidance="confidence"),
    "ACS η=0.5, confidence": ACS(eta=0.5, guidance="confidence"),
}


def predictions(model, records: np.ndarray, state: np.ndarray, *, early: bool, batch: int):
    """log p [n, L, N] of records in a state, at the first step of a block or in its middle."""
    spec = model.spec
    phase = 0 if early else spec.schedule.levels // 2
    level = jnp.full((batch, spec.schedule.length), 1 - phase / spec.schedule.levels)
    everywhere = jnp.ones(level.shape, bool)
    phases = jnp.full((batch, spec.schedule.phase_groups), phase)

    @jax.jit
    def of_batch(params, tokens, state):
        noised = estimator.Noised(tokens, state, phases, Draw(level, level, level, everywhere))
        features, _ = estimator._predicting(spec, model.network, params, noised)
        read = jax.vmap(jax.vmap(lambda *row: spec.objective.log_prediction(spec.kernel, *row)))
        return read(model.network.logits(params, features), state, level)

    parts = [slice(start, start + batch) for start in range(0, len(records), batch)]
    return np.concatenate([
        of_batch(model.params, jnp.int32(records[part]), jnp.int32(state[part])) for part in parts
    ])  # fmt: skip


def mistakes(model, records, tokens, bad, rng, *, first: int, early: bool, batch: int):
    """`tokens` with wrong draws of a model at the places `bad`."""
    mask = model.spec.kernel.mask
    hidden = np.where(bad | (early & (np.arange(records.shape[1]) >= first)), mask, tokens)
    log_p = predictions(model, records, hidden, early=early, batch=batch).copy()
    np.put_along_axis(log_p, records[..., None], -np.inf, 2)
    return np.where(bad, np.argmax(log_p + rng.gumbel(size=log_p.shape), -1), tokens)


def measured(model, other, records: np.ndarray, batch: int) -> list[dict]:
    sampler = Sampler(spec=model.spec, network=model.network)
    schedule = sampler.spec.schedule
    step, first, uniform, bad, good = correction.spoiled_windows(
        sampler, records, 2, np.random.default_rng(0)
    )
    settled = np.asarray(schedule.settled(np.arange(schedule.steps + 1)))
    settles = int(np.argmax(settled > first))
    rng = np.random.default_rng(1)

    def drawn(of, early):
        settings = {"first": first, "early": early, "batch": batch}
        return mistakes(of, records, uniform, bad, rng, **settings)

    kinds = {
        "uniform": uniform, "late, other": drawn(other, False), "early, other": drawn(other, True),
        "early, own": drawn(model, True),
    }  # fmt: skip
    rows = []
    for kind, tokens in kinds.items():
        log_p = predictions(model, records, tokens, early=False, batch=batch)
        shown = np.take_along_axis(log_p, np.minimum(tokens, log_p.shape[2] - 1)[..., None], 2)
        truth = -np.take_along_axis(log_p, records[..., None], 2)[..., 0]
        wrong, right = shown[..., 0][bad], shown[..., 0][good]
        rank = rankdata(np.concatenate([wrong, right]))[: len(wrong)].sum()
        area = 1 - (rank - len(wrong) * (len(wrong) + 1) / 2) / (len(wrong) * len(right))
        row = {"mistakes": kind, "area": float(area), "nats at wrong": float(truth[bad].mean()),
               "nats at right": float(truth[good].mean())}  # fmt: skip
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
            row[name] = {
                "repaired": float((final == records)[bad].mean()),
                "moved": float((final != tokens)[bad].mean()),
                "lost": float((final != records)[good].mean()),
            }
        rows.append(row)
    return rows


def main() -> int:
    parser = Parser(description="Measures what networks know of mistakes of their own kind.")
    add = parser.add_argument
    add("--workdirs", required=True, help="runs of hybrid models on blocks, with commas between")
    add("--other", required=True, help="run that makes the mistakes of another network")
    add("--data", required=True, help="prepared folder whose validation records are used")
    add("--windows", type=int, default=1024, help="spoiled windows")
    add("--batch_size", type=int, default=256)
    add("--out", required=True, help="JSON file of the measurements")
    return command.run(parser, _run)


def _run(options: argparse.Namespace) -> None:
    held_out = Records(options.data, "valid")
    count = min(len(held_out), options.windows) // options.batch_size * options.batch_size
    records = held_out.read(range(count))["tokens"]
    other = pretrained.load(options.other)
    rows = []
    for workdir in options.workdirs.split(","):
        for row in measured(pretrained.load(workdir), other, records, options.batch_size):
            rows.append({"run": Path(workdir).name, **row})
            print(json_text(rows[-1]), file=sys.stderr, flush=True)
    write_atomic(options.out, json_text(rows, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
