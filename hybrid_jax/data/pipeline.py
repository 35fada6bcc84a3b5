"""Records to batches. A batch is a function of (seed, step), on any number of processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grain
import numpy as np

from hybrid_jax.data.prepare import Card, shard_path
from hybrid_jax.errors import UserError

Batch = dict[str, np.ndarray]


class Records:
    """One split of a prepared folder; `records[i]` is int32 [L]."""

    def __init__(self, folder: str | Path, split: str):
        card = Card.load(Path(folder))
        described = card.train if split == "train" else card.valid
        paths = [
            shard_path(Path(folder), split, n, described.shards) for n in range(described.shards)
        ]
        for path in paths:
            if not path.is_file():
                raise UserError(f"{path} is missing: delete {folder} and prepare the data again.")
        self.length = card.length
        self._dtype = np.dtype(card.dtype)
        self._source = grain.sources.ArrayRecordDataSource([str(path) for path in paths])
        if len(self._source) != described.records:
            raise UserError(
                f"{folder} has {len(self._source)} {split} records, but its card says "
                f"{described.records}: delete it and prepare the data again."
            )

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> np.ndarray:
        return np.frombuffer(self._source[index], self._dtype).astype(np.int32)


class Stream:
    """Endless shuffled training batches, each epoch in a new order.

    Process p of P gets the rows [p·B/P, (p+1)·B/P) of the global batch, which is how a batch
    sharded over the devices of consecutive processes lies.
    """

    def __init__(
        self,
        records: Records,
        *,
        batch_size: int,
        seed: int,
        process_index: int = 0,
        process_count: int = 1,
    ):
        if batch_size % process_count:
            raise UserError(
                f"The batch of {batch_size} does not divide among {process_count} processes: "
                f"choose a multiple of {process_count}."
            )
        self._global = batch_size
        self._local = batch_size // process_count
        self._start = process_index * self._local
        self._shuffled = grain.MapDataset.source(records).shuffle(seed=seed).repeat()

    def batch_at(self, step: int) -> Batch:
        """The batch of one step: "tokens" int32 [b, L] and "index" int32 [b], the place of each
        row in the global batch."""
        first = step * self._global + self._start
        rows = [self._shuffled[first + offset] for offset in range(self._local)]
        index = np.arange(self._start, self._start + self._local, dtype=np.int32)
        return {"tokens": np.stack(rows), "index": index}

    def iterate(self, start: int = 0) -> Iterator[tuple[int, Batch]]:
        """(step, `batch_at(step)`) from `start` on, read ahead in the background."""
        steps = grain.MapDataset.range(start, 2**62).map(self.batch_at)
        ahead = steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=8))
        for offset, batch in enumerate(ahead):
            yield start + offset, batch


def evaluation_batches(
    records: Records, batch_size: int, *, limit: int | None = None
) -> Iterator[Batch]:
    """Every record once, in order: "tokens" int32 [B, L] and "valid" bool [B].

    The last batch is filled up with its first row, marked as not valid, so that no record is
    dropped and all batches have one shape. `limit` stops after that many records.
    """
    total = len(records) if limit is None else min(limit, len(records))
    for first in range(0, total, batch_size):
        rows = [records[i] for i in range(first, min(first + batch_size, total))]
        valid = np.arange(batch_size) < len(rows)
        rows += [rows[0]] * (batch_size - len(rows))
        yield {"tokens": np.stack(rows), "valid": valid}
