"""The manifest of a prepared folder: its content, and the settings that it was made with."""

import dataclasses
from pathlib import Path
from typing import Literal, Self

from hybrid_jax.data.pairs import is_pairs
from hybrid_jax.errors import UserError
from hybrid_jax.runtime.decode import from_values, parse_json
from hybrid_jax.runtime.files import expanded
from hybrid_jax.runtime.json_text import digest, write_json

FORMAT = 1
MANIFEST = "manifest.json"
_OLD_NAME = "card.json"  # of the same content


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """One ArrayRecord file.

    Attributes:
      name: in the folder.
      records: their number.
      bytes: size of the file.
      stamp: see `content.stamp`; "" if an older version wrote it. No part of what a shard is.
    """

    name: str
    records: int
    bytes: int
    stamp: str = dataclasses.field(default="", compare=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Input:
    """A file that records were made from, or a text as a whole.

    Attributes:
      part: the source or the tokenizer that it belongs to.
      name: of the file, as the source finds it, or of the text.
      sha256: of the file's bytes, or of the text's documents.
      stamp: see `content.Content`. No part of what an input is.
    """

    part: str
    name: str
    sha256: str
    stamp: str = dataclasses.field(compare=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """Content of a split.

    Attributes:
      documents: texts followed by an eos; a document divided between the splits counts as several.
      text_bytes: UTF-8 bytes of all documents.
      tokens: of all documents, with one eos each; of pairs, with those that fill their records.
      records: fixed-length records packed from these tokens.
      dropped_tokens: tokens after the last whole record.
      kept_bytes: UTF-8 bytes of the text in the records, of pairs of the answers; an eos has none.
      sha256: of the records' bytes in order.
      shards: the files, in the order of their records.
      sources: records of each source of a mixture, one after the other; empty for one source.
    """

    documents: int
    text_bytes: int
    tokens: int
    records: int
    dropped_tokens: int
    kept_bytes: int
    sha256: str
    shards: tuple[Shard, ...]
    sources: tuple[int, ...] = ()

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text (`kept_bytes`) per token of the records, an eos being one without bytes.

        Nats per token over all tokens, divided by this and by log 2, are bits per byte.
        """
        return self.kept_bytes / (self.tokens - self.dropped_tokens)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """Content of a prepared folder, and the settings that it was made with.

    Attributes:
      format: version of the folder's layout.
      source, valid_source, valid_every, tokenizer, length, shard_records: the settings of
        `prepare.prepare`; valid_every is 0 if there is a valid_source.
      tokenizer_name, fingerprint, vocab_size, bos, eos: of the tokenizer saved beside the manifest.
      dtype: of the tokens in the records, little-endian.
      train, valid: the splits.
      inputs: what the records were made from; empty if an older version made them.
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
    dtype: Literal["uint16", "uint32"]
    train: Split
    valid: Split
    inputs: tuple[Input, ...] = ()

    @property
    def pairs(self) -> bool:
        """True if the records are pairs (see `packing.pair_record`)."""
        return is_pairs(self.source)

    @property
    def identity(self) -> str:
        """A hash of what the records are: tokens of both splits, and the tokenizer they are of."""
        splits = self.train.sha256, self.valid.sha256
        parts = (*splits, self.fingerprint, self.length, self.dtype)
        return digest(parts)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Reads the manifest of a folder.

        Raises:
          UserError: if there is none, it is damaged, or another version of hybrid_jax wrote it.
        """
        folder = expanded(folder)
        path = find(folder) or folder / MANIFEST
        try:
            values = parse_json(path.read_bytes())
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
            return from_values(cls, values, "manifest")
        except UserError as error:
            reason = str(error).rstrip(".")
            raise UserError(
                f"{path} is damaged ({reason}): delete {folder} and prepare again."
            ) from error

    def save(self, folder: Path) -> None:
        """Writes the manifest into an existing folder. Raises UserError if that is not possible."""
        write_json(folder / MANIFEST, self)

    def split(self, name: str) -> Split:
        """The split "train" or "valid". Raises ValueError for another name."""
        if name not in ("train", "valid"):
            raise ValueError(f"the splits are train and valid, not {name!r}")
        return self.train if name == "train" else self.valid


def find(folder: Path) -> Path | None:
    """The file of the manifest in a folder, also as older versions named it; None without one."""
    return next((folder / n for n in (MANIFEST, _OLD_NAME) if (folder / n).exists()), None)
