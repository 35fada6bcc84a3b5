"""Runs on windows of a text of characters, as nanoGPT makes them, with every method.

nanoGPT draws windows anywhere in the first 90 % of a text, and predicts 64 characters of each, of
which the first is given one before it. Here a record has 65 characters and the first is given, so
that every method bounds the same −log p(64 characters | the one before them).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import device
import jax
import numpy as np
from nanogpt import NanoGPT

from hybrid_jax import optim
from hybrid_jax.config import Experiment
from hybrid_jax.data import mixture, pipeline
from hybrid_jax.data.tokenizers import char
from hybrid_jax.errors import UserError
from hybrid_jax.figures import canvas
from hybrid_jax.figures.palette import INK
from hybrid_jax.method.settings import ScheduleConfig
from hybrid_jax.runtime import sharding
from hybrid_jax.runtime.checkpoint import Checkpointer
from hybrid_jax.runtime.command_line import Parser, read_config, within
from hybrid_jax.runtime.files import write_atomic
from hybrid_jax.runtime.json_text import file_name, json_text, write_json
from hybrid_jax.runtime.progress import Progress
from hybrid_jax.training import flops, statistics
from hybrid_jax.training.likelihood import evaluate_bound, is_exact
from hybrid_jax.training.train_step import KeyPurpose, TrainSetup, TrainState, train_step

CONTEXT, BATCH = 64, 12  # characters that are predicted, windows of a step
_EVALUATED = 128  # windows at a time
_SAVED = 500  # steps from a checkpoint to the next

NANOGPT = "AR, network of nanoGPT"
FLAT = {"schedule.family": "flat"}
BLOCK = {"schedule.family": "block", "schedule.width": "16"}
METHODS: dict[str, tuple[str, dict[str, str]]] = {  # config, and what differs from it
    "AR": ("ar", {}),
    NANOGPT: ("ar", {}),  # with its network
    "MDLM": ("mdlm", {}),
    "SEDD": ("sedd", {}),
    "BD3-LM, blocks of 4": ("bd3lm", BLOCK | {"schedule.width": "4"}),
    "BD3-LM, blocks of 16": ("bd3lm", BLOCK),
    "γ-hybrid, flat": ("gamma_hybrid", FLAT),
    "γ-hybrid, blocks of 16": ("gamma_hybrid", BLOCK),
    "ε-hybrid, flat": ("epsilon_hybrid", FLAT),
    "ε-hybrid, blocks of 16": ("epsilon_hybrid", BLOCK),
    "γ-hybrid, slide of 16": ("slide", BLOCK | {"schedule.family": "slide"}),
}
# The network and the optimizer of nanoGPT's command for processors, as far as there is one here.
SETTINGS = {
    "data.tokenizer": "char", "data.length": str(CONTEXT + 1), "model.layers": "4",
    "model.width": "128", "model.heads": "4", "model.activation": "gelu", "model.qk_norm": "false",
    "optimizer.name": "adamw", "optimizer.learning_rate": "0.001", "optimizer.warmup_steps": "100",
    "optimizer.final_fraction": "0.1", "optimizer.beta1": "0.9", "optimizer.beta2": "0.99",
    "optimizer.weight_decay": "0.1", "optimizer.clip_norm": "1", "train.batch_size": str(BATCH),
    "train.ema_decay": "0", "train.loss_chunk": str(CONTEXT + 1), "objective.levels": "uniform",
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text:
    """Ids of characters, int32, to train on and to validate on; N is the number of characters."""

    train: np.ndarray
    valid: np.ndarray
    size: int

    @classmethod
    def read(cls, path: str) -> Text:
        """A file, of which the last tenth is for validation."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"{path} cannot be read as text ({error}): give another file."
            ) from error
        tokens = char.of_texts([text])
        ids, count = tokens.encode(text), int(0.9 * len(text))
        if len(text) - count <= CONTEXT:
            raise UserError(f"{path} is too short: its last tenth must be longer than {CONTEXT}.")
        return cls(train=ids[:count], valid=ids[count:], size=len(tokens.characters))


class Windows:
    """Windows of ids that begin at `starts`, to be read as records (`pipeline.Readable`)."""

    def __init__(self, ids: np.ndarray, starts: np.ndarray):
        self._ids, self._starts = ids, starts

    def __len__(self) -> int:
        return len(self._starts)

    def first(self, count: int) -> np.ndarray:
        return np.arange(count)

    def read(self, numbers: Sequence[int]) -> pipeline.Batch:
        starts = self._starts[np.asarray(numbers)]
        tokens = self._ids[starts[:, None] + np.arange(CONTEXT + 1)]
        return {"tokens": tokens, "given": np.ones(len(starts), np.int32)}


def drawn(ids: np.ndarray, count: int, *seed: int) -> Windows:
    """Windows drawn as nanoGPT draws them: each place is as likely, and may come again."""
    return Windows(ids, np.random.default_rng(seed).integers(0, len(ids) - CONTEXT, count))


def every(ids: np.ndarray, stride: int = 1) -> Windows:
    """All windows, or with a stride of `CONTEXT` those that predict each character once."""
    return Windows(ids, np.arange(0, len(ids) - CONTEXT, stride))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A training of a method.

    Attributes:
      marks: steps, rising; after each of them the run is evaluated, and it ends with the last.
      settings: that differ from those of the method and from `SETTINGS`.
      draws: of noise for each window of an evaluation; 1 where the bound is exact.
    """

    method: str
    seed: int
    marks: tuple[int, ...]
    settings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    draws: int = 4

    @functools.cached_property
    def experiment(self) -> Experiment:
        config, own = METHODS[self.method]
        last = {"train.steps": str(self.marks[-1]), "train.seed": str(self.seed)}
        return Experiment.from_config(
            read_config(config), {**SETTINGS, **own, **self.settings, **last}
        )

    def setup(self, size: int) -> TrainSetup:
        """The parts over `size` characters; bos is MASK, which AR does not have."""
        setup = TrainSetup.build(self.experiment, size, bos=size)
        if self.method != NANOGPT:
            return setup
        network: Any = NanoGPT(vocab_size=size, context=CONTEXT)
        shapes = jax.eval_shape(network.init, jax.random.key(0))
        optimizer = optim.make_optimizer(self.experiment.optimizer, self.marks[-1], shapes)
        return dataclasses.replace(setup, network=network, optimizer=optimizer)

    def folder(self, root: Path, text: Text) -> Path:
        values = [dataclasses.asdict(self.experiment), self.marks, self.draws]
        return root / file_name(f"{self.method}-{self.seed}", [*values, len(text.train), text.size])

    def found(self, root: Path, text: Text) -> dict[str, Any]:
        """The evaluations so far, by step."""
        file = self.folder(root, text) / "found.json"
        return json.loads(file.read_text("utf-8")) if file.exists() else {}

    def done(self, root: Path, text: Text) -> bool:
        return str(self.marks[-1]) in self.found(root, text)

    def train(self, root: Path, text: Text, progress: Progress, before: float) -> None:
        """Trains from where it was, and stores each evaluation in the folder of the run.

        Args:
          before: GFLOP of all runs before this one, which `progress` counts.
        """
        folder, setup = self.folder(root, text), self.setup(text.size)
        cost = self.step_flops(text.size)
        steps = [
            jax.jit(functools.partial(train_step, own), donate_argnums=0) for own in setup.each
        ]
        with Checkpointer(folder / "checkpoints", keep=1) as saver:
            restored = saver.restore(setup.abstract_state(sharding.one_device()))
            start, state = restored if restored else (0, jax.jit(setup.init)())
            found = self.found(root, text)
            losses: list[jax.Array] = []
            for number in range(start, self.marks[-1]):
                batch = drawn(text.train, BATCH, self.seed, number).read(range(BATCH))
                step = steps[setup.turn(number)]
                state, metrics = step(state, {**batch, "index": np.arange(BATCH, dtype=np.int32)})
                losses.append(metrics["loss"])
                marked = number + 1 in self.marks
                if marked:
                    loss = float(np.mean(jax.device_get(losses[-50:])))
                    at = self.evaluate(setup, state, every(text.valid, CONTEXT))
                    found[str(number + 1)] = {"loss": loss, **at}
                    write_json(folder / "found.json", found)
                if marked or (number + 1) % _SAVED == 0:
                    saver.save(number + 1, state)
                if marked or (number + 1) % 50 == 0:
                    shown = {"loss": float(losses[-1])}  # also keeps the host from running ahead
                    progress.update(int(before + (number + 1) * cost / 1e9), shown)

    def evaluate(
        self, setup: TrainSetup, state: TrainState, windows: Windows, schedule: str | None = None
    ) -> dict[str, Any]:
        """The bound on some windows, nats a character: the mean of each draw, and the standard
        error over windows of the first; under another hyperschedule if one is given."""
        if schedule is not None:
            other = setup.experiment.on(ScheduleConfig.parse(schedule))
            setup = TrainSetup.build(other, setup.network.vocab_size, bos=setup.spec.bos)
        bound = setup.experiment.bound(setup.network.vocab_size)
        draws = 1 if is_exact(setup.spec, bound) else self.draws
        key = jax.random.fold_in(jax.random.key(0), KeyPurpose.EVALUATION)  # equal for all runs
        estimates = [
            evaluate_bound(
                setup.spec, setup.network, state.ema,
                pipeline.evaluation_batches(windows, _EVALUATED), bound,
                key=jax.random.fold_in(key, draw), draws=1, bytes_per_token=1.0,
            )
            for draw in range(draws)
        ]  # fmt: skip
        return {
            "bound": estimates[0].bound,
            "nats": [estimate.nll for estimate in estimates],
            "error": estimates[0].nll_se,
        }

    def flops(self, size: int, steps: int) -> float:
        """FLOPs of the first steps over `size` characters; those of nanoGPT's network are AR's."""
        setup = TrainSetup.build(self.experiment, size, bos=size)
        counts = mixture.counts(self.experiment.shares, 1, steps)
        each = [flops.training_flops(own.network, own.spec) for own in setup.each]
        return BATCH * float(counts @ each)

    def step_flops(self, size: int) -> float:
        """FLOPs of a step, the mean over the steps."""
        return self.flops(size, self.marks[-1]) / self.marks[-1]

    def restore(self, root: Path, text: Text) -> tuple[TrainSetup, TrainState]:
        """The end of a run that is done."""
        setup = self.setup(text.size)
        with Checkpointer(self.folder(root, text) / "checkpoints", read_only=True) as saver:
            found = saver.restore(setup.abstract_state(sharding.one_device()))
        assert found is not None
        return setup, found[1]


@functools.cache
def step_flops(method: str, size: int) -> float:
    """FLOPs of a step of a method over `size` characters."""
    return Run(method=method, seed=0, marks=(1,)).step_flops(size)


def work(runs: Sequence[Run], root: Path, text: Text) -> Iterator[Run]:
    """Does what is left of some runs, one after the other, and gives each when it is done."""
    left = [run for run in runs if not run.done(root, text)]
    costs = [run.marks[-1] * run.step_flops(text.size) / 1e9 for run in left]
    with Progress(total=round(sum(costs)), unit="GFLOP", interval=60.0) as progress:
        for number, run in enumerate(left):
            progress.note(f"{run.method}, seed {run.seed}, {run.marks[-1]:,} steps")
            run.train(root, text, progress, sum(costs[:number]))
            yield run


def add_first_seed(parser: Parser) -> None:
    """A flag for seeds that have run before, perhaps on another machine."""
    parser.add_argument(
        "--first_seed", type=within(0), default=0, help="to run; rows of earlier ones stay in --out"
    )


def earlier_rows(
    out: Path, first_seed: int, read: Callable[[str], Iterable[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """Rows of a file of results with seeds before `first_seed`; none for 0."""
    if first_seed == 0:
        return []
    try:
        return [row for row in read(out.read_text("utf-8")) if row["seed"] < first_seed]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{out} has no results of the seeds before {first_seed} ({error}): leave --first_seed "
            "out."
        ) from error


def publish(
    runs: Sequence[Run],
    root: Path,
    text: Text,
    out: Path,
    rows_of: Callable[[], list[dict[str, Any]]],
    as_markdown: Callable[[list[dict[str, Any]]], str],
    pictures: Mapping[str, Callable[[list[dict[str, Any]]], bytes]],
    first_seed: int,
) -> None:
    """Does what is left of the runs of `first_seed` and later ones, and stores after each what is
    known by then.

    Args:
      out: file for the rows, a line each; their table stands beside it as .md. Its rows of seeds
        before `first_seed` stay.
      rows_of: the rows, none where too little is known.
      pictures: by the path of a PNG file, which makes it of the rows.
    """
    earlier = earlier_rows(out, first_seed, lambda text: map(json.loads, text.splitlines()))
    runs = [run for run in runs if run.seed >= first_seed]

    def store() -> None:
        if rows := [*earlier, *(row for row in rows_of() if row["seed"] >= first_seed)]:
            write_atomic(out, "".join(json_text(row) + "\n" for row in rows))
            write_atomic(out.with_suffix(".md"), f"{device.origin()}\n{as_markdown(rows)}\n")
            for path, draw in pictures.items():
                write_atomic(path, draw(rows))

    for _ in work(runs, root, text):
        store()
    store()  # all may be done already
    print(out.with_suffix(".md").read_text("utf-8"))


def curves(
    lines: Sequence[tuple[str, int, dict[float, float]]], across: str, *, doubles: bool = False
) -> bytes:
    """A PNG of nats a character.

    Args:
      lines: name, seed and points of each curve; a name has its colour, a seed its dashes.
      across: what the points are by.
      doubles: for an axis on which equal steps double.
    """
    figure = canvas.figure(8, 4.8, "")
    axes = figure.subplots()
    names = list(dict.fromkeys(name for name, _, _ in lines))
    for name, seed, points in lines:
        number = names.index(name)
        axes.plot(
            list(points), list(points.values()), ms=5, lw=1.3, ls=("-", "--", ":")[seed % 3],
            color=("#1a1a1a", "#0072b2", "#56b4e9", "#d55e00", "#009e73", "#cc79a7")[number % 6],
            marker="XosD^v"[number % 6], label=name if seed == 0 else None,
        )  # fmt: skip
    if doubles:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(across, color=INK)
    axes.set_ylabel("nats per character of validation text (bounds; AR: exact)", fontsize=9)
    axes.grid(visible=True, alpha=0.25)
    axes.legend(fontsize=8)
    return canvas.png(figure)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean and its standard error, which is NaN for one value."""
    return statistics.mean_and_standard_error(np.asarray(values))


def with_error(value: float, error: float) -> str:
    return f"{value:.3f}" if math.isnan(error) else f"{value:.3f} ± {error:.3f}"
