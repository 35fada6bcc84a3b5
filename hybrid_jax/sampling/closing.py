"""Closing sweeps: further corrections of positions at their last level, before they settle.

A sweep is a step that goes nowhere, λ_s = λ_t, at which only the positions that are about to settle
are active (see `rules.ACS`). It costs a round of the loop.

With a horizon h, the h windows that settled last are active too. They and the current one are shown
as one window of (h + 1)ω positions, in which all see each other: what settled gets to know what
came behind it, of which it knew nothing when it was drawn. It is shown as noise of the last level,
as what is about to settle is. So the network must know windows of that width. Of the cache, only
what stands before the first changed position is kept: the next round feeds the rest again beside
its window, up to (h + 1)ω rows.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool

from hybrid_jax.errors import UserError
from hybrid_jax.method import layout as layouts
from hybrid_jax.method.hyperschedule import Hyperschedule, Ramp
from hybrid_jax.method.loss import Spec
from hybrid_jax.sampling.state import Generation, Place
from hybrid_jax.sampling.update_rule import Rule


def enter(rule: Rule, state: Generation, place: Place) -> Place:
    """The places of a round, with those of texts that sweep in place of their step."""
    if not rule.sweeps:
        return place
    sweeps = (state.sweep > 0)[:, None]
    return place._replace(
        active=jnp.where(sweeps, _settling(place), place.active),
        level_next=jnp.where(sweeps, place.level, place.level_next),
    )


def check(spec: Spec, rule: Rule) -> None:
    """Raises UserError for a horizon where no window has settled, or none sees what is behind."""
    own = spec.schedule
    looks_back = isinstance(own, Ramp) and own.width < own.length
    if rule.horizon and (not looks_back or spec.layout.plain(own)):
        raise UserError(
            "horizon looks again at settled windows of a block or slide schedule, which "
            f"{own.name} does not have: leave it out."
        )
    if rule.horizon and spec.layout.causal_window:
        raise UserError(
            "horizon draws settled tokens again by what is behind them, which causal windows do "
            "not see: leave it out, or choose a model with layout.causal_window=false."
        )


def view(rule: Rule, schedule: Hyperschedule) -> Ramp:
    """A schedule whose window at each step goes back over the horizon. Its levels mean nothing."""
    assert isinstance(schedule, Ramp)
    # Positions that start as they do and settle so many windows later.
    return dataclasses.replace(schedule, levels=schedule.levels * (rule.horizon + 1))


def again(schedule: Hyperschedule, view: Ramp, state: Generation) -> Place:
    """The places of a sweep that goes back over the horizon; see `view`."""
    step = jnp.minimum(state.step, schedule.steps - 1)
    position, inside = layouts.window_positions(view, step)
    level = jnp.maximum(schedule.level(step[:, None], position), 1) / schedule.levels
    settles = inside & (schedule.level(step[:, None] + 1, position) == 0)
    given = jnp.take_along_axis(state.frozen, position, axis=1)
    active = settles & ~given & (state.sweep > 0)[:, None]
    return Place(position, inside, inside, level, level, active)


def leave(
    spec: Spec,
    rule: Rule,
    before: Generation,
    after: Generation,
    place: Place,
    changed: Bool[Array, "B W"],
    moves: Bool[Array, "B"],
) -> tuple[Bool[Array, "B"], Generation]:
    """Counts the sweep that a round was.

    Args:
      before, after: the state before the round and after it, at the same step.
      changed: positions whose token the round changed.
      moves: texts that the rule was applied to.

    Returns:
      whether each text stays at its step for a (further) sweep, and the state.
    """
    if not rule.sweeps:
        return jnp.zeros_like(moves), after
    sweep = before.sweep
    again = changed.any(1) & (sweep < rule.sweeps)
    stays = jnp.where(sweep == 0, _settling(place).any(1), again)
    if rule.horizon:
        length = spec.schedule.length
        first = jnp.where(changed, place.position, length - 1).min(1)
        if spec.layout.context == "block_causal":
            first = layouts.window_start(spec.schedule, first)
        kept = jnp.minimum(after.filled, first + spec.layout.shift)
        filled = jnp.where((sweep > 0) & changed.any(1), kept, after.filled)
    else:
        # What stays is fed alike again: plain autoregression predicts from its newest settled row.
        filled = jnp.where(stays, before.filled, after.filled)
    return stays, dataclasses.replace(
        after, sweep=jnp.where(moves, jnp.where(stays, sweep + 1, 0), sweep), filled=filled
    )


def _settling(place: Place) -> Bool[Array, "B W"]:
    return place.active & (place.level_next == 0)
