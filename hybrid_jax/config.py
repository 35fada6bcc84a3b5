"""Experiments as data: typed sections, checked, and built into the objects that do the work.

A config file in `configs/` returns an `ml_collections.ConfigDict`, whose fields the command line
can override; `Experiment.from_config` turns it into frozen dataclasses. A setting that is None has
its natural value. A name that is unknown is refused, and so is a setting that has no effect beside
the others.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal, Self

import ml_collections

from hybrid_jax.data import manifest as manifests
from hybrid_jax.data import mixture
from hybrid_jax.data.manifest import Manifest
from hybrid_jax.data.settings import DataConfig
from hybrid_jax.errors import UserError, check_settings, free, resolved
from hybrid_jax.method import noising
from hybrid_jax.method.hyperschedule import Hyperschedule
from hybrid_jax.method.layout import Layout
from hybrid_jax.method.loss import Spec
from hybrid_jax.method.objective import Bound, Objective, Time
from hybrid_jax.method.settings import NoiseConfig, ScheduleConfig
from hybrid_jax.models.settings import ModelConfig
from hybrid_jax.models.transformer import Transformer
from hybrid_jax.optim import OptimizerConfig
from hybrid_jax.runtime import boards
from hybrid_jax.runtime.decode import from_values, overridden, parse_json, without_void
from hybrid_jax.runtime.files import expanded
from hybrid_jax.runtime.json_text import json_text
from hybrid_jax.runtime.sharding import MeshConfig
from hybrid_jax.sampling import closing
from hybrid_jax.sampling.settings import SamplingConfig

FORMAT = 2  # of `Experiment.to_json`


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
      board: plots the metrics that metrics.jsonl has, with a package of the extra "log".
    """

    steps: int = free(1000)  # more steps also stretch the learning-rate schedule
    batch_size: int = 32
    accumulation: int = free(1)
    ema_decay: float = 0.999
    log_every: int = free(50)
    eval_every: int = free(500)
    checkpoint_every: int = free(500)
    keep: int = free(3)
    loss_chunk: int = free(128)
    seed: int = 0
    board: boards.Kind = free("none")

    def __post_init__(self) -> None:
        check_settings(
            self, "train.", steps=1, batch_size=1, accumulation=1, log_every=1, eval_every=1,
            checkpoint_every=1, keep=1, loss_chunk=1,
        )  # fmt: skip
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
        (which the paper reports for the ε-hybrid).
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

    def __post_init__(self) -> None:
        check_settings(self, "evaluation.", draws=1, batch_size=1, records=0, final_records=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything that defines a run."""

    name: str = free("")
    data: DataConfig = DataConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    noise: NoiseConfig = NoiseConfig()
    layout: Layout = Layout()
    objective: Objective = Objective()
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    mesh: MeshConfig = free(MeshConfig())
    evaluation: EvaluationConfig = free(EvaluationConfig())
    sampling: SamplingConfig = free(SamplingConfig())

    def network(self, vocab_size: int) -> Transformer:
        """The transformer for N = `vocab_size` real tokens."""
        return Transformer(vocab_size=vocab_size, **dataclasses.asdict(self.model))

    def spec(self, vocab_size: int, bos: int, eos: int | None = None) -> Spec:
        """Schedule, noise, layout and objective for N = `vocab_size` real tokens."""
        return Spec(
            schedule=self.schedule.build(self.data.length),
            kernel=self.noise.build(vocab_size),
            layout=self._layout(self.schedule),
            objective=self.objective,
            bos=bos,
            eos=eos,
            chunk=self.train.loss_chunk,
        )

    @property
    def each(self) -> tuple[Self, ...]:
        """An experiment for each hyperschedule that steps are given to, its own first."""
        return tuple(self.on(schedule) for schedule in self.schedule.each)

    @functools.cached_property  # read from text, and asked for at every step
    def shares(self) -> tuple[mixture.Stage, ...]:
        """The shares of the steps that `each` has. Raises UserError for other weights."""
        return mixture.parse(self.schedule.weights or "", len(self.schedule.each), "hyperschedules")

    def on(self, schedule: ScheduleConfig) -> Self:
        """The same network on one hyperschedule, without settings that have no effect there."""
        built = schedule.build(self.data.length)
        layout, objective = effective_layout(self._layout(schedule), built), self.objective
        if not (built.settles_whole and built.phases > 1):  # no level to choose
            objective = dataclasses.replace(objective, levels="uniform")
        evaluation = self.evaluation
        if schedule.family == "quenched_ar":  # exact
            evaluation = dataclasses.replace(evaluation, time="discrete")
        return dataclasses.replace(
            self, schedule=schedule, layout=layout, objective=objective, evaluation=evaluation
        )

    def _layout(self, schedule: ScheduleConfig) -> Layout:
        if schedule.causal_window is None:
            return self.layout
        return dataclasses.replace(self.layout, causal_window=schedule.causal_window)

    def bound(self, vocab_size: int) -> Bound:
        """The bound that this experiment reports."""
        kernel = self.noise.build(vocab_size)
        if self.evaluation.kernel == "absorbing":
            kernel = noising.absorbing(vocab_size=vocab_size)
        cut = self.layout.documents == "separate" or self.data.padded is False
        windows = not self.layout.plain(self.schedule.build(self.data.length))
        return Bound(kernel=kernel, time=self.evaluation.time, ends_known=cut and windows)

    def resolved(self) -> Self:
        """The same experiment with the values that None stands for."""
        replaces = self.noise.build(vocab_size=2).replaces
        return dataclasses.replace(
            self,
            data=resolved(self.data),
            schedule=self.schedule.resolved(self.data.length),
            noise=resolved(self.noise),
            objective=resolved(self.objective) if replaces else self.objective,
            model=resolved(self.model),
            optimizer=resolved(self.optimizer),
        )

    def check(self) -> None:
        """Raises UserError for settings that do not go together, or have no effect together."""
        spec = self.spec(vocab_size=2, bos=0, eos=1)  # N = 2 stands for any size
        if not self.name:
            raise UserError("The experiment has no name: give it one, with config.name.")
        each, _ = self.each, self.shares
        for own in each[1:]:
            own.spec(vocab_size=2, bos=0, eos=1)
        if len({own.schedule.window for own in each}) < len(each):
            raise UserError(
                f"schedule.also={self.schedule.also} names a family and width twice, or those of "
                "the hyperschedule itself: leave one out."
            )
        for name, owner in (
            ("context", "windows of several positions with settled ones before them"),
            ("causal_window", "windows of several positions"),
        ):
            value = getattr(self.layout, name)
            in_effect = [
                getattr(own.layout, name)
                for own in each
                if getattr(own.schedule, name, None) is None
            ]
            if value != getattr(Layout(), name) and value not in in_effect:
                raise UserError(
                    f"layout.{name} belongs to {owner} and has no effect with "
                    f"{spec.schedule.name}: leave it out."
                )
        if self.objective.shown_weight is not None and not spec.kernel.replaces:
            raise UserError(
                f"objective.shown_weight belongs to noise that replaces tokens and has no effect "
                f"with {spec.kernel.name}: leave it out."
            )
        if all(self.objective != own.objective for own in each):
            raise UserError(
                "objective.levels=bell chooses among the levels that windows of flat and block "
                f"schedules pass through, and {spec.schedule.name} leaves no choice: leave it out."
            )
        rule = self.sampling.build()
        rule.check(spec.kernel, spec.objective)
        closing.check(rule.spec(spec), rule)
        separate = self.layout.documents == "separate"
        if separate and self.data.pairs:
            raise UserError(
                "layout.documents belongs to records of several documents and has no effect with "
                "pairs, which have records of their own: leave it out."
            )
        if (separate or self.data.padded is False) and self.sampling.eos != "stop":
            silent = "layout.documents=separate" if separate else "data.padded=false"
            raise UserError(
                f"With {silent} nothing is learned behind the end of a text: give "
                "sampling.eos=stop, so that texts end there."
            )
        self.network(vocab_size=2)
        # The last row of a window predicts nothing, but has a position.
        length = self.data.length
        plain = all(own.layout.plain(own.schedule.build(length)) for own in each)
        rows = length + (0 if plain else 1)
        if self.model.positions is not None and rows > self.model.positions:
            raise UserError(
                f"model.positions={self.model.positions} are too few for the {rows} rows of "
                f"data.length={length}: choose a shorter length."
            )
        if self.bound(vocab_size=2).kernel.jumps_at_zero and self.evaluation.time != "discrete":
            raise UserError(
                "The ε-hybrid's own bound has no continuous form: choose evaluation.time=discrete "
                "or evaluation.kernel=absorbing."
            )

    def to_config(self) -> ml_collections.ConfigDict:
        """As a ConfigDict, for config files and the command line."""
        return ml_collections.ConfigDict(dataclasses.asdict(self))

    def to_json(self) -> str:
        """As JSON text, the content of a workdir's config.json: no value depends on defaults."""
        values = {"format": FORMAT, **dataclasses.asdict(self.resolved())}
        return json_text(values, indent=1) + "\n"

    @classmethod
    def from_config(
        cls, values: Mapping[str, Any], settings: Mapping[str, str] | None = None
    ) -> Self:
        """From nested names and values.

        Args:
          values: ConfigDict or dict. A value that is still that of its "preset" is dropped where
            other values leave it without effect. Where `data.dir` names records that exist, their
            settings take the place of such values and of missing ones.
          settings: of a command line that replace some, as text by name ("noise.gamma").

        Raises:
          UserError: for an unknown name (with the nearest one), a wrong type, a bad value, or a
            setting without effect.
        """
        values = {
            name: value.to_dict() if isinstance(value, ml_collections.ConfigDict) else value
            for name, value in values.items()
        }
        preset = None
        if "preset" in values:  # of `presets.sized`
            preset = from_values(cls, values.pop("preset"), "config.preset")
        values = _with_prepared(values, settings or {}, preset)
        if preset:
            values = without_void(
                cls,
                values,
                lambda section, name: (
                    getattr(getattr(preset, section), name) == values[section][name]
                ),
            )
        experiment = from_values(cls, values, "config")
        if settings:
            experiment = from_values(cls, overridden(cls, values, settings, "config"), "config")
        # Levels that nobody chose are dropped too where no hyperschedule leaves a choice.
        if preset and "objective.levels" not in (settings or {}):
            every = [one.objective for one in experiment.each]
            known = experiment.objective.levels == preset.objective.levels
            if known and experiment.objective not in every:
                experiment = dataclasses.replace(experiment, objective=every[0])
        experiment.check()
        return experiment

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """From the text of `to_json`, of this version of hybrid_jax or an earlier one.

        Raises:
          ValueError: if it is not the JSON of an object.
          UserError: if it is of a later version, or as `from_config`.
        """
        values = parse_json(text)
        if not isinstance(values, dict):
            raise ValueError("it is not a JSON object")
        version = values.pop("format", 1)
        if version not in (1, FORMAT):
            raise UserError(
                f"The settings are of format {version!r}, and this version of hybrid_jax reads "
                f"formats up to {FORMAT}: install the version that wrote them."
            )
        return cls.from_config(_upgraded(values) if version == 1 else values)


def _with_prepared(
    values: dict[str, Any], settings: Mapping[str, str], preset: Experiment | None
) -> dict[str, Any]:
    """Settings in which those of `data` that nobody chose are the ones of the records there are."""
    data = values.get("data", {})
    folder = settings.get("data.dir", data.get("dir")) if isinstance(data, Mapping) else None
    if not (folder and isinstance(folder, str) and manifests.find(expanded(folder))):
        return values
    found = Manifest.load(folder)
    natural = dataclasses.asdict(preset.data) if preset else {}
    data = dict(data)
    for name in ("source", "valid_source", "tokenizer", "length", "vocab_size"):
        chosen = f"data.{name}" in settings or (name in data and data[name] != natural.get(name))
        if not chosen:
            has_effect = name != "vocab_size" or found.tokenizer == "sentencepiece"
            data[name] = getattr(found, name) if has_effect else None
    return {**values, "data": data}


def effective_layout(layout: Layout, schedule: Hyperschedule) -> Layout:
    """The layout with defaults in place of what has no effect on this schedule."""
    narrow, flat = schedule.width == 1, schedule.width == schedule.length
    # In front of a shifted window is a clean row, which sees the noise only if it may look ahead.
    alone = narrow and (layout.alignment == "aligned" or schedule.levels == 1)
    return dataclasses.replace(
        layout,
        causal_window=layout.causal_window and not alone,
        context="causal" if narrow or flat else layout.context,
    )


def _upgraded(values: dict[str, Any]) -> dict[str, Any]:
    """Settings of format 1, which held a value for each, without those that had no effect."""
    values = without_void(Experiment, values, lambda *_: True)
    old = from_values(Experiment, values, "config")
    if not old.noise.build(vocab_size=2).replaces:
        old = dataclasses.replace(
            old, objective=dataclasses.replace(old.objective, shown_weight=None)
        )
    layout = effective_layout(old.layout, old.schedule.build(old.data.length))
    return dataclasses.asdict(dataclasses.replace(old, layout=layout))
