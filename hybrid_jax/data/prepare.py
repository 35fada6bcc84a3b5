"""Packs documents into fixed-length token records, once, before training.

    python -m hybrid_jax.data.prepare --source=pydocs --tokenizer=sentencepiece \\
        --vocab_size=512 --length=64 --out=data/pydocs

Documents, each followed by eos, run on from record to record. The folder holds ArrayRecord shards
of both splits, the tokenizer, and `manifest.json`. It appears whole or not at all.
"""

import argparse
import contextlib
import logging
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hybrid_jax.data import chunks, inputs, planning, tokenizers
from hybrid_jax.data import manifest as manifests
from hybrid_jax.data.chunks import Plan
from hybrid_jax.data.manifest import FORMAT, Manifest
from hybrid_jax.data.mixture import mixed
from hybrid_jax.data.packing import RecordWriter, token_dtype
from hybrid_jax.data.pairs import is_pairs
from hybrid_jax.data.tokenizers.base import Tokenizer
from hybrid_jax.errors import UserError, check_number
from hybrid_jax.runtime.command_line import Parser, path_of, run_command, within
from hybrid_jax.runtime.files import expanded
from hybrid_jax.runtime.json_text import digest
from hybrid_jax.runtime.scratch import raise_when_terminated, resumed_folder
from hybrid_jax.runtime.workers import available

VALID_EVERY = 20
SHARD_RECORDS = 1 << 16
_OUT = "out"  # what becomes the folder
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
    workers: int | None = None,
    check: Callable[[Manifest], None] = lambda manifest: None,
) -> Manifest:
    """Prepares the folder `out`, or returns its manifest if it was prepared from the same.

    Equal settings and texts give equal records, whatever the number of workers. A run that was
    interrupted or has failed may leave what it encoded in a hidden folder beside `out`; the next
    with the same settings and text goes on from there, and one with others removes it. Of
    concurrent runs with the same, one works and the others wait for it.

    Args:
      source: text, see `sources.documents`, or several, see `mixture.mixed`.
      tokenizer: its name, see `tokenizers.make_tokenizer`.
      vocab_size: N of a "sentencepiece" tokenizer; ignored by the others.
      length: L, tokens of a record.
      out: folder to make.
      valid_source: text to validate on, and not to train on where `source` has it too; if empty,
        one `valid_every`-th of `source`.
      valid_every: see `splits.held_out`; ignored if there is a `valid_source`. None for that of
        `out`, or `VALID_EVERY`.
      shard_records: records of a file. None for those of `out`, or `SHARD_RECORDS`.
      workers: processes at most; None for one a processor. Little text needs no other.
      check: raises UserError for records that are not wanted. Nothing is kept of new ones.

    Raises:
      UserError: for bad settings or text, too little text for one record in both splits, an `out`
        that holds something else, was prepared from other text or cannot be written, or as `check`.
      Interrupted: if a worker dies.
    """
    settings = _settings(source, tokenizer, vocab_size, length, valid_source, valid_every)
    settings["shard_records"] = shard_records
    out = _checked(out, settings)
    if manifest := _existing(out, settings):
        check(manifest)
        return manifest
    with _work_folder(out, settings, shared=False) as folder:
        if manifest := _existing(out, settings):  # made while this one waited
            check(manifest)
            return manifest
        plan = planning.plan(folder, settings, workers or available())
        chunks.encode(folder, plan, workers=workers or available())
        try:
            manifest = _packed(folder, settings, plan)
            check(manifest)
        except UserError:
            shutil.rmtree(folder)
            raise
        try:
            (folder / _OUT).rename(out)
        except OSError:
            # Another process may have been faster.
            if there := _existing(out, settings):
                check(there)
                return there
            raise
    return manifest


def encode_shard(
    shard: tuple[int, int], *, out: str | Path, workers: int | None = None, **settings: Any
) -> None:
    """Does a share of the work of `prepare`, which finishes it when all shares are done.

    Several hosts do one each, at any times, where they share the folder that `out` is in.

    Args:
      shard: (I, N) for the I-th of N shares, from 0.
      settings: of `prepare`.

    Raises:
      UserError: as `prepare`.
      Interrupted: if a worker dies.
    """
    settings = {"valid_source": "", "valid_every": None, "shard_records": None} | settings
    shard_records = settings.pop("shard_records")
    settings = _settings(**settings) | {"shard_records": shard_records}
    out = _checked(out, settings)
    if not _existing(out, settings):
        with _work_folder(out, settings, shared=True) as folder:
            plan = planning.plan(folder, settings, workers or available())
            chunks.encode(folder, plan, workers=workers or available(), shard=shard)


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


def _checked(out: str | Path, settings: Mapping[str, Any]) -> Path:
    """The folder to make. Raises UserError for bad settings."""
    least = {"length": 1, "shard_records": 1}
    least |= {} if settings["valid_source"] else {"valid_every": 2}
    least |= {"vocab_size": 1} if "vocab_size" in settings else {}
    for name, value in least.items():
        if settings[name] is not None and settings[name] < value:
            raise UserError(f"{name} must be at least {value}, but is {settings[name]}.")
    for name, value in settings.items():
        check_number(value, name)
    kinds = {is_pairs(one) for one in planning.parts(settings)[:-1] if one}
    if len(kinds) > 1:
        raise UserError("Some of the sources are pairs and others text: choose all of one kind.")
    return expanded(out)


@contextlib.contextmanager
def _work_folder(out: Path, settings: dict[str, Any], *, shared: bool) -> Iterator[Path]:
    """The folder for what is made on the way; `settings` get their natural values.

    It is another one for other settings and other text. Raises UserError if nothing can be written.
    """
    natural = {"valid_every": VALID_EVERY, "shard_records": SHARD_RECORDS}
    settings |= {name: value for name, value in natural.items() if settings[name] is None}
    tokenizers.check(settings["tokenizer"])  # before much text is read
    stamps = inputs.stamps(dict.fromkeys(planning.parts(settings)))
    name = digest([FORMAT, chunks.CHARACTERS, settings, stamps])[:12]
    try:
        with resumed_folder(out, name, shared=shared) as folder:
            yield folder
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror or error}.") from error


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


def _packed(work: Path, settings: Mapping[str, Any], plan: Plan) -> Manifest:
    """The records and all that belongs to them, made of the chunks."""
    folder = work / _OUT
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    tokenizer = tokenizers.load_tokenizer(work / chunks.TOKENIZER)
    tokenizer.save(folder)

    def writer(split: str) -> RecordWriter:
        return RecordWriter(
            folder,
            split,
            length=settings["length"],
            token_bytes=tokenizer.token_bytes,
            shard_records=settings["shard_records"],
            pairs=bool(plan.pair_length),
        )

    with writer("train") as train, writer("valid") as valid:
        if left_out := chunks.pack(work, plan, train, valid):
            _logger.warning(
                "%s bytes of the source are validation text too: left out of training.",
                f"{left_out:,}",
            )
        written = {"train": train.finish(), "valid": valid.finish()}
    values: dict[str, Any] = {
        **settings,
        "format": FORMAT,
        "tokenizer_name": tokenizer.name,
        "fingerprint": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "bos": tokenizer.bos,
        "eos": tokenizer.eos,
        "dtype": token_dtype(tokenizer.vocab_size, plan.pair_length).name,
    }
    manifest = Manifest(
        **values, train=written["train"], valid=written["valid"], inputs=plan.inputs
    )
    manifest.save(folder)
    if changes := inputs.changes(manifest, folder):
        raise UserError(f"The text changed while it was read ({changes}): prepare it again.")
    for name, split in written.items():
        if not split.records:
            without = " without the validation text" if plan.valid_parts and name == "train" else ""
            other = "another" if plan.valid_parts else "a"
            raise UserError(
                f"The {name} split has {split.tokens} tokens{without}, too few for one record of "
                f"{settings['length']}: use more text, a smaller length or {other} valid_source."
            )
    for source, records in zip(mixed(settings["source"]), written["train"].sources, strict=False):
        if not records:
            raise UserError(
                f"{source} has too few tokens for one record of {settings['length']}: use more "
                "text, a smaller length, or leave it out."
            )
    return manifest


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m hybrid_jax.data.prepare",
        description="Packs text into fixed-length token records for training.",
    )
    add = parser.add_argument
    add("--source", required=True, help="pydocs, pysource, files:PATTERN[,PATTERN...] (.txt or "
        ".jsonl, plain or .gz, .xz, .zst), lines:PATTERN[,PATTERN...] (a document a line), "
        "tfds:NAME:SPLIT[:FIELD], hf:NAME:SPLIT[:FIELD]; pairs: and one of files, tfds and hf "
        "(a prompt and an answer a record); or mix:SOURCE,SOURCE")  # fmt: skip
    add("--valid_source", default="", help="text to validate on (default: a part of the source)")
    add("--valid_every", type=int, default=VALID_EVERY, metavar="K",
        help="else hold out one K-th of the source (default: %(default)s)")  # fmt: skip
    add("--tokenizer", default="sentencepiece", help="sentencepiece (trained on the source), byte, "
        "char, gpt2:FOLDER, hf:NAME (a tokenizer.json, its folder, or a model of the hub) or "
        "ids:VOCABULARY (default: %(default)s)")  # fmt: skip
    add("--vocab_size", type=int, default=8192, metavar="N",
        help="tokens of sentencepiece (default: %(default)s)")  # fmt: skip
    add("--length", type=int, default=1024, metavar="L",
        help="tokens of a record (default: %(default)s)")  # fmt: skip
    add("--shard_records", type=int, default=SHARD_RECORDS, metavar="R",
        help="records of a file (default: %(default)s)")  # fmt: skip
    add("--workers", type=within(1), metavar="W", help="processes (default: one a processor)")
    add("--shard", type=_shard, metavar="I/N", help="encode the I-th (from 0) of N shares, and "
        "leave the rest to others: see docs/scale.md")  # fmt: skip
    add("--out", required=True, type=path_of, metavar="DIR", help="folder to make")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    with raise_when_terminated():
        interrupted = "what is encoded is kept: the same command goes on from there"
        return run_command(_parser(), argv, _run, interrupted=interrupted)


def _run(options: argparse.Namespace) -> None:
    if "valid_every" in options.given and options.valid_source:
        raise UserError("--valid_every has no effect with --valid_source: leave it out.")
    if "vocab_size" in options.given and options.tokenizer != "sentencepiece":
        raise UserError(
            f"--vocab_size has no effect with --tokenizer={options.tokenizer}: leave it out."
        )
    settings = {n: value for n, value in vars(options).items() if n not in ("given", "shard")}
    if options.shard:
        encode_shard(options.shard, **settings)
        number, count = options.shard
        print(f"share {number} of {count} is encoded: when all are, give the command without "
              "--shard")  # fmt: skip
        return
    manifest = prepare(**settings)
    for name in ("train", "valid"):
        split = manifest.split(name)
        print(
            f"{name}: {split.documents:,} documents, {split.text_bytes:,} bytes, "
            f"{split.records:,} records of {manifest.length} tokens "
            f"({split.bytes_per_token:.2f} bytes each), {split.dropped_tokens:,} tokens dropped"
        )


def _shard(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I in 0 … N-1")
    return int(number), int(count)


if __name__ == "__main__":
    sys.exit(main())
