"""Sources of text: a source is named by a string and yields documents.

A new kind of source is two functions of its argument, listed in `_SOURCES` and `_CONTENTS`: one to
its documents, and one to what tells whether they are still the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from hybrid_jax.data import files, public, pydocs
from hybrid_jax.data.content import Content
from hybrid_jax.errors import UserError


def _pydocs(argument: str) -> Iterator[str]:
    if argument:
        raise UserError(f"The source pydocs takes no argument, but got {argument!r}: leave it out.")
    return pydocs.documents()


_SOURCES: dict[str, Callable[[str], Iterator[str]]] = {
    "files": files.documents,
    "hf": public.hub_documents,
    "pydocs": _pydocs,
    "tfds": public.tfds_documents,
}

_CONTENTS: dict[str, Callable[[str], dict[str, Content]]] = {
    "files": files.contents,
    "hf": public.hub_contents,
    "pydocs": lambda _: pydocs.contents(),
    "tfds": public.tfds_contents,
}
KINDS = tuple(_SOURCES)


def documents(source: str) -> Iterator[str]:
    """The documents of a source, each non-empty, in an order that depends on `source` alone.

    Args:
      source: "pydocs" (the documentation of the running interpreter, about 2 MB of English), or
        "files:PATTERN[,PATTERN...]" (.txt: one document a file; .jsonl: one a line, its field
        "text"; both also ending in .gz, .xz or .zst), "tfds:NAME[/CONFIG]:SPLIT[:FIELD]" (prepared
        by TFDS as ArrayRecord), or "hf:NAME[/CONFIG]:SPLIT[:FIELD]" (Hugging Face datasets).

    Returns:
      an iterator that holds one document at a time.

    Raises:
      UserError: for an unknown source or, at once or while iterating, for files that are missing,
        empty, damaged or not UTF-8.
    """
    kind, _, argument = source.partition(":")
    if kind not in _SOURCES:
        raise UserError(f"Unknown source {source!r}: choose one of {', '.join(sorted(_SOURCES))}.")
    return _SOURCES[kind](argument)


def streams(source: str) -> Iterator[Iterable[str]]:
    """`documents`, each as blocks of text to be read in order: no large file is held as a whole."""
    kind, _, argument = source.partition(":")
    if kind == "files":
        return files.streams(argument)
    return ((text,) for text in documents(source))


def parts(source: str) -> list[str]:
    """Sources that together have the documents of `source` in their order: one for each file."""
    kind, _, argument = source.partition(":")
    return [f"files:{one}" for one in files.parts(argument)] if kind == "files" else [source]


def contents(source: str) -> dict[str, Content]:
    """The content of each file of a source, or of the whole, by name.

    A pipe has none: it can be read only once. Raises UserError as `documents`.
    """
    kind, _, argument = source.partition(":")
    return _CONTENTS[kind](argument)
