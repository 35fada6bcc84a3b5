"""Encoded text in files, from which an interrupted preparation goes on.

A chunk is a stretch of one part of the text (see `sources.parts`), encoded. What is in it depends
on the plan and the tokenizer alone, so that any number of processes and hosts may write chunks into
one folder, and write them again.
"""

import contextlib
import dataclasses
import functools
import io
import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np

from hybrid_jax.data import content, splits
from hybrid_jax.data.manifest import Input
from hybrid_jax.data.packing import RecordWriter, pair_record, token_dtype
from hybrid_jax.data.pairs import Piece, texts
from hybrid_jax.data.splits import HeldOut
from hybrid_jax.data.tokenizers import load_tokenizer
from hybrid_jax.data.tokenizers.base import Tokenizer
from hybrid_jax.errors import UserError
from hybrid_jax.runtime.decode import from_values, parse_json
from hybrid_jax.runtime.files import write_atomic
from hybrid_jax.runtime.json_text import write_json
from hybrid_jax.runtime.progress import Progress
from hybrid_jax.runtime.workers import Ask, run

CHARACTERS = 1 << 24  # of a chunk, for which a processor needs seconds
TOKENIZER = "tokenizer"  # its folder, beside the chunks
_PLAN = "plan.json"
_TRAIN, _VALID, _LEFT_OUT = range(3)  # where text goes
_MB = 10**6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """All that chunks depend on, but for the tokenizer.

    Attributes:
      inputs: what the text and the tokenizer were made of when this was planned.
      parts: the parts of the source, then those of the validation text.
      valid_parts: number of the latter.
      sources: number of parts of each source, which records of another do not run on into.
      size: UTF-8 bytes of all parts, about.
      characters: of a chunk at least, but for the last of a part.
      limits: characters of a piece at most, for each part of the source.
      pair_length: tokens of a record that is a pair; 0 for text, which runs on.
      held_out: digests of the source's pieces that are not trained on, hexadecimal.
    """

    inputs: tuple[Input, ...]
    parts: tuple[str, ...]
    valid_parts: int
    sources: tuple[int, ...]
    size: int
    characters: int
    limits: tuple[int, ...]
    pair_length: int
    held_out: tuple[str, ...]

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """The plan in a folder; None if there is none."""
        try:
            return from_values(cls, parse_json((folder / _PLAN).read_bytes()), "plan")
        except (OSError, ValueError, UserError):
            return None

    def save(self, folder: Path) -> None:
        """Writes the plan. Raises UserError if that is not possible."""
        write_json(folder / _PLAN, self)


def encode(folder: Path, plan: Plan, *, workers: int, shard: tuple[int, int] = (0, 1)) -> None:
    """Writes the chunks that are missing, and shows the progress where that takes long.

    Args:
      folder: of the plan, the tokenizer and the chunks.
      workers: processes at most.
      shard: (I, N) for the I-th of N shares of the chunks, from 0.

    Raises:
      UserError: if text cannot be read.
      OSError: if a chunk cannot be written.
      Interrupted: if a process dies.
    """
    share, shares = shard
    # With fewer parts than shares, a part is divided, and read by several.
    divided = len(plan.parts) < shares
    there = _there(folder)

    def is_ours(part: int, number: int = 0) -> bool:
        return (part + number * divided) % shares == share

    unread = [
        part
        for part in range(len(plan.parts))
        if (divided or is_ours(part)) and not _complete(there, part)
    ]
    readers: Counter[int] = Counter()
    stamp = content.stamp(folder / _PLAN)

    def jobs() -> Iterator[tuple[Any, ...]]:
        # A process that finds none to begin helps with one that has not been read to its end.
        while unread:
            part = min(unread, key=lambda part: readers[part])
            readers[part] += 1
            yield _encode_part, folder, stamp, part

    total = plan.size // shares
    large = total > 2 * plan.characters
    ours = (_path(folder, *chunk) for chunk in there.items() if large and is_ours(*chunk[0]))
    done = sum(int(_numbers(path)[:, 1].sum()) for path in ours)
    progress = (
        Progress(total=total // _MB, start=done // _MB, unit="MB", interval=60) if large else None
    )

    def answer(question: tuple[int, int] | int) -> bool:
        """True if the chunk of a part and number is to be encoded; or notes bytes that are done."""
        nonlocal done
        if isinstance(question, int):
            done += question
            if progress:
                progress.update(min(done, total) // _MB, {})
            return True
        free = question not in there and is_ours(*question)
        there.setdefault(question, False)
        return free

    ended = run(workers if large else 1, jobs(), answer)
    with progress or contextlib.nullcontext(), contextlib.closing(ended):
        answer(0)
        for part in ended:
            if part in unread:
                unread.remove(part)


def pack(folder: Path, plan: Plan, train: RecordWriter, valid: RecordWriter) -> int:
    """Gives all chunks to the writers, in order.

    Returns:
      bytes of the source that are validation text.
    """
    there = _there(folder)
    left_out = 0
    ends = set(itertools.accumulate(plan.sources))
    for part in range(len(plan.parts)):
        for number in itertools.count():
            is_last = there[part, number]
            with np.load(_path(folder, (part, number), is_last)) as chunk:
                numbers = chunk["numbers"].tolist()
                for writer, name, to in ((train, "train", _TRAIN), (valid, "valid", _VALID)):
                    documents, size = numbers[to]
                    writer.add(chunk[name], documents=documents, text_bytes=size)
            left_out += numbers[_LEFT_OUT][1]
            if is_last:
                break
        if part + 1 in ends:
            train.end_source()
            if not plan.valid_parts:
                valid.end_source()
    return left_out


def _encode_part(folder: Path, stamp: str, part: int, ask: Ask) -> int:
    """A job of `encode`: reads a part, and writes the chunks that are asked of it."""
    plan, held_out, tokenizer = _loaded(folder, stamp)
    is_source = part < len(plan.parts) - plan.valid_parts
    to = {False: _TRAIN if is_source else _VALID, True: _LEFT_OUT if plan.valid_parts else _VALID}
    out = HeldOut(digests=held_out, limit=plan.limits[part]) if is_source else HeldOut()
    passages = splits.passages(plan.parts[part], held_out=out)
    pieces = ((to[is_held_out], *piece) for is_held_out, run in passages for piece in _ends(run))
    for number, (batch, is_last) in enumerate(_batches(pieces, plan.characters)):
        if ask((part, number)):
            path = _path(folder, (part, number), is_last)
            size = _write(path, batch, tokenizer, plan.pair_length)
            ask(size)
    return part


@functools.lru_cache(maxsize=1)
def _loaded(folder: Path, stamp: str) -> tuple[Plan, frozenset[bytes], Tokenizer]:
    """The plan, whose file has this stamp, the digests that it holds out, and the tokenizer."""
    plan = Plan.load(folder)
    if plan is None:
        raise UserError(f"{folder} is gone: give the same command again.")
    return plan, frozenset(map(bytes.fromhex, plan.held_out)), load_tokenizer(folder / TOKENIZER)


def _ends(run: Iterator[Piece]) -> Iterator[tuple[Piece, bool]]:
    """The pieces of a passage, each with whether it is the last."""
    piece = next(run)
    for after in run:
        yield piece, False
        piece = after
    yield piece, True


def _batches(
    pieces: Iterator[tuple[int, Piece, bool]], least: int
) -> Iterator[tuple[list[tuple[int, Piece, bool]], bool]]:
    """Lists of pieces of `least` characters together, each with whether it is the last."""
    batch: list[tuple[int, Piece, bool]] = []
    characters = 0
    for piece in pieces:
        batch.append(piece)
        characters += sum(map(len, texts(piece[1])))
        if characters >= least:
            yield batch, False
            batch, characters = [], 0
    yield batch, True


def _write(
    path: Path, batch: list[tuple[int, Piece, bool]], tokenizer: Tokenizer, pair_length: int
) -> int:
    """Encodes a chunk; returns its bytes of text."""
    dtype = token_dtype(tokenizer.vocab_size, pair_length)
    end = np.array([tokenizer.eos], dtype)
    tokens = [[end[:0]], [end[:0]]]
    numbers = np.zeros((3, 2), np.int64)  # documents and bytes of each place
    for to, piece, ends in batch:
        numbers[to] += ends, splits.size_of(piece)
        if to == _LEFT_OUT:
            continue
        if isinstance(piece, str):
            tokens[to] += [tokenizer.encode(piece).astype(dtype), end[: int(ends)]]
        else:
            tokens[to].append(pair_record(piece, tokenizer, pair_length).astype(dtype))
    train, valid = map(np.concatenate, tokens)
    buffer = io.BytesIO()
    np.savez(buffer, train=train, valid=valid, numbers=numbers)
    try:
        write_atomic(path, buffer.getvalue())
    except UserError as error:
        raise error.__cause__ or error from None  # an OSError, which names the folder to be made
    return int(numbers[:, 1].sum())


def _numbers(path: Path) -> np.ndarray:
    with np.load(path) as chunk:
        numbers: np.ndarray = chunk["numbers"]
        return numbers


def _path(folder: Path, chunk: tuple[int, int], is_last: bool) -> Path:
    part, number = chunk
    return folder / f"{part}-{number}{'-last' if is_last else ''}.npz"


def _there(folder: Path) -> dict[tuple[int, int], bool]:
    """By part and number, the chunks that are written, and whether each is the last of its part."""
    found = (path.stem.split("-") for path in folder.glob("[0-9]*.npz"))
    return {(int(part), int(number)): bool(last) for part, number, *last in found}


def _complete(there: dict[tuple[int, int], bool], part: int) -> bool:
    numbers = itertools.takewhile(lambda n: (part, n) in there, itertools.count())
    return any(there[part, number] for number in numbers)
