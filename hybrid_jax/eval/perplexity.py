"""Perplexity of a trained model on a named text, with everything that the number depends on."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

import hybrid_jax
from hybrid_jax.data import manifest as manifests
from hybrid_jax.data import pipeline, prepare, sources
from hybrid_jax.data.splits import cut
from hybrid_jax.data.tokenizers.base import Tokenizer
from hybrid_jax.errors import UserError, check_count, check_seed
from hybrid_jax.eval.datasets import EvaluationSet, validation_set
from hybrid_jax.eval.detokenize import detokenizer
from hybrid_jax.generation import generator
from hybrid_jax.method.objective import Bound
from hybrid_jax.sampling.likelihood import PathLikelihood
from hybrid_jax.sampling.settings import SamplingConfig
from hybrid_jax.training.likelihood import BoundEstimate, evaluate_bound, is_exact
from hybrid_jax.training.pretrained import Pretrained
from hybrid_jax.training.workdir import data_folders

# Characters of text that are encoded at a time.
_CHARACTERS = 1 << 22


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerplexityProtocol:
    """Packing of text into records, and the estimate of a bound on their likelihood.

    Attributes:
      name: "packed-1": documents are detokenised and encoded, each followed by the
        end-of-document token; their concatenation is cut into records of `length`; tokens behind
        the last whole record are dropped. A record is predicted from nothing, or from the
        beginning-of-sequence token where rows are shifted.
      detokenizer: one of `detokenize.NAMES`.
      length: L, tokens of a record.
      records: number of records.
      schedule: name of the hyperschedule.
      bound: label of the bound; it begins with "exact likelihood" where it is one.
      draws: of levels and noise for each record.
      batch_size: records among which a draw is stratified.
      seed: of the draws.
    """

    name: str = "packed-1"
    detokenizer: str
    length: int
    records: int
    schedule: str
    bound: str
    draws: int
    batch_size: int
    seed: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Packed:
    """Text as records.

    Attributes:
      tokens: int32 [n, L].
      documents, dropped: number of documents, and of tokens behind the last whole record.
      bytes_per_token: UTF-8 bytes of the text in the records, per token.
      others: of records that are pairs, what else `pipeline.Records.read` gives.
    """

    tokens: np.ndarray
    documents: int
    dropped: int
    bytes_per_token: float
    others: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """SHA-256 of the records, as little-endian int32."""
        arrays = self.tokens, *self.others.values()
        return hashlib.sha256(b"".join(x.astype("<i4").tobytes() for x in arrays)).hexdigest()

    def __len__(self) -> int:
        return len(self.tokens)

    def first(self, count: int) -> np.ndarray:
        """Numbers of the first records."""
        return np.arange(count)

    def read(self, numbers: Sequence[int]) -> pipeline.Batch:
        """Records by number, as `pipeline.Records`."""
        arrays = {"tokens": self.tokens, **self.others}
        return {name: array[np.asarray(numbers)] for name, array in arrays.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """One number of a table, and all that it depends on."""

    dataset: EvaluationSet
    protocol: PerplexityProtocol
    estimate: BoundEstimate
    documents: int
    dropped_tokens: int
    sha256: str
    model: str
    step: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        versions = {"hybrid_jax": hybrid_jax.__version__, "jax": jax.__version__}
        return dataclasses.asdict(self) | {"values": self.estimate.values(), "versions": versions}


def pack(dataset: EvaluationSet, tokenizer: Tokenizer, length: int, records: int = 0) -> Packed:
    """Reads and encodes a text, no further than `records` need (0: all).

    Raises:
      UserError: if the source cannot be read, or is too short for one record.
    """
    parts: list[np.ndarray] = []
    count = documents = 0
    for encoded, ended in _encoded(dataset, tokenizer):
        parts.append(encoded)
        count += len(encoded)
        documents += ended
        if records and count >= records * length:
            break
    whole = min(records or count, count // length)
    if not whole:
        raise UserError(
            f"{dataset.name} has {count} tokens, too few for one record of {length}: use more text."
        )
    tokens = np.concatenate(parts)[: whole * length].reshape(whole, length)
    return Packed(
        tokens=tokens, documents=documents, dropped=count - tokens.size,
        bytes_per_token=float(tokenizer.token_bytes[tokens].sum(dtype=np.int64) / tokens.size),
    )  # fmt: skip


def _encoded(dataset: EvaluationSet, tokenizer: Tokenizer) -> Iterator[tuple[np.ndarray, int]]:
    """Tokens in order, each part with the number of documents that end in it."""
    end = np.array([tokenizer.eos], np.int32)
    batch: list[tuple[str, bool]] = []
    size = 0
    detokenize = detokenizer(dataset.detokenizer)

    def encode() -> tuple[np.ndarray, int]:
        texts, ends = zip(*batch, strict=True)
        pairs = zip(tokenizer.encode_batch(texts), ends, strict=True)
        joined = [part for ids, last in pairs for part in (ids, end[: int(last)])]
        return np.concatenate(joined).astype(np.int32), sum(ends)

    for document in sources.documents(dataset.source):
        parts = list(cut([detokenize(document)]))
        for number, piece in enumerate(parts, 1):
            batch.append((piece, number == len(parts)))
            size += len(piece)
            if size >= _CHARACTERS:
                yield encode()
                batch, size = [], 0
    if batch:
        yield encode()


def held_out(model: Pretrained, records: int = 0) -> Packed:
    """The validation records that the model's run was prepared with.

    A run that was not trained here yet may have a validation text and no records of it.

    Raises:
      UserError: if they are not where the run had them, are others, or are damaged.
    """
    folders = data_folders(model.experiment.data, model.data)
    folder = next((folder for folder in folders if manifests.find(folder)), None)
    if folder is None:
        dataset = validation_set(model.experiment)
        if dataset.source and model.data is None:
            return pack(dataset, model.tokenizer, model.spec.schedule.length, records)
        raise UserError(
            f"The run's validation records are not in {' or '.join(map(str, folders))}: bring them "
            "back, start in the folder in which it was trained, or evaluate on other text."
        )
    found = pipeline.Records(folder, "valid", padded=model.experiment.data.is_padded)
    if model.data:
        model.data.check(folder, found.manifest)
    prepare.check_tokenizer(found.manifest, model.tokenizer)
    batch = found.read(found.first(min(records or len(found), len(found))).tolist())
    split = found.manifest.valid
    return Packed(
        tokens=batch.pop("tokens"), others=batch, documents=split.documents,
        dropped=split.dropped_tokens, bytes_per_token=split.bytes_per_token,
    )  # fmt: skip


def records_of(model: Pretrained, dataset: EvaluationSet, count: int = 0) -> Packed:
    """Records of a text, at most `count` (0: all). Raises as `held_out` and `pack`, and UserError
    for a count below 0."""
    check_count(count, "records", least=0)
    if dataset == validation_set(model.experiment):
        return held_out(model, count)
    return pack(dataset, model.tokenizer, model.spec.schedule.length, count)


def bound_of(model: Pretrained, likelihood: str | None = None) -> Bound | PathLikelihood:
    """The model's own bound, or the likelihood "order:RULE" under a rule with its settings.

    Raises:
      UserError: for an unknown rule, or one that has no such likelihood with this model.
    """
    if likelihood is None:
        return model.experiment.bound(model.tokenizer.vocab_size)
    kind, _, words = likelihood.partition(":")
    if kind != "order" or not words:
        raise UserError(f"{likelihood!r} is no likelihood: write order:RULE, such as order:margin.")
    own = generator.build(model, SamplingConfig.parse(words))
    return PathLikelihood(name=likelihood, sampler=own.sampler, rule=own.rule)


def measure(
    model: Pretrained,
    dataset: EvaluationSet,
    packed: Packed,
    bound: Bound | PathLikelihood,
    *,
    draws: int,
    batch_size: int,
    seed: int,
    progress: Callable[[int], None] = lambda done: None,
) -> Measurement:
    """Estimates a bound on the likelihood of a text.

    Args:
      packed: the text of `dataset`, from `pack` or `held_out`.
      bound: of `bound_of`.
      draws: for each record; 1 is taken where the bound is exact.
      progress: called with the number of batches done.

    Raises:
      UserError: if draws, batch size or seed are out of range.
    """
    check_count(draws, "draws")
    check_count(batch_size, "batch_size")
    draws = 1 if is_exact(model.spec, bound) else draws

    def batches() -> Iterator[pipeline.Batch]:
        for done, batch in enumerate(pipeline.evaluation_batches(packed, batch_size), 1):
            yield batch
            progress(done)

    estimate = evaluate_bound(
        model.spec, model.network, model.params, batches(), bound,
        key=jax.random.key(check_seed(seed)), draws=draws, bytes_per_token=packed.bytes_per_token,
        mesh=model.mesh,
    )  # fmt: skip
    protocol = PerplexityProtocol(
        detokenizer=dataset.detokenizer, length=packed.tokens.shape[1], records=len(packed.tokens),
        schedule=model.spec.schedule.name, bound=estimate.bound, draws=draws,
        batch_size=batch_size, seed=seed,
    )  # fmt: skip
    return Measurement(
        dataset=dataset, protocol=protocol, estimate=estimate, documents=packed.documents,
        dropped_tokens=packed.dropped, sha256=packed.sha256, model=model.experiment.name,
        step=model.step,
    )  # fmt: skip
