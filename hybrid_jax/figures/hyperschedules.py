"""Hyperschedules: the noise level of every position at every step ("Figure 1" of the paper)."""

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


def draw() -> bytes:
    """The picture, a PNG: a panel for each hyperschedule."""
    title = "Hyperschedules: the noise level τ[s, i]"
    legend = {
        "settled: clean": {"facecolor": PAPER},
        "active: its level falls at this step (darker: noisier)": {"facecolor": LEVELS[1]},
        "worthless: not shown to the network": {"facecolor": WORTHLESS_FILL, "hatch": "////"},
    }
    return canvas.panels(shown(), _panel, size=(9, 9), title=title, legend=legend)


def _panel(axes: Any, schedule: Hyperschedule) -> None:
    colours = canvas.module("matplotlib.colors")
    shade = colours.LinearSegmentedColormap.from_list("levels", LEVELS)
    level = np.asarray(hyperschedule.table(schedule))
    region = regions(schedule)
    title = f"{schedule.name}: {schedule.steps} steps"
    canvas.grid_axes(axes, schedule.length, schedule.steps, title)
    for step, position in np.ndindex(*region.shape):
        number, share = str(level[step, position]), level[step, position] / schedule.levels
        if region[step, position] == WORTHLESS:
            canvas.cell(axes, position, step, WORTHLESS_FILL, hatch="////")
            continue
        fill, ink = PAPER, FAINT
        if region[step, position] == ACTIVE:
            fill, ink = colours.to_hex(shade(share)), PAPER if share > 0.75 else INK
        canvas.cell(axes, position, step, fill, number, fontsize=7.5, color=ink)
    axes.set_xlabel("position i", fontsize=9, color=INK)
    axes.set_ylabel("step s", fontsize=9, color=INK)
    axes.set_xticks(np.arange(schedule.length) + 0.5, np.arange(schedule.length))
    axes.set_yticks(np.arange(schedule.steps) + 0.5, np.arange(schedule.steps))
