"""Sources of text: a source is named by a string and yields documents."""

from collections.abc import Iterable, Iterator

from hybrid_jax.data import files, public, pydocs, pysource
from hybrid_jax.data.content import Content
from hybrid_jax.errors import UserError

_EMBEDDED = {"pydocs": pydocs, "pysource": pysource}
KINDS = ("files", "hf", "lines", "pairs", *_EMBEDDED, "tfds")


def documents(source: str) -> Iterator[str]:
    """The documents of a source, each non-empty, in an order that depends on `source` alone.

    Args:
      source: "pydocs" or "pysource" (documentation and code of the running interpreter, 2 MB of
        English and 9 MB of Python), "files:PATTERN[,PATTERN...]" (.txt: one document a file;
        .jsonl: one a line, its field "text"; both also ending in .gz, .xz or .zst; a pattern may be
        a URL), "lines:" with the same (one document a line of .txt too),
        "tfds:NAME[/CONFIG]:SPLIT[:FIELD]" (prepared by TFDS as ArrayRecord),
        "hf:NAME[/CONFIG]:SPLIT[:FIELD]" (Hugging Face datasets), or "pairs:" with a pattern of
        .jsonl files, "tfds:…" or "hf:…" (a pair of a prompt and an answer for each line or row, the
        fields "prompt" and "answer" or PROMPT+ANSWER).

    Returns:
      an iterator that holds one document at a time.

    Raises:
      UserError: for an unknown source or, at once or while iterating, for files that are missing,
        empty, damaged or not UTF-8.
    """
    joint = "\n" if source.startswith("pairs:") else ""
    return (joint.join(blocks) for blocks in streams(source))


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
    """`documents`, each as blocks of text to be read in order: no large file is held as a whole.

    The blocks of a pair are its prompt and its answer.
    """
    kind, _, argument = source.partition(":")
    if kind not in KINDS:
        raise UserError(f"Unknown source {source!r}: choose one of {', '.join(KINDS)}.")
    if kind in ("files", "lines"):
        return files.streams(argument, by_line=kind == "lines")
    if kind == "pairs":
        found = _public(argument)
        return public.pairs(*found) if found else files.pairs(argument)
    if kind in ("hf", "tfds"):
        return ((text,) for text in public.documents(kind, argument))
    if argument:
        raise UserError(f"The source {kind} takes no argument, but got {argument!r}: leave it out.")
    return ((text,) for text in _EMBEDDED[kind].documents())


def parts(source: str) -> list[str]:
    """Sources that together have the documents of `source` in their order: one for each file."""
    kind, _, argument = source.partition(":")
    if kind in ("files", "lines") or (kind == "pairs" and not _public(argument)):
        return [f"{kind}:{one}" for one in files.parts(argument)]
    return [source]


def contents(source: str) -> dict[str, Content]:
    """The content of each file of a source, or of the whole, by name.

    A pipe has none: it can be read only once. Raises UserError as `documents`.
    """
    kind, _, argument = source.partition(":")
    if kind == "pairs":
        kind, argument = _public(argument) or ("files", argument)
    if kind in ("hf", "tfds"):
        return public.contents(kind, argument, lambda: documents(source))
    return _EMBEDDED[kind].contents() if kind in _EMBEDDED else files.contents(argument)


def _public(argument: str) -> tuple[str, str] | None:
    """Kind and argument of pairs of a public data set; None for those of files."""
    kind, _, rest = argument.partition(":")
    return (kind, rest) if kind in ("hf", "tfds") else None
