"""Hyperschedules: the noise level of every position at every step ("Figure 1" of the paper)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hybrid_jax.figures import canvas
from hybrid_jax.figures.palette import FAINT, INK, LEVELS, PAPER, WORTHLESS_FILL
from hybrid_jax.method import hyperschedule, layout
from hybrid_jax.method.hyperschedule import Hyperschedule

SETTLED, ACTIVE, WORTHLESS = 0, 1, 2
LENGTH = 12


def shown() -> list[Hyperschedule]:
    """The four of the paper, at a size that can be read."""
    return [
        hyperschedule.quenched_ar(length=LENGTH),
        hyperschedule.flat(length=LENGTH, levels=LENGTH),
        hyperschedule.block(length=LENGTH, width=4, levels=4),
        hyperschedule.slide(length=LENGTH, width=4, levels=4),
    ]


def regions(schedule: Hyperschedule) -> np.ndarray:
    """State of every position at every step, int [S, L]: `SETTLED`, `ACTIVE` or `WORTHLESS`."""

    def active() -> jax.Array:
        steps = jnp.arange(schedule.steps)[:, None]
        return layout.is_active(schedule, steps, jnp.arange(schedule.length))

    settled = np.asarray(hyperschedule.table(schedule))[:-1] == 0
    return np.where(jax.jit(active)(), ACTIVE, np.where(settled, SETTLED, WORTHLESS))


def draw(schedules: Sequence[Hyperschedule] | None = None) -> bytes:
    """The picture, a PNG: a panel for each hyperschedule."""
    schedules = shown() if schedules is None else schedules
    columns = 2
    rows = -(-len(schedules) // columns)
    figure = canvas.figure(9, 0.6 + 4.2 * rows, "Hyperschedules: the noise level τ[s, i]")
    panels = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    for axes, schedule in zip(panels, schedules, strict=False):
        _panel(axes, schedule)
    for axes in panels[len(schedules) :]:
        axes.set_visible(False)
    canvas.legend(
        figure,
        [
            ("settled: clean", {"facecolor": PAPER}),
            ("active: its level falls at this step (darker: noisier)", {"facecolor": LEVELS[1]}),
            ("worthless: not shown to the network", {"facecolor": WORTHLESS_FILL, "hatch": "////"}),
        ],
    )
    return canvas.png(figure)


def _panel(axes: Any, schedule: Hyperschedule) -> None:
    colours = canvas.module("matplotlib.colors")
    shade = colours.LinearSegmentedColormap.from_list("levels", LEVELS)
    level = np.asarray(hyperschedule.table(schedule))
    region = regions(schedule)
    canvas.grid_axes(axes, schedule.length, schedule.steps)
    for step, position in np.ndindex(*region.shape):
        share = level[step, position] / schedule.levels
        look: dict[str, Any] = {}
        if region[step, position] == ACTIVE:
            fill, ink = colours.to_hex(shade(share)), PAPER if share > 0.75 else INK
        elif region[step, position] == SETTLED:
            fill, ink = PAPER, FAINT
        else:
            fill, ink, look = WORTHLESS_FILL, "", {"hatch": "////", "edgecolor": "#b5b5b5"}
        canvas.cell(axes, position, step, fill, **look)
        if ink:
            axes.text(
                position + 0.5, step + 0.5, str(level[step, position]),
                ha="center", va="center", fontsize=7.5, color=ink,
            )  # fmt: skip
    axes.set_title(f"{schedule.name}: {schedule.steps} steps", fontsize=10, color=INK)
    axes.set_xlabel("position i", fontsize=9, color=INK)
    axes.set_ylabel("step s", fontsize=9, color=INK)
    axes.set_xticks(np.arange(schedule.length) + 0.5, np.arange(schedule.length))
    axes.set_yticks(np.arange(schedule.steps) + 0.5, np.arange(schedule.steps))
