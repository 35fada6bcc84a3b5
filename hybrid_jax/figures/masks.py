"""Attention between rows: while training, and at one step of generation with a cache.

The rows and the masks come from the functions of `layout` that training and `sampling.cache_feed`
call; nothing here decides what may be seen.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hybrid_jax.figures import canvas
from hybrid_jax.figures.palette import ATTENTION, INK, PAPER
from hybrid_jax.method import hyperschedule
from hybrid_jax.method import layout as layouts
from hybrid_jax.method.hyperschedule import Hyperschedule
from hybrid_jax.method.layout import NO_TARGET, Layout, Rows

WIDTH = 3
_NAMES = "z: noisy token, x: clean token, x2 → 3: the row that holds x2 predicts position 3"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """One mask and its rows.

    Attributes:
      title: what it shows.
      queries, keys: the rows, NumPy fields [Q] and [K].
      mask: bool [Q, K].
      cached: how many of the first keys are in the cache, and so are no queries.
    """

    title: str
    queries: Rows
    keys: Rows
    mask: np.ndarray
    cached: int = 0


def training(layout: Layout, schedule: Hyperschedule, phase: int) -> Picture:
    """The mask of one training example, all windows at one phase."""

    def rows_and_mask() -> tuple[Rows, jax.Array]:
        phases = jnp.full(schedule.phase_groups, phase, jnp.int32)
        rows = layouts.training_rows(layout, schedule, phases)
        return rows, layouts.attention_mask(layout, rows)

    rows, mask = jax.device_get(jax.jit(rows_and_mask)())
    return Picture(title=f"{schedule.name}, {layout.alignment}", queries=rows, keys=rows, mask=mask)


def inference(layout: Layout, schedule: Hyperschedule, step: int) -> Picture:
    """The mask of one generation step, when all settled tokens of earlier steps are in the cache.

    Left out are rows that only keep shapes static: cache slots that are empty, and places for
    settled tokens that this step does not have.
    """
    filled = int(schedule.settled(step - 1)) + layout.shift if step else 0
    new = int(schedule.settled(step)) + layout.shift - filled

    def rows_and_mask() -> Any:
        now, slot = jnp.full(1, step), jnp.full(1, filled)
        query = layouts.query(layout, schedule, now, slot, slots=filled, capacity=new)
        return jax.tree.map(lambda x: x[0], (query.rows, query.keys, query.mask))

    queries, keys, mask = jax.device_get(jax.jit(rows_and_mask)())
    title = f"{schedule.name}, {layout.alignment}, step {step}"
    return Picture(title=title, queries=queries, keys=keys, mask=mask, cached=filled)


def _shown(length: int) -> list[tuple[Layout, Hyperschedule]]:
    """Windows of a block schedule and of a sliding one; both alignments."""
    return [
        (Layout(alignment=alignment), make(length=length, width=WIDTH, levels=WIDTH))
        for make in (hyperschedule.block, hyperschedule.slide)
        for alignment in ("aligned", "shifted")
    ]


def training_pictures() -> list[Picture]:
    """Two windows of the block schedule, three of the sliding one."""
    return [training(layout, schedule, 1) for layout, schedule in _shown(6)]


def inference_pictures() -> list[Picture]:
    """A step at which tokens have just settled, and others are in the cache already."""
    return [inference(layout, schedule, 2 * WIDTH) for layout, schedule in _shown(9)]


def draw_training() -> bytes:
    """The masks while training, a PNG."""
    title = "Attention while training: [noisy rows | clean rows], one pass for all windows"
    return _draw(training_pictures(), title, height=10.4)


def draw_inference() -> bytes:
    """The masks at one step of generation, a PNG."""
    title = "Attention at one generation step: new rows look at the cache and themselves"
    return _draw(inference_pictures(), title, height=6.6)


def row_name(rows: Rows, number: int) -> str:
    """Content of a row: a noisy token z, a clean token x, the beginning of sequence, or nothing."""
    position = int(rows.position[number])
    if not rows.valid[number]:
        return "–"
    if position < 0:
        return "BOS"
    return f"{'z' if rows.holds_noise[number] else 'x'}{position}"


def query_name(rows: Rows, number: int) -> str:
    """A row's name, and the position that it predicts if it predicts one."""
    target = int(rows.target[number])
    name = row_name(rows, number)
    return name if target == NO_TARGET or name == "–" else f"{name} → {target}"


def groups(rows: Rows, cached: int = 0) -> list[tuple[str, int, int]]:
    """Rows that belong together: a name, the first row, and the row after the last.

    The rows that shifted layouts put in front of their windows are a group of their own.
    """

    def group(number: int) -> tuple[str, int]:
        if number < cached:
            return "cache", 0
        if not rows.noisy[number]:
            return ("just\nsettled" if cached else "clean"), 0
        if not rows.holds_noise[number]:
            return "in\nfront", 0
        return "window", int(rows.first[number])

    found = []
    for (name, _), members in itertools.groupby(range(len(rows.position)), group):
        own = list(members)
        if name == "window":
            first, last = int(rows.position[own[0]]), int(rows.position[own[-1]])
            name = f"window\n{first}" + (f"–{last}" if last > first else "")
        found.append((name, own[0], own[-1] + 1))
    return found


def _draw(pictures: Sequence[Picture], title: str, height: float) -> bytes:
    legend = {
        "noisy → own window": {"facecolor": ATTENTION["window"]},
        "noisy → settled before it": {"facecolor": ATTENTION["context"]},
        "settled → settled": {"facecolor": ATTENTION["clean"]},
        "may not attend": {"facecolor": PAPER},
    }
    title = f"{title}\n{_NAMES}"
    return canvas.panels(pictures, _panel, size=(10, height), title=title, legend=legend)


def _panel(axes: Any, picture: Picture) -> None:
    queries, keys = picture.queries, picture.keys
    count, across = picture.mask.shape
    canvas.grid_axes(axes, across, count, picture.title)
    axes.set_aspect("equal")
    for (row, column), may in np.ndenumerate(picture.mask):
        seen = "window" if keys.noisy[column] else "context"
        fill = ATTENTION[seen if queries.noisy[row] else "clean"]
        canvas.cell(axes, column, row, fill if may else PAPER)
    for _, start, _ in groups(queries)[1:]:
        axes.axhline(start, color=INK, linewidth=1.5)
    for _, start, _ in groups(keys, picture.cached)[1:]:
        axes.axvline(start, color=INK, linewidth=1.5)
    axes.xaxis.tick_top()
    axes.set_xticks(np.arange(across) + 0.5, [row_name(keys, i) for i in range(across)])
    axes.set_yticks(np.arange(count) + 0.5, [query_name(queries, i) for i in range(count)])
    for name, start, end in groups(keys, picture.cached):
        axes.text((start + end) / 2, count + 0.2, name, ha="center", va="top", fontsize=8,
                  color=INK)  # fmt: skip
