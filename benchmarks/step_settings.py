"""The cost and the gain of single settings of a training step: memory, time, compilation.

    python benchmarks/step_settings.py
    python benchmarks/step_settings.py --size=base --batch_size=32 --dtype=bfloat16     # on a GPU

Each variant is the default step of a size with one thing changed; all of them are timed in turn.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import Any

import command
import in_turn
from train_step import LAYOUTS, Steps, experiment_of

from hybrid_jax.runtime.command_line import Parser

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "layers recomputed in the backward pass": {"remat": True},
    "layers one by one, no scan": {"unroll": "layers"},
    "state not donated": {"donate": False},
}


def steps_of(changes: dict[str, Any], options: argparse.Namespace) -> Steps:
    experiment = experiment_of(options.layout, options)
    model = {
        name: experiment.model.layers if value == "layers" else value
        for name, value in changes.items()
        if name != "donate"
    }
    experiment = dataclasses.replace(
        experiment, model=dataclasses.replace(experiment.model, **model)
    )
    return Steps(experiment, options, donate=changes.get("donate", True))


def as_markdown(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| variant | ms a step | times faster than default | MB | seconds to compile |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['variant']} | {in_turn.spread(row['milliseconds'], 0)} | "
            f"{in_turn.spread(row['ratios'], 2)} | {row['megabytes']:.0f} | "
            f"{row['seconds_to_compile']:.0f} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = Parser(description="Times a step with single settings changed.")
    add = parser.add_argument
    add("--size", default="small", choices=["tiny", "small", "base"])
    add("--layout", default="block", choices=list(LAYOUTS))
    add("--batch_size", type=int, default=2)
    add("--length", type=int, default=0, help="of records (default: the size's)")
    add("--steps", type=int, default=1, help="between two looks at the clock")
    add("--dtype", default="float32", choices=["float32", "bfloat16"])
    add("--repeats", type=int, default=3)
    add("--out", default="benchmarks/results", metavar="DIR")
    return command.run(parser, _run, folder=True)


def _run(options: argparse.Namespace) -> None:
    variants = {}
    for name, changes in VARIANTS.items():
        variants[name] = steps_of(changes, options)
        in_turn.note(f"{name}: compiled in {variants[name].seconds_to_compile:.0f} s")
    times = in_turn.milliseconds(
        {name: steps.run for name, steps in variants.items()}, repeats=options.repeats
    )
    rows = [
        {
            "variant": name,
            "milliseconds": [t / options.steps for t in times[name]],
            "ratios": in_turn.ratios(times["default"], times[name]),
            "megabytes": steps.megabytes,
            "seconds_to_compile": steps.seconds_to_compile,
        }
        for name, steps in variants.items()
    ]
    shape = {k: getattr(options, k) for k in ("size", "layout", "batch_size", "dtype", "steps")}
    kind = f"step-settings-{options.size}"
    print(in_turn.store(kind, options.out, as_markdown(rows), **shape))


if __name__ == "__main__":
    sys.exit(main())
