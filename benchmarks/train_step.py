"""A whole training step at the shape of a size, with and without what makes it fast.

    python benchmarks/train_step.py
    python benchmarks/train_step.py --size=tiny --layouts=gamma --batch_size=32 --steps=10
    python benchmarks/train_step.py --size=base --batch_size=32 --steps=10         # on a GPU

"Plain" has dense attention and the logits of whole records. MFU is the share of the device's peak
that useful work takes (`hybrid_jax.flops`: rows and pairs that the model's definition asks for).
The peak of a processor is measured here, as a large product of float32 matrices; that of an
accelerator is its data sheet's.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import command
import in_turn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from hybrid_jax.config import Experiment
from hybrid_jax.method import loss as estimator
from hybrid_jax.runtime import sharding
from hybrid_jax.runtime.command_line import Parser, read_config
from hybrid_jax.runtime.sharding import MeshConfig
from hybrid_jax.training import flops
from hybrid_jax.training.train_step import TrainSetup

LAYOUTS = {
    "AR": ("ar", {}),
    "flat": ("mdlm", {}),
    "block": ("bd3lm", {"width": 16, "levels": 16}),
    "slide": ("slide", {"width": 16, "levels": 16}),
    "gamma": ("gamma_hybrid", {}),  # with the schedule of the size
}


def experiment_of(name: str, options: argparse.Namespace) -> Experiment:
    file, schedule = LAYOUTS[name]
    config = ml_collections.ConfigDict(read_config(f"{file}:{options.size}"))
    config.train.batch_size = options.batch_size
    config.train.accumulation = 1
    config.model.dtype = options.dtype
    config.model.dropout = 0.0
    config.mesh.fsdp = 1
    for key, value in schedule.items():
        setattr(config.schedule, key, value)
    if options.length:
        config.data.length = options.length
    return Experiment.from_config(config)


class Steps:
    """A training whose steps can be timed; `donate`: the new state takes the old one's place."""

    def __init__(self, experiment: Experiment, options: argparse.Namespace, donate: bool = True):
        tokens = experiment.data.expected_vocab_size
        self.setup = TrainSetup.build(experiment, tokens, 1)
        self.mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=1), jax.devices()[:1])
        length = experiment.data.length
        rng = np.random.default_rng(0)
        with sharding.use(self.mesh):
            self.state = self.setup.compile_init(self.mesh)()
            step = self.setup.compile_step(self.mesh)
            drawn = rng.integers(0, tokens, (options.batch_size, length))
            self.batch = {
                "tokens": jnp.asarray(drawn, jnp.int32),
                "index": jnp.arange(options.batch_size),
            }
            if not donate:
                step = jax.jit(step.__wrapped__)
            begun = time.perf_counter()
            self.step = step.lower(self.state, self.batch).compile()
            self.seconds_to_compile = time.perf_counter() - begun
        needs = self.step.memory_analysis()
        new = needs.output_size_in_bytes - needs.alias_size_in_bytes
        self.megabytes = (needs.argument_size_in_bytes + needs.temp_size_in_bytes + new) / 1e6
        self.count = options.steps

    def run(self):
        for _ in range(self.count):
            self.state, metrics = self.step(self.state, self.batch)
        return metrics

    def parts(self) -> dict[str, Callable[[], Any]]:
        """The parts of a step, each part with all before it."""
        setup, spec = self.setup, self.setup.spec
        tokens, index = self.batch["tokens"], self.batch["index"]
        batch = estimator.Batch(tokens, index, jax.random.key(0), len(index))

        @jax.jit
        def loss(params):
            return estimator.batch_loss(spec, setup.network, params, batch)

        @jax.jit
        def forward(params):
            return estimator.batch_terms(spec, setup.network, params, batch).sum()

        @jax.jit
        def corrupt():
            return estimator.corrupt_batch(spec, batch)

        gradient = jax.jit(jax.grad(loss))
        return {
            "levels and noise": corrupt,
            "forward pass": lambda: forward(self.state.params),
            "backward pass": lambda: gradient(self.state.params),
            "optimizer, averages": self.run,
        }


def plain(experiment: Experiment) -> Experiment:
    model = dataclasses.replace(experiment.model, attention="dense")
    train = dataclasses.replace(experiment.train, loss_chunk=experiment.data.length)
    return dataclasses.replace(experiment, model=model, train=train)


def measured_peak(size: int = 2048) -> float:
    """FLOP/s of a product of two square float32 matrices, the best of five."""
    a = jax.random.normal(jax.random.key(0), (size, size))
    product = jax.jit(jnp.matmul)
    times = in_turn.milliseconds({"product": lambda: product(a, a)}, repeats=5)["product"]
    return 2.0 * size**3 / (min(times) * 1e-3)


def measure(name: str, peak: float, options: argparse.Namespace) -> dict:
    experiment = experiment_of(name, options)
    variants = {"plain": Steps(plain(experiment), options)} if options.plain else {}
    fast = variants["default"] = Steps(experiment, options)
    runs = {variant: steps.run for variant, steps in variants.items()}
    times = in_turn.milliseconds(runs, repeats=options.repeats)
    times = {variant: [t / options.steps for t in values] for variant, values in times.items()}
    parts = {}
    if options.parts:
        parts = in_turn.milliseconds(fast.parts(), repeats=options.repeats)
        parts["optimizer, averages"] = [t / options.steps for t in parts["optimizer, averages"]]
    work = flops.training_flops(fast.setup.network, fast.setup.spec) * options.batch_size
    median = statistics.median(times["default"])
    return {
        "layout": f"{name}: {fast.setup.spec.schedule.name}",
        "milliseconds": times,
        "megabytes": {variant: steps.megabytes for variant, steps in variants.items()},
        "compiling": {variant: steps.seconds_to_compile for variant, steps in variants.items()},
        "parts": {part: statistics.median(values) for part, values in parts.items()},
        "teraflops": work / 1e12,
        "mfu": work / (median * 1e-3) / peak if peak else math.nan,
        "tokens_per_second": options.batch_size * experiment.data.length / (median * 1e-3),
    }


def as_markdown(rows: list[dict]) -> str:
    lines = [
        "| layout | ms a step, plain | default | times faster | MB, plain | default | "
        "s to compile, plain | default | tokens/s | useful TFLOP a step | MFU |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        times = row["milliseconds"]
        shown = {"plain": "–"} | {name: in_turn.spread(ms, 1) for name, ms in times.items()}
        faster = "–"
        if "plain" in times:
            faster = in_turn.spread(in_turn.ratios(times["plain"], times["default"]), 2)
        needs, compiling = (
            {"plain": "–"} | {name: f"{value:.0f}" for name, value in row[key].items()}
            for key in ("megabytes", "compiling")
        )
        lines.append(
            f"| {row['layout']} | {shown['plain']} | {shown['default']} | {faster} | "
            f"{needs['plain']} | {needs['default']} | {compiling['plain']} | "
            f"{compiling['default']} | {row['tokens_per_second']:.0f} | "
            f"{row['teraflops']:.3f} | {row['mfu']:.2f} |"
        )
    names = list(rows[0]["parts"])
    if not names:
        return "\n".join(lines)
    lines += ["", "Where the time goes, ms (each part less the one before it):", ""]
    lines += [f"| layout | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for row in rows:
        totals = [row["parts"][name] for name in names]
        own = [now - before for now, before in zip(totals, [0.0, *totals], strict=False)]
        lines.append(f"| {row['layout']} | {' | '.join(f'{ms:.0f}' for ms in own)} |")
    return "\n".join(lines)


def main() -> int:
    parser = Parser(description="Times a whole training step.")
    add = parser.add_argument
    add("--size", default="small", choices=["tiny", "small", "base"])
    add("--layouts", default="AR,flat,block", help=f"of {','.join(LAYOUTS)}")
    add("--batch_size", type=int, default=2)
    add("--length", type=int, default=0, help="of records (default: the size's)")
    add("--steps", type=int, default=1, help="between two looks at the clock")
    add("--dtype", default="float32", choices=["float32", "bfloat16"])
    add("--repeats", type=int, default=5)
    add("--parts", action=argparse.BooleanOptionalAction, default=True, help="time them as well")
    add("--plain", action=argparse.BooleanOptionalAction, default=True, help="for comparison")
    add("--out", default="benchmarks/results", metavar="DIR")
    return command.run(parser, _run, folder=True)


def _run(options: argparse.Namespace) -> None:
    on_cpu = jax.default_backend() == "cpu"
    peak = measured_peak() if on_cpu else flops.peak_flops(jax.devices()[0])
    rows: list[dict] = []
    shape = {k: getattr(options, k) for k in ("size", "batch_size", "dtype", "steps")}
    shape["peak FLOP/s"] = f"{peak:.3g}" if peak else "unknown"
    for name in options.layouts.split(","):
        rows.append(measure(name, peak or 0.0, options))
        in_turn.note(f"{name}: {rows[-1]['tokens_per_second']:.0f} tokens/s")
        kind = f"train-step-{options.size}"
        report = in_turn.store(kind, options.out, as_markdown(rows), **shape)
    print(report)


if __name__ == "__main__":
    sys.exit(main())
