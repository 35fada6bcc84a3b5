"""Rows and the attention mask: literal matrices, and training rows that show what generation shows.

In the literal matrices a query is a line and a key a column, 1 where the query may attend.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from enumeration import quick_jit

from hybrid_jax.errors import UserError
from hybrid_jax.method import hyperschedule, layout
from hybrid_jax.method.layout import NO_TARGET, Layout, Rows

pytestmark = pytest.mark.usefixtures("strict_promotion")

BOS, EOS = 99, 98


def matrix(text):
    return np.array([[int(c) for c in line.split()] for line in text.strip().splitlines()], bool)


training_rows = quick_jit(layout.training_rows, static_argnums=(0, 1))
attention_mask = quick_jit(layout.attention_mask, static_argnums=0)


def training(how, schedule, phase=0):
    return training_rows(how, schedule, jnp.full(schedule.phase_groups, phase, jnp.int32))


def mask_of(how, schedule, phase=0):
    return np.asarray(attention_mask(how, training(how, schedule, phase)))


# ---------------------------------------------------------------------------------------------
# Literal masks.

BLOCKS = hyperschedule.block(length=5, width=2, levels=3)  # the last block is short
SLIDE = hyperschedule.slide(length=4, width=2, levels=2)


def test_mask_of_aligned_blocks():
    """Noisy rows 0 … 4, then the clean rows 0 … 3 (nobody needs the last block's)."""
    wanted = """
        1 1 0 0 0 0 0 0 0
        1 1 0 0 0 0 0 0 0
        0 0 1 1 0 1 1 0 0
        0 0 1 1 0 1 1 0 0
        0 0 0 0 1 1 1 1 1
        0 0 0 0 0 1 0 0 0
        0 0 0 0 0 1 1 0 0
        0 0 0 0 0 1 1 1 0
        0 0 0 0 0 1 1 1 1
    """
    np.testing.assert_array_equal(mask_of(Layout(), BLOCKS), matrix(wanted))


def test_block_causal_context_sees_to_the_end_of_its_own_window():
    wanted = """
        1 1 0 0 0 0 0 0 0
        1 1 0 0 0 0 0 0 0
        0 0 1 1 0 1 1 0 0
        0 0 1 1 0 1 1 0 0
        0 0 0 0 1 1 1 1 1
        0 0 0 0 0 1 1 0 0
        0 0 0 0 0 1 1 0 0
        0 0 0 0 0 1 1 1 1
        0 0 0 0 0 1 1 1 1
    """
    actual = mask_of(Layout(context="block_causal"), BLOCKS)
    np.testing.assert_array_equal(actual, matrix(wanted))


def test_causal_window_sees_only_up_to_its_own_position():
    wanted = """
        1 0 0 0 0 0 0 0 0
        1 1 0 0 0 0 0 0 0
        0 0 1 0 0 1 1 0 0
        0 0 1 1 0 1 1 0 0
        0 0 0 0 1 1 1 1 1
        0 0 0 0 0 1 0 0 0
        0 0 0 0 0 1 1 0 0
        0 0 0 0 0 1 1 1 0
        0 0 0 0 0 1 1 1 1
    """
    np.testing.assert_array_equal(mask_of(Layout(causal_window=True), BLOCKS), matrix(wanted))


@pytest.mark.parametrize(
    ("phase", "wanted"),
    [
        # Windows {0}, {1, 2}, {3}.
        (0, """
            1 0 0 0 0 0 0
            0 1 1 0 1 0 0
            0 1 1 0 1 0 0
            0 0 0 1 1 1 1
            0 0 0 0 1 0 0
            0 0 0 0 1 1 0
            0 0 0 0 1 1 1
        """),
        # Windows {0, 1}, {2, 3}.
        (1, """
            1 1 0 0 0 0 0
            1 1 0 0 0 0 0
            0 0 1 1 1 1 0
            0 0 1 1 1 1 0
            0 0 0 0 1 0 0
            0 0 0 0 1 1 0
            0 0 0 0 1 1 1
        """),
    ],
)  # fmt: skip
def test_mask_of_aligned_slides(phase, wanted):
    np.testing.assert_array_equal(mask_of(Layout(), SLIDE, phase), matrix(wanted))


def test_mask_of_shifted_blocks():
    """Leading rows of both windows, noisy rows 0 … 3, then BOS and the clean rows 0 and 1."""
    schedule = hyperschedule.block(length=4, width=2, levels=3)
    wanted = """
        1 0 1 1 0 0 1 0 0
        0 1 0 0 1 1 1 1 1
        1 0 1 1 0 0 1 0 0
        1 0 1 1 0 0 1 0 0
        0 1 0 0 1 1 1 1 1
        0 1 0 0 1 1 1 1 1
        0 0 0 0 0 0 1 0 0
        0 0 0 0 0 0 1 1 0
        0 0 0 0 0 0 1 1 1
    """
    np.testing.assert_array_equal(mask_of(Layout(alignment="shifted"), schedule), matrix(wanted))


def test_mask_of_shifted_causal_windows():
    """The leading row holds a token before the window: it sees itself only."""
    schedule = hyperschedule.block(length=4, width=2, levels=3)
    wanted = """
        1 0 0 0 0 0 1 0 0
        0 1 0 0 0 0 1 1 1
        1 0 1 0 0 0 1 0 0
        1 0 1 1 0 0 1 0 0
        0 1 0 0 1 0 1 1 1
        0 1 0 0 1 1 1 1 1
        0 0 0 0 0 0 1 0 0
        0 0 0 0 0 0 1 1 0
        0 0 0 0 0 0 1 1 1
    """
    how = Layout(alignment="shifted", causal_window=True)
    np.testing.assert_array_equal(mask_of(how, schedule), matrix(wanted))


def test_flat_needs_no_clean_rows_and_hides_nothing():
    schedule = hyperschedule.flat(length=4, levels=3)
    np.testing.assert_array_equal(mask_of(Layout(), schedule), np.ones((4, 4), bool))


def test_plain_autoregression_is_causal_over_as_many_rows_as_positions():
    schedule = hyperschedule.quenched_ar(length=4)
    how = Layout(alignment="shifted")
    np.testing.assert_array_equal(mask_of(how, schedule), np.tri(4, dtype=bool))
    rows = training(how, schedule)
    np.testing.assert_array_equal(rows.position, [-1, 0, 1, 2])
    np.testing.assert_array_equal(rows.target, [0, 1, 2, 3])


def test_positions_outside_the_one_window_of_a_table_are_hidden():
    """At step 1 of this table the window is {0, 1}; position 2 is worthless."""
    schedule = hyperschedule.custom([[2, 2, 2], [1, 2, 2], [0, 1, 2], [0, 0, 0]])
    wanted = """
        1 1 0 0
        1 1 0 0
        0 0 0 0
        0 0 0 1
    """
    np.testing.assert_array_equal(mask_of(Layout(), schedule, phase=1), matrix(wanted))


def test_mask_of_aligned_blocks_of_separate_documents():
    """Positions 0 to 2 and 3 to 4: the second window is of both documents."""
    wanted = """
        1 1 0 0 0 0 0 0 0
        1 1 0 0 0 0 0 0 0
        0 0 1 0 0 1 1 0 0
        0 0 0 1 0 0 0 0 0
        0 0 0 0 1 0 0 0 1
        0 0 0 0 0 1 0 0 0
        0 0 0 0 0 1 1 0 0
        0 0 0 0 0 1 1 1 0
        0 0 0 0 0 0 0 0 1
    """
    rows = layout.separated(Layout(), training(Layout(), BLOCKS), jnp.array([1, 2, EOS, 3, 4]), EOS)
    np.testing.assert_array_equal(attention_mask(Layout(), rows), matrix(wanted))


def test_a_shifted_row_is_of_the_document_that_it_predicts():
    """The third row holds position 1, the eos, and predicts the first token behind it."""
    how = Layout(alignment="shifted")
    rows = training(how, hyperschedule.quenched_ar(length=4))
    rows = layout.separated(how, rows, jnp.array([1, EOS, 2, 3]), EOS)
    wanted = """
        1 0 0 0
        1 1 0 0
        0 0 1 0
        0 0 1 1
    """
    np.testing.assert_array_equal(attention_mask(how, rows), matrix(wanted))


# ---------------------------------------------------------------------------------------------
# Training shows what generation will show.

SCHEDULES = {
    "quenched AR": hyperschedule.quenched_ar(length=4),
    "flat": hyperschedule.flat(length=4, levels=2),
    "block": hyperschedule.block(length=5, width=2, levels=2),
    "slide": hyperschedule.slide(length=5, width=3, levels=3),
    "fast slide": hyperschedule.slide(length=5, width=4, levels=2),
    "slow slide": hyperschedule.slide(length=4, width=2, levels=3),
    "custom": hyperschedule.custom(
        [[4, 4, 4], [2, 4, 4], [2, 3, 4], [0, 3, 3], [0, 1, 1], [0, 0, 0]]
    ),
}
LAYOUTS = {
    f"{alignment}, {context}{', causal window' * causal}": Layout(
        alignment=alignment, context=context, causal_window=causal
    )
    for alignment, context, causal in itertools.product(
        ("aligned", "shifted"), ("causal", "block_causal"), (False, True)
    )
}
COMBINATIONS = [
    pytest.param(schedule, how, id=f"{name}: {title}")
    for name, schedule in SCHEDULES.items()
    for title, how in LAYOUTS.items()
    if how.context == "causal" or schedule.settles_whole
]


def held(rows, index):
    """The content of a row: the position of its token, and whether that token is a noisy one."""
    position, first = int(rows.position[index]), int(rows.first[index])
    return position, bool(rows.noisy[index]) and position >= first


def seen(rows, mask, index):
    """The rows that the one at `index` may look at, in no particular order."""
    return sorted((*held(rows, i), bool(rows.noisy[i])) for i in np.flatnonzero(mask[index]))


@functools.cache
def all_rows(schedule, alignment):
    """Training rows [phases, R], the steps they train [phases, L], generation rows [steps, R]."""
    how = Layout(alignment=alignment)

    @quick_jit
    def compute(phases, steps):
        return (
            jax.vmap(lambda p: layout.training_rows(how, schedule, p))(phases),
            jax.vmap(lambda p: schedule.tile(p)[0])(phases),
            jax.vmap(lambda s: layout.generation_rows(how, schedule, s))(steps),
            jax.vmap(lambda s: schedule.level(s, jnp.arange(schedule.length)))(
                jnp.arange(schedule.steps + 1)
            ),
        )

    phases = jnp.repeat(jnp.arange(schedule.phases)[:, None], schedule.phase_groups, axis=1)
    return jax.tree.map(np.asarray, compute(phases, jnp.arange(schedule.steps)))


def at(rows, index):
    return jax.tree.map(lambda field: field[index], rows)


@pytest.mark.parametrize(("schedule", "how"), COMBINATIONS)
def test_training_rows_see_what_generation_rows_see(schedule, how):
    """Every predicting row, at every step; and the settled rows behind it."""
    train, trained_steps, generate, table = all_rows(schedule, how.alignment)
    masks = np.asarray(attention_mask(how, train))
    there_masks = np.asarray(attention_mask(how, generate))
    met = set()  # (step, position) pairs
    for phase in range(schedule.phases):
        rows, mask = at(train, phase), masks[phase]
        for index in np.flatnonzero(rows.valid & (rows.target != NO_TARGET)):
            target = int(rows.target[index])
            step = int(trained_steps[phase, target])
            assert table[step, target] > table[step + 1, target]  # active: its term is trained
            there, there_mask = at(generate, step), there_masks[step]
            (twin,) = np.flatnonzero(there.valid & (there.target == target))
            assert held(rows, index) == held(there, twin)
            assert seen(rows, mask, index) == seen(there, there_mask, twin)
            for i in np.flatnonzero(there.valid & ~there.noisy):
                (j,) = np.flatnonzero(~rows.noisy & (rows.position == there.position[i]))
                assert seen(rows, mask, j) == seen(there, there_mask, i)
            met.add((step, target))
    assert met == set(zip(*np.nonzero(table[:-1] > table[1:]), strict=True))


@pytest.mark.parametrize("alignment", ["aligned", "shifted"])
@pytest.mark.parametrize("name", ["quenched AR", "flat", "block", "slide"])
def test_every_position_is_predicted_by_one_row(name, alignment):
    """The row that holds the position's own token, or, if shifted, the token before it."""
    schedule = SCHEDULES[name]
    rows = training(Layout(alignment=alignment), schedule, phase=schedule.phases - 1)
    source, exists = layout.predictors(rows, schedule.length)
    assert np.all(exists)
    shift = 1 if alignment == "shifted" else 0
    np.testing.assert_array_equal(rows.position[source], np.arange(schedule.length) - shift)
    targets = np.asarray(rows.target)[np.asarray(rows.valid)]
    assert sorted(targets[targets != NO_TARGET]) == list(range(schedule.length))


def test_inactive_positions_have_no_predictor():
    schedule = SCHEDULES["custom"]  # position 1 alone changes at step 1
    _, exists = layout.predictors(training(Layout(), schedule, phase=1), 3)
    np.testing.assert_array_equal(exists, [False, True, False])


def test_texts_that_are_done_have_nothing_to_feed():
    schedule = SCHEDULES["block"]
    step = jnp.array([0, 2, schedule.steps])
    found = layout.pending(Layout(alignment="shifted"), schedule, step, jnp.zeros(3, jnp.int32))
    np.testing.assert_array_equal(found, [1, 3, 0])


def test_invalid_rows_predict_nothing():
    rows = training(Layout(), SCHEDULES["flat"])
    hidden = rows._replace(valid=rows.valid.at[2].set(False))
    _, exists = layout.predictors(hidden, 4)
    np.testing.assert_array_equal(exists, [True, True, False, True])


# ---------------------------------------------------------------------------------------------
# What rows hold.


def test_row_tokens_of_shifted_blocks():
    """Leading rows hold clean tokens (BOS for the first window), the window noisy ones."""
    schedule = hyperschedule.block(length=4, width=2, levels=3)
    rows = training(Layout(alignment="shifted"), schedule)
    noisy, clean = jnp.array([10, 11, 12, 13]), jnp.array([0, 1, 2, 3])
    tokens = layout.row_tokens(rows, noisy, clean, BOS)
    np.testing.assert_array_equal(tokens, [BOS, 1, 10, 11, 12, 13, BOS, 0, 1])
    np.testing.assert_array_equal(rows.target, [0, 2, 1, -1, 3, -1, -1, -1, -1])


def test_row_levels_are_those_of_noisy_tokens_and_0_for_clean_ones():
    rows = training(Layout(alignment="shifted"), hyperschedule.block(length=4, width=2, levels=3))
    levels = layout.row_levels(rows, jnp.array([0.25, 0.5, 0.75, 1.0]))
    np.testing.assert_array_equal(levels, [0, 0, 0.25, 0.5, 0.75, 1.0, 0, 0, 0])


# ---------------------------------------------------------------------------------------------
# The released implementation.


@pytest.mark.parametrize("context", ["causal", "block_causal"])
@pytest.mark.parametrize("width", [4, 8])
def test_released_training_masks(reference, width, context):
    """Theirs has all clean rows first; ours has noisy rows first and drops the unneeded clean."""
    schedule = hyperschedule.block(length=16, width=width, levels=4)
    with np.load(reference / "masks.npz") as released:
        theirs = released[f"train_block{width}_L16_{context}"]
    kept = np.concatenate([16 + np.arange(16), np.arange(16 - width)])
    actual = mask_of(Layout(context=context), schedule)
    np.testing.assert_array_equal(actual, theirs[np.ix_(kept, kept)])


@pytest.mark.parametrize(("width", "settled"), [(4, 0), (4, 4), (4, 8), (8, 0), (8, 8)])
def test_released_generation_masks(reference, width, settled):
    schedule = hyperschedule.block(length=16, width=width, levels=1)
    rows = layout.generation_rows(Layout(), schedule, jnp.int32(settled // width))
    actual = attention_mask(Layout(), rows)
    name = f"infer_L16_settled{settled}_active{settled + width}_causal"
    with np.load(reference / "masks.npz") as released:
        np.testing.assert_array_equal(actual, released[name])


@pytest.mark.parametrize(("settled", "active"), [(0, 4), (4, 8), (8, 12), (8, 16)])
def test_released_full_generation_masks(reference, settled, active):
    """Theirs lets settled rows see all settled rows: one window, in our words."""
    position = jnp.arange(16)
    rows = Rows(
        noisy=position >= settled,
        first=jnp.where(position >= settled, settled, 0),
        position=position,
        target=position,
        valid=position < active,
    )
    actual = attention_mask(Layout(context="block_causal"), rows)
    with np.load(reference / "masks.npz") as released:
        wanted = released[f"infer_L16_settled{settled}_active{active}_full"]
    np.testing.assert_array_equal(actual, wanted)


# ---------------------------------------------------------------------------------------------
# Errors.


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (Layout(alignment="centred"), "alignment must be one of aligned, shifted"),
        (Layout(context="full"), "context must be one of causal, block_causal"),
        (Layout(context="block_causal"), "windows that settle whole"),
    ],
)
def test_layouts_that_cannot_serve_a_schedule_are_refused(how, message):
    with pytest.raises(UserError, match=message):
        how.check(SLIDE)


def test_block_causal_context_serves_blocks():
    Layout(context="block_causal").check(BLOCKS)
