"""Statistics of generated tokens that need no scorer, each a mean over texts with its error."""

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np

from hybrid_jax.training.statistics import mean_and_standard_error


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over texts.

    Attributes:
      value: NaN if no text is long enough to have one.
      error: standard error over texts; NaN for fewer than two.
      texts: number of texts that are long enough.
    """

    value: float
    error: float
    texts: int

    def shown(self, digits: int) -> str:
        """The value with its error, where it has one."""
        error = "" if math.isnan(self.error) else f" ± {self.error:.{digits}f}"
        return f"{self.value:.{digits}f}{error}"


def entropy(tokens: np.ndarray) -> float:
    """Entropy in nats of the token frequencies of a text, int [n] with n ≥ 1.

    At most log n, so only texts of like length compare.
    """
    _, counts = np.unique(tokens, return_counts=True)
    share = counts / counts.sum()
    return float(np.sum(share * -np.log(share)))


def _ngrams(tokens: np.ndarray, n: int) -> tuple[np.ndarray, int]:
    """Different n-grams [different, n] of a text, and the number of all its n-grams."""
    if len(tokens) < n:
        return np.zeros((0, n), tokens.dtype), 0
    every = np.lib.stride_tricks.sliding_window_view(tokens, n)
    return np.unique(every, axis=0), len(every)


def repetition(rows: Sequence[np.ndarray], n: int) -> Estimate:
    """Share of a text's n-grams that repeat an earlier one, mean over texts of n tokens or more."""
    counts = [(len(different), total) for different, total in (_ngrams(row, n) for row in rows)]
    return mean([1.0 - different / total for different, total in counts if total])


def distinct(rows: Sequence[np.ndarray], n: int) -> Estimate:
    """Different n-grams over n-grams of all texts together; its error is the jackknife's."""
    found = [(different, total) for different, total in (_ngrams(row, n) for row in rows) if total]
    if not found:
        return Estimate(value=math.nan, error=math.nan, texts=0)
    totals = np.array([total for _, total in found])
    owner = np.repeat(np.arange(len(found)), [len(different) for different, _ in found])
    pooled = np.concatenate([different for different, _ in found])
    every, where, count = np.unique(pooled, axis=0, return_inverse=True, return_counts=True)
    value = len(every) / totals.sum()
    if len(found) == 1:
        return Estimate(value=value, error=math.nan, texts=1)
    # Without a text, the n-grams that only it has are gone.
    alone = np.bincount(owner[count[where.reshape(-1)] == 1], minlength=len(found))
    without = (len(every) - alone) / (totals.sum() - totals)
    error = math.sqrt((len(found) - 1) * float(np.var(without)))
    return Estimate(value=float(value), error=error, texts=len(found))


def mean(values: Sequence[float] | np.ndarray, weights: np.ndarray | None = None) -> Estimate:
    """Mean over texts and its standard error; NaN for none. Weights as in `training.statistics`."""
    if not len(values):
        return Estimate(value=math.nan, error=math.nan, texts=0)
    value, error = mean_and_standard_error(np.asarray(values, np.float64), weights)
    return Estimate(value=value, error=error, texts=len(values))


def combined(estimates: Sequence[Estimate]) -> Estimate:
    """Mean of independent estimates of one number, such as those of several seeds.

    Its error is the standard error of that mean, from the errors of the parts.
    """
    count = len(estimates)
    return Estimate(
        value=math.fsum(estimate.value for estimate in estimates) / count,
        error=math.sqrt(math.fsum(estimate.error**2 for estimate in estimates)) / count,
        texts=sum(estimate.texts for estimate in estimates),
    )


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, *rows)]
    lines.insert(1, "|---" * len(heads) + "|")
    return "\n".join(lines)
