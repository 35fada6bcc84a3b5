"""A hyperschedule and its noise as settings, and their names on the command line."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

from hybrid_jax.errors import UserError, check_settings, only, resolved
from hybrid_jax.method import hyperschedule, noising
from hybrid_jax.method.hyperschedule import Hyperschedule
from hybrid_jax.method.noising import NoiseKernel


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """A hyperschedule.

    Attributes:
      family: see `method.hyperschedule`.
      width: ω of a block or slide; 16 for None.
      levels: T; None for one step for each position: the length of a flat schedule, the width of
        the others, and of a dilated one the largest power of 2 in the length.
      causal_window: that of the layout, in its place; None leaves it.
      also: other hyperschedules that some training steps are given to, such as
        "quenched_ar,block:width=4,flat:levels=64". The network is one and the same.
      weights: shares of the steps for this hyperschedule and those of `also`, "0.5,0.25,0.25", and
        those from a later step on, "0.5,0.25,0.25 1000:0.8,0.1,0.1"; equal for None.
    """

    family: Literal["quenched_ar", "flat", "block", "slide", "dilated"] = "block"
    width: int | None = only(16, family=("block", "slide"))
    levels: int | None = only(family=("flat", "block", "slide", "dilated"))
    causal_window: bool | None = only(family=("flat", "block", "slide", "dilated"))
    also: str = ""
    weights: str | None = only(also="?*")

    def __post_init__(self) -> None:
        check_settings(self, "schedule.", width=1, levels=1)

    @classmethod
    def parse(cls, text: str) -> "ScheduleConfig":
        """From one word, "block:width=8:levels=4:causal_window=true".

        Raises:
          UserError: for an unknown family or setting, or a bad value.
        """
        family, *settings = text.split(":")
        values: dict[str, Any] = {}
        readers: dict[str, Callable[[str], Any]] = {
            "width": int, "levels": int,
            "causal_window": {"true": True, "false": False}.__getitem__,
        }  # fmt: skip
        for setting in settings:
            name, _, value = setting.partition("=")
            try:
                values[name] = readers.pop(name)(value)  # once each
            except (KeyError, ValueError) as error:
                raise UserError(
                    f"{setting!r} in {text!r} sets nothing of a hyperschedule: write, for example, "
                    "block:width=8:levels=4."
                ) from error
        return cls(family=family, **values)  # type: ignore[arg-type]  # checked there

    @property
    def each(self) -> tuple["ScheduleConfig", ...]:
        """This hyperschedule alone, and those of `also`."""
        if not self.also:
            return (self,)
        own = dataclasses.replace(self, also="", weights=None)
        return (own, *map(self.parse, self.also.split(",")))

    @property
    def window(self) -> tuple[str, int | None, bool | None]:
        """Family, width and sight, which say what a network is trained for; any levels will do."""
        return self.family, resolved(self).width, self.causal_window

    def resolved(self, length: int) -> "ScheduleConfig":
        """The same with the values that None stands for."""
        known: ScheduleConfig = resolved(self)
        if self.family == "quenched_ar" or self.levels is not None:
            return known
        most = 1 << length.bit_length() - 1 if self.family == "dilated" else length
        return dataclasses.replace(known, levels=known.width or most)

    def build(self, length: int) -> Hyperschedule:
        """The hyperschedule over `length` positions."""
        known = self.resolved(length)
        shape = {"length": length, "width": known.width, "levels": known.levels}
        made: Hyperschedule = getattr(hyperschedule, self.family)(
            **{name: value for name, value in shape.items() if value is not None}
        )
        return made


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """A noise kernel; gamma and epsilon, 0.01 for None, belong to the kernels of these names."""

    kernel: Literal["absorbing", "uniform", "gamma", "epsilon"] = "absorbing"
    gamma: float | None = only(0.01, kernel="gamma")
    epsilon: float | None = only(0.01, kernel="epsilon")

    def __post_init__(self) -> None:
        check_settings(self, "noise.")

    def build(self, vocab_size: int) -> NoiseKernel:
        """The kernel over N = `vocab_size` real tokens."""
        known = resolved(self)
        match self.kernel:
            case "absorbing":
                return noising.absorbing(vocab_size=vocab_size)
            case "uniform":
                return noising.uniform(vocab_size=vocab_size)
            case "gamma":
                return noising.gamma_hybrid(vocab_size=vocab_size, gamma=known.gamma)
            case "epsilon":
                return noising.epsilon_hybrid(vocab_size=vocab_size, epsilon=known.epsilon)
