"""Experiments as data: typed sections, checked, and built into the objects that do the work.

A config file in `configs/` returns an `ml_collections.ConfigDict`, whose fields the command line
can override; `Experiment.from_config` turns it into frozen dataclasses and refuses unknown names.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from typing import Literal

import ml_collections

from hybrid_jax.errors import UserError
from hybrid_jax.method import hyperschedule, noising
from hybrid_jax.method.hyperschedule import Hyperschedule
from hybrid_jax.method.layout import Layout
from hybrid_jax.method.loss import Spec
from hybrid_jax.method.noising import NoiseKernel
from hybrid_jax.method.objective import Bound, Objective, Time
from hybrid_jax.models.attention import Backend
from hybrid_jax.models.transformer import Transformer
from hybrid_jax.optim import OptimizerConfig
from hybrid_jax.runtime.decode import from_values
from hybrid_jax.runtime.sharding import MeshConfig
from hybrid_jax.sampling.settings import SamplingConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which text, and how it becomes records (see `hybrid_jax.data.prepare`).

    Attributes:
      source, valid_source: where documents come from; a share of `source` is held out when
        `valid_source` is empty.
      tokenizer: "sentencepiece", "byte" or "gpt2:FOLDER".
      vocab_size: of a trained tokenizer.
      length: L, tokens of a record.
      dir: folder of prepared records; empty for one under `data/` named after these settings.
    """

    source: str = "pydocs"
    valid_source: str = ""
    tokenizer: str = "sentencepiece"
    vocab_size: int = 512
    length: int = 64
    dir: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """A hyperschedule family and its ω and T (ignored where the family fixes them)."""

    family: Literal["quenched_ar", "flat", "block", "slide"] = "block"
    width: int = 16
    levels: int = 16

    def build(self, length: int) -> Hyperschedule:
        """The hyperschedule over `length` positions."""
        match self.family:
            case "quenched_ar":
                return hyperschedule.quenched_ar(length=length)
            case "flat":
                return hyperschedule.flat(length=length, levels=self.levels)
            case "block":
                return hyperschedule.block(length=length, width=self.width, levels=self.levels)
            case "slide":
                return hyperschedule.slide(length=length, width=self.width, levels=self.levels)
        raise UserError(
            f"schedule.family must be quenched_ar, flat, block or slide, but is {self.family}."
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """A noise kernel; gamma and epsilon belong to the kernels of these names."""

    kernel: Literal["absorbing", "uniform", "gamma", "epsilon"] = "absorbing"
    gamma: float = 0.01
    epsilon: float = 0.01

    def build(self, vocab_size: int) -> NoiseKernel:
        """The kernel over N = `vocab_size` real tokens."""
        match self.kernel:
            case "absorbing":
                return noising.absorbing(vocab_size=vocab_size)
            case "uniform":
                return noising.uniform(vocab_size=vocab_size)
            case "gamma":
                return noising.gamma_hybrid(vocab_size=vocab_size, gamma=self.gamma)
            case "epsilon":
                return noising.epsilon_hybrid(vocab_size=vocab_size, epsilon=self.epsilon)
        raise UserError(
            f"noise.kernel must be absorbing, uniform, gamma or epsilon, but is {self.kernel}."
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Size and form of the transformer (see `models.transformer.Transformer`)."""

    layers: int = 4
    width: int = 128
    heads: int = 2
    mlp_ratio: int = 4
    activation: Literal["gelu", "relu2"] = "gelu"
    condition: int = 0
    embedding_gamma: float = 0.0
    qk_norm: bool = False
    dropout: float = 0.0
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False
    unroll: int = 1
    attention: Backend = "auto"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The training run.

    Attributes:
      steps: optimiser steps.
      batch_size: examples per step, over all devices and all accumulation rounds.
      accumulation: rounds a step is split into, to fit memory; results do not depend on it.
      ema_decay: of the averaged parameters, which are evaluated and sampled.
      log_every, eval_every, checkpoint_every: steps.
      keep: checkpoints kept.
      loss_chunk: positions of an example whose logits exist at once.
      seed: of parameters, data order and noise.
    """

    steps: int = 1000
    batch_size: int = 32
    accumulation: int = 1
    ema_decay: float = 0.999
    log_every: int = 50
    eval_every: int = 500
    checkpoint_every: int = 500
    keep: int = 3
    loss_chunk: int = 128
    seed: int = 0

    def __post_init__(self):
        for name in ("steps", "batch_size", "accumulation", "log_every", "eval_every",
                     "checkpoint_every", "keep", "loss_chunk"):  # fmt: skip
            if getattr(self, name) < 1:
                raise UserError(f"train.{name} must be at least 1, but is {getattr(self, name)}.")
        if self.batch_size % self.accumulation:
            raise UserError(
                f"train.batch_size={self.batch_size} is not divisible by "
                f"train.accumulation={self.accumulation}: choose a multiple."
            )
        if not 0.0 <= self.ema_decay < 1.0:
            raise UserError(f"train.ema_decay must lie in [0, 1), but is {self.ema_decay}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """The reported bound.

    Attributes:
      kernel: "own": the noise of training; "absorbing": of the same network under masking alone
        (what the paper reports for ε-hybrid).
      time: "discrete" or "continuous" (see `objective`).
      records: validation records while training; 0 for all.
      final_records: validation records at the end; 0 for all.
      draws: draws of levels and noise for each record at the end.
      batch_size: examples per evaluation batch.
    """

    kernel: Literal["own", "absorbing"] = "own"
    time: Time = "continuous"
    records: int = 256
    final_records: int = 0
    draws: int = 4
    batch_size: int = 64

    def __post_init__(self):
        if self.kernel not in ("own", "absorbing"):
            raise UserError(f"evaluation.kernel must be own or absorbing, but is {self.kernel}.")
        if self.draws < 1 or self.batch_size < 1 or self.records < 0 or self.final_records < 0:
            raise UserError(
                "evaluation: draws and batch_size must be at least 1, records 0 or more."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything that defines a run."""

    name: str
    data: DataConfig = DataConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    noise: NoiseConfig = NoiseConfig()
    layout: Layout = Layout()
    objective: Objective = Objective()
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    mesh: MeshConfig = MeshConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    sampling: SamplingConfig = SamplingConfig()

    def network(self, vocab_size: int) -> Transformer:
        """The transformer for N = `vocab_size` real tokens."""
        return Transformer(vocab_size=vocab_size, **dataclasses.asdict(self.model))

    def spec(self, vocab_size: int, bos: int) -> Spec:
        """Schedule, noise, layout and objective for N = `vocab_size` real tokens."""
        return Spec(
            schedule=self.schedule.build(self.data.length),
            kernel=self.noise.build(vocab_size),
            layout=self.layout,
            objective=self.objective,
            bos=bos,
            chunk=self.train.loss_chunk,
        )

    def bound(self, vocab_size: int) -> Bound:
        """The bound that this experiment reports."""
        kernel = self.noise.build(vocab_size)
        if self.evaluation.kernel == "absorbing":
            kernel = noising.absorbing(vocab_size=vocab_size)
        return Bound(kernel=kernel, time=self.evaluation.time)

    def to_config(self) -> ml_collections.ConfigDict:
        """As a ConfigDict, for config files and the command line."""
        return ml_collections.ConfigDict(dataclasses.asdict(self))

    def to_json(self) -> str:
        """As JSON text, the content of a workdir's config.json."""
        return json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_config(cls, values: typing.Mapping) -> Experiment:
        """From nested names and values (ConfigDict or dict).

        Raises:
          UserError: for an unknown name (with the nearest one), a wrong type or a bad value.
        """
        if isinstance(values, ml_collections.ConfigDict):
            values = values.to_dict()
        experiment = from_values(cls, values, "config")
        # Whatever does not go together shows here, before any work: N = 2 stands for any size.
        spec = experiment.spec(vocab_size=2, bos=0)
        experiment.sampling.build().check(spec.kernel, spec.objective)
        experiment.network(vocab_size=2)
        bound = experiment.bound(vocab_size=2)
        if bound.kernel.jumps_at_zero and bound.time != "discrete":
            raise UserError(
                "The ε-hybrid's own bound has no continuous form: choose evaluation.time=discrete "
                "or evaluation.kernel=absorbing."
            )
        return experiment
