"""Settings that people choose: name, type, default, meaning and range, told once by a field.

Checks, command-line flags, the sampling section of configs and the form of the demo follow from it.
"""

import dataclasses
import math
import numbers
import typing
from typing import Any

from hybrid_jax.errors import UserError, check_number


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """A field of a rule or of a warp that people set.

    Attributes:
      kind: float, int or str.
      default: None where the setting may be absent.
      about: its meaning, for help texts.
      within: the interval of a number, such as "(0, 1]" or "[0, ∞)".
      choices: all values of a string.
    """

    name: str
    kind: type
    default: Any
    about: str
    within: str = ""
    choices: tuple[str, ...] = ()

    @property
    def bounds(self) -> tuple[float, float]:
        """The ends of `within`."""
        low, high = self.within[1:-1].replace("∞", "inf").split(",")
        return float(low), float(high)

    @property
    def number(self) -> str:
        """The kind of number it is, in words."""
        return "whole number" if self.kind is int else "number"

    @property
    def values(self) -> str:
        """The values it may have, in words."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        low, high = self.bounds
        return f"{low:g} or more" if high == math.inf else f"in {self.within}"

    def check(self, value: Any) -> None:
        """Raises UserError for a value that it may not have."""
        check_number(value, self.name)
        known = numbers.Integral if self.kind is int else numbers.Real
        if not (self.choices or isinstance(value, known) or hasattr(value, "dtype")):
            raise UserError(f"{self.name} must be a {self.number}, but is {value!r}.")
        if self.choices:
            fits = value in self.choices
        else:
            low, high = self.bounds
            fits = low < value < high
            fits |= bool(self.within[0] == "[" and value == low)
            fits |= bool(self.within[-1] == "]" and value == high)
        if not fits:
            verb = "lie" if self.values.startswith("in ") else "be"
            raise UserError(f"{self.name} must {verb} {self.values}, but is {value}.")


def setting(kind: Any, default: Any, about: str, within: str = "", *, static: bool = False) -> Any:
    """A field of a dataclass that people set (see `Setting`).

    Args:
      kind: float, int or a `Literal` of strings.
      static: whether another value compiles anew.
    """
    choices = typing.get_args(kind)
    made = {"kind": str if choices else kind, "about": about, "within": within, "choices": choices}
    return dataclasses.field(default=default, metadata={"setting": made, "static": static})


def settings_of(owner: Any) -> dict[str, Setting]:
    """The settings among the fields of a dataclass, or of an instance, by name."""
    return {
        field.name: Setting(name=field.name, default=field.default, **field.metadata["setting"])
        for field in dataclasses.fields(owner)
        if "setting" in field.metadata
    }


def check_ranges(owner: Any) -> None:
    """Raises UserError for the first setting of an instance whose value it may not have."""
    for name, known in settings_of(owner).items():
        value = getattr(owner, name)
        if value is not None:
            known.check(value)
