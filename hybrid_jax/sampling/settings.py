"""Generation as settings: a rule by its name and the numbers that it has."""

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

from hybrid_jax.errors import UserError, check_literals, only
from hybrid_jax.sampling import rules
from hybrid_jax.sampling.update_rule import Rule

_MOST_SHOWN = 1000  # samples at the end of a run

if TYPE_CHECKING:

    class RuleOptions:
        """All settings of rules and warps, each None where it is not given."""

        def __init__(self, **settings: Any) -> None: ...

else:
    RuleOptions = dataclasses.make_dataclass(
        "RuleOptions",
        [
            (name, known.kind | None, only(rule=tuple(rules.with_option(name))))
            for name, known in rules.OPTIONS.items()
        ],
        frozen=True,
        kw_only=True,
    )


def given(options: RuleOptions) -> dict[str, Any]:
    """The settings of rule and warp that are not None."""
    values = {name: getattr(options, name) for name in rules.OPTIONS}
    return {name: value for name, value in values.items() if value is not None}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig(RuleOptions):
    """Generation at the end of a run, and by `hybrid_jax.generate` unless told otherwise.

    Settings of rules (`sampling.rules.OPTIONS`) are fields too; None stands for the rule's own
    default.

    Attributes:
      count: samples shown at the end of a run.
      rule: name of an update rule (see `sampling.rules`).
      eos: "continue": texts go on behind an end-of-document token; "stop": they end there.
    """

    count: int = 4
    rule: str = "ancestral"
    eos: Literal["continue", "stop"] = "continue"

    def __post_init__(self) -> None:
        if not 0 <= self.count <= _MOST_SHOWN:
            raise UserError(f"sampling.count must lie in 0 … {_MOST_SHOWN}, but is {self.count}.")
        check_literals(self, "sampling.")

    @classmethod
    def parse(cls, text: str, *, eos: str = "continue") -> "SamplingConfig":
        """From a rule and its settings in one word, "acs:eta=0.5:guidance=confidence".

        Raises:
          UserError: for an unknown rule or setting, or a bad value.
        """
        rule, *settings = text.split(":")
        values: dict[str, Any] = {"rule": rule}
        for setting in settings:
            name, _, value = setting.partition("=")
            known = rules.OPTIONS.get(name)
            if known is None and name != "eos":
                raise UserError(
                    f"{name!r} in {text!r} is not a setting of a rule: write "
                    "RULE:SETTING=VALUE, for example acs:eta=0.5."
                )
            if name in values:
                raise UserError(f"{text!r} gives {name} twice: leave one out.")
            try:
                values[name] = known.kind(value) if known else value
            except ValueError as error:
                number = rules.OPTIONS[name].number
                raise UserError(f"{name}={value!r} in {text!r} is not a {number}.") from error
        sampling = cls(**{"eos": eos, **values})
        sampling.build()
        return sampling

    def build(self) -> Rule:
        """The rule. Raises UserError for a setting that it does not have."""
        return rules.make(self.rule, **given(self))
