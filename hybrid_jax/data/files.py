"""Documents from text and JSON-lines files, plain or compressed."""

import contextlib
import glob
import gzip
import io
import itertools
import json
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePath
from typing import Any, BinaryIO, cast

import zstandard

from hybrid_jax.data import content, remote
from hybrid_jax.data.pairs import FIELDS, checked
from hybrid_jax.errors import UserError
from hybrid_jax.runtime.decode import listed
from hybrid_jax.runtime.files import expanded
from hybrid_jax.runtime.json_text import json_text

_READ = 1 << 16  # compressed bytes read at a time
_BLOCK = 1 << 20  # bytes of a text handed on at a time
_DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, zstandard.ZstdError)
# Words of libraries that cannot do what whole files ask for.
_LIMITS = re.compile(r"unsupported|memory|dictionary", re.IGNORECASE)
_WINDOW = 1 << zstandard.WINDOWLOG_MAX  # of `zstd --long=31`; the library's default is 1 << 27
_STDIN = "-"


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
                self._frame = zstandard.ZstdDecompressor(max_window_size=_WINDOW).decompressobj()
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


def streams(patterns: str, *, by_line: bool = False) -> Iterator[Iterable[str]]:
    """The documents of all files that match, in the order of the patterns and then of names.

    A file is read once, however many names and links lead to it.

    Args:
      patterns: file names, URLs or globs ("**" descends into folders), separated by commas, or a
        JSON list of them where one has a comma in it.
      by_line: whether each line of a .txt file is a document.

    Returns:
      each document as blocks of text to be read in order, so that none is held as a whole.

    Raises:
      UserError: if a pattern matches no file or a file of another kind; while iterating, if a file
        is empty, damaged, not UTF-8, or has a line that is not an object with a text.
    """
    found = [(path, _documents(path, by_line)) for path in _matching(patterns)]
    return (blocks for path, documents in found for blocks in _nonempty(path, documents))


def parts(patterns: str) -> list[str]:
    """The patterns of one file each that together have the same documents in the same order.

    Raises:
      UserError: as `streams`, or for a pipe, since parts are read more than once.
    """
    paths = _matching(patterns)
    for path in paths:
        if os.path.exists(path) and not os.path.isfile(path):
            raise UserError(
                f"{path} can be read only once: write its text to a file, and name that."
            )
    return [json_text([path]) for path in paths]


def contents(patterns: str) -> dict[str, content.Content]:
    """The content of each file of `streams`. Raises UserError as it does."""
    return {
        path: remote.content(path) if remote.is_remote(path) else content.of_file(Path(path))
        for path in _matching(patterns)
        if remote.is_remote(path) or os.path.isfile(path)
    }


def pairs(patterns: str) -> Iterator[tuple[str, str]]:
    """Prompt and answer of each line of all .jsonl files that match.

    Raises:
      UserError: as `streams`, or for a line without one of them.
    """
    paths = _matching(patterns)
    for path in paths:
        if _kind(path) != ".jsonl":
            raise UserError(f"{path} has no pairs: they are lines of .jsonl files.")
    return (pair for path in paths for pair in _pairs(path))


def located(patterns: str) -> Iterator[tuple[str, str]]:
    """The lines of all files that match, of .jsonl their texts, each behind the name of its place.

    Raises:
      UserError: as `streams`.
    """
    for path in _matching(patterns):
        for number, blocks in enumerate(_documents(path, by_line=True), start=1):
            yield f"Line {number} of {path}", "".join(blocks)


def prompts(file: str) -> list[str]:
    """The lines of a text file that are not blank, or the prompts or texts of a .jsonl file.

    Args:
      file: its path, or "-" for standard input.

    Raises:
      UserError: if there are none, or as `streams`.
    """
    path = str(expanded(file))
    texts = _json_texts(path, prompts=True) if _kind(path) == ".jsonl" else lines(path)
    found = [text for text in texts if text.strip()]
    if not found:
        raise UserError(f"There are no prompts in {file}: write one a line.")
    return found


def lines(path: str) -> Iterator[str]:
    r"""The lines of a file, which end in "\n" or "\r\n", without these ends.

    Raises:
      UserError: if the file cannot be read, is damaged or not UTF-8.
    """
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"Line {number} of {path} is not UTF-8 at its byte {error.start}: convert it."
                ) from error
            yield text.removesuffix("\n").removesuffix("\r")


def _matching(patterns: str) -> list[str]:
    names: list[str] = []
    for pattern in listed(patterns):
        if remote.is_remote(pattern):
            found = remote.matching(pattern)
        else:
            pattern = os.path.expanduser(pattern)
            # The name of an existing file is no pattern, even with brackets in it.
            found = [pattern] if os.path.exists(pattern) else sorted(_glob(pattern))
        if not found:
            raise UserError(f"No file matches {pattern!r}: check the path or pattern.")
        if os.path.isdir(pattern):
            raise UserError(f"{pattern} is a folder: name its files, for example {pattern}/*.txt.")
        names += [name for name in found if not os.path.isdir(name)]
    if not names:
        raise UserError(f"The source files:{patterns} names no file: write files:PATTERN.")
    first: dict[Any, str] = {}
    for name in names:
        first.setdefault(_identity(name), name)
    return [name if remote.is_remote(name) else str(Path(name)) for name in first.values()]


def _glob(pattern: str) -> Iterator[str]:
    """The paths of `glob.glob`, but "**" enters a folder once, whatever links lead to it."""
    parts = pattern.split("/")
    if "**" not in parts:
        yield from glob.glob(pattern)
        return
    at = parts.index("**")
    rest = "/".join(parts[at + 1 :]) or "*"
    # Ends in a slash, so that it may be the root, or empty for the current folder.
    folders = glob.glob("/".join([*parts[:at], ""])) if at else [""]
    entered = set()
    for folder in folders:  # which grows, level by level: a folder has its shortest path
        if (identity := _identity(folder or ".")) not in entered:
            entered.add(identity)
            yield from _glob(glob.escape(folder) + rest)
            folders += sorted(glob.glob(f"{glob.escape(folder)}*/"))


def _identity(name: str) -> tuple[int, int] | str:
    """Equal for all paths and links to a file; the name itself if that leads nowhere."""
    try:
        status = os.stat(name)
    except OSError:
        return name  # reading it gives the error
    return status.st_dev, status.st_ino


def _kind(path: str) -> str:
    """The suffix that says what is in a file, apart from compression."""
    name = _plain(path)
    name = name.with_suffix("") if name.suffix.lower() in _DECOMPRESSORS else name
    return name.suffix.lower()


def _plain(path: str) -> PurePath:
    """A path, without the query of a web address."""
    return PurePath(re.sub(r"^(https?://[^?#]*).*", r"\1", path))


def _documents(path: str, by_line: bool) -> Iterator[Iterable[str]]:
    """The documents of a file as blocks. Raises UserError, at once, for a file of another kind."""
    if _kind(path) == ".jsonl":
        return ((text,) for text in _json_texts(path))
    if _kind(path) != ".txt":
        raise UserError(
            f"{path} is of an unknown kind: files must end in .txt or .jsonl, and may be "
            f"compressed ({', '.join(_DECOMPRESSORS)})."
        )
    return ((line,) for line in lines(path)) if by_line else iter([_blocks(path)])


def _nonempty(path: str, documents: Iterator[Iterable[str]]) -> Iterator[Iterable[str]]:
    empty = True
    for document in documents:
        head, blocks = "", iter(document)
        for block in blocks:
            head += block
            if head.strip():
                empty = False
                yield itertools.chain((head,), blocks)
                break
    if empty:
        raise UserError(f"{path} has no text in it: remove it from the source.")


@contextlib.contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    """A file, decompressed. Raises UserError for what goes wrong while it is read."""
    decompressor = _DECOMPRESSORS.get(_plain(path).suffix.lower(), contextlib.nullcontext)
    try:
        with _raw(path) as raw, decompressor(raw) as file:
            yield file
    except (*_DAMAGED, MemoryError) as error:
        reason = str(error) or "out of memory"
        if isinstance(error, MemoryError) or _LIMITS.search(reason):
            raise UserError(
                f"{path} cannot be read here ({reason}): divide it, or compress it again with "
                "default settings."
            ) from error
        raise UserError(f"{path} is damaged ({reason}): fetch or compress it again.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error


def _raw(path: str) -> BinaryIO:
    if remote.is_remote(path):
        return remote.opened(path)
    return open(0, "rb", closefd=False) if path == _STDIN else open(path, "rb")


def _blocks(path: str) -> Iterator[str]:
    """The text of a file in blocks of whole lines."""
    size = lines = 0
    with _opened(path) as file:
        while content := b"".join(file.readlines(_BLOCK)):
            try:
                yield content.decode("utf-8" if size else "utf-8-sig")
            except UnicodeDecodeError as error:
                start = size + error.start
                line = lines + content.count(b"\n", 0, error.start) + 1
                raise UserError(
                    f"{path} is not UTF-8 at byte {start} (line {line}): convert it to UTF-8."
                ) from error
            size += len(content)
            lines += content.count(b"\n")


def _json_texts(path: str, *, prompts: bool = False) -> Iterator[str]:
    """The text of each line, or where `prompts` are wanted its prompt if it has one; "" for a blank
    line."""
    for where, value in _json_values(path):
        is_prompt = prompts and isinstance(value, dict) and FIELDS[0] in value
        yield "" if value is None else _string(where, value, FIELDS[0] if is_prompt else "text")


def _pairs(path: str) -> Iterator[tuple[str, str]]:
    empty = True
    for where, value in _json_values(path):
        if value is not None:
            empty = False
            yield checked(where, *(_string(where, value, field) for field in FIELDS))
    if empty:
        raise UserError(f"{path} has no pairs in it: remove it from the source.")


def _json_values(path: str) -> Iterator[tuple[str, Any]]:
    """The place and the value of each line; None for a blank one."""
    for number, line in enumerate(lines(path), start=1):
        where = f"Line {number} of {path}"
        line = line.lstrip("\ufeff")  # files with a byte order mark may have been joined
        if not line.strip():
            yield where, None
            continue
        try:
            # Numbers are not needed, and Python refuses to read very long ones as int.
            value = json.loads(line, parse_int=float)
        except json.JSONDecodeError as error:
            raise UserError(f"{where} is not valid JSON ({error.msg}): fix or drop it.") from error
        except RecursionError as error:
            raise UserError(f"{where} is nested too deeply to be read: drop it.") from error
        yield where, value


def _string(where: str, value: Any, field: str) -> str:
    """A field of a JSON object. Raises UserError if it has none with a text."""
    text = value.get(field) if isinstance(value, dict) else None
    if not isinstance(text, str):
        raise UserError(f'{where} has no field "{field}" with a string: add it or drop the line.')
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair
        raise UserError(f"{where} has half a surrogate pair in it: fix or drop it.") from error
    return text
