"""Perplexity of trained models on named texts: true bounds, with their errors and their protocol.

    python -m hybrid_jax.evaluate --workdir=runs/gamma_hybrid
    python -m hybrid_jax.evaluate --workdir=runs/mdlm --datasets=wikitext,lambada,pubmed,arxiv
    python -m hybrid_jax.evaluate --workdir=runs/mdlm --datasets=lambada=files:lambada/test.jsonl

Each number is stored in the workdir, as evaluation/NAME.json, with all that it depends on.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import sys
from pathlib import Path

from hybrid_jax import sharding, trained
from hybrid_jax.atomic import unwritable, write_atomic
from hybrid_jax.config import Experiment
from hybrid_jax.errors import UserError, exit_status
from hybrid_jax.eval import datasets, perplexity
from hybrid_jax.eval.datasets import EvaluationSet
from hybrid_jax.metrics import Progress
from hybrid_jax.sharding import MeshConfig


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    options = _parser().parse_args(argv)
    return exit_status(lambda: _run(options), interrupted="what was measured is stored")


def validation_set(experiment: Experiment) -> EvaluationSet:
    """The validation text of a run; without a source where it was held out of the training text."""
    return EvaluationSet(name="valid", source=experiment.data.valid_source)


def _run(options: argparse.Namespace) -> None:
    least = {"records": 0, "draws": 1, "batch_size": 1, "seed": 0}
    for name, value in least.items():
        if getattr(options, name) < value:
            raise UserError(f"--{name} must be at least {value}, but is {getattr(options, name)}.")
    mesh = sharding.make_mesh(MeshConfig(data=-1, fsdp=1))
    model = trained.load(options.workdir, step=options.step, mesh=mesh)
    valid = validation_set(model.experiment)
    wanted = [
        datasets.parse(text, validation=valid) for text in options.datasets.split(",") if text
    ]
    if not wanted:
        raise UserError("--datasets names no data set: for example --datasets=wikitext,lambada.")
    bound = model.experiment.bound(model.tokenizer.vocab_size)
    folder = Path(options.workdir) / "evaluation"
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from error

    print(f"{model.experiment.name}, step {model.step}: {bound.label}")
    print(f"{'data set':24}{'perplexity':>22}{'bits/byte':>11}{'records':>9}{'draws':>7}")
    for dataset in wanted:
        if dataset.source:
            length = model.problem.schedule.length
            packed = perplexity.pack(dataset, model.tokenizer, length, options.records)
        else:
            packed = perplexity.held_out(model, options.records)
        total = perplexity.batch_count(packed, options.batch_size)
        with Progress(total=total, interval=10.0) as bar:
            found = perplexity.measure(
                model,
                dataset,
                packed,
                bound,
                draws=options.draws,
                batch_size=options.batch_size,
                seed=options.seed,
                mesh=mesh,
                progress=functools.partial(bar.update, values={}),
            )
        file = folder / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', dataset.name)}.json"
        write_atomic(file, json.dumps(found.to_dict(), indent=1, ensure_ascii=False) + "\n")
        print(_row(found), flush=True)
    print(f"protocol {found.protocol.name}, stored in {folder}")


def _row(found: perplexity.Measurement) -> str:
    estimate = found.estimate
    sign = "=" if found.protocol.bound == "exact likelihood" else "≤"
    value = f"{sign} {estimate.perplexity:.2f} ± {estimate.perplexity_error:.2f}"
    return (
        f"{found.dataset.name:24}{value:>22}{estimate.bits_per_byte:>11.3f}"
        f"{estimate.records:>9,}{estimate.draws:>7}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m hybrid_jax.evaluate",
        description="Perplexity of a trained model on named texts.",
    )
    add = parser.add_argument
    add("--workdir", required=True, help="folder of a run")
    add("--datasets", default="valid", metavar="A,B,...", help="valid, "
        f"{', '.join(datasets.NAMES)}, or NAME=SOURCE (default: %(default)s)")  # fmt: skip
    add("--step", type=trained.step_of, help="checkpoint, or 'best' (default: the newest)")
    add("--records", type=int, default=0, metavar="N", help="most records (default: all)")
    add("--draws", type=int, default=4, metavar="K", help="of noise for each (default: 4)")
    add("--batch_size", type=int, default=64, metavar="B", help="records at a time (default: 64)")
    add("--seed", type=int, default=0, help="of the draws (default: 0)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
