"""Division of a source into text to train on and text to hold out."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator

from hybrid_jax.data import sources

PIECE_CHARACTERS = 20_000


def pieces(document: str, limit: int = PIECE_CHARACTERS) -> list[str]:
    """Cuts a document into parts of at most `limit` characters; joined, they are the document.

    A cut falls after a blank line where there is one in the second half of the part, otherwise
    after a line, otherwise before a space, otherwise anywhere.
    """
    parts = []
    start = 0
    while len(document) - start > limit:
        end = start + limit
        for separator, kept in (("\n\n", 2), ("\n", 1), (" ", 0)):
            found = document.rfind(separator, start + limit // 2, end)
            if found > start:
                end = min(found + kept, end)
                break
        parts.append(document[start:end])
        start = end
    parts.append(document[start:])
    return parts


def held_out(source: str, *, every: int) -> frozenset[bytes]:
    """Digests of the pieces to validate on: every `every`-th piece of the source, at least one.

    A set of contents, not of places, so that a piece that occurs twice is held out twice.

    Raises:
      ValueError: if `every` is below 2, which would leave nothing to train on.
      UserError: as `sources.documents`.
    """
    if every < 2:
        raise ValueError(f"every is {every}; it must be at least 2")
    chosen = set()
    last = b""
    for number, piece in enumerate(p for text in sources.documents(source) for p in pieces(text)):
        last = _digest(piece)
        if number % every == every // 2:
            chosen.add(last)
    return frozenset(chosen or {last})


def passages(
    source: str, *, held_out: frozenset[bytes] = frozenset()
) -> Iterator[tuple[bool, list[str]]]:
    """The source as passages: longest runs of a document that belong to one split.

    Args:
      source: see `sources.documents`.
      held_out: digests of the pieces to validate on.

    Yields:
      whether the passage is held out, and its pieces; a document that is not divided between the
      splits is one passage.
    """
    for document in sources.documents(source):
        runs = itertools.groupby(pieces(document), lambda piece: _digest(piece) in held_out)
        for is_held_out, run in runs:
            yield is_held_out, list(run)


def _digest(piece: str) -> bytes:
    return hashlib.blake2b(piece.encode("utf-8"), digest_size=16).digest()
