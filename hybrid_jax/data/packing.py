"""Documents to fixed-length records in ArrayRecord shards.

A record is L tokens, or a pair (see `pair_record`).
"""

import contextlib
import hashlib
import itertools
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
from array_record.python import array_record_module

from hybrid_jax.data import content
from hybrid_jax.data.manifest import Shard, Split
from hybrid_jax.data.tokenizers.base import Tokenizer
from hybrid_jax.errors import UserError

_SHOWN = 40  # characters of a prompt in a sentence


def token_dtype(vocab_size: int, pair_length: int = 0) -> np.dtype:
    """The smallest little-endian type that holds the tokens and MASK, ids 0 ... vocab_size, and
    numbers of tokens of a pair."""
    return np.dtype("<u2" if max(vocab_size, pair_length) < 1 << 16 else "<u4")


class RecordWriter(AbstractContextManager["RecordWriter"]):
    """Writes one split: tokens run on from record to record, and the last few are dropped.

    A context manager, which closes the open file; `finish` returns the description.

    Args:
      folder: existing folder for the shards.
      split: "train" or "valid", the beginning of their names.
      length: L, tokens of a record.
      token_bytes: int32 [N], see `Tokenizer.token_bytes`.
      shard_records: records of every shard but the last.
      pairs: whether the tokens are those of `pair_record`.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        *,
        length: int,
        token_bytes: np.ndarray,
        shard_records: int,
        pairs: bool = False,
    ):
        self._folder, self._split = folder, split
        self._pairs, self._shard_records = pairs, shard_records
        self._length = length + pairs
        self._token_bytes = token_bytes
        self._dtype = token_dtype(len(token_bytes), length if pairs else 0)
        self._pending = np.zeros(0, self._dtype)  # too few for a record
        self._documents = self._text_bytes = self._tokens = self._kept_bytes = 0
        self._digest = hashlib.sha256()
        self._records: list[int] = []  # of each shard so far
        self._dropped = 0
        self._sources: list[int] = []  # records so far at the end of each
        self._file: array_record_module.ArrayRecordWriter | None = None

    def __exit__(self, *exception: object) -> None:
        self._close()

    def add(self, ids: np.ndarray, *, text_bytes: int, documents: int) -> None:
        """Appends encoded text.

        Args:
          ids: integer [n], an eos after each document included; or whole rows of pairs.
          text_bytes: UTF-8 bytes of the text.
          documents: number of those that end in it.
        """
        self._tokens += len(ids)
        self._documents += documents
        self._text_bytes += text_bytes
        tokens = np.concatenate([self._pending, ids.astype(self._dtype, copy=False)])
        kept = len(tokens) // self._length * self._length
        self._pending = tokens[kept:].copy()
        records = tokens[:kept].reshape(-1, self._length)
        counted = records
        if self._pairs:
            counted = records[:, 1:][np.arange(self._length - 1) >= records[:, :1]]
        counts = np.bincount(counted.reshape(-1), minlength=len(self._token_bytes))
        self._kept_bytes += int(counts @ self._token_bytes)
        self._digest.update(tokens[:kept].data)
        with _system_errors():
            for record in records:
                self._write(record.tobytes())

    def end_source(self) -> None:
        """Ends the records of a source: its last tokens, too few for one, are dropped."""
        self._dropped += len(self._pending)
        self._pending = self._pending[:0]
        self._sources.append(sum(self._records))

    def finish(self) -> Split:
        """Closes and names the files, and describes the split."""
        starts = [0, *self._sources]
        sizes = [end - start for start, end in itertools.pairwise(starts)]
        self._close()
        names = [f"{self._split}-{n:05d}-of-{len(self._records):05d}.array_record"
                 for n in range(len(self._records))]  # fmt: skip
        for number, name in enumerate(names):
            self._path(number).rename(self._folder / name)
        return Split(
            documents=self._documents,
            text_bytes=self._text_bytes,
            tokens=self._tokens - self._pairs * sum(self._records),
            records=sum(self._records),
            dropped_tokens=self._dropped + len(self._pending),
            sources=tuple(sizes) if len(sizes) > 1 else (),
            kept_bytes=self._kept_bytes,
            sha256=self._digest.hexdigest(),
            shards=tuple(
                self._shard(name, records)
                for name, records in zip(names, self._records, strict=True)
            ),
        )

    def _shard(self, name: str, records: int) -> Shard:
        path = self._folder / name
        size, stamp = path.stat().st_size, content.stamp(path)
        return Shard(name=name, records=records, bytes=size, stamp=stamp)

    def _write(self, record: bytes) -> None:
        if self._file is None or self._records[-1] == self._shard_records:
            self._close()
            # Groups of one record, because training reads single records at random places.
            self._file = array_record_module.ArrayRecordWriter(
                str(self._path(len(self._records))), "group_size:1,uncompressed"
            )
            self._records.append(0)
        self._file.write(record)
        self._records[-1] += 1

    def _path(self, number: int) -> Path:
        # Without their number, which is part of the final name, until all are written.
        return self._folder / f"{self._split}-{number:05d}.array_record"

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with _system_errors():
                file.close()


def pair_record(pair: tuple[str, str], tokenizer: Tokenizer, length: int) -> np.ndarray:
    """A pair as a record.

    Returns:
      int32 [1 + L]: the tokens of the prompt alone, as a number; prompt, answer and eos; and eos
      up to L tokens.

    Raises:
      UserError: if that is more than L tokens.
    """
    prompt, answer = (tokenizer.encode(text) for text in pair)
    size = len(prompt) + len(answer) + 1
    if size > length:
        shown = pair[0] if len(pair[0]) <= _SHOWN else f"{pair[0][:_SHOWN]}…"
        raise UserError(
            f"The pair with the prompt {shown!r} has {len(prompt)} + {len(answer)} tokens and an "
            f"eos, but a record has {length}: choose a length of at least {size}, or drop the pair."
        )
    made = np.full(1 + length, tokenizer.eos, np.int32)
    made[0] = len(prompt)
    made[1:size] = np.concatenate([prompt, answer])
    return made


@contextlib.contextmanager
def _system_errors() -> Iterator[None]:
    """Turns ArrayRecord's RuntimeErrors, such as that of a full disk, into OSErrors."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(str(error)) from error
