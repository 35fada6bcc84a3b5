"""The path of a text through the steps: the next one that has anything to do."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32

from hybrid_jax.method import layout as layouts
from hybrid_jax.method.adaptive import Adaptive
from hybrid_jax.method.hyperschedule import Hyperschedule


def following(schedule: Hyperschedule, open_: Bool[Array, "B L"]) -> Int32[Array, "B F"]:
    """The first step from each on at which an open position is active; S where there is none.

    For adaptive windows, whose steps are many, the first open position from each position on.
    """
    if isinstance(schedule, Adaptive):
        return _openings(open_)
    steps = jnp.arange(schedule.steps)
    active = layouts.is_active(schedule, steps[:, None], jnp.arange(schedule.length)[None])
    useful = jnp.einsum("sl,bl->bs", active.astype(jnp.float32), open_.astype(jnp.float32)) > 0
    ends = jnp.full((open_.shape[0], 1), schedule.steps)
    own = jnp.concatenate([jnp.where(useful, steps[None], schedule.steps), ends], axis=1)
    return jax.lax.cummin(own, axis=1, reverse=True).astype(jnp.int32)


def onward(
    schedule: Hyperschedule, following: Int32[Array, "B F"], step: Int32[Array, "B"]
) -> Int32[Array, "B"]:
    """The first step from `step` on that has anything to do (see `following`)."""
    if isinstance(schedule, Adaptive):
        return _next_window(schedule, following, step)
    return jnp.take_along_axis(following, step[:, None], axis=1)[:, 0]


def next_opening(schedule: Hyperschedule, step: Int32[Array, "B"]) -> Int32[Array, "B"]:
    """The next step that shows a new position; S where none does."""
    if isinstance(schedule, Adaptive):
        return schedule.closed(step)
    with jax.ensure_compile_time_eval():
        steps = jnp.arange(schedule.steps)
        grows = schedule.frontier(steps + 1) > schedule.frontier(steps)
        own = jnp.append(jnp.where(grows, steps, schedule.steps), schedule.steps)
        opening = jax.lax.cummin(own, reverse=True)[1:].astype(jnp.int32)
    return opening[step]


def _openings(open_: Bool[Array, "B L"]) -> Int32[Array, "B L+1"]:
    """The first open position from each one on, L where there is none."""
    length = open_.shape[1]
    own = jnp.where(open_, jnp.arange(length)[None], length)
    own = jnp.pad(own, ((0, 0), (0, 1)), constant_values=length)
    return jax.lax.cummin(own, axis=1, reverse=True).astype(jnp.int32)


def _next_window(
    schedule: Adaptive, following: Int32[Array, "B {schedule.length}+1"], step: Int32[Array, "B"]
) -> Int32[Array, "B"]:
    """The step itself while its window is worked on, otherwise that at which the next one opens.

    Windows of the greatest width in which nothing is open are left out, as blocks are.

    Args:
      following: see `_openings`.
    """
    first, width, done = schedule.at(step)
    end = jnp.where(done == schedule.levels, first + width, first)
    found = jnp.take_along_axis(following, end[:, None], axis=1)[:, 0]
    opens = end + (found - end) // schedule.width * schedule.width
    opens = schedule.number(jnp.where(found < schedule.length, opens, schedule.length))
    return jnp.where((done > 0) & (done < schedule.levels), step, opens)
