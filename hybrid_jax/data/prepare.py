"""Packs documents into fixed-length token records, once, before training.

    python -m hybrid_jax.data.prepare --source=pydocs --tokenizer=sentencepiece \\
        --vocab_size=512 --length=64 --out=data/pydocs

Documents, each followed by eos, run on from record to record. The folder holds ArrayRecord shards
of both splits, the tokenizer, and `manifest.json`. It appears whole or not at all.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from hybrid_jax.data import inputs, splits
from hybrid_jax.data import manifest as manifests
from hybrid_jax.data.manifest import FORMAT, Manifest
from hybrid_jax.data.packing import RecordWriter, token_dtype
from hybrid_jax.data.tokenizers import make_tokenizer
from hybrid_jax.data.tokenizers.base import Tokenizer
from hybrid_jax.errors import UserError, check_number
from hybrid_jax.runtime.command_line import Parser, path_of, run_command
from hybrid_jax.runtime.files import expanded
from hybrid_jax.runtime.json_text import digest
from hybrid_jax.runtime.scratch import raise_when_terminated, scratch_folder

VALID_EVERY = 20
SHARD_RECORDS = 1 << 16
_BATCH_CHARACTERS = 1 << 20
_logger = logging.getLogger(__name__)


def prepare(
    *,
    source: str,
    tokenizer: str,
    vocab_size: int,
    length: int,
    out: str | Path,
    valid_source: str = "",
    valid_every: int | None = None,
    shard_records: int | None = None,
    check: Callable[[Manifest], None] = lambda manifest: None,
) -> Manifest:
    """Prepares the folder `out`, or returns its manifest if it was prepared from the same.

    Equal settings and texts give equal records. A run that fails leaves no folder behind, what a
    killed one left is removed by the next, and concurrent runs do not harm each other.

    Args:
      source: text, see `sources.documents`.
      tokenizer: "sentencepiece", "byte" or "gpt2:FOLDER", see `tokenizers.make_tokenizer`.
      vocab_size: N of a "sentencepiece" tokenizer; ignored by the others.
      length: L, tokens of a record.
      out: folder to make.
      valid_source: text to validate on, and not to train on where `source` has it too; if empty,
        one `valid_every`-th of `source`.
      valid_every: see `splits.held_out`; ignored if there is a `valid_source`. None for that of
        `out`, or `VALID_EVERY`.
      shard_records: records of a file. None for those of `out`, or `SHARD_RECORDS`.
      check: raises UserError for records that are not wanted. Nothing is kept of new ones.

    Raises:
      UserError: for bad settings or text, too little text for one record in both splits, an `out`
        that holds something else, was prepared from other text or cannot be written, or as `check`.
    """
    settings = _settings(source, tokenizer, vocab_size, length, valid_source, valid_every)
    settings["shard_records"] = shard_records
    least = {"length": 1, "shard_records": 1} | ({} if valid_source else {"valid_every": 2})
    for name, value in least.items():
        if settings[name] is not None and settings[name] < value:
            raise UserError(f"{name} must be at least {value}, but is {settings[name]}.")
    for name, value in settings.items():
        check_number(value, name)
    out = expanded(out)
    if manifest := _existing(out, settings):
        check(manifest)
        return manifest
    natural = {"valid_every": VALID_EVERY, "shard_records": SHARD_RECORDS}
    settings |= {name: value for name, value in natural.items() if settings[name] is None}
    makes_parent = not out.parent.exists()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(out) as folder:
            manifest = _build(folder, settings, vocab_size)
            check(manifest)
            try:
                folder.rename(out)
            except OSError:
                # Another process may have been faster.
                if there := _existing(out, settings):
                    check(there)
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
    words = re.sub(r"[^A-Za-z0-9]+", "-", f"{source}-{tokenizer}")[:40].strip("-")
    return Path("data") / f"{words}-{length}-{digest(settings)[:8]}"


def check_tokenizer(manifest: Manifest, tokenizer: Tokenizer) -> None:
    """Checks that `tokenizer` made the data of `manifest`. Raises UserError if it did not."""
    if manifest.fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"The tokenizer ({tokenizer.name}, {tokenizer.fingerprint[:12]}) does not match the "
            f"prepared data ({manifest.tokenizer_name}, {manifest.fingerprint[:12]}): use the "
            "tokenizer in the folder of the data."
        )


def _settings(
    source: str,
    tokenizer: str,
    vocab_size: int,
    length: int,
    valid_source: str,
    valid_every: int | None,
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
        if value is not None and getattr(manifest, name) != value:
            raise UserError(
                f"{out} was prepared with {name}={getattr(manifest, name)!r}, not {value!r}: "
                "choose another folder, or that value."
            )
    if changes := inputs.changes(manifest, out):
        raise UserError(
            f"{out} was prepared from other text ({changes}): choose another folder, or delete "
            "this one if no run needs it."
        )
    return manifest


def _build(folder: Path, settings: Mapping[str, Any], vocab_size: int) -> Manifest:
    source, valid_source = settings["source"], settings["valid_source"]
    parts = dict.fromkeys((source, valid_source, settings["tokenizer"]))
    found = tuple(one for part in parts for one in inputs.read(part))
    if valid_source:
        held_out = splits.digests(valid_source)
    else:
        # Enough for a record: a byte token has a byte, others several.
        least = settings["length"] * (2 if settings["tokenizer"] == "byte" else 8)
        held_out = splits.held_out(source, every=settings["valid_every"], least=least)
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
        passages = splits.passages(source, held_out=held_out)
        if valid_source:
            _write(_not_held_out(passages), tokenizer, train, valid)
            passages = splits.passages(valid_source)
            passages = ((True, pieces) for _, pieces in passages)
        _write(passages, tokenizer, train, valid)
        written = {"train": train.finish(), "valid": valid.finish()}
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
    manifest = Manifest(**values, train=written["train"], valid=written["valid"], inputs=found)
    manifest.save(folder)
    if changes := inputs.changes(manifest, folder):
        raise UserError(f"The text changed while it was read ({changes}): prepare it again.")
    for name, split in written.items():
        if not split.records:
            without = " without the validation text" if valid_source and name == "train" else ""
            other = "another" if valid_source else "a"
            raise UserError(
                f"The {name} split has {split.tokens} tokens{without}, too few for one record of "
                f"{settings['length']}: use more text, a smaller length or {other} valid_source."
            )
    return manifest


def _not_held_out(passages: Iterator[tuple[bool, list[str]]]) -> Iterator[tuple[bool, list[str]]]:
    """The passages to train on; says how much else there is, which is validation text."""
    size = 0
    for is_held_out, pieces in passages:
        if is_held_out:
            size += sum(len(piece.encode("utf-8")) for piece in pieces)
        else:
            yield is_held_out, pieces
    if size:
        _logger.warning(
            "%s bytes of the source are validation text too: left out of training.", f"{size:,}"
        )


def _write(
    passages: Iterator[tuple[bool, list[str]]],
    tokenizer: Tokenizer,
    train: RecordWriter,
    valid: RecordWriter,
) -> None:
    """Encodes passages in batches and adds each to the writer of its split."""
    # disable=None: the bar is for terminals, a log has no use for it.
    with tqdm(desc="preparing", unit="B", unit_scale=True, disable=None, leave=False) as bar:
        for batch in batches(passages):
            encoded = tokenizer.encode_batch([piece for _, piece, _ in batch])
            for (is_held_out, piece, ends), ids in zip(batch, encoded, strict=True):
                size = len(piece.encode("utf-8"))
                (valid if is_held_out else train).add(ids, text_bytes=size, ends=ends)
                bar.update(size)


def batches(
    passages: Iterator[tuple[bool, list[str]]], size: int = _BATCH_CHARACTERS
) -> Iterator[list[tuple[bool, str, bool]]]:
    """Lists of (held out?, piece, last of its passage?), each of about `size` characters."""
    batch: list[tuple[bool, str, bool]] = []
    characters = 0
    for is_held_out, pieces in passages:
        for number, piece in enumerate(pieces, start=1):
            batch.append((is_held_out, piece, number == len(pieces)))
            characters += len(piece)
            if characters >= size:
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
        help="else hold out one K-th of the source (default: %(default)s)")  # fmt: skip
    add("--tokenizer", default="sentencepiece", help="sentencepiece (trained on the source), byte, "
        "or gpt2:FOLDER (default: %(default)s)")  # fmt: skip
    add("--vocab_size", type=int, default=8192, metavar="N",
        help="tokens of sentencepiece (default: %(default)s)")  # fmt: skip
    add("--length", type=int, default=1024, metavar="L",
        help="tokens of a record (default: %(default)s)")  # fmt: skip
    add("--shard_records", type=int, default=SHARD_RECORDS, metavar="R",
        help="records of a file (default: %(default)s)")  # fmt: skip
    add("--out", required=True, type=path_of, metavar="DIR", help="folder to make")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    with raise_when_terminated():
        return run_command(_parser(), argv, _run, interrupted="nothing was written")


def _run(options: argparse.Namespace) -> None:
    settings = {name: value for name, value in vars(options).items() if name != "given"}
    manifest = prepare(**settings)
    for name in ("train", "valid"):
        split = manifest.split(name)
        print(
            f"{name}: {split.documents:,} documents, {split.text_bytes:,} bytes, "
            f"{split.records:,} records of {manifest.length} tokens "
            f"({split.bytes_per_token:.2f} bytes each), {split.dropped_tokens:,} tokens dropped"
        )


if __name__ == "__main__":
    sys.exit(main())
