"""The released PyTorch code and this one in turn, on a processor: training, forward, sampling.

    git clone https://github.com/ServiceNow/hdlm FOLDER
    python benchmarks/against_release.py --release=FOLDER --python=PATH

PATH is an interpreter with torch, accelerate, diffusers, einops, omegaconf and transformers. Both
sides have two threads, one model (`EXPERIMENT`, random parameters) and the same work: a training
step of their ε trainer for masking alone; the logits of records; `full_diff`; and `semi_diff`, a
block sampler without a cache, which feeds the prefix that exists in every call, against ours with
one. GFLOP/s are those that the model's definition asks for (`hybrid_jax.training.flops`), and a
share is that of a product of two 2,048 × 2,048 float32 matrices on the same side.

Of sampling, some calls are timed on both sides (`--whole`: all): a quarter of those of full
diffusion, and two blocks, at the places whose mean cost is that of the text if costs grow with the
square of the place. Ours gets what lies before a block as given; feeding it is not timed.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import command
import in_turn
import jax
import jax.numpy as jnp
import sampling
import train_step

from hybrid_jax.config import Experiment, ScheduleConfig, TrainConfig
from hybrid_jax.data.settings import DataConfig
from hybrid_jax.errors import UserError
from hybrid_jax.method import layout as layouts
from hybrid_jax.method.mask_blocks import Pattern
from hybrid_jax.method.objective import Objective
from hybrid_jax.models.settings import ModelConfig
from hybrid_jax.optim import OptimizerConfig
from hybrid_jax.runtime.command_line import Parser
from hybrid_jax.runtime.json_text import json_text
from hybrid_jax.sampling import loop, prompts
from hybrid_jax.sampling.rules import Ancestral
from hybrid_jax.sampling.state import Sampler
from hybrid_jax.training import flops

THREADS, PRODUCT = 2, 2048
EXPERIMENT = Experiment(
    name="release",
    data=DataConfig(vocab_size=2048, length=256),
    schedule=ScheduleConfig(family="flat"),
    objective=Objective(time="continuous"),
    model=ModelConfig(layers=4, width=256, heads=4, unroll=4),
    optimizer=OptimizerConfig(beta2=0.95, weight_decay=0.1),  # as theirs
    train=TrainConfig(batch_size=16),
)
VOCABULARY = EXPERIMENT.data.expected_vocab_size
PARTS = ("training", "forward", "full", "blocks", "rounds")


class Released:
    """The released code in a process of its own (see released_driver.py)."""

    def __init__(self, folder: str, python: str):
        if not Path(folder, "hdlm", "model", "diffusion_lm.py").is_file():
            raise UserError(
                f"--release={folder} is not the released code: give a folder with a checkout of "
                "github.com/ServiceNow/hdlm."
            )
        shape = dataclasses.asdict(EXPERIMENT.model) | {"vocab_size": VOCABULARY}
        driver = Path(__file__).with_name("released_driver.py")
        words = [python, str(driver), folder, str(THREADS), json_text(shape)]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        pipe = subprocess.PIPE
        try:
            self.process = subprocess.Popen(
                words, stdin=pipe, stdout=pipe, text=True,
                env=environment | {"CUDA_VISIBLE_DEVICES": ""},
            )  # fmt: skip
        except OSError as error:
            raise UserError(
                f"--python={python} does not run ({error.strerror}): name one with torch."
            ) from error
        answer = self._answer()
        if "missing" in answer:
            self.process.communicate()
            raise UserError(
                f"{python} has no module {answer['missing']}, which the released code needs: "
                "install it there, or name another interpreter with --python=PATH."
            )
        self.versions = answer["versions"]

    def _answer(self) -> Any:
        line = self.process.stdout.readline()
        if not line:
            raise UserError("The released code has failed: see its own words above.")
        return json.loads(line)

    def seconds(self, name: str, **settings: Any) -> float:
        """Of a request."""
        print(json_text([name, settings]), file=self.process.stdin, flush=True)
        return self._answer()


def timed(run: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - begun


class Comparison:
    """Measurements, and a table of them that is stored after each."""

    def __init__(self, released: Released, options: argparse.Namespace):
        self.released, self.options = released, options
        product = [released.seconds("product", size=PRODUCT) for _ in range(6)]
        self.peaks = [2.0 * PRODUCT**3 / min(product), train_step.measured_peak(PRODUCT)]
        self.network = EXPERIMENT.network(VOCABULARY)
        self.params = jax.jit(self.network.init)(jax.random.key(0))
        self.lines = [
            "| | tokens/s, released | ours | ours over released | GFLOP/s, released | ours | "
            "share of the product, released | ours |",
            "|---|---|---|---|---|---|---|---|",
            "| product | | | | {:.0f} | {:.0f} | 1 | 1 |".format(*(p / 1e9 for p in self.peaks)),
        ]

    def measure(
        self, name: str, request: str, settings: dict[str, Any], ours: Callable[[], float],
        tokens: float, work: float | None = None,
    ) -> None:  # fmt: skip
        """A row: seconds of both sides in turn, each of which took `tokens` and `work` FLOPs."""

        def theirs() -> float:
            return self.released.seconds(request, **settings)

        ours()  # compiles
        speeds: list[list[float]] = [[], []]
        for _ in range(self.options.repeats):
            for speed, run in zip(speeds, (theirs, ours), strict=True):
                time.sleep(0.3)  # the other side's threads fall asleep
                speed.append(tokens / run())
        ratio = in_turn.spread(in_turn.ratios(*reversed(speeds)), 2)
        cells = [name, *(in_turn.spread(speed, 0) for speed in speeds), f"**{ratio}**"]
        rates = [statistics.median(speed) * (work or math.nan) / tokens for speed in speeds]
        cells += [f"{rate / 1e9:.0f}" for rate in rates]
        cells += [f"{rate / peak:.2f}" for rate, peak in zip(rates, self.peaks, strict=True)]
        self.lines.append(f"| {' | '.join(cells)} |".replace("nan", "–"))
        in_turn.note(self.lines[-1])
        self.store()

    def store(self) -> str:
        options = self.options
        return in_turn.store(
            "against-release", options.out, "\n".join(self.lines), parts=options.parts,
            whole=options.whole, released=self.released.versions, threads=THREADS,
        )  # fmt: skip

    def training(self, steps: int = 2) -> None:
        batch, length = EXPERIMENT.train.batch_size, EXPERIMENT.data.length
        ours = train_step.Steps(EXPERIMENT, argparse.Namespace(batch_size=batch, steps=steps))
        request = {"batch": batch, "length": length, "steps": steps}
        work = steps * batch * flops.training_flops(self.network, ours.setup.spec)
        tokens = steps * batch * length
        self.measure("training", "train", request, lambda: timed(ours.run), tokens, work)

    def forward(self, batch: int, passes: int) -> None:
        spec, length = EXPERIMENT.spec(VOCABULARY, bos=1), EXPERIMENT.data.length
        groups = jnp.zeros(spec.schedule.phase_groups, jnp.int32)
        rows = layouts.training_rows(spec.layout, spec.schedule, groups)
        rows = jax.tree.map(lambda x: x[None], rows)
        tokens, level = jnp.zeros((batch, length), jnp.int32), jnp.zeros((batch, length))

        @jax.jit
        def logits(params, tokens):
            pattern = Pattern(spec.layout, spec.schedule, rows)
            features = self.network.features(params, tokens, rows.position, pattern, level)
            return self.network.logits(params, features)

        self.measure(
            f"forward, batch {batch}", "forward",
            {"batch": batch, "length": length, "passes": passes},
            lambda: timed(lambda: [logits(self.params, tokens) for _ in range(passes)]),
            passes * batch * length,
            passes * batch * flops.forward_flops(self.network, spec).total,
        )  # fmt: skip

    def full(self, batch: int, calls: int) -> None:
        count = calls if self.options.whole else calls // 4
        numbers = list(range(0, calls, calls // count))
        schedule = ScheduleConfig(family="flat", levels=calls)
        length = EXPERIMENT.data.length
        name = f"full diffusion, {calls} calls, batch {batch} ({count} calls timed)"
        advance = self._sampler(schedule, batch, length)
        settings = {"batch": batch, "length": length, "calls": calls, "numbers": numbers}
        tokens = batch * length * count / calls
        self.measure(name, "full", settings, lambda: advance(0, count), tokens)

    def blocks(self, batch: int, length: int, width: int = 16) -> None:
        of = length // width
        numbers = [int(of * (0.5 + side / math.sqrt(12))) for side in (-1, 1)]
        numbers = list(range(of)) if self.options.whole else numbers
        schedule = ScheduleConfig(family="block", width=width, levels=width)
        name = (
            f"blocks of {width}, {width} calls each, L = {length}, batch {batch} "
            f"({len(numbers)} of {of} blocks timed)"
        )
        advance = self._sampler(schedule, batch, length)
        settings = {"batch": batch, "length": length, "width": width, "calls": width}
        self.measure(
            name, "blocks", settings | {"numbers": numbers},
            lambda: sum(advance(width * number, width) for number in numbers),
            batch * width * len(numbers),
        )  # fmt: skip

    def _sampler(self, schedule: ScheduleConfig, batch: int, length: int) -> Callable[..., float]:
        """Seconds of so many rounds behind so many given tokens."""
        data = dataclasses.replace(EXPERIMENT.data, length=length)
        experiment = dataclasses.replace(EXPERIMENT, data=data, schedule=schedule)
        sampler = Sampler(spec=experiment.spec(VOCABULARY, bos=1), network=self.network)
        keys = jax.random.split(jax.random.key(0), batch)

        def advance(given: int, rounds: int) -> float:
            texts = prompts.build([[0] * given] * batch, length=length, vocab_size=VOCABULARY)
            state = jax.block_until_ready(loop.start(sampler, self.params, keys, texts))
            return timed(lambda: loop.advance(sampler, Ancestral(), self.params, state, rounds))

        return advance


def main() -> int:
    parser = Parser(description="Times the released PyTorch code in turn with this one.")
    add = parser.add_argument
    add("--release", default="", metavar="FOLDER", help="a checkout of github.com/ServiceNow/hdlm")
    add("--python", default=sys.executable, metavar="PATH", help="an interpreter that has torch")
    add("--parts", default=",".join(PARTS), help="to measure")
    add("--repeats", type=int, default=3)
    add("--whole", action="store_true", help="time all calls of texts, for ten minutes and more")
    add("--out", default="benchmarks/results", metavar="DIR")
    return command.run(parser, _run, folder=True)


def _run(options: argparse.Namespace) -> None:
    parts = options.parts.split(",")
    if unknown := set(parts).difference(PARTS):
        raise UserError(f"--parts has {', '.join(unknown)}: choose of {', '.join(PARTS)}.")
    # Before any thread starts; the other process inherits it.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    jax.config.update("jax_platforms", "cpu")
    of = Comparison(Released(options.release, options.python), options)
    if "training" in parts:
        of.training()
    if "forward" in parts:
        of.forward(batch=1, passes=20)
        of.forward(batch=8, passes=4)
    if "full" in parts:
        of.full(batch=8, calls=64)
    if "blocks" in parts:
        of.blocks(batch=1, length=512)
        of.blocks(batch=8, length=1024)
    if "rounds" in parts:
        of.lines += ["", *sampling.rounds_as_markdown(of.network, repeats=options.repeats)]
    print(of.store())


if __name__ == "__main__":
    sys.exit(main())
