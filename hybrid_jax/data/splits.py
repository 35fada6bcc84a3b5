"""Division of a source into text to train on and text to hold out.

The choice is by content: all copies of a piece of text are in one split, whatever their order and
the files they come from.
"""

import dataclasses
import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator

from hybrid_jax.data import sources
from hybrid_jax.data.pairs import Piece, is_pairs, texts
from hybrid_jax.errors import UserError
from hybrid_jax.runtime.workers import Ask, run

PIECE_CHARACTERS = 20_000
_FINER = 8  # ratio of the sizes of pieces that are tried
_LEAST_CHARACTERS = 32  # of a piece
_CANDIDATES = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Text that is not trained on.

    Attributes:
      digests: of its pieces.
      limit: characters of a piece at most, see `cut`.
      size: bytes of all the text that it was chosen from, about.
    """

    digests: frozenset[bytes] = frozenset()
    limit: int = PIECE_CHARACTERS
    size: int = 0


def cut(blocks: Iterable[str], limit: int = PIECE_CHARACTERS) -> Iterator[str]:
    """Cuts a document into pieces of at most `limit` characters; joined, they are the document.

    A cut falls after a blank line where there is one in the second half of the piece, otherwise
    after a line, otherwise before a space, otherwise anywhere.

    Args:
      blocks: the document, in parts of any sizes.
    """
    text = ""
    for block in blocks:
        text, start = text + block, 0
        while len(text) - start > limit:
            end = start + limit
            for separator, kept in (("\n\n", 2), ("\n", 1), (" ", 0)):
                found = text.rfind(separator, start + limit // 2, end)
                if found > start:
                    end = min(found + kept, end)
                    break
            yield text[start:end]
            start = end
        text = text[start:]
    yield text


def read(source: str, limit: int = PIECE_CHARACTERS) -> Iterator[Iterator[Piece]]:
    """The pieces of each document; a pair is one, whatever its length."""
    if is_pairs(source):
        return (iter([(prompt, answer)]) for prompt, answer in sources.streams(source))
    return (cut(blocks, limit) for blocks in sources.streams(source))


def size_of(piece: Piece) -> int:
    """UTF-8 bytes of a piece."""
    return sum(len(text.encode("utf-8")) for text in texts(piece))


def held_out(source: str, *, every: int, least: int = 1, workers: int = 1) -> HeldOut:
    """Text to validate on: one `every`-th of the bytes of the source, copies included.

    Documents are cut into finer pieces only if whole ones cannot give about that share.

    Args:
      least: bytes to hold out of a small source, but no more than half of it.
      workers: processes that read.

    Raises:
      ValueError: if `every` is below 2, which would leave nothing to train on.
      UserError: as `sources.documents`, or if the source is a single piece, repeated or not.
    """
    if every < 2:
        raise ValueError(f"every is {every}; it must be at least 2")
    best, error = HeldOut(), float("inf")
    limit = PIECE_CHARACTERS
    while limit >= _LEAST_CHARACTERS and error > 0.5:
        sizes = _sizes(source, limit, every, workers)
        target = max(sizes.total / every, min(least, sizes.total / 2))
        chosen, size = _choose(sizes.of_pieces, target)
        if chosen and (found := abs(size / target - 1)) < error:
            best = HeldOut(digests=frozenset(chosen), limit=limit, size=sizes.total)
            error = found
        limit = 0 if is_pairs(source) else limit // _FINER
    if not best.digests:
        raise UserError(
            f"{source} is a single piece of text, alone or repeated, and a lone piece is held out "
            "whole, which leaves nothing to train on: use more text or a valid_source."
        )
    return best


def digests(source: str) -> HeldOut:
    """All text of a source, to hold out of another. Raises UserError as `sources.documents`."""
    sizes = _sizes(source, PIECE_CHARACTERS, 1, 1)
    return HeldOut(digests=frozenset(sizes.of_pieces), size=sizes.total)


def passages(
    source: str, *, held_out: HeldOut = HeldOut()
) -> Iterator[tuple[bool, Iterator[Piece]]]:
    """The source as passages: longest runs of a document that belong to one split.

    Args:
      source: see `sources.documents`.
      held_out: text to validate on.

    Yields:
      whether the passage is held out, and its pieces, to be read before the next passage; a
      document that is not divided between the splits is one passage.
    """
    for pieces in read(source, held_out.limit):
        yield from itertools.groupby(pieces, lambda piece: _digest(piece) in held_out.digests)


def size(source: str, *, workers: int = 1) -> int:
    """Bytes of the documents of a source. Raises UserError as `sources.documents`."""
    return sum(run(workers, ((_size_of_part, part) for part in sources.parts(source))))


def _size_of_part(part: str, _: Ask) -> int:
    return sum(len(block.encode("utf-8")) for blocks in sources.streams(part) for block in blocks)


@dataclasses.dataclass(kw_only=True)
class _Sizes:
    """Bytes of a text, and of each different piece in all its copies, with ends of text.

    Of millions of pieces, those with the smallest digests: several times the share to choose, one
    of `every`. They are the same however the text is divided and added.
    """

    every: int
    total: int = 0
    share: float = 1.0  # of all digests, from the smallest, that is counted
    of_pieces: Counter[bytes] = dataclasses.field(default_factory=Counter)

    def add(self, pieces: Iterable[tuple[bytes, int]], *, total: int, share: float = 1.0) -> None:
        """Counts digests and sizes, of which those beyond `share` are left out."""
        self.total += total
        for digest, size in pieces:
            if _rank(digest) < self.share:
                self.of_pieces[digest] += size
        while share < self.share or (
            len(self.of_pieces) > _CANDIDATES and self.share > 8 / self.every
        ):
            self.share /= 2
            kept = {d: size for d, size in self.of_pieces.items() if _rank(d) < self.share}
            self.of_pieces = Counter(kept)


def _sizes(source: str, limit: int, every: int, workers: int) -> _Sizes:
    sizes = _Sizes(every=every)
    jobs = ((_sizes_of_part, part, limit, every) for part in sources.parts(source))
    for part in run(workers, jobs):
        sizes.add(part.of_pieces.items(), total=part.total, share=part.share)
    return sizes


def _sizes_of_part(part: str, limit: int, every: int, _: Ask) -> _Sizes:
    sizes = _Sizes(every=every)
    for pieces in read(part, limit):
        for piece in pieces:
            size = size_of(piece) + 1
            sizes.add([(_digest(piece), size)], total=size)
    return sizes


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


def _digest(piece: Piece) -> bytes:
    # Of a pair the prompt alone: no prompt is in both splits, with another answer.
    return hashlib.blake2b(texts(piece)[0].encode("utf-8"), digest_size=16).digest()


def _rank(digest: bytes) -> float:
    """The place of a digest among all, in [0, 1)."""
    return int.from_bytes(digest[:6], "big") / (1 << 48)
