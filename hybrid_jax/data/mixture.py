"""Several sources in one training, each with its share of every stretch of the batches.

The source of a row is a function of the row's place among all rows, counted from the first step: it
needs no state, and shares are exact after each period of the weights.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from hybrid_jax.errors import UserError
from hybrid_jax.runtime.decode import listed

_PREFIX = "mix:"
_LONGEST = 10_000  # rows of a period


@dataclasses.dataclass(frozen=True)
class Stage:
    """Weights from a step on.

    Attributes:
      step: the first.
      shares: rows of each source in a period.
    """

    step: int
    shares: tuple[int, ...]

    @functools.cached_property
    def order(self) -> np.ndarray:
        """The source of each row of a period, spread as evenly as they can be."""
        at = [(np.arange(share) + 0.5) / share for share in self.shares if share]
        source = np.repeat(np.arange(len(self.shares)), self.shares)
        return source[np.argsort(np.concatenate(at), kind="stable")]

    def counts(self, rows: int) -> np.ndarray:
        """Rows of each source among the first rows of the stage."""
        periods, rest = divmod(rows, len(self.order))
        partial = np.bincount(self.order[:rest], minlength=len(self.shares))
        return periods * np.asarray(self.shares) + partial


def mixed(source: str) -> list[str]:
    """The sources of "mix:SOURCE,SOURCE" (a JSON list where one has a comma), or the one it is.

    Raises:
      UserError: for a mixture of none, or of one twice.
    """
    if not source.startswith(_PREFIX):
        return [source]
    found = listed(source.removeprefix(_PREFIX))
    if not found or len(set(found)) < len(found):
        raise UserError(f"{source} names no source, or one twice: write mix:SOURCE,SOURCE.")
    return found


def parse(weights: str, sources: int, of: str = "sources") -> tuple[Stage, ...]:
    """The stages of a mixture.

    Args:
      weights: of the sources, "0.7,0.3", and after a space those from a later step on,
        "0.7,0.3 1000:1/4,3/4"; "" for equal ones.
      sources: their number.
      of: their kind, for messages.

    Raises:
      UserError: for other text, a wrong number of weights, or weights that do not sum to 1.
    """
    stages: list[Stage] = []
    for number, part in enumerate(weights.split() or [",".join([f"1/{sources}"] * sources)]):
        step, colon, rest = part.rpartition(":")
        try:
            found = [Fraction(word) for word in rest.split(",")]
            first = int(step) if colon else 0
        except (ValueError, ZeroDivisionError) as error:
            raise UserError(
                f"The weights {part!r} are none: write one for each of the {of}, such as 0.7,0.3, "
                "and behind a step those from there on, such as 1000:0.2,0.8."
            ) from error
        if bool(number) != bool(colon) or (stages and first <= stages[-1].step):
            raise UserError(
                f"The weights {weights!r} name no step where they change, or steps that do not "
                "rise: write them as 0.7,0.3 1000:0.2,0.8."
            )
        if len(found) != sources:
            raise UserError(f"{part!r} has {len(found)} weights for {sources} {of}.")
        if min(found) < 0 or sum(found) != 1:
            raise UserError(
                f"The weights {rest!r} sum to {float(sum(found)):g}: give weights from 0 on that "
                "sum to 1, or parts such as 1/3."
            )
        period = math.lcm(*(weight.denominator for weight in found))
        if period > _LONGEST:
            raise UserError(f"The weights {rest!r} are too fine: give at most four decimals.")
        stages.append(Stage(first, tuple(int(weight * period) for weight in found)))
    return tuple(stages)


def place(stages: Sequence[Stage], batch_size: int, index: int) -> tuple[int, int]:
    """The source of a row, and the number of rows of that source before it.

    Args:
      index: of the row among all of the training, step · B + its place in the batch.
    """
    found = source(stages, batch_size, index)
    return found, int(counts(stages, batch_size, index)[found])


def source(stages: Sequence[Stage], batch_size: int, index: int) -> int:
    """The source of a row (see `place`)."""
    stage = [own for own in stages if own.step * batch_size <= index][-1]
    return int(stage.order[(index - stage.step * batch_size) % len(stage.order)])


def counts(stages: Sequence[Stage], batch_size: int, rows: int) -> np.ndarray:
    """Rows of each source among the first `rows` of the training."""
    ends = [stage.step * batch_size for stage in stages[1:]] + [rows]
    each = [
        stage.counts(max(0, min(end, rows) - stage.step * batch_size))
        for stage, end in zip(stages, ends, strict=True)
    ]
    found: np.ndarray = np.sum(each, axis=0)
    return found
