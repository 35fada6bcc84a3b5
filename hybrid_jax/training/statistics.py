"""Means and their standard errors; likelihood in nats, as perplexity, in bits per byte."""

import math

import numpy as np

from hybrid_jax.errors import UserError


def mean_and_standard_error(
    values: np.ndarray, weights: np.ndarray | None = None
) -> tuple[float, float]:
    """Mean over independent units (records), and its standard error.

    With weights, such as tokens per record, this is the ratio estimate Σwv / Σw. Weights vary with
    the records, so the error is that of a ratio, to first order:
    sqrt(n/(n−1) Σ w²(v − mean)²) / Σw.

    Args:
      values: float [n], one per record, such as its mean nats per token.
      weights: float [n], ≥ 0 with a positive sum; None for equal weights.

    Returns:
      (mean, standard error) in the unit of ``values``; the error is NaN for one record.

    Raises:
      UserError: if there are no records, or all weights are 0.
      ValueError: if shapes differ or a weight is negative.
    """
    values = np.asarray(values, np.float64)
    weights = np.ones_like(values) if weights is None else np.asarray(weights, np.float64)
    if values.ndim != 1 or values.shape != weights.shape:
        raise ValueError(f"values {values.shape} and weights {weights.shape} must be equal, [n]")
    if (weights < 0).any():
        raise ValueError("a weight is negative")
    total = weights.sum()
    if total == 0:
        raise UserError("There are no records to average; give a data set that holds some text.")
    mean = float((weights * values).sum() / total)
    n = len(values)
    if n == 1:
        return mean, math.nan
    squares = float((weights**2 * (values - mean) ** 2).sum())
    return mean, math.sqrt(n / (n - 1) * squares) / float(total)


def perplexity(nats_mean: float, nats_se: float) -> tuple[float, float]:
    """Perplexity and its standard error from nats per token, to first order; infinite past
    what a float64 holds."""
    try:
        value = math.exp(nats_mean)
    except OverflowError:
        return math.inf, math.inf
    return value, value * nats_se


def bits_per_byte(nats_per_token: float, bytes_per_token: float) -> float:
    """Bits per byte of text; NaN for tokens that stand for no text, which have no bytes."""
    return nats_per_token / math.log(2) / bytes_per_token if bytes_per_token else math.nan
