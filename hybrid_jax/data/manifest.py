"""The manifest of a prepared folder: what it holds and how it was made."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from hybrid_jax.errors import UserError

FORMAT = 1
MANIFEST = "manifest.json"
T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """One ArrayRecord file: its name in the folder, its number of records and its size in bytes."""

    name: str
    records: int
    bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """What a split holds.

    Attributes:
      documents: texts followed by an eos; a document divided between the splits counts as several.
      text_bytes: UTF-8 bytes of all of them.
      tokens: of all of them, one eos a document included.
      records: fixed-length records packed from these tokens.
      dropped_tokens: tokens after the last whole record.
      kept_bytes: UTF-8 bytes of the text in the records; an eos has none.
      sha256: of the records' bytes in order.
      shards: the files, in the order of their records.
    """

    documents: int
    text_bytes: int
    tokens: int
    records: int
    dropped_tokens: int
    kept_bytes: int
    sha256: str
    shards: tuple[Shard, ...]

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text per token of the records, eos tokens counted as tokens without bytes.

        Nats per token over all tokens, divided by this and by log 2, are bits per byte.
        """
        return self.kept_bytes / (self.tokens - self.dropped_tokens)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a prepared folder holds and how it was made.

    Attributes:
      format: version of the folder's layout.
      source, valid_source, valid_every, tokenizer, length, shard_records: the settings of
        `prepare.prepare`; valid_every is 0 if there is a valid_source.
      tokenizer_name, fingerprint, vocab_size, bos, eos: of the tokenizer saved beside the manifest.
      dtype: of the tokens in the records, little-endian, "uint16" or "uint32".
      train, valid: the splits.
    """

    format: int
    source: str
    valid_source: str
    valid_every: int
    tokenizer: str
    length: int
    shard_records: int
    tokenizer_name: str
    fingerprint: str
    vocab_size: int
    bos: int
    eos: int
    dtype: str
    train: Split
    valid: Split

    @classmethod
    def load(cls, folder: str | Path) -> Manifest:
        """Reads the manifest of a folder.

        Raises:
          UserError: if there is none, it is damaged, or another version of hybrid_jax wrote it.
        """
        path = Path(folder) / MANIFEST
        try:
            values = json.loads(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UserError(
                f"{folder} holds no prepared data ({MANIFEST} is missing): run "
                "python -m hybrid_jax.data.prepare first."
            ) from error
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}.") from error
        except ValueError as error:
            raise UserError(f"{path} is damaged: delete {folder} and prepare again.") from error
        if isinstance(values, dict) and values.get("format", FORMAT) != FORMAT:
            raise UserError(
                f"{path} has format {values['format']}, but this version reads {FORMAT}: "
                "prepare the data again in a new folder."
            )
        try:
            return _typed(cls, values)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{path} is damaged ({error}): delete {folder} and prepare again."
            ) from error

    def save(self, folder: Path) -> None:
        """Writes the manifest into an existing folder."""
        text = json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False)
        (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")

    def split(self, name: str) -> Split:
        """The split "train" or "valid". Raises ValueError for another name."""
        if name not in ("train", "valid"):
            raise ValueError(f"the splits are train and valid, not {name!r}")
        return self.train if name == "train" else self.valid


def _typed(cls: type[T], values: object) -> T:
    """A dataclass from decoded JSON; TypeError or ValueError, naming the field, if it misfits."""
    if not isinstance(values, Mapping):
        raise TypeError(f"{cls.__name__} is no object")
    hints = typing.get_type_hints(cls)
    if values.keys() != hints.keys():
        names = ", ".join(sorted(values.keys() ^ hints.keys()))
        raise ValueError(f"missing or unknown: {names}")
    arguments = {}
    for name, hint in hints.items():
        value = values[name]
        if dataclasses.is_dataclass(hint):
            value = _typed(typing.cast(type, hint), value)
        elif hint == tuple[Shard, ...]:
            if not isinstance(value, list):
                raise TypeError(f"{name} is no list")
            value = tuple(_typed(Shard, shard) for shard in value)
        elif type(value) is not hint:
            raise TypeError(f"{name} is no {hint.__name__}")
        arguments[name] = value
    return cls(**arguments)
