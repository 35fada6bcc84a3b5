"""Sudoku: a solver, puzzles with one solution, and the symmetries that make many of one.

A grid is a row of cells, line after line, 0 for empty. Searching in Python for puzzles of 81 cells
takes tens of milliseconds each, so a large set is derived from fewer, the bases: digits are
relabelled, bands, stacks, rows in bands and columns in stacks are permuted, and square boxes are
transposed. None of this changes the number of solutions.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Sequence

import numpy as np

from hybrid_jax.runtime import workers

_HELD_OUT = 8  # one solution in so many is for validation
_BASES = 12  # for each puzzle of validation, at least _HELD_OUT and some more
_JOB = 100  # bases
_AT_ONCE = 100_000  # puzzles derived, about a gigabyte of work for 81 cells


@dataclasses.dataclass(frozen=True, kw_only=True)
class Board:
    """A board of side × side cells, its boxes of `tall` rows and side / tall columns.

    Attributes:
      clues: least and most cells of a puzzle that are given.
    """

    side: int
    tall: int
    clues: tuple[int, int]

    @property
    def cells(self) -> int:
        return self.side**2

    def units(self) -> list[tuple[int, int, int]]:
        """Row, column and box of each cell."""
        side, tall = self.side, self.tall
        return [
            (row, column, row // tall * tall + column // (side // tall))
            for row in range(side)
            for column in range(side)
        ]


BOARDS = {
    4: Board(side=4, tall=2, clues=(5, 8)),
    6: Board(side=6, tall=2, clues=(12, 18)),
    9: Board(side=9, tall=3, clues=(30, 40)),
}


def solutions(
    board: Board, puzzle: Sequence[int], draw: random.Random | None = None
) -> Iterator[list[int]]:
    """All solutions, by backtracking on the cell with the fewest candidates.

    Args:
      puzzle: 0 for an empty cell.
      draw: tries candidates in random order; in rising order without it.
    """
    every = (1 << board.side) - 1
    taken = [[0] * board.side for _ in range(3)]  # digits of rows, columns and boxes, as bits
    units, grid = board.units(), list(puzzle)
    for (row, column, box), digit in zip(units, grid, strict=True):
        bit = 1 << digit >> 1
        if (taken[0][row] | taken[1][column] | taken[2][box]) & bit:
            return
        taken[0][row] |= bit
        taken[1][column] |= bit
        taken[2][box] |= bit
    rows, columns, boxes = taken
    empty = [cell for cell, digit in enumerate(grid) if not digit]

    def search() -> Iterator[list[int]]:
        if not empty:
            yield list(grid)
            return
        fewest, at, free = board.side + 1, 0, 0
        for place, cell in enumerate(empty):
            row, column, box = units[cell]
            candidates = every & ~(rows[row] | columns[column] | boxes[box])
            if (count := candidates.bit_count()) < fewest:
                fewest, at, free = count, place, candidates
                if count <= 1:
                    break
        if not free:
            return
        cell, empty[at] = empty[at], empty[-1]
        empty.pop()
        row, column, box = units[cell]
        digits = [digit for digit in range(1, board.side + 1) if free >> (digit - 1) & 1]
        if draw:
            draw.shuffle(digits)
        for digit in digits:
            bit, grid[cell] = 1 << digit >> 1, digit
            rows[row] ^= bit
            columns[column] ^= bit
            boxes[box] ^= bit
            yield from search()
            rows[row] ^= bit
            columns[column] ^= bit
            boxes[box] ^= bit
        empty.append(cell)  # `empty` has no order that matters
        grid[cell] = 0

    yield from search()


def base(board: Board, seed: int) -> tuple[list[int], list[int]]:
    """A puzzle with one solution, and the solution.

    From a random full grid cells are taken in random order, where no other digit than theirs would
    have a solution, until a number of clues is left that was drawn before, or no cell can go.
    """
    draw = random.Random(seed)
    solution = next(solutions(board, [0] * board.cells, draw))
    puzzle, left, wanted = list(solution), board.cells, draw.randint(*board.clues)
    for cell in draw.sample(range(board.cells), board.cells):
        if left == wanted:
            break
        others = set(range(1, board.side + 1)) - {solution[cell]}
        tries = ([*puzzle[:cell], digit, *puzzle[cell + 1 :]] for digit in others)
        if all(next(solutions(board, tried), None) is None for tried in tries):
            puzzle[cell], left = 0, left - 1
    return puzzle, solution


def bases(board: Board, seeds: range, _ask: object = None) -> tuple[int, np.ndarray]:
    """The first of the seeds, and their bases, uint8 [n, 2, cells]; a job of `workers.run`."""
    return seeds.start, np.array([base(board, seed) for seed in seeds], np.uint8)


def draw_pairs(board: Board, *, train: int, valid: int) -> dict[str, np.ndarray]:
    """Puzzles and solutions of both splits, uint8 [n, 2, cells], none of them twice.

    A base whose solution is held out is for validation, as it is. The others are for training, and
    so is what is derived from them, but for solutions that are held out.
    """
    seeds = [range(first, first + _JOB) for first in range(0, _BASES * valid, _JOB)]
    found = workers.run(
        min(workers.available(), len(seeds)), iter([(bases, board, part) for part in seeds])
    )
    drawn = np.concatenate([pairs for _, pairs in sorted(found, key=lambda part: part[0])])
    held = held_out(drawn[:, 1])
    own, draw = drawn[~held], np.random.default_rng(0)
    made = different(own)
    while len(made) < train:
        more = derived(board, own, min(train, _AT_ONCE), draw)
        made = different(np.concatenate([made, more[~held_out(more[:, 1])]]))
    return {"train": made[:train], "valid": different(drawn[held])[:valid]}


def different(pairs: np.ndarray) -> np.ndarray:
    """The pairs in their order, each once."""
    rows = pairs.reshape(len(pairs), -1)
    _, first = np.unique(rows.view(f"V{rows.shape[1]}"), return_index=True)
    return pairs[np.sort(first)]


def derived(board: Board, pairs: np.ndarray, count: int, draw: np.random.Generator) -> np.ndarray:
    """Puzzles and solutions under random symmetries, uint8 [count, 2, cells].

    Args:
      pairs: bases, uint8 [n, 2, cells], which are used in turn.
    """
    side, tall = board.side, board.tall

    def lines(thickness: int) -> np.ndarray:
        """Random orders of bands and of lines in them, [count, side]."""
        bands = side // thickness
        outer = draw.random((count, bands, 1)).argsort(1)
        inner = draw.random((count, bands, thickness)).argsort(2)
        return (outer * thickness + inner).reshape(count, side)

    cell = lines(tall)[:, :, None] * side + lines(side // tall)[:, None, :]
    if tall**2 == side:
        turned = draw.random((count, 1, 1)) < 0.5
        cell = np.where(turned, cell.swapaxes(1, 2), cell)
    label = np.zeros((count, side + 1), np.uint8)
    label[:, 1:] = draw.random((count, side)).argsort(1) + 1
    chosen = pairs[np.arange(count) % len(pairs)]
    moved = np.take_along_axis(chosen, cell.reshape(count, 1, -1), axis=2)
    return np.take_along_axis(label[:, None], moved, axis=2)


def held_out(grids: np.ndarray) -> np.ndarray:
    """True for each solution that is for validation, bool [n]: a function of the grid alone.

    Args:
      grids: uint8 [n, cells].
    """
    side = int(np.sqrt(grids.shape[1]))
    words = np.random.default_rng(0).integers(0, 2**63, (grids.shape[1], side + 1))
    mixed = np.bitwise_xor.reduce(words[np.arange(grids.shape[1]), grids], axis=1)
    return np.asarray(mixed % _HELD_OUT == 0)
