"""Documents from text and JSON-lines files, plain or compressed."""

from __future__ import annotations

import contextlib
import glob
import gzip
import io
import json
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import zstandard

from hybrid_jax.errors import UserError

_READ = 1 << 16  # compressed bytes read at a time
_DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, zstandard.ZstdError)


class _ZstdFile(io.RawIOBase):
    """Reads all frames of a .zst file; unlike the library's own reader, it refuses a cut frame."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._compressed = b""
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            chunk = self._compressed or self._file.read(_READ)
            if not chunk and self._frame is not None:
                raise EOFError("the last frame is cut short")
            if not chunk:
                return 0
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            self._ready = self._frame.decompress(chunk)
            self._compressed = b""
            if self._frame.eof:
                self._compressed = self._frame.unused_data
                self._frame = None
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count


_DECOMPRESSORS: dict[str, Callable[[BinaryIO], BinaryIO]] = {
    ".gz": lambda file: cast(BinaryIO, gzip.GzipFile(fileobj=file, mode="rb")),
    ".xz": lambda file: cast(BinaryIO, lzma.LZMAFile(file, mode="rb")),  # noqa: SIM115 (closed by its user)
    ".zst": lambda file: cast(BinaryIO, io.BufferedReader(_ZstdFile(file), 1 << 20)),
}


def documents(patterns: str) -> Iterator[str]:
    """The documents of all files that match, in the order of the patterns and then of names.

    Args:
      patterns: file names or globs ("**" descends into folders), separated by commas.

    Raises:
      UserError: if a pattern matches no file or a file of another kind; while iterating, if a file
        is empty, damaged, not UTF-8, or has a line that is not an object with a text.
    """
    paths = _matching(patterns)
    readers = [_reader(path) for path in paths]
    return (
        text
        for path, reader in zip(paths, readers, strict=True)
        for text in _nonempty(path, reader)
    )


def _matching(patterns: str) -> list[Path]:
    names: list[str] = []
    for pattern in filter(None, (part.strip() for part in patterns.split(","))):
        pattern = os.path.expanduser(pattern)
        # The name of an existing file is no pattern, even with brackets in it.
        found = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern, recursive=True))
        if not found:
            raise UserError(f"No file matches {pattern!r}: check the path or pattern.")
        if os.path.isdir(pattern):
            raise UserError(f"{pattern} is a folder: name its files, for example {pattern}/*.txt.")
        names += [name for name in found if not os.path.isdir(name)]
    if not names:
        raise UserError(f"The source files:{patterns} names no file: write files:PATTERN.")
    return [Path(name) for name in dict.fromkeys(names)]


def _reader(path: Path) -> Callable[[Path, BinaryIO], Iterator[str]]:
    kind = path.with_suffix("").suffix if path.suffix in _DECOMPRESSORS else path.suffix
    readers = {".txt": _whole_file, ".jsonl": _json_lines}
    if kind not in readers:
        raise UserError(
            f"{path} is of an unknown kind: files must end in .txt or .jsonl, and may be "
            f"compressed ({', '.join(_DECOMPRESSORS)})."
        )
    return readers[kind]


def _nonempty(path: Path, reader: Callable[[Path, BinaryIO], Iterator[str]]) -> Iterator[str]:
    decompressor = _DECOMPRESSORS.get(path.suffix, contextlib.nullcontext)
    empty = True
    try:
        with open(path, "rb") as raw, decompressor(raw) as file:
            for text in reader(path, file):
                if text:
                    empty = False
                    yield text
    except _DAMAGED as error:
        raise UserError(f"{path} is damaged ({error}): fetch or compress it again.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    if empty:
        raise UserError(f"{path} has no text in it: remove it from the source.")


def _whole_file(path: Path, file: BinaryIO) -> Iterator[str]:
    content = file.read()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path} is not UTF-8 at byte {error.start} (line {line}): convert it to UTF-8."
        ) from error
    yield text if text.strip() else ""


def _json_lines(path: Path, file: BinaryIO) -> Iterator[str]:
    for number, line in enumerate(file, start=1):
        where = f"Line {number} of {path}"
        try:
            text = line.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{where} is not UTF-8 at its byte {error.start}: convert it."
            ) from error
        if not text.strip():
            continue
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", error)
            raise UserError(f"{where} is not valid JSON ({reason}): fix or drop it.") from error
        document = value.get("text") if isinstance(value, dict) else None
        if not isinstance(document, str):
            raise UserError(f'{where} has no field "text" with a string: add it or drop the line.')
        try:
            document.encode("utf-8")
        except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair
            raise UserError(f"{where} has half a surrogate pair in it: fix or drop it.") from error
        yield document
