"""Puzzles of benchmarks/sudoku.py: their solver, their one solution, and the two splits."""

import numpy as np
import pytest
import sudoku
import sudoku_grids
from sudoku_grids import BOARDS, Board


def violations(board: Board, grid) -> int:
    """Digits that are missing in a row, a column or a box, counted by slices."""
    lines, wide = np.reshape(grid, (board.side, board.side)), board.side // board.tall
    boxes = lines.reshape(wide, board.tall, board.tall, wide).swapaxes(1, 2)
    units = np.concatenate([lines, lines.T, boxes.reshape(board.side, board.side)])
    return sum(board.side - len({*unit} - {0}) for unit in units.tolist())


def test_the_solver_finds_every_grid_once():
    grids = list(sudoku_grids.solutions(BOARDS[4], [0] * 16))
    assert len(grids) == len(set(map(tuple, grids))) == 288
    assert not any(violations(BOARDS[4], grid) for grid in grids)
    assert not list(sudoku_grids.solutions(BOARDS[4], [1, 1] + [0] * 14))


@pytest.mark.parametrize("side", BOARDS)
def test_a_puzzle_has_one_solution_and_so_have_those_derived_from_it(side):
    board = BOARDS[side]
    _, bases = sudoku_grids.bases(board, range(4))
    derived = sudoku_grids.derived(board, bases, 40, np.random.default_rng(0))
    assert len(np.unique(derived[:, 1], axis=0)) > 35
    for puzzle, solution in [*bases.tolist(), *derived.tolist()]:
        assert list(sudoku_grids.solutions(board, puzzle)) == [solution]
        assert violations(board, solution) == 0
        assert np.count_nonzero(puzzle) >= board.clues[0]
    assert np.count_nonzero(bases[:, 0], axis=1).max() <= board.clues[1]


def test_no_solution_is_in_both_splits():
    found = sudoku_grids.draw_pairs(BOARDS[4], train=3000, valid=60)
    assert {split: len(pairs) for split, pairs in found.items()} == {"train": 3000, "valid": 60}
    for pairs in found.values():
        assert len(np.unique(pairs[:, 0], axis=0)) == len(pairs)
    solutions = [{*map(tuple, pairs[:, 1].tolist())} for pairs in found.values()]
    assert not solutions[0] & solutions[1]
    assert min(map(len, solutions)) > 20


def test_lines_and_bands_end():
    grids = (np.arange(32).reshape(2, 16) % 5).astype(np.uint8)
    assert sudoku.texts(BOARDS[4], grids) == [".123/4.12|34.1/234.|", "1234/.123|4.12/34.1|"]
