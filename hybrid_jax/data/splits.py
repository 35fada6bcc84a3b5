"""Division of a source into text to train on and text to hold out.

The choice is by content: all copies of a piece of text are in one split, whatever their order and
the files they come from.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator

from hybrid_jax.data import sources
from hybrid_jax.errors import UserError

PIECE_CHARACTERS = 20_000
_FINER = 8  # ratio of the sizes of pieces that are tried
_LEAST_CHARACTERS = 32  # of a piece
_CANDIDATES = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Text that is not trained on.

    Attributes:
      digests: of its pieces.
      limit: characters of a piece at most, see `pieces`.
    """

    digests: frozenset[bytes] = frozenset()
    limit: int = PIECE_CHARACTERS


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


def held_out(source: str, *, every: int, least: int = 1) -> HeldOut:
    """Text to validate on: one `every`-th of the bytes of the source, copies included.

    Documents are cut into finer pieces only if whole ones cannot give about that share.

    Args:
      least: bytes to hold out of a small source, but no more than half of it.

    Raises:
      ValueError: if `every` is below 2, which would leave nothing to train on.
      UserError: as `sources.documents`, or if the source is a single piece, repeated or not.
    """
    if every < 2:
        raise ValueError(f"every is {every}; it must be at least 2")
    best, error = HeldOut(), float("inf")
    limit = PIECE_CHARACTERS
    while limit >= _LEAST_CHARACTERS and error > 0.5:
        total, sizes = _sizes(source, limit, every)
        target = max(total / every, min(least, total / 2))
        chosen, size = _choose(sizes, target)
        if chosen and (found := abs(size / target - 1)) < error:
            best, error = HeldOut(digests=frozenset(chosen), limit=limit), found
        limit //= _FINER
    if not best.digests:
        raise UserError(
            f"{source} is a single piece of text, alone or repeated, and a lone piece is held out "
            "whole, which leaves nothing to train on: use more text or a valid_source."
        )
    return best


def digests(source: str) -> HeldOut:
    """All text of a source, to hold out of another. Raises UserError as `sources.documents`."""
    documents = sources.documents(source)
    return HeldOut(digests=frozenset(_digest(p) for text in documents for p in pieces(text)))


def passages(source: str, *, held_out: HeldOut = HeldOut()) -> Iterator[tuple[bool, list[str]]]:
    """The source as passages: longest runs of a document that belong to one split.

    Args:
      source: see `sources.documents`.
      held_out: text to validate on.

    Yields:
      whether the passage is held out, and its pieces; a document that is not divided between the
      splits is one passage.
    """
    for document in sources.documents(source):
        parts = pieces(document, held_out.limit)
        runs = itertools.groupby(parts, lambda piece: _digest(piece) in held_out.digests)
        for is_held_out, run in runs:
            yield is_held_out, list(run)


def _sizes(source: str, limit: int, every: int) -> tuple[int, dict[bytes, int]]:
    """Bytes of the source, and of each different piece in all its copies, with ends of text.

    Of millions of pieces, those with the smallest digests: several times the share to choose.
    """
    total = 0
    sizes: Counter[bytes] = Counter()
    share = 1.0  # of all digests, from the smallest
    for text in sources.documents(source):
        for piece in pieces(text, limit):
            digest, size = _digest(piece), len(piece.encode("utf-8")) + 1
            total += size
            if _rank(digest) < share:
                sizes[digest] += size
        if len(sizes) > _CANDIDATES and share > 8 / every:
            share /= 2
            sizes = Counter({d: size for d, size in sizes.items() if _rank(d) < share})
    return total, sizes


def _choose(sizes: dict[bytes, int], target: float) -> tuple[list[bytes], int]:
    """Pieces of about `target` bytes together, at most half of the pieces; and their bytes."""
    order = sorted(sizes)
    most = len(order) // 2
    chosen: list[bytes] = []
    size = 0
    for digest in (digest for digest in order if sizes[digest] <= target):
        # No further than brings nearer to the target: these pieces end within half of it.
        if len(chosen) == most or sizes[digest] >= 2 * (target - size):
            break
        chosen.append(digest)
        size += sizes[digest]
    if size < target / 2 and most:
        nearest = min(order, key=lambda digest: abs(sizes[digest] - target))
        if sizes[nearest] - target < target - size:
            return [nearest], sizes[nearest]
    return chosen, size


def _digest(piece: str) -> bytes:
    return hashlib.blake2b(piece.encode("utf-8"), digest_size=16).digest()


def _rank(digest: bytes) -> float:
    """The place of a digest among all, in [0, 1)."""
    return int.from_bytes(digest[:6], "big") / (1 << 48)
