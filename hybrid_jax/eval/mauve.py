"""MAUVE: how near a set of texts is to a reference, from features of both (arXiv 2102.01454).

Features are normalised, reduced by PCA and quantised together by k-means; the two histograms P and
Q over the buckets then give the divergence curve of mixtures R = λP + (1 − λ)Q,

    ( exp(−c KL(Q ‖ R)), exp(−c KL(P ‖ R)) ),   λ in (0, 1),   c = 5,

and MAUVE is the area under it: 1 for P = Q, near 0 for P and Q apart. The value moves with the
seed of k-means, so several are run and their spread is given. It also moves with the number of
texts and buckets, their length and the featuriser: compare values of one protocol only.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from hybrid_jax.errors import UserError, require

SCALING = 5.0  # c of the paper
POINTS = 25  # of the curve, as in the authors' implementation
VARIANCE = 0.9  # that PCA keeps
SEEDS = (0, 1, 2, 3, 4)
_TEXTS_PER_BUCKET = 10
_RESTARTS, _ITERATIONS = 5, 500  # of k-means


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mauve:
    """MAUVE of two sets of texts.

    Attributes:
      value: mean over k-means seeds, in [0, 1].
      spread: standard deviation over these seeds (NaN for one). It says nothing about how the
        value varies with the texts.
      by_seed: the value of each.
      buckets: of k-means.
      dimensions: that PCA kept.
      generated, reference: texts in each set.
    """

    value: float
    spread: float
    by_seed: tuple[float, ...]
    buckets: int
    dimensions: int
    generated: int
    reference: int


def area(p: np.ndarray, q: np.ndarray, *, scaling: float = SCALING, points: int = POINTS) -> float:
    """The area under the divergence curve of two histograms, in [0, 1].

    Args:
      p, q: float [buckets], probabilities.
      scaling: c.
      points: values of λ, evenly between 10⁻⁶ and 1 − 10⁻⁶; the curve is straight between them.

    Raises:
      ValueError: if shapes differ, or p or q is no distribution.
    """
    p, q = np.asarray(p, np.float64), np.asarray(q, np.float64)
    if p.ndim != 1 or p.shape != q.shape:
        raise ValueError(f"p {p.shape} and q {q.shape} must be equal, [buckets]")
    for histogram in (p, q):
        if (histogram < 0).any() or not np.isclose(histogram.sum(), 1.0):
            raise ValueError("a histogram is not a distribution")
    weight = np.linspace(1e-6, 1.0 - 1e-6, points)[:, None]
    mixture = weight * p + (1.0 - weight) * q
    x = np.exp(-scaling * _divergence(q, mixture))
    y = np.exp(-scaling * _divergence(p, mixture))
    # With λ, x falls and y rises: from (1, 0) below the curve's first point to (0, 1) left of its
    # last.
    x, y = np.concatenate([[1.0], x, [0.0]]), np.concatenate([[0.0], y, [1.0]])
    return float(-np.trapezoid(y, x))


def _divergence(p: np.ndarray, mixtures: np.ndarray) -> np.ndarray:
    """KL(p ‖ m) in nats for each row m, which is positive where p is."""
    used = p > 0
    return np.asarray(np.sum(p[used] * (np.log(p[used]) - np.log(mixtures[:, used])), axis=1))


def mauve(generated: np.ndarray, reference: np.ndarray, *, seeds: Sequence[int] = SEEDS) -> Mauve:
    """MAUVE from features.

    Args:
      generated, reference: float [n, D] and [m, D], one row a text.
      seeds: of k-means.

    Raises:
      UserError: for fewer than two texts in a set, features that differ in width or are not
        finite, no seeds, or if scikit-learn is missing.
    """
    p, q = np.asarray(reference, np.float64), np.asarray(generated, np.float64)
    if p.ndim != 2 or q.ndim != 2 or p.shape[1] != q.shape[1]:
        raise UserError(f"MAUVE needs features of one width, but got {q.shape} and {p.shape}.")
    if min(len(p), len(q)) < 2:
        raise UserError(
            f"MAUVE needs at least two texts in each set, but got {len(q)} generated and {len(p)} "
            "of reference."
        )
    if not seeds:
        raise UserError("MAUVE needs at least one seed.")
    both = np.concatenate([p, q])
    if not np.isfinite(both).all():
        raise UserError("MAUVE got features that are not finite.")
    norm = np.linalg.norm(both, axis=1, keepdims=True)
    both = both / np.where(norm > 0, norm, 1.0)

    # A tenth of the smaller set, and never more than there are different features.
    buckets = max(2, round(min(len(p), len(q)) / _TEXTS_PER_BUCKET))
    buckets = min(buckets, len(np.unique(both, axis=0)))
    reduced, values = both[:, :0], tuple(1.0 for _ in seeds)  # all in one bucket
    if buckets > 1:
        # The solver is exact, and needs no seed.
        pca = require("sklearn.decomposition", "eval").PCA(n_components=VARIANCE, svd_solver="full")
        reduced = np.asarray(pca.fit_transform(both))
        values = tuple(_area_of_clusters(reduced, len(p), buckets, seed) for seed in seeds)
    return Mauve(
        value=float(np.mean(values)),
        spread=float(np.std(values, ddof=1)) if len(values) > 1 else float("nan"),
        by_seed=values, buckets=buckets, dimensions=reduced.shape[1], generated=len(q),
        reference=len(p),
    )  # fmt: skip


def _area_of_clusters(rows: np.ndarray, of_reference: int, buckets: int, seed: int) -> float:
    means = require("sklearn.cluster", "eval").KMeans(
        n_clusters=buckets, n_init=_RESTARTS, max_iter=_ITERATIONS, random_state=seed
    )
    # One thread: 2,000 texts take seconds, and several threads wait for each other for minutes
    # where other programs use the processors.
    with require("threadpoolctl", "eval").threadpool_limits(1, user_api="openmp"):
        labels = means.fit_predict(rows)
    counts = [
        np.bincount(part, minlength=buckets)
        for part in (labels[:of_reference], labels[of_reference:])
    ]
    return area(*(count / count.sum() for count in counts))
