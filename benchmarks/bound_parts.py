"""The parts of a bound, in nats: at masked positions, at shown ones, at shown ones that are wrong.

    python benchmarks/bound_parts.py --workdir=runs/gamma_hybrid --workdir=runs/mdlm

Estimated on the validation records of each run, under the noise of its training (``own``) and under
masking alone (``absorbing``), which compares what networks know about masked tokens whatever they
were trained with. Parts of one line add up to its bound. "wrong" is the share of shown tokens that
noise replaced.
"""

from __future__ import annotations

import argparse
import functools
import sys

import command
import device
import jax
import jax.numpy as jnp
import numpy as np

from hybrid_jax.eval import perplexity
from hybrid_jax.method import loss as estimator
from hybrid_jax.method import noising
from hybrid_jax.method.objective import Bound
from hybrid_jax.runtime.command_line import Parser
from hybrid_jax.runtime.files import labels, write_atomic
from hybrid_jax.runtime.json_text import json_text
from hybrid_jax.training import pretrained
from hybrid_jax.training.pretrained import Pretrained
from hybrid_jax.training.statistics import mean_and_standard_error

PARTS = ("masked", "shown, right", "shown, wrong")


def bounds_of(model: Pretrained) -> list[Bound]:
    """The bounds that the network has: of its own noise, and of masking alone."""
    spec, experiment = model.spec, model.experiment
    absorbing = noising.absorbing(vocab_size=spec.kernel.vocab_size)
    # ε-noise jumps on leaving level 0: its bound exists in discrete time only.
    own_time = "discrete" if spec.kernel.jumps_at_zero else experiment.evaluation.time
    bounds = [Bound(kernel=spec.kernel, time=own_time)]
    if spec.kernel.replaces:
        bounds.append(Bound(kernel=absorbing, time=experiment.evaluation.time))
    return bounds


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def parts_of_batch(spec, network, count, params, tokens, key):
    """Nats of each record in each part [parts, B], and the wrong and all shown tokens, two ints."""
    places = jnp.arange(count, dtype=jnp.int32)
    noised = estimator.corrupt_batch(spec, estimator.Batch(tokens, places, key, count))
    terms = estimator.drawn_terms(spec, network, params, noised)
    masked = noised.noisy == spec.kernel.mask
    right = noised.noisy == tokens
    kinds = jnp.stack([masked, right, ~masked & ~right])
    shown = noised.draw.active & ~masked
    return jnp.sum(terms * kinds, axis=2), jnp.sum(shown & ~right), jnp.sum(shown)


def measure(
    model: Pretrained, bound: Bound, records: np.ndarray, *, draws: int, batch: int
) -> dict:
    spec = model.spec.for_bound(bound)
    found, wrong, shown = [], 0, 0
    for start in range(0, len(records), batch):
        tokens = records[start : start + batch]
        total = 0.0
        for draw in range(draws):
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), start), draw)
            parts, batch_wrong, batch_shown = parts_of_batch(
                spec, model.network, len(tokens), model.params, tokens, key
            )
            total = total + np.asarray(parts) / draws / tokens.shape[1]
            wrong, shown = wrong + int(batch_wrong), shown + int(batch_shown)
        found.append(total)
    values = np.concatenate(found, axis=1)
    row = {"bound": bound.label, "records": len(records), "draws": draws}
    for name, nats in [("whole", values.sum(0)), *zip(PARTS, values, strict=True)]:
        row[name], row[f"{name}_error"] = mean_and_standard_error(nats)
    return row | {"wrong": wrong / max(shown, 1)}


def as_markdown(rows: list[dict]) -> str:
    names = ("whole", *PARTS)
    lines = [
        f"| model | bound | {' | '.join(names)} | wrong |",
        f"|---|---|{'---|' * len(names)}---|",
    ]
    for row in rows:
        cells = [f"{row[name]:.3f} ± {row[f'{name}_error']:.3f}" for name in names]
        model = f"{row['model']}, step {row['step']}"
        cells = [model, row["bound"], *cells, f"{row['wrong']:.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    parser = Parser(description="Nats per token of a bound at masked, right and wrong positions.")
    add = parser.add_argument
    add("--workdir", action="append", required=True, help="of a run; may be given more than once")
    add("--records", type=int, default=512, help="validation records (default: %(default)s)")
    add("--draws", type=int, default=8, help="of noise for each record (default: %(default)s)")
    add("--batch", type=int, default=32)
    add("--out", help="Markdown file for the table")
    return command.run(parser, _run)


def _run(options: argparse.Namespace) -> None:
    rows = []
    for workdir, label in zip(options.workdir, labels(options.workdir), strict=True):
        model = pretrained.load(workdir)
        records = perplexity.held_out(model, options.records).tokens
        for bound in bounds_of(model):
            row = measure(model, bound, records, draws=options.draws, batch=options.batch)
            rows.append({"model": label, "step": model.step, **row})
            print(json_text(rows[-1]), file=sys.stderr, flush=True)
    print(as_markdown(rows))
    if options.out:
        size = f"{rows[0]['records']} validation records, {options.draws} draws"
        write_atomic(options.out, f"{size}, on {device.origin()}\n{as_markdown(rows)}\n")


if __name__ == "__main__":
    sys.exit(main())
