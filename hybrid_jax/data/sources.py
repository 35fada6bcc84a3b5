"""Sources of text: a source is named by a string and yields documents.

A new kind of source is two functions of its argument, listed in `_SOURCES` and `_CONTENTS`: one to
its documents, and one to what tells whether they are still the same.
"""

import functools
from collections.abc import Callable, Iterable, Iterator

from hybrid_jax.data import files, public, pydocs, pysource
from hybrid_jax.data.content import Content
from hybrid_jax.errors import UserError


def _embedded(name: str, documents: Callable[[], Iterator[str]]) -> Callable[[str], Iterator[str]]:
    def read(argument: str) -> Iterator[str]:
        if argument:
            raise UserError(
                f"The source {name} takes no argument, but got {argument!r}: leave it out."
            )
        return documents()

    return read


_SOURCES: dict[str, Callable[[str], Iterator[str]]] = {
    "files": files.documents,
    "hf": public.hub_documents,
    "lines": functools.partial(files.documents, by_line=True),
    "pydocs": _embedded("pydocs", pydocs.documents),
    "pysource": _embedded("pysource", pysource.documents),
    "tfds": public.tfds_documents,
}

_CONTENTS: dict[str, Callable[[str], dict[str, Content]]] = {
    "files": files.contents,
    "hf": public.hub_contents,
    "lines": files.contents,
    "pydocs": lambda _: pydocs.contents(),
    "pysource": lambda _: pysource.contents(),
    "tfds": public.tfds_contents,
}
KINDS = tuple(_SOURCES)


def documents(source: str) -> Iterator[str]:
    """The documents of a source, each non-empty, in an order that depends on `source` alone.

    Args:
      source: "pydocs" or "pysource" (documentation and code of the running interpreter, 2 MB of
        English and 9 MB of Python), "files:PATTERN[,PATTERN...]" (.txt: one document a file;
        .jsonl: one a line, its field "text"; both also ending in .gz, .xz or .zst; a pattern may be
        a URL), "lines:" with
        the same (one document a line of .txt too), "tfds:NAME[/CONFIG]:SPLIT[:FIELD]" (prepared
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


def located(source: str) -> Iterator[tuple[str, str]]:
    """Lines of files, and documents of other sources, each behind the name of its place.

    Raises:
      UserError: as `documents`.
    """
    kind, _, argument = source.partition(":")
    if kind in ("files", "lines"):
        return files.located(argument)
    return ((f"Document {n} of {source}", text) for n, text in enumerate(documents(source), 1))


def streams(source: str) -> Iterator[Iterable[str]]:
    """`documents`, each as blocks of text to be read in order: no large file is held as a whole."""
    kind, _, argument = source.partition(":")
    if kind in ("files", "lines"):
        return files.streams(argument, by_line=kind == "lines")
    return ((text,) for text in documents(source))


def parts(source: str) -> list[str]:
    """Sources that together have the documents of `source` in their order: one for each file."""
    kind, _, argument = source.partition(":")
    if kind in ("files", "lines"):
        return [f"{kind}:{one}" for one in files.parts(argument)]
    return [source]


def contents(source: str) -> dict[str, Content]:
    """The content of each file of a source, or of the whole, by name.

    A pipe has none: it can be read only once. Raises UserError as `documents`.
    """
    kind, _, argument = source.partition(":")
    return _CONTENTS[kind](argument)
