"""How text is generated, as settings: a rule by its name and the numbers that it has."""

from __future__ import annotations

import dataclasses
import typing
from typing import Literal

from hybrid_jax.errors import UserError
from hybrid_jax.sampling import rules
from hybrid_jax.sampling.draw import Warp
from hybrid_jax.sampling.update_rule import Rule


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How text is generated: at the end of a run, and by `hybrid_jax.generate` unless told else.

    Attributes:
      count: samples shown at the end of a run.
      rule: name of an update rule (see `sampling.rules`).
      eta, guidance, sweeps, strategy, threshold, bound: of the rules that have them; None for the
        rule's own default.
      temperature, top_k, top_p: of the distribution that tokens are drawn from; None for none.
      eos: "continue": texts go on behind an end-of-document token; "stop": they end there.
    """

    count: int = 4
    rule: str = "ancestral"
    eta: float | None = None
    guidance: str | None = None
    sweeps: int | None = None
    strategy: str | None = None
    threshold: float | None = None
    bound: float | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    eos: Literal["continue", "stop"] = "continue"

    def __post_init__(self):
        if self.count < 0:
            raise UserError(f"sampling.count must be 0 or more, but is {self.count}.")
        if self.eos not in ("continue", "stop"):
            raise UserError(f"sampling.eos must be continue or stop, but is {self.eos}.")

    @classmethod
    def parse(cls, text: str) -> SamplingConfig:
        """From a rule and its settings in one word, "acs:eta=0.5:guidance=confidence".

        Raises:
          UserError: for an unknown rule or setting, or a bad value.
        """
        rule, *settings = text.split(":")
        hints = typing.get_type_hints(cls)
        values: dict[str, typing.Any] = {"rule": rule}
        for setting in settings:
            name, _, value = setting.partition("=")
            if name not in hints or name in ("rule", "count"):
                raise UserError(
                    f"{name!r} in {text!r} is not a setting of a rule: write "
                    "RULE:SETTING=VALUE, for example acs:eta=0.5."
                )
            kinds = [k for k in (typing.get_args(hints[name]) or (str,)) if k in (int, float)]
            try:
                values[name] = kinds[0](value) if kinds else value
            except ValueError as error:
                raise UserError(f"{name}={value!r} in {text!r} is not a number.") from error
        sampling = cls(**values)
        sampling.build()
        return sampling

    def build(self) -> Rule:
        """The rule. Raises UserError for a setting that it does not have."""
        settings = dataclasses.asdict(self)
        for name in ("count", "eos"):
            del settings[name]
        warp = Warp(**{name: settings.pop(name) for name in ("temperature", "top_k", "top_p")})
        return rules.make(settings.pop("rule"), warp=warp, **settings)
