"""Packs documents into fixed-length token records, once, before training.

    python -m hybrid_jax.data.prepare --source=pydocs --tokenizer=sentencepiece \\
        --vocab_size=512 --length=64 --out=data/pydocs

Documents, each followed by the end-of-sequence token, run on from record to record; what does not
fill a last record is dropped and counted. The folder holds ArrayRecord shards of both splits, the
tokenizer, and `card.json`, which says what is in it. It appears whole or not at all.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import json
import os
import re
import shutil
import sys
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from array_record.python import array_record_module
from tqdm import tqdm

from hybrid_jax.data import sources, tokenizers
from hybrid_jax.data.tokenizers import Tokenizer
from hybrid_jax.errors import UserError

FORMAT = 1
_TEXTS_AT_ONCE = 64
_SHARD_BYTES = 64 * 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """What a split holds.

    Attributes:
      documents, text_bytes: documents and their size in UTF-8.
      tokens: of all documents, end-of-sequence tokens included.
      records, dropped_tokens: what became of them.
      shards: number of files.
      sha256: of all records in order.
    """

    documents: int
    text_bytes: int
    tokens: int
    records: int
    dropped_tokens: int
    shards: int
    sha256: str

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text per token, end-of-sequence tokens counted as tokens without text."""
        return self.text_bytes / self.tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """What a folder of records holds, and how it was made."""

    format: int
    source: str
    valid_source: str
    tokenizer: str
    tokenizer_sha256: str
    vocab_size: int
    bos: int
    eos: int
    length: int
    dtype: str
    settings: dict
    train: Split
    valid: Split

    @classmethod
    def load(cls, folder: Path) -> Card:
        """Reads card.json. UserError if there is none, or it is of another format."""
        path = Path(folder) / "card.json"
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            splits = {name: Split(**values.pop(name)) for name in ("train", "valid")}
            card = cls(**values, **splits)
        except FileNotFoundError as error:
            raise UserError(f"{folder} holds no prepared data: there is no card.json.") from error
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path} is damaged: delete the folder and prepare again.") from error
        if card.format != FORMAT:
            raise UserError(f"{path} is of format {card.format}, not {FORMAT}: prepare again.")
        return card


def check_tokenizer(card: Card, tokenizer: Tokenizer) -> None:
    """Raises UserError if `tokenizer` is not the one that made the records of `card`."""
    if card.tokenizer_sha256 != tokenizer.fingerprint:
        raise UserError(
            f"The tokenizer {tokenizer.name} ({tokenizer.fingerprint[:12]}) did not make this data, "
            f"which was prepared with {card.tokenizer} ({card.tokenizer_sha256[:12]}): "
            "prepare the data again."
        )


def default_dir(
    *, source: str, valid_source: str, tokenizer: str, vocab_size: int, length: int
) -> Path:
    """A folder under data/ named after the settings."""
    settings = _settings(source, valid_source, tokenizer, vocab_size, length)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    words = re.sub(r"[^A-Za-z0-9]+", "-", source)[:24].strip("-")
    kind = tokenizer.partition(":")[0]
    return Path("data") / f"{words}-{kind}{vocab_size}-L{length}-{digest}"


def ensure_prepared(
    *,
    source: str,
    tokenizer: str,
    vocab_size: int,
    length: int,
    out: str | os.PathLike[str],
    valid_source: str = "",
) -> Card:
    """Prepares `out`, or returns its card if it already holds just this.

    Args:
      source, valid_source: see `sources.documents`; part of `source` is held out if `valid_source`
        is empty.
      tokenizer: see `tokenizers.make_tokenizer`.
      vocab_size: of a trained tokenizer (the others have their own).
      length: tokens of a record.

    Raises:
      UserError: for bad input, too little text, or an `out` that holds something else.
    """
    out = Path(out)
    if length < 2:
        raise UserError(f"Records need a length of at least 2 tokens, but got {length}.")
    settings = _settings(source, valid_source, tokenizer, vocab_size, length)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        card = Card.load(out)
        for name, value in settings.items():
            if card.settings.get(name) != value:
                raise UserError(
                    f"{out} was prepared with {name}={card.settings.get(name)!r}, not {value!r}: "
                    "choose another folder, or delete this one."
                )
        return card
    partial = out.with_name(f"{out.name}.partial-{uuid.uuid4().hex[:8]}")
    try:
        partial.mkdir(parents=True)
        card = _write(partial, settings)
        if out.is_dir():
            out.rmdir()  # it was empty
        partial.rename(out)
    except OSError as error:
        raise UserError(f"Cannot prepare {out}: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return card


def _settings(source, valid_source, tokenizer, vocab_size, length) -> dict:
    return {
        "source": source,
        "valid_source": valid_source,
        "tokenizer": tokenizer,
        "vocab_size": vocab_size,
        "length": length,
        # The text of this source is the interpreter's own.
        "python": ".".join(map(str, sys.version_info[:3])) if source == "pydocs" else "",
    }


def _write(folder: Path, settings: dict) -> Card:
    source, valid_source = settings["source"], settings["valid_source"]
    length = settings["length"]

    def texts(split: str) -> Iterator[str]:
        if valid_source:
            return sources.documents(source if split == "train" else valid_source)
        return sources.split(source, held_out=split == "valid")

    tokenizer = tokenizers.make_tokenizer(
        settings["tokenizer"], texts("train"), settings["vocab_size"]
    )
    tokenizer.save(folder)
    # MASK, one past the last token, must fit as well.
    dtype = np.uint16 if tokenizer.vocab_size < 2**16 else np.uint32
    splits = {
        split: _write_split(folder, split, texts(split), tokenizer, length, dtype)
        for split in ("train", "valid")
    }
    card = Card(
        format=FORMAT,
        source=source,
        valid_source=valid_source,
        tokenizer=tokenizer.name,
        tokenizer_sha256=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        bos=tokenizer.bos,
        eos=tokenizer.eos,
        length=length,
        dtype=np.dtype(dtype).name,
        settings=settings,
        **splits,
    )
    (folder / "card.json").write_text(
        json.dumps(dataclasses.asdict(card), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    return card


def _write_split(
    folder: Path, split: str, texts: Iterable[str], tokenizer: Tokenizer, length: int, dtype
) -> Split:
    documents = text_bytes = tokens = records = 0
    digest = hashlib.sha256()
    rest = np.zeros(0, dtype)
    record_bytes = length * np.dtype(dtype).itemsize
    per_shard = max(1, _SHARD_BYTES // record_bytes)
    shards: list[Path] = []
    writer = None
    bar = tqdm(desc=f"preparing {split}", unit="B", unit_scale=True, disable=None, leave=False)
    with bar:
        for batch in _batched(texts, _TEXTS_AT_ONCE):
            sizes = [len(text.encode()) for text in batch]
            pieces = [rest]
            for ids in tokenizer.encode(batch):
                pieces += [ids.astype(dtype), np.asarray([tokenizer.eos], dtype)]
            packed = np.concatenate(pieces)
            documents += len(batch)
            text_bytes += sum(sizes)
            tokens += len(packed) - len(rest)
            whole = len(packed) // length
            for record in packed[: whole * length].reshape(whole, length):
                if records % per_shard == 0:
                    if writer is not None:
                        writer.close()
                    shards.append(folder / f"{split}-{len(shards):05d}")
                    # Grain reads single records at random: groups of one.
                    writer = array_record_module.ArrayRecordWriter(
                        str(shards[-1]), "group_size:1,uncompressed"
                    )
                raw = record.tobytes()
                digest.update(raw)
                writer.write(raw)
                records += 1
            rest = packed[whole * length :]
            bar.update(sum(sizes))
    if writer is not None:
        writer.close()
    if not records:
        raise UserError(
            f"The {split} part of the source has {tokens} tokens, too few for one record of "
            f"{length}: use more text, a smaller length, or a valid_source of its own."
        )
    for number, path in enumerate(shards):
        path.rename(shard_path(folder, split, number, len(shards)))
    return Split(
        documents=documents,
        text_bytes=text_bytes,
        tokens=tokens,
        records=records,
        dropped_tokens=len(rest),
        shards=len(shards),
        sha256=digest.hexdigest(),
    )


def shard_path(folder: Path, split: str, number: int, shards: int) -> Path:
    """Path of a shard file."""
    return Path(folder) / f"{split}-{number:05d}-of-{shards:05d}.array_record"


def _batched(items: Iterable[str], size: int) -> Iterator[tuple[str, ...]]:
    iterator = iter(items)
    while batch := tuple(itertools.islice(iterator, size)):
        yield batch


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m hybrid_jax.data.prepare", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--source", required=True, help="pydocs or files:PATTERN[,PATTERN…]")
    parser.add_argument("--valid_source", default="", help="held-out text (default: 1/20 of source)")
    parser.add_argument("--tokenizer", default="sentencepiece",
                        help="sentencepiece, byte or gpt2:FOLDER")  # fmt: skip
    parser.add_argument("--vocab_size", type=int, default=512, help="of a trained tokenizer")
    parser.add_argument("--length", type=int, default=64, help="tokens of a record")
    parser.add_argument("--out", required=True, help="folder to make")
    options = parser.parse_args(argv)
    try:
        card = ensure_prepared(**vars(options))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name in ("train", "valid"):
        split: Split = getattr(card, name)
        print(
            f"{name}: {split.documents:,} documents, {split.text_bytes:,} bytes, "
            f"{split.tokens:,} tokens ({split.bytes_per_token:.2f} bytes each), "
            f"{split.records:,} records of {card.length}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
