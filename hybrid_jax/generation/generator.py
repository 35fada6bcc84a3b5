"""A trained model with all that decides how it writes: its rule, its steps, and where texts end."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hybrid_jax.errors import UserError
from hybrid_jax.sampling import loop
from hybrid_jax.sampling.settings import SamplingConfig
from hybrid_jax.sampling.state import Sampler
from hybrid_jax.sampling.update_rule import Rule
from hybrid_jax.training.pretrained import Pretrained


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generator:
    """A model that writes.

    Attributes:
      sampling: settings of rule and end, for the record.
      sampler: what the loop is compiled for.
      rule: of `sampling`, or one in its place.
    """

    model: Pretrained
    sampling: SamplingConfig
    sampler: Sampler
    rule: Rule

    def settings(self, workdir: str | Path, seed: int) -> dict[str, Any]:
        """All that texts depend on, to stand beside each of them."""
        return {
            "workdir": str(workdir),
            "step": self.model.step,
            "tokenizer": self.model.tokenizer.fingerprint,
            "seed": seed,
            "schedule": self.sampler.spec.schedule.name,
            "noise": self.sampler.spec.kernel.name,
            "sampling": {
                k: v for k, v in dataclasses.asdict(self.sampling).items() if k != "count"
            },
        }


def build(
    model: Pretrained,
    sampling: SamplingConfig | None = None,
    *,
    levels: int | None = None,
    rule: Rule | None = None,
) -> Generator:
    """A generator of the model.

    Args:
      sampling: None for the experiment's.
      levels: steps of a window; None for as many as trained.
      rule: in place of the one of `sampling`.

    Raises:
      UserError: if rule, noise and settings do not go together, or there are no such levels.
    """
    sampling = sampling or model.experiment.sampling
    rule = rule or sampling.build()
    spec = model.spec
    if levels is not None:
        if model.experiment.schedule.family == "quenched_ar":
            raise UserError(
                "The levels are the steps of a window, and this model has no windows: leave them "
                "as they are."
            )
        if not rule.takes_levels:
            raise UserError(
                "The levels are the steps of a window, and speculative writes one in a single "
                "draft: leave them as they are."
            )
        schedule = dataclasses.replace(model.experiment.schedule, levels=levels)
        spec = dataclasses.replace(spec, schedule=schedule.build(spec.schedule.length))
    eos = model.tokenizer.eos if sampling.eos == "stop" else None
    sampler = Sampler(spec=rule.spec(spec), network=model.network, eos=eos)
    loop.check(sampler, rule)
    return Generator(model=model, sampling=sampling, sampler=sampler, rule=rule)


def choose_sampling(
    trained_with: SamplingConfig, rule: str | None, settings: Mapping[str, Any]
) -> SamplingConfig:
    """The experiment's settings, with those that are not None; another rule starts afresh."""
    given = {name: value for name, value in settings.items() if value is not None}
    if rule is not None and rule != trained_with.rule:
        return SamplingConfig(rule=rule, **{"eos": trained_with.eos, **given})
    return dataclasses.replace(trained_with, **given)
