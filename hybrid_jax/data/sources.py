"""Where documents come from: a source is named by a string and yields texts one at a time."""

from __future__ import annotations

import ast
import glob
import gzip
import inspect
import io
import json
import lzma
import os
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import IO

import zstandard

from hybrid_jax.errors import UserError

_OPENERS: dict[str, Callable[[Path], IO[bytes]]] = {
    ".gz": lambda path: gzip.open(path, "rb"),
    ".xz": lambda path: lzma.open(path, "rb"),
    ".zst": lambda path: io.BufferedReader(zstandard.open(path, "rb")),
}
_PIECE = 20_000  # characters; a longer document is split there so that a part can be held out
_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3",
                    "_vendor", "__pycache__", "ensurepip", "turtledemo"}  # fmt: skip


def documents(spec: str) -> Iterator[str]:
    """The documents of a source.

    Args:
      spec: "pydocs" (the documentation of the running interpreter, about 2 MB of English) or
        "files:PATTERN[,PATTERN…]" (.txt: a document each; .jsonl: one a line, in the field
        "text"; both also as .gz, .xz or .zst).

    Raises:
      UserError: for an unknown source, or files that are missing, empty, damaged or not UTF-8.
    """
    kind, _, argument = spec.partition(":")
    if kind not in _SOURCES:
        raise UserError(f"Unknown source {spec!r}: known are {', '.join(sorted(_SOURCES))}.")
    return _SOURCES[kind](argument)


def split(spec: str, *, held_out: bool, every: int = 20) -> Iterator[str]:
    """The training part of a source, or the held-out part: every `every`-th piece.

    Long documents are cut into pieces at line ends, so that a single large file has both parts.
    """
    number = 0
    for document in documents(spec):
        for piece in _pieces(document):
            # Not the last of them: a source of a few pieces should have both parts.
            if (number % every == every // 8) == held_out:
                yield piece
            number += 1


def _pieces(document: str) -> Iterator[str]:
    start = 0
    while len(document) - start > _PIECE:
        end = document.rfind("\n", start, start + _PIECE) + 1 or start + _PIECE
        if end <= start:
            end = start + _PIECE
        yield document[start:end]
        start = end
    if start < len(document):
        yield document[start:]


def _pydocs(argument: str) -> Iterator[str]:
    if argument:
        raise UserError(f"The source pydocs takes no argument, but got {argument!r}.")
    # Some topics go by several names, and some modules are copies.
    seen = {topics[name].strip() + "\n" for name in topics}
    yield from sorted(seen)
    root = Path(sysconfig.get_paths()["stdlib"])
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(set(subfolders) - _SKIPPED_FOLDERS)
        for file in sorted(files):
            if file.endswith(".py"):
                path = Path(folder, file)
                text = _docstrings(path, ".".join(path.relative_to(root).with_suffix("").parts))
                if text and text not in seen:
                    seen.add(text)
                    yield text


def _docstrings(path: Path, module: str) -> str:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return ""  # templates and files for other interpreters
    parts: list[str] = []

    def visit(node: ast.AST, name: str) -> None:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=False)
            if text and text.strip():
                parts.append(f"{name}\n\n{inspect.cleandoc(text)}\n")
        for child in ast.iter_child_nodes(node):
            inner = getattr(child, "name", None)
            is_definition = isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            visit(child, f"{name}.{inner}" if is_definition else name)

    visit(tree, module)
    return "\n".join(parts)


def _files(argument: str) -> Iterator[str]:
    patterns = [pattern for pattern in argument.split(",") if pattern]
    if not patterns:
        raise UserError("The source files: needs a path or pattern, as in files:books/*.txt.")
    paths: list[Path] = []
    for pattern in patterns:
        found = sorted(Path(name) for name in glob.glob(pattern, recursive=True))
        if not found:
            raise UserError(f"No file matches {pattern!r}: check the path of the source.")
        paths.extend(found)
    for path in paths:
        opener = _OPENERS.get(path.suffix)
        kind = path.with_suffix("").suffix if opener else path.suffix
        if kind not in (".txt", ".jsonl"):
            raise UserError(
                f"{path} is neither .txt nor .jsonl (each also as .gz, .xz, .zst): name text files."
            )
        try:
            with opener(path) if opener else open(path, "rb") as file:
                yield from (_lines if kind == ".jsonl" else _whole)(path, file)
        except (OSError, EOFError, lzma.LZMAError, zstandard.ZstdError) as error:
            raise UserError(f"{path} cannot be read: {error}.") from error


def _whole(path: Path, file: IO[bytes]) -> Iterator[str]:
    raw = file.read()
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 at byte {error.start}: convert it.") from error
    if not text.strip():
        raise UserError(f"{path} is empty: remove it from the source.")
    yield text


def _lines(path: Path, file: IO[bytes]) -> Iterator[str]:
    number = 0
    for number, raw in enumerate(file, 1):
        try:
            record = json.loads(raw.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise UserError(f"{path} line {number} is not UTF-8: convert it.") from error
        except json.JSONDecodeError as error:
            raise UserError(f"{path} line {number} is not JSON: {error.msg}.") from error
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            raise UserError(f'{path} line {number} has no text in a field "text".')
        if record["text"].strip():
            yield record["text"]
    if not number:
        raise UserError(f"{path} is empty: remove it from the source.")


_SOURCES: dict[str, Callable[[str], Iterator[str]]] = {"pydocs": _pydocs, "files": _files}
