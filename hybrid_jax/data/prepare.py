"""Packs documents into fixed-length token records, once, before training.

    python -m hybrid_jax.data.prepare --source=pydocs --tokenizer=sentencepiece \\
        --vocab_size=512 --length=64 --out=data/pydocs

Documents, each followed by eos, run on from record to record. The folder holds ArrayRecord shards
of both splits, the tokenizer, and `manifest.json`. It appears whole or not at all.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from hybrid_jax.data import manifest as manifests
from hybrid_jax.data import splits
from hybrid_jax.data.manifest import FORMAT, Manifest
from hybrid_jax.data.packing import RecordWriter, token_dtype
from hybrid_jax.data.tokenizers import make_tokenizer
from hybrid_jax.data.tokenizers.base import Tokenizer
from hybrid_jax.errors import UserError, check_number, exit_status
from hybrid_jax.runtime.command_line import Parser, parse

VALID_EVERY = 20
SHARD_RECORDS = 1 << 16
_BATCH_CHARACTERS = 1 << 20


def prepare(
    *,
    source: str,
    tokenizer: str,
    vocab_size: int,
    length: int,
    out: str | Path,
    valid_source: str = "",
    valid_every: int = VALID_EVERY,
    shard_records: int = SHARD_RECORDS,
) -> Manifest:
    """Prepares the folder `out`, or returns its manifest if it was prepared with these settings.

    Equal settings and texts give equal files. A run that fails leaves no folder behind, and
    concurrent runs do not harm each other.

    Args:
      source: text, see `sources.documents`.
      tokenizer: "sentencepiece", "byte" or "gpt2:FOLDER", see `tokenizers.make_tokenizer`.
      vocab_size: N of a "sentencepiece" tokenizer; ignored by the others.
      length: L, tokens of a record.
      out: folder to make.
      valid_source: text to validate on; if empty, every `valid_every`-th piece of `source`.
      valid_every: see `splits.held_out`; ignored if there is a `valid_source`.
      shard_records: records of a file.

    Raises:
      UserError: for bad settings or text, too little text for one record in both splits, or an
        `out` that holds something else or cannot be written.
    """
    settings = _settings(source, tokenizer, vocab_size, length, valid_source, valid_every)
    settings["shard_records"] = shard_records
    least = {"length": 1, "shard_records": 1} | ({} if valid_source else {"valid_every": 2})
    for name, value in least.items():
        if settings[name] < value:
            raise UserError(f"{name} must be at least {value}, but is {settings[name]}.")
    for name, value in settings.items():
        check_number(value, name)
    out = Path(out)
    if manifest := _existing(out, settings):
        return manifest
    makes_parent = not out.parent.exists()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
            folder = Path(temporary) / "data"
            folder.mkdir()
            manifest = _build(folder, settings, vocab_size)
            try:
                folder.rename(out)
            except OSError:
                # Another process may have been faster.
                if there := _existing(out, settings):
                    return there
                raise
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror or error}.") from error
    finally:
        # A failure leaves no empty folder behind.
        if makes_parent and out.parent.is_dir() and not any(out.parent.iterdir()):
            out.parent.rmdir()
    return manifest


def default_dir(
    *, source: str, valid_source: str, tokenizer: str, vocab_size: int, length: int
) -> Path:
    """A relative folder, data/NAME, that differs for settings that prepare different data."""
    settings = _settings(source, tokenizer, vocab_size, length, valid_source, VALID_EVERY)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    words = re.sub(r"[^A-Za-z0-9]+", "-", f"{source}-{tokenizer}")[:40].strip("-")
    return Path("data") / f"{words}-{length}-{digest}"


def check_tokenizer(manifest: Manifest, tokenizer: Tokenizer) -> None:
    """Checks that `tokenizer` made the data of `manifest`. Raises UserError if it did not."""
    if manifest.fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"The tokenizer ({tokenizer.name}, {tokenizer.fingerprint[:12]}) does not match the "
            f"prepared data ({manifest.tokenizer_name}, {manifest.fingerprint[:12]}): use the "
            "tokenizer in the folder of the data."
        )


def _settings(
    source: str, tokenizer: str, vocab_size: int, length: int, valid_source: str, valid_every: int
) -> dict[str, Any]:
    """The settings that matter, under their names in the manifest."""
    settings = {
        "source": source,
        "valid_source": valid_source,
        "valid_every": 0 if valid_source else valid_every,
        "tokenizer": tokenizer,
        "length": length,
    }
    return settings | ({"vocab_size": vocab_size} if tokenizer == "sentencepiece" else {})


def _existing(out: Path, settings: Mapping[str, Any]) -> Manifest | None:
    """The manifest in `out`; None if there is nothing; UserError if it holds something else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if not manifests.find(out):
        raise UserError(f"{out} exists but holds no prepared data: choose another folder.")
    manifest = Manifest.load(out)
    for name, value in settings.items():
        if getattr(manifest, name) != value:
            raise UserError(
                f"{out} was prepared with {name}={getattr(manifest, name)!r}, not {value!r}: "
                "choose another folder, or delete this one."
            )
    return manifest


def _build(folder: Path, settings: Mapping[str, Any], vocab_size: int) -> Manifest:
    source, valid_source = settings["source"], settings["valid_source"]
    held_out: frozenset[bytes] = frozenset()
    if not valid_source:
        held_out = splits.held_out(source, every=settings["valid_every"])
    training = (
        piece
        for is_held_out, pieces in splits.passages(source, held_out=held_out)
        if not is_held_out
        for piece in pieces
    )
    tokenizer = make_tokenizer(settings["tokenizer"], training, vocab_size=vocab_size)
    tokenizer.save(folder)

    def writer(split: str) -> RecordWriter:
        return RecordWriter(
            folder,
            split,
            length=settings["length"],
            eos=tokenizer.eos,
            token_bytes=tokenizer.token_bytes,
            shard_records=settings["shard_records"],
        )

    with writer("train") as train, writer("valid") as valid:
        _write(splits.passages(source, held_out=held_out), tokenizer, train, valid)
        if valid_source:
            _write(splits.passages(valid_source), tokenizer, valid, valid)
        parts = {"train": train.finish(), "valid": valid.finish()}
    for name, split in parts.items():
        if not split.records:
            advice = "" if valid_source else " or a valid_source"
            raise UserError(
                f"The {name} split has {split.tokens} tokens, too few for one record of "
                f"{settings['length']}: use more text, a smaller length{advice}."
            )
    values: dict[str, Any] = {
        **settings,
        "format": FORMAT,
        "tokenizer_name": tokenizer.name,
        "fingerprint": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "bos": tokenizer.bos,
        "eos": tokenizer.eos,
        "dtype": token_dtype(tokenizer.vocab_size).name,
    }
    manifest = Manifest(**values, train=parts["train"], valid=parts["valid"])
    manifest.save(folder)
    return manifest


def _write(
    passages: Iterator[tuple[bool, list[str]]],
    tokenizer: Tokenizer,
    train: RecordWriter,
    valid: RecordWriter,
) -> None:
    """Encodes passages in batches and adds each to the writer of its split."""
    # disable=None: the bar is for terminals, a log has no use for it.
    with tqdm(desc="preparing", unit="B", unit_scale=True, disable=None, leave=False) as bar:
        for batch in _batches(passages):
            encoded = tokenizer.encode_batch([piece for _, piece, _ in batch])
            for (is_held_out, piece, ends), ids in zip(batch, encoded, strict=True):
                size = len(piece.encode("utf-8"))
                (valid if is_held_out else train).add(ids, text_bytes=size, ends=ends)
                bar.update(size)


def _batches(passages: Iterator[tuple[bool, list[str]]]) -> Iterator[list[tuple[bool, str, bool]]]:
    """Lists of (held out?, piece, last of its passage?), each of about `_BATCH_CHARACTERS`."""
    batch: list[tuple[bool, str, bool]] = []
    characters = 0
    for is_held_out, pieces in passages:
        for number, piece in enumerate(pieces, start=1):
            batch.append((is_held_out, piece, number == len(pieces)))
            characters += len(piece)
            if characters >= _BATCH_CHARACTERS:
                yield batch
                batch, characters = [], 0
    yield batch


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m hybrid_jax.data.prepare",
        description="Packs text into fixed-length token records for training.",
    )
    add = parser.add_argument
    add("--source", required=True, help="pydocs, files:PATTERN[,PATTERN...] (.txt or .jsonl, "
        "plain or .gz, .xz, .zst), tfds:NAME:SPLIT[:FIELD] or hf:NAME:SPLIT[:FIELD]")  # fmt: skip
    add("--valid_source", default="", help="text to validate on (default: a part of the source)")
    add("--valid_every", type=int, default=VALID_EVERY, metavar="K",
        help="else hold out every K-th piece (default: %(default)s)")  # fmt: skip
    add("--tokenizer", default="sentencepiece", help="sentencepiece (trained on the source), byte, "
        "or gpt2:FOLDER (default: %(default)s)")  # fmt: skip
    add("--vocab_size", type=int, default=8192, metavar="N",
        help="tokens of sentencepiece (default: %(default)s)")  # fmt: skip
    add("--length", type=int, default=1024, metavar="L",
        help="tokens of a record (default: %(default)s)")  # fmt: skip
    add("--shard_records", type=int, default=SHARD_RECORDS, metavar="R",
        help="records of a file (default: %(default)s)")  # fmt: skip
    add("--out", required=True, metavar="DIR", help="folder to make")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return exit_status(lambda: _run(parse(_parser(), argv)), interrupted="nothing was written")


def _run(options: argparse.Namespace) -> None:
    manifest = prepare(**vars(options))
    for name in ("train", "valid"):
        split = manifest.split(name)
        print(
            f"{name}: {split.documents:,} documents, {split.text_bytes:,} bytes, "
            f"{split.records:,} records of {manifest.length} tokens "
            f"({split.bytes_per_token:.2f} bytes each), {split.dropped_tokens:,} tokens dropped"
        )


if __name__ == "__main__":
    sys.exit(main())
