"""What correction is for: are wrong tokens repaired, and is the text better at equal calls?

    python benchmarks/correction.py --workdir=runs/epsilon_hybrid --judge=runs/ar \\
        --data=data/FOLDER --out=benchmarks/results/correction.json

*Repair.* In held-out records the first half is given; half of the next window is shown, and two of
the shown tokens are replaced by random others. Each rule finishes the window from there. Counted:
wrong tokens that end as the true one, wrong tokens that do not stay, and right ones that do not.

*Quality.* Texts from nothing at equal numbers of calls, judged by an autoregressive model of the
same tokenizer that took no part in generating them, together with the entropy of the tokens inside
each text: a low perplexity at a low entropy may be mere repetition.

The data folder is one prepared by `hybrid_jax.data.prepare` with the models' tokenizer.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path

import device
import jax
import jax.numpy as jnp
import numpy as np

from hybrid_jax import trained
from hybrid_jax.atomic import write_atomic
from hybrid_jax.data.pipeline import Records
from hybrid_jax.errors import UserError
from hybrid_jax.eval.bound import evaluate_bound
from hybrid_jax.metrics import mean_and_standard_error, perplexity
from hybrid_jax.objective import Bound
from hybrid_jax.sampling import loop, prompts
from hybrid_jax.sampling.rules import ACS, Ancestral, ReMDM
from hybrid_jax.sampling.state import Sampler

_CORRECTING = {
    "ancestral": Ancestral(),
    "original (ACS η=0)": ACS(eta=0.0),
    "ACS η=0.25": ACS(eta=0.25),
    "ACS η=0.5": ACS(eta=0.5),
    "ACS η=1": ACS(eta=1.0),
    "ACS η=0.25, confidence": ACS(eta=0.25, guidance="confidence"),
    "ACS η=0.5, confidence": ACS(eta=0.5, guidance="confidence"),
    "ReMDM rescale η=0.1": ReMDM(eta=0.1, strategy="rescale"),
}
REPAIR = {**_CORRECTING, "ReMDM rescale η=0.5": ReMDM(eta=0.5, strategy="rescale")}
QUALITY = {
    **_CORRECTING,
    "ReMDM cap η=0.05": ReMDM(eta=0.05, strategy="cap"),
    "ReMDM confidence η=1": ReMDM(eta=1.0, strategy="confidence"),
}


def keys_of(seed: int, numbers: np.ndarray) -> jax.Array:
    return jax.vmap(lambda n: jax.random.fold_in(jax.random.key(seed), n))(numbers)


def spoiled_windows(sampler: Sampler, records: np.ndarray, wrong: int, rng: np.random.Generator):
    """Records with a half-shown window in the middle, of which `wrong` shown tokens are wrong.

    Returns:
      the step, the tokens int32 [n, L] with MASK, and which of them are wrong and right, bool.
    """
    schedule, kernel = sampler.problem.schedule, sampler.problem.kernel
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
    offsets = rng.integers(1, kernel.tokens, records.shape)
    tokens = np.where(bad, (records + offsets) % kernel.tokens, records)
    known = shown | (np.arange(schedule.length) < window[0])
    return step, int(window[0]), np.where(known, tokens, kernel.mask), bad, shown & ~bad


def repair(model, records: np.ndarray, *, batch: int, wrong: int = 2) -> list[dict]:
    sampler = Sampler(problem=model.problem, network=model.network)
    schedule = sampler.problem.schedule
    step, first, tokens, bad, good = spoiled_windows(
        sampler, records, wrong, np.random.default_rng(0)
    )
    settles = int(np.argmax(np.asarray(schedule.settled(np.arange(schedule.steps + 1))) > first))
    rows = []
    for name, rule in REPAIR.items():
        finals = []
        for start in range(0, len(records), batch):
            part = slice(start, start + batch)
            given = prompts.build(
                [record[:first].tolist() for record in records[part]],
                length=schedule.length,
                tokens=sampler.problem.kernel.tokens,
            )
            keys = keys_of(1, np.arange(start, start + batch))
            state = loop.start(sampler, model.params, keys, given)
            state = dataclasses.replace(
                state,
                tokens=jnp.asarray(tokens[part], jnp.int32),
                step=jnp.full_like(state.step, step),
            )
            state = loop.advance(sampler, rule, model.params, state, settles - step)
            finals.append(np.asarray(state.tokens))
        final = np.concatenate(finals)
        row = {"rule": name, "windows": len(records)}
        for what, mask, hits in (
            ("repaired", bad, final == records),
            ("moved", bad, final != tokens),
            ("harmed", good, final != records),
        ):
            share = (mask & hits).sum(1) / mask.sum(1)
            row[what], row[f"{what}_error"] = mean_and_standard_error(share)
        rows.append(row)
        print(json.dumps(row, ensure_ascii=False), file=sys.stderr, flush=True)
    return rows


def judged(judge, texts: np.ndarray, batch: int) -> dict:
    """Perplexity under the judge and entropy inside the texts, each with its standard error."""
    batches = [
        {"tokens": texts[i : i + batch], "valid": np.ones(len(texts[i : i + batch]), bool)}
        for i in range(0, len(texts), batch)
    ]
    bound = Bound(kernel=judge.problem.kernel, time="discrete")
    estimate = evaluate_bound(
        judge.problem, judge.network, judge.params, batches, bound,
        key=jax.random.key(0), draws=1, bytes_per_token=1.0,
    )  # fmt: skip
    entropies = []
    for text in texts:
        share = np.bincount(text) / len(text)
        entropies.append(-np.sum(share[share > 0] * np.log(share[share > 0])))
    entropy, entropy_error = mean_and_standard_error(np.array(entropies))
    value, error = perplexity(estimate.nats, estimate.nats_error)
    return {
        "perplexity": value,
        "perplexity_error": error,
        "entropy": entropy,
        "entropy_error": entropy_error,
    }


def quality(model, judge, records, *, levels: list[int], texts: int, batch: int) -> list[dict]:
    length = model.problem.schedule.length
    rows = [{"rule": "held-out text", "calls": 0, "corrections": 0.0,
             **judged(judge, records[:texts], batch)}]  # fmt: skip
    for level in levels:
        schedule = dataclasses.replace(model.experiment.schedule, levels=level).build(length)
        problem = dataclasses.replace(model.problem, schedule=schedule)
        sampler = Sampler(problem=problem, network=model.network)
        for name, rule in QUALITY.items():
            made = [
                loop.generate(sampler, rule, model.params, keys_of(2, np.arange(i, i + batch)),
                              prompts.nothing(batch, length))
                for i in range(0, texts, batch)
            ]  # fmt: skip
            row = {
                "rule": name,
                "calls": int(made[0].calls[0]),
                "corrections": float(np.mean([m.corrections for m in made])),
                **judged(judge, np.concatenate([m.tokens for m in made]), batch),
            }
            rows.append(row)
            print(json.dumps(row, ensure_ascii=False), file=sys.stderr, flush=True)
    return rows


def as_markdown(result: dict) -> str:
    def number(row: dict, name: str, digits: int) -> str:
        return f"{row[name]:.{digits}f} ± {row[name + '_error']:.{digits}f}"

    lines = [
        "| rule | wrong tokens repaired | wrong tokens moved | right tokens lost |",
        "|---|---|---|---|",
    ]
    for row in result["repair"]:
        cells = [number(row, name, 3) for name in ("repaired", "moved", "harmed")]
        lines.append(f"| {row['rule']} | {' | '.join(cells)} |")
    if "quality" not in result:
        return "\n".join(lines)
    lines += [
        "",
        "| calls | rule | judge's perplexity | entropy (nats) | corrections a text |",
        "|---|---|---|---|---|",
    ]
    for row in result["quality"]:
        cells = [number(row, "perplexity", 1), number(row, "entropy", 3)]
        corrections = f"{row['corrections']:.1f}"
        calls = row["calls"] or "–"
        lines.append(f"| {calls} | {row['rule']} | {' | '.join(cells)} | {corrections} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="Measures what correcting rules achieve.")
    add = parser.add_argument
    add("--workdir", required=True, help="run of a hybrid model")
    add("--judge", help="run of an autoregressive model with the same tokenizer; without one, "
        "only repair is measured")  # fmt: skip
    add("--data", required=True, help="prepared folder whose validation records are used")
    add("--windows", type=int, default=1024, help="spoiled windows")
    add("--texts", type=int, default=256, help="texts for each rule and number of calls")
    add("--levels", type=int, nargs="+", default=[4, 8, 16], help="steps of a window")
    add("--batch_size", type=int, default=64)
    add("--out", required=True, help="JSON file; a table beside it as .md")
    options = parser.parse_args()
    begun = time.time()
    try:
        model = trained.load(options.workdir)
        judge = trained.load(options.judge) if options.judge else None
        if judge and model.tokenizer.fingerprint != judge.tokenizer.fingerprint:
            raise UserError("The judge reads other tokens than the model writes: train both alike.")
        held_out = Records(options.data, "valid")
        count = min(len(held_out), max(options.windows, options.texts))
        records = held_out.read(range(count // options.batch_size * options.batch_size))
        result = {
            "model": f"{Path(options.workdir).name}, step {model.step}",
            "schedule": model.problem.schedule.name,
            "noise": model.problem.kernel.name,
            "device": device.name(),
            "versions": device.versions(),
            "repair": repair(model, records[: options.windows], batch=options.batch_size),
        }
        if judge:
            result["judge"] = f"{Path(options.judge).name}, step {judge.step}"
            result["quality"] = quality(
                model, judge, records,
                levels=options.levels, texts=options.texts, batch=options.batch_size,
            )  # fmt: skip
        result["seconds"] = round(time.time() - begun)
        table = as_markdown(result)
        write_atomic(options.out, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
        write_atomic(Path(options.out).with_suffix(".md"), table + "\n")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
