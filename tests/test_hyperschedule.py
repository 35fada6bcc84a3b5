"""Hyperschedules: literal tables ("Figure 1"), what every table obeys, and training tilings."""

import dataclasses
import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_jax.errors import UserError
from hybrid_jax.method import hyperschedule
from hybrid_jax.method.hyperschedule import block, custom, dilated, flat, quenched_ar, slide

UNEVEN = [[4, 4, 4], [2, 4, 4], [2, 3, 4], [0, 3, 3], [0, 1, 1], [0, 0, 0]]
FALLING = [[2, 2, 2, 2], [2, 1, 2, 2], [1, 0, 1, 2], [0, 0, 1, 2], [0, 0, 0, 0]]

# Lengths, widths and levels that do and do not divide one another.
SHAPES = [
    (1, 1, 1), (5, 1, 3), (6, 2, 1), (6, 2, 2), (6, 3, 6), (7, 3, 2), (7, 3, 5), (7, 7, 4),
    (8, 4, 3), (9, 4, 8), (16, 5, 7),
]  # fmt: skip
SCHEDULES = {
    **{f"block {s}": block(length=s[0], width=s[1], levels=s[2]) for s in SHAPES},
    **{f"slide {s}": slide(length=s[0], width=s[1], levels=s[2]) for s in SHAPES},
    "quenched AR": quenched_ar(length=5),
    "flat": flat(length=5, levels=3),
    "custom": custom(UNEVEN),
    "falling along the positions": custom(FALLING),
    "dilated": dilated(length=11, levels=4),
}


def each_schedule(*names):
    return pytest.mark.parametrize("schedule", [SCHEDULES[n] for n in names], ids=names)


every_schedule = each_schedule(*SCHEDULES)


class Facts(NamedTuple):
    """All that a schedule says of itself, at all steps, positions and for many phases."""

    table: np.ndarray  # [S + 1, L]
    settled: np.ndarray  # [S + 1]
    frontier: np.ndarray  # [S + 1]
    tile_steps: np.ndarray  # [tilings, L]
    tile_windows: np.ndarray  # [tilings, windows]


@functools.cache
def facts(schedule):
    @jax.jit
    def compute(steps, phases):
        levels = schedule.level(steps[:, None], jnp.arange(schedule.length))
        return (
            levels, schedule.settled(steps), schedule.frontier(steps),
            *jax.vmap(schedule.tile)(phases),
        )  # fmt: skip

    found = compute(jnp.arange(schedule.steps + 1), jnp.asarray(phase_draws(schedule)))
    return Facts(*(np.asarray(x) for x in found))


def phase_draws(schedule):
    """All draws of phases if they are few, else those with one phase for all and some mixed."""
    groups, phases = schedule.phase_groups, schedule.phases
    if phases**groups <= 64:
        drawn = np.array(list(itertools.product(range(phases), repeat=groups)))
    else:
        alike = np.repeat(np.arange(phases)[:, None], groups, axis=1)
        mixed = np.random.default_rng(0).integers(phases, size=(8, groups))
        drawn = np.concatenate([alike, mixed])
    return drawn.astype(np.int32)


# ---------------------------------------------------------------------------------------------
# Figure 1: rows are steps 0 … S, columns are positions.

FIGURE_1 = {
    "quenched AR": (quenched_ar(length=3), [[1, 1, 1], [0, 1, 1], [0, 0, 1], [0, 0, 0]]),
    "flat": (flat(length=3, levels=2), [[2, 2, 2], [1, 1, 1], [0, 0, 0]]),
    "block with a short last block": (
        block(length=5, width=2, levels=2),
        [
            [2, 2, 2, 2, 2],
            [1, 1, 2, 2, 2],
            [0, 0, 2, 2, 2],
            [0, 0, 1, 1, 2],
            [0, 0, 0, 0, 2],
            [0, 0, 0, 0, 1],
            [0, 0, 0, 0, 0],
        ],
    ),
    "slide, T < ω": (
        slide(length=5, width=4, levels=2),
        [[2, 2, 2, 2, 2], [1, 1, 2, 2, 2], [0, 0, 1, 1, 2], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]],
    ),
    "slide, T = ω": (
        slide(length=4, width=2, levels=2),
        [[2, 2, 2, 2], [1, 2, 2, 2], [0, 1, 2, 2], [0, 0, 1, 2], [0, 0, 0, 1], [0, 0, 0, 0]],
    ),
    "slide, T > ω": (
        slide(length=3, width=2, levels=3),
        [[3, 3, 3], [2, 3, 3], [1, 2, 3], [0, 1, 3], [0, 0, 2], [0, 0, 1], [0, 0, 0]],
    ),
}


@pytest.mark.parametrize(("schedule", "levels"), FIGURE_1.values(), ids=FIGURE_1.keys())
def test_tables_of_figure_1(schedule, levels):
    np.testing.assert_array_equal(hyperschedule.table(schedule), levels)


@pytest.mark.parametrize("dtype", [int, np.uint8])
def test_custom_returns_the_table_it_was_given(dtype):
    given = np.array(UNEVEN, dtype)
    np.testing.assert_array_equal(hyperschedule.table(custom(given)), UNEVEN)


@pytest.mark.parametrize("shape", SHAPES)
def test_levels_follow_the_formulas_of_the_two_families(shape):
    length, width, levels = shape
    i = np.arange(length)
    for schedule, starts in [
        (block(length=length, width=width, levels=levels), levels * (i // width)),
        (slide(length=length, width=width, levels=levels), i * levels // width),
    ]:
        s = np.arange(levels + starts[-1] + 1)[:, None]
        np.testing.assert_array_equal(
            facts(schedule).table, np.clip(levels + starts - s, 0, levels)
        )


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("block_w4_t4_L16", lambda: block(length=16, width=4, levels=4)),
        ("block_w8_t4_L32", lambda: block(length=32, width=8, levels=4)),
        ("block_w1_t1_L8", lambda: quenched_ar(length=8)),
        ("block_w16_t8_L16", lambda: flat(length=16, levels=8)),
        ("simple_w4_t4_L16", lambda: slide(length=16, width=4, levels=4)),
        ("simple_w8_t8_L32", lambda: slide(length=32, width=8, levels=8)),
    ],
)
def test_released_implementation_has_the_same_tables(reference, name, make):
    """Its rows are the steps 1 … S, and its settled counts those at the start of each step."""
    schedule = make()
    with np.load(reference / "hyperschedules.npz") as released:
        np.testing.assert_array_equal(facts(schedule).table[1:], released[f"{name}_levels"])
        settled = schedule.settled(jnp.arange(schedule.steps))
        np.testing.assert_array_equal(settled, released[f"{name}_settled"])


# ---------------------------------------------------------------------------------------------
# What every hyperschedule obeys.


@every_schedule
def test_levels_fall_from_full_noise_to_clean_and_those_of_ramps_rise_along_the_positions(schedule):
    table = facts(schedule).table
    assert table.shape == (schedule.steps + 1, schedule.length)
    assert np.all(table[0] == schedule.levels)
    assert np.all(table[-1] == 0)
    assert np.all(np.diff(table, axis=0) <= 0)
    if isinstance(schedule, hyperschedule.Ramp):
        assert np.all(np.diff(table, axis=1) >= 0)


@every_schedule
def test_no_step_is_idle(schedule):
    assert np.all(np.any(np.diff(facts(schedule).table, axis=0), axis=1))


@every_schedule
def test_settled_and_frontier_count_the_table(schedule):
    for row, settled, frontier in zip(*facts(schedule)[:3], strict=True):
        levels = list(row)
        assert all(level == 0 for level in levels[:settled])
        assert all(level == schedule.levels for level in levels[frontier:])
        assert levels[settled : settled + 1] != [0]
        assert levels[:frontier][-1:] != [schedule.levels]


@every_schedule
def test_width_is_that_of_the_widest_window(schedule):
    widths = facts(schedule).frontier[1:] - facts(schedule).settled[:-1]
    assert schedule.width == widths.max()


@pytest.mark.parametrize("shape", SHAPES)
def test_windows_are_at_most_as_wide_as_asked(shape):
    length, width, levels = shape
    assert block(length=length, width=width, levels=levels).width == width
    assert slide(length=length, width=width, levels=levels).width <= width


def test_slide_settles_width_over_levels_positions_a_step():
    """ρ = ω/T, in the middle of a long sequence."""
    for width, levels in [(8, 4), (8, 8), (4, 8)]:
        schedule = slide(length=64, width=width, levels=levels)
        steps = jnp.array([2 * levels, 6 * levels])
        first, last = np.asarray(schedule.settled(steps))
        assert (last - first) / (4 * levels) == width / levels


def test_settles_whole_says_whether_windows_move():
    assert block(length=7, width=3, levels=4).settles_whole
    assert flat(length=7, levels=4).settles_whole
    assert quenched_ar(length=7).settles_whole
    assert slide(length=7, width=3, levels=1).settles_whole  # the same as a block
    assert not slide(length=7, width=3, levels=3).settles_whole
    assert not custom(UNEVEN).settles_whole


@pytest.mark.parametrize("name", ["slide (7, 3, 5)", "block (7, 3, 2)", "custom"])
def test_levels_work_for_traced_steps_and_under_vmap(name):
    schedule = SCHEDULES[name]
    positions = jnp.arange(schedule.length)

    @jax.jit
    def row(step):
        return schedule.level(step, positions), schedule.settled(step), schedule.frontier(step)

    levels, settled, frontier = jax.vmap(row)(jnp.arange(schedule.steps + 1))
    assert {levels.dtype, settled.dtype, frontier.dtype} == {jnp.dtype(jnp.int32)}
    np.testing.assert_array_equal(levels, facts(schedule).table)
    np.testing.assert_array_equal(settled, (facts(schedule).table == 0).sum(1))


def test_schedules_are_values():
    """Equal when built alike, hashable and frozen: they are static arguments of compiled code."""
    assert block(length=8, width=2, levels=4) == block(length=8, width=2, levels=4)
    assert block(length=8, width=2, levels=4) != slide(length=8, width=2, levels=4)
    assert custom(UNEVEN) == custom(np.array(UNEVEN))
    assert len({slide(length=8, width=2, levels=4) for _ in range(2)}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        block(length=8, width=2, levels=4).levels = 3


def test_dilated_steps_reveal_what_is_far_apart():
    table = dilated(length=18, levels=8)
    steps = np.array(table.rows).sum(0) - 1
    np.testing.assert_array_equal(steps, [0, 4, 2, 6, 1, 5, 3, 7] * 2 + [0, 4])
    np.testing.assert_array_equal(dilated(length=3, levels=1).rows, [[1] * 3, [0] * 3])
    for levels in (0, 3, 32):
        with pytest.raises(UserError, match=rf"power of 2 in 1 … 18, but is {levels}\."):
            dilated(length=18, levels=levels)


# ---------------------------------------------------------------------------------------------
# Training tilings.


@each_schedule(*(name for name in SCHEDULES if isinstance(SCHEDULES[name], hyperschedule.Ramp)))
def test_a_tiling_trains_each_position_at_a_step_at_which_it_is_active(schedule):
    table = facts(schedule).table
    position = np.arange(schedule.length)
    step = facts(schedule).tile_steps
    assert np.all(table[step, position] > table[step + 1, position])


@each_schedule(*(name for name in SCHEDULES if isinstance(SCHEDULES[name], hyperschedule.Ramp)))
def test_windows_of_a_tiling_are_disjoint_and_hold_every_position(schedule):
    table, _, _, steps, window_steps = facts(schedule)
    for step, window_step in zip(steps, window_steps, strict=True):
        owner = np.full(schedule.length, -1)
        for s in window_step[window_step < schedule.steps]:
            start, end = (table[s] == 0).sum(), (table[s + 1] < schedule.levels).sum()
            assert np.all(owner[start:end] == -1)
            owner[start:end] = s
        np.testing.assert_array_equal(owner, step)


def test_a_tiling_of_an_arbitrary_table_is_one_step():
    for phase in range(5):
        step, window_step = custom(UNEVEN).tile(jnp.array([phase]))
        np.testing.assert_array_equal(step, [phase] * 3)
        np.testing.assert_array_equal(window_step, [phase])


@every_schedule
def test_mean_over_phases_times_their_number_is_the_sum_over_active_steps(schedule):
    """One drawn tiling is an unbiased estimate, for any function of step and position."""
    table = facts(schedule).table
    active = table[:-1] > table[1:]
    values = np.where(active, np.random.default_rng(1).normal(size=active.shape), 0.0)
    # Draws with one phase for all groups stand for uniform phases of each group on its own.
    alike = np.all(np.diff(phase_draws(schedule), axis=1) == 0, axis=1)
    step = facts(schedule).tile_steps[alike][: schedule.phases]
    mean = values[step, np.arange(schedule.length)].mean(0)
    np.testing.assert_allclose(schedule.phases * mean, values.sum(0), rtol=1e-12, atol=1e-12)


def test_blocks_may_draw_their_phases_independently():
    schedule = block(length=5, width=2, levels=4)
    assert schedule.phase_groups == 3
    step, window_step = schedule.tile(jnp.array([3, 0, 2]))
    np.testing.assert_array_equal(step, [3, 3, 4, 4, 10])
    np.testing.assert_array_equal(window_step, [3, 4, 10])


# ---------------------------------------------------------------------------------------------
# Errors.


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([[2, 3], [0, 0]], r"\[step 0, position 1\] = 3 must start at the full-noise level 2"),
        ([[2, 2], [1, 1], [0, 1]], r"\[step 2, position 1\] = 1 must end at level 0"),
        ([[3, 3], [1, 1], [1, 2], [0, 0]], r"\[step 2, position 1\] = 2 must not rise"),
        ([2, 1, 0], r"shape \[3\]"),
        ([[2, 2]], r"shape \[1, 2\]"),
        ([[1.0], [0.0]], "whole-number levels"),
        ([[0, 0], [0, 0]], "full-noise level of at least 1"),
        ([[1, 1], [0]], "rows of a hyperschedule table must all have the same number"),
        ([[2**31], [0]], "full-noise level of a hyperschedule table must be at most 2147483647"),
    ],
)
def test_custom_names_the_first_entry_that_breaks_a_rule(table, message):
    with pytest.raises(UserError, match=message):
        custom(table)


@pytest.mark.parametrize("family", [block, slide])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 4, "width": 5, "levels": 2}, "width 5 does not fit a sequence of 4"),
        ({"length": 0, "width": 1, "levels": 2}, "length must be at least 1"),
        ({"length": 4, "width": 0, "levels": 2}, "width must be at least 1"),
        ({"length": 4, "width": 2, "levels": 0}, "levels must be at least 1"),
    ],
)
def test_families_refuse_sizes_without_meaning(family, arguments, message):
    with pytest.raises(UserError, match=message):
        family(**arguments)


@pytest.mark.parametrize(
    ("starts", "levels", "message"),
    [
        ((), 2, "length must be at least 1"),
        ((0, 1), 0, "levels must be at least 1"),
        ((1, 2), 2, "that begin at 0 and never fall, but are 1, 2"),
        ((0, 4, 2), 2, "that begin at 0 and never fall, but are 0, 4, 2"),
        ((0, 0.5, 1), 2, r"must be whole numbers .* but are 0, 0\.5, 1"),
        ((0, 1), 2.5, "levels must be a whole number, but is 2.5"),
    ],
)
def test_ramps_that_are_none_are_refused(starts, levels, message):
    with pytest.raises(UserError, match=message):
        hyperschedule.Ramp(name="mine", starts=starts, levels=levels)
