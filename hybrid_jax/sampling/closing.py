"""Closing sweeps: further corrections of positions at their last level, before they settle.

A sweep is a step that goes nowhere, λ_s = λ_t, at which only the positions that are about to settle
are active (see `rules.ACS`). It costs a round of the loop.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool

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


def leave(
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
    return stays, dataclasses.replace(
        after,
        sweep=jnp.where(moves, jnp.where(stays, sweep + 1, 0), sweep),
        # What stays is fed alike again: plain autoregression predicts from its newest settled row.
        filled=jnp.where(stays, before.filled, after.filled),
    )


def _settling(place: Place) -> Bool[Array, "B W"]:
    return place.active & (place.level_next == 0)
