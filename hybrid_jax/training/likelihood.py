"""Bounds on −log p: of held-out records with their standard error, and of single texts."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Float32, Int, Key, PyTree, UInt

from hybrid_jax.errors import UserError
from hybrid_jax.method import hyperschedule
from hybrid_jax.method import loss as estimator
from hybrid_jax.method.loss import Network, Spec
from hybrid_jax.method.objective import Bound
from hybrid_jax.runtime import sharding
from hybrid_jax.sampling import likelihood as paths
from hybrid_jax.sampling.likelihood import PathLikelihood
from hybrid_jax.sampling.state import Sampler
from hybrid_jax.sampling.update_rule import Rule
from hybrid_jax.training import statistics
from hybrid_jax.training.pretrained import Pretrained

_ROWS = 64  # draws of texts at a time
_SHORTEST = 16  # tokens; texts are padded to a power of two, so that few shapes are compiled


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoundEstimate:
    """A bound on the negative log-likelihood of some records.

    Attributes:
      bound: label of the bound.
      nll, nll_se: per token, mean over records and its standard error (of records and draws), NaN
        for one record.
      bits_per_byte: the same per byte of text; NaN for tokens that stand for no text.
      unigram_perplexity: of the same tokens under their own token frequencies.
      records, draws: size of the estimate.
    """

    bound: str
    nll: float
    nll_se: float
    bits_per_byte: float
    unigram_perplexity: float
    records: int
    draws: int

    @property
    def perplexity(self) -> float:
        return statistics.perplexity(self.nll, self.nll_se)[0]

    @property
    def perplexity_se(self) -> float:
        return statistics.perplexity(self.nll, self.nll_se)[1]

    @property
    def bits(self) -> tuple[float, str]:
        """Bits per byte, or per token where these stand for no text, and this unit."""
        if math.isnan(self.bits_per_byte):
            return self.nll / math.log(2), "token"
        return self.bits_per_byte, "byte"

    def values(self) -> dict[str, float]:
        """As scalars to log."""
        names = ("nll", "nll_se", "perplexity", "perplexity_se", "bits_per_byte",
                 "unigram_perplexity")  # fmt: skip
        return {name: getattr(self, name) for name in names}

    @property
    def shown(self) -> str:
        """The perplexity as a bound or a value, with its error if it has one: "≤ 44.16 ± 1.39"."""
        sign = "=" if self.bound.startswith("exact likelihood") else "≤"
        error = "" if math.isnan(self.nll_se) else f" ± {self.perplexity_se:.2f}"
        return f"{sign} {self.perplexity:.2f}{error}"

    def __str__(self) -> str:
        bits, unit = self.bits
        return (
            f"perplexity {self.shown} ({bits:.3f} bits per {unit}; {self.bound}; "
            f"{self.records} records, {self.draws} draws)"
        )


def evaluate_bound(
    spec: Spec,
    network: Network,
    params: PyTree,
    batches: Iterable[Mapping[str, np.ndarray]],
    bound: Bound | PathLikelihood,
    *,
    key: Key[Array, ""],
    draws: int,
    bytes_per_token: float,
    mesh: Mesh | None = None,
) -> BoundEstimate:
    """Estimates `bound` on every valid record of `batches`.

    Args:
      batches: of `pipeline.evaluation_batches`.
      key: fixes levels and noise: equal keys compare models on equal draws.
      draws: independent draws of levels and noise for each record; of a `PathLikelihood`, runs of
        which the likelihoods are averaged.
      bytes_per_token: bytes of text per token of these records, given ones and padding counted as
        tokens without bytes.
      mesh: of the devices that share a batch, on which the estimate does not depend; None for the
        first device.
    """
    label = bound.label
    if isinstance(bound, PathLikelihood):
        program = functools.partial(_row_nats, _of_runs, bound.sampler, (bound.rule, params))
        average: Callable[..., Any] = _log_mean
    else:
        program = functools.partial(_row_nats, _of_bound, (spec.for_bound(bound), network), params)
        average = functools.partial(np.mean, axis=0)
        label = "exact likelihood" if is_exact(spec, bound) else label
    mesh = mesh or sharding.one_device()
    per_record: list[Float[np.ndarray, "B"]] = []
    predicted: list[Int[np.ndarray, "B"]] = []
    counts = np.zeros(spec.kernel.vocab_size, np.int64)
    for number, batch in enumerate(batches):
        tokens = np.asarray(batch["tokens"])
        valid = np.asarray(batch["valid"], bool)
        place = np.arange(tokens.shape[1])
        given = place < batch["given"][:, None] if "given" in batch else None
        length = batch.get("length")
        records = tokens, given, length
        batch_key = jax.random.fold_in(key, number)
        each = np.array([
            _record_nats(program, records, jax.random.fold_in(batch_key, draw), mesh)
            for draw in range(draws)
        ], np.float64)  # fmt: skip
        own = np.asarray(estimator.predicted(tokens, given, length))[valid]
        predicted.append(own.sum(axis=1))
        per_record.append(average(each)[valid])
        counts += np.bincount(tokens[valid][own], minlength=len(counts))
    sizes = np.concatenate(predicted)
    nats, error = statistics.mean_and_standard_error(np.concatenate(per_record) / sizes, sizes)
    share_predicted = sizes.mean() / spec.schedule.length
    share = counts[counts > 0] / counts.sum()
    return BoundEstimate(
        bound=label,
        nll=nats,
        nll_se=error,
        bits_per_byte=statistics.bits_per_byte(nats * share_predicted, bytes_per_token),
        unigram_perplexity=float(np.exp(-np.sum(share * np.log(share)))),
        records=len(sizes),
        draws=draws,
    )


def _log_mean(nats: Float[np.ndarray, "K B"]) -> Float[np.ndarray, "B"]:
    """−log of the mean of K likelihoods."""
    found: Float[np.ndarray, "B"] = np.log(len(nats)) - np.logaddexp.reduce(-nats, axis=0)
    return found


def _record_nats(
    program: Callable[..., Float32[Array, "b"]],
    records: tuple[np.ndarray, np.ndarray | None, np.ndarray | None],
    key: Key[Array, ""],
    mesh: Mesh,
) -> Float32[np.ndarray, "B"]:
    """Nats of each record of a batch, tokens, given and length of `loss.Batch`, by `_row_nats` with
    its first arguments."""
    count = len(records[0])
    # Rows are added, not draws: what is drawn for a record depends on its place among `count`.
    padded = -(-count // sharding.batch_shards(mesh)) * sharding.batch_shards(mesh)
    index = np.minimum(np.arange(padded), count - 1)
    rows = sharding.local_rows(mesh, padded)
    place = functools.partial(sharding.place_rows, mesh, batch=padded)
    tokens, given, length = (
        None if array is None else place(array[index[rows]]) for array in records
    )
    places = place(index[rows].astype(np.int32))
    # Processes share values of NumPy, but not arrays that live on a device of one of them.
    key_data = np.asarray(jax.random.key_data(key))
    with sharding.use(mesh):
        found = program(count, tokens, places, key_data, given, length)
    return np.asarray(found)[:count]


@functools.partial(jax.jit, static_argnums=(0, 1, 3))
def _row_nats(
    nats: Callable[..., Float32[Array, "b"]],
    what: Any,
    params: PyTree,
    count: int,
    tokens: Int[Array, "b L"],
    index: Int[Array, "b"],
    key_data: UInt[Array, "..."],
    given: Bool[Array, "b L"] | None = None,
    length: Int[Array, "b"] | None = None,
) -> Float32[Array, "b"]:
    """Nats of each row by `_of_bound` or `_of_runs`; see `loss.Batch` for the other arguments."""
    tokens = sharding.constrain(tokens, "batch", "whole")
    key = jax.random.wrap_key_data(key_data)
    batch = estimator.Batch(tokens, index, key, count, given, length)
    return sharding.constrain(nats(what, params, batch), "whole")


def _of_bound(
    what: tuple[Spec, Network], params: PyTree, batch: estimator.Batch
) -> Float32[Array, "b"]:
    return estimator.batch_terms(*what, params, batch).sum(axis=1)


def _of_runs(
    sampler: Sampler, params: tuple[Rule, PyTree], batch: estimator.Batch
) -> Float32[Array, "b"]:
    if batch.length is not None:
        raise UserError(
            "The likelihood along a rule's runs is that of whole records, and these end early: "
            "prepare the pairs with data.padded=true, or evaluate the model's own bound."
        )
    tokens, given = batch.tokens, batch.given
    keys = jax.vmap(lambda i: jax.random.fold_in(batch.key, i))(batch.places)
    given = jnp.zeros(tokens.shape, bool) if given is None else given
    found: Float32[Array, "b"] = paths.nats(sampler, *params, tokens, given, keys)
    return found


def is_exact(spec: Spec, bound: Bound | PathLikelihood) -> bool:
    """True if the bound is the likelihood itself, so that one draw is as good as many."""
    if isinstance(bound, PathLikelihood):
        return bound.exact
    alone = spec.schedule.width == 1 and spec.schedule.levels == 1
    shifted = spec.layout.alignment == "shifted"
    return alone and bound.time == "discrete" and (shifted or not bound.kernel.replaces)


def text_bounds(
    model: Pretrained,
    texts: Sequence[Int[np.ndarray, "n"]],
    given: Sequence[Bool[np.ndarray, "n"]],
    *,
    draws: int,
    key: Key[Array, ""],
) -> Float[np.ndarray, "texts draws"]:
    """Nats of each text under the model's bound on −log p(text | its given tokens), by draws.

    Args:
      texts: ids, at most L each, the beginning of the hyperschedule.
      given: tokens that are known, as `loss.Batch.given`.
      draws: of levels and noise, stratified; the same for texts of like lengths.
    """
    spec = model.spec.for_bound(model.experiment.bound(model.tokenizer.vocab_size))
    length = spec.schedule.length
    sizes = [min(max(_SHORTEST, 1 << (len(text) - 1).bit_length()), length) for text in texts]
    nats = np.zeros((len(texts), draws))
    for size in sorted(set(sizes)):
        of = [number for number, own in enumerate(sizes) if own == size]
        short = dataclasses.replace(spec, schedule=hyperschedule.beginning(spec.schedule, size))
        tokens, kept = np.zeros((len(of), size), np.int32), np.zeros((len(of), size), bool)
        for row, number in enumerate(of):
            tokens[row, : len(texts[number])] = texts[number]
            kept[row, : len(texts[number])] = given[number]
        lengths = np.array([len(texts[number]) for number in of], np.int32)
        total = len(of) * draws
        rows = min(_ROWS, 1 << (total - 1).bit_length())
        found = []
        for first in range(0, total, rows):
            each = np.minimum(np.arange(first, first + rows), total - 1)
            which, draw = each // draws, (each % draws).astype(np.int32)
            with sharding.use(model.mesh):
                found.append(
                    _row_nats(
                        _of_bound, (short, model.network), model.params, draws, tokens[which], draw,
                        np.asarray(jax.random.key_data(key)), kept[which], lengths[which],
                    )
                )  # fmt: skip
        nats[of] = np.concatenate(jax.device_get(found))[:total].reshape(-1, draws)
    return nats
