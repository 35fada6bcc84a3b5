"""Records to batches. A batch is a pure function of (seed, step), for any number of processes."""

import contextlib
import dataclasses
import hashlib
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import grain
import numpy as np

from hybrid_jax.data import content, mixture, pairs
from hybrid_jax.data.manifest import Manifest
from hybrid_jax.errors import UserError, check_count
from hybrid_jax.runtime.files import expanded

Batch = dict[str, np.ndarray]
_STEPS = 1 << 62  # more than any run takes


class Records:
    """One split of a prepared folder, opened and compared with its manifest.

    Files that have changed since they were written, or were copied, are read once as a whole.

    Attributes:
      manifest: of the folder.

    Args:
      folder: prepared by `prepare.prepare`.
      split: "train" or "valid".
      padded: whether the tokens behind the end of a pair are part of it.

    Raises:
      UserError: if the folder holds no prepared data, or files are missing or damaged.
    """

    def __init__(self, folder: str | Path, split: str, *, padded: bool = True):
        self.manifest = Manifest.load(folder)
        self._split = self.manifest.split(split)
        self._folder = expanded(folder)
        self._padded = padded
        self._dtype = np.dtype(self.manifest.dtype).newbyteorder("<")
        in_shards = sum(shard.records for shard in self._split.shards)
        if not 0 < in_shards == self._split.records:
            raise self._damaged("its manifest contradicts itself")
        paths = [self._folder / shard.name for shard in self._split.shards]
        for path, shard in zip(paths, self._split.shards, strict=True):
            if not path.is_file():
                raise self._damaged(f"{path.name} is missing")
            # Finds a cut file now, and not days later in the middle of an epoch.
            if path.stat().st_size != shard.bytes:
                raise self._damaged(f"{path.name} has not the size that the manifest says")
        try:
            self._source = grain.sources.ArrayRecordDataSource([str(path) for path in paths])
            found = len(self._source)
        except RuntimeError as error:
            raise self._damaged("a file is no ArrayRecord", error) from error
        if found != self._split.records:
            raise self._damaged(f"there are {found} records, but the manifest says {len(self)}")
        shards = tuple(
            dataclasses.replace(shard, stamp=content.stamp(path) if shard.stamp else "")
            for path, shard in zip(paths, self._split.shards, strict=True)
        )
        if [shard.stamp for shard in shards] != [shard.stamp for shard in self._split.shards]:
            self.verify()
            renewed: Any = {split: dataclasses.replace(self._split, shards=shards)}
            with contextlib.suppress(UserError):  # nobody need be able to write there
                dataclasses.replace(self.manifest, **renewed).save(self._folder)

    def __len__(self) -> int:
        return self._split.records

    @property
    def sources(self) -> tuple[int, ...]:
        """Records of each source, one after the other."""
        return self._split.sources or (len(self),)

    def first(self, count: int) -> np.ndarray:
        """Numbers of so many records: of a mixture, from all its sources, by their sizes."""
        if len(self.sources) == 1:
            return np.arange(count)
        return np.arange(count) * len(self) // count

    def read(self, numbers: Sequence[int]) -> Batch:
        """Records by number, 0 ... len-1.

        Returns:
          "tokens" int32 [n, L]; and of pairs "given" int32 [n], the number of tokens of the prompt,
          and where they are not padded "length" int32 [n], that of all.

        Raises:
          UserError: if the files are damaged.
        """
        tokens = self._read(numbers)
        if not self.manifest.pairs:
            return {"tokens": tokens}
        given, tokens = tokens[:, 0], tokens[:, 1:]
        batch = {"tokens": tokens, "given": given}
        if not self._padded:
            batch["length"] = pairs.lengths(tokens, given, self.manifest.eos)
        return batch

    def _read(self, numbers: Sequence[int]) -> np.ndarray:
        """All that records hold, int32 [n, L], or [n, 1 + L] for pairs."""
        length = self.manifest.length + self.manifest.pairs
        try:
            # The library refuses to read nothing.
            data = self._source.__getitems__(list(map(int, numbers))) if len(numbers) else []
        except RuntimeError as error:
            raise self._damaged("a record cannot be read", error) from error
        if any(len(record) != length * self._dtype.itemsize for record in data):
            raise self._damaged(f"a record has not {self.manifest.length} tokens")
        tokens = np.frombuffer(b"".join(data), self._dtype).reshape(len(data), length)
        return tokens.astype(np.int32)

    def verify(self) -> None:
        """Reads everything. Raises UserError unless it is what was prepared, to the last bit."""
        digest = hashlib.sha256()
        for start in range(0, len(self), 1024):
            block = self._read(range(start, min(start + 1024, len(self))))
            digest.update(block.astype(self._dtype).tobytes())
        if digest.hexdigest() != self._split.sha256:
            raise self._damaged("the records are not those of the manifest")

    def _damaged(self, what: str, cause: RuntimeError | None = None) -> UserError:
        # As ArrayRecord tells errors of the system, such as too many open files.
        if failed := re.search(r"\w+\(\) failed: ([^;]+)", str(cause)):
            return UserError(
                f"The prepared data in {self._folder} cannot be read ({failed[1]}): change that on "
                "this machine, the data need not be damaged."
            )
        return UserError(
            f"The prepared data in {self._folder} are damaged ({what}): delete the folder and "
            "prepare them again."
        )


def _order(records: int, seed: int, source: int) -> grain.MapDataset:
    """The record at each place of an endless sequence of epochs of a source, from 0."""
    # Grain shuffles epoch e of seed s with s + e: neighbouring seeds would share epochs.
    own = (source,) if source else ()
    mixed = np.random.SeedSequence(seed, spawn_key=own).generate_state(1)[0]
    return grain.MapDataset.range(records).shuffle(seed=int(mixed)).repeat()


class Stream:
    """Endless training batches; every epoch takes every record once, in an order of its own.

    Sources of a mixture have epochs of their own.

    Args:
      records: the split to train on; may be fewer than a batch.
      batch_size: B, rows of the global batch.
      seed: of the order, 0 or more.
      rows: which rows of the global batch to read, int [b]; None for all.
      weights: of the sources, see `mixture.parse`.

    Raises:
      UserError: if B is below 1, or the seed is negative.
    """

    def __init__(
        self,
        records: Records,
        *,
        batch_size: int,
        seed: int,
        rows: np.ndarray | None = None,
        weights: str = "",
    ):
        check_count(batch_size, "batch_size")
        if seed < 0:
            raise UserError(f"The seed of the data must be 0 or more, but is {seed}.")
        self._records = records
        self._batch_size = batch_size
        self._rows = np.asarray(np.arange(batch_size) if rows is None else rows, np.int32)
        if self._rows.min() < 0 or self._rows.max() >= batch_size:
            raise ValueError(f"rows must lie in 0 … {batch_size - 1}, but are {self._rows}")
        self._stages = mixture.parse(weights, len(records.sources))
        starts = itertools.accumulate(records.sources, initial=0)
        self._sources = [
            (start, _order(size, seed, number))
            for number, (start, size) in enumerate(zip(starts, records.sources, strict=False))
        ]

    def batch_at(self, step: int) -> Batch:
        """The batch of a step, 0 or more.

        Returns:
          those of `Records.read`, and "index" int32 [b], each row's place in the global batch.
        """
        if step < 0:
            raise ValueError(f"step is {step}; it must be 0 or more")
        first = step * self._batch_size
        numbers = [self._record(first + int(row)) for row in self._rows]
        return {**self._records.read(numbers), "index": self._rows.copy()}

    def _record(self, index: int) -> int:
        """The number of the record at a place among all rows."""
        source, number = mixture.place(self._stages, self._batch_size, index)
        start, order = self._sources[source]
        return start + int(order[number])

    def iterate(self, start_step: int = 0) -> Iterator[tuple[int, Batch]]:
        """Yields (step, batch_at(step)) from `start_step` on without end, read ahead by threads."""
        steps = grain.MapDataset.range(start_step, _STEPS).map(self.batch_at)
        options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)
        yield from enumerate(steps.to_iter_dataset(options), start=start_step)


class Readable(Protocol):
    """Records by number: `Records`, or others in memory."""

    def __len__(self) -> int: ...

    def first(self, count: int) -> np.ndarray: ...

    def read(self, numbers: Sequence[int]) -> Batch: ...


def evaluation_batches(
    records: Readable, batch_size: int, limit: int | None = None
) -> Iterator[Batch]:
    """Yields every record once, in order, in batches of one shape.

    Args:
      batch_size: B.
      limit: if given, only `Records.first` so many.

    Yields:
      what `read` gives, and "valid" bool [B]: False marks the rows that fill the last batch.

    Raises:
      UserError: if `batch_size` or `limit` is below 1.
    """
    total = len(records) if limit is None else min(limit, len(records))
    if batch_size < 1 or total < 1:
        raise UserError(
            f"Evaluation needs a batch_size and a limit of at least 1, but got {batch_size} and "
            f"{limit}."
        )
    chosen = records.first(total)
    for start in range(0, total, batch_size):
        places = np.arange(start, start + batch_size)
        # The filling repeats the last record, whose tokens are valid for a model.
        batch = records.read(chosen[np.minimum(places, total - 1)].tolist())
        yield {**batch, "valid": places < total}
