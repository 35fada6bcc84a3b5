"""Showing the network what it has not seen yet, and keeping what it will need again."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from hybrid_jax.method import layout as layouts
from hybrid_jax.models import cache as caches
from hybrid_jax.sampling.state import Generation, Sampler


def show(sampler: Sampler, params, state: Generation):
    """Feeds the network with what is new to it, or with everything if not `sampler.cached`.

    Returns:
      features [B, W, D] that predict the window; whether the window was shown, bool [B]; the state
      with a longer cache.
    """
    if not sampler.cached:
        features = show_all(sampler, params, state)
        return features, jnp.ones(state.step.shape, bool), state
    if not sampler.slots:
        features, _, _ = show_new(sampler, params, state, 0)
        return features, jnp.ones(state.step.shape, bool), state

    capacity = sampler.capacity
    pending = pending_count(sampler, state)
    ready = pending <= capacity
    if sampler.spec.layout.plain(sampler.spec.schedule):
        features, new, count = show_new(sampler, params, state, capacity)
        return features, ready, commit(sampler, state, new, count)

    def narrow(state):
        features, _, _ = show_new(sampler, params, state, 0)
        shapes = jax.eval_shape(wide, state)[1]
        return features, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def wide(state):
        return show_new(sampler, params, state, capacity)[:2]

    # Most rounds have nothing to commit. The cache itself stays outside: branches would copy it.
    features, new = jax.lax.cond(jnp.any(pending > 0), wide, narrow, state)
    count = _feedable(sampler, state, capacity)
    return features, ready, commit(sampler, state, new, count)


def show_new(sampler: Sampler, params, state: Generation, capacity: int, *, window: bool = True):
    """Feeds up to `capacity` settled tokens of each text that are not cached, and the window.

    Returns:
      features [B, W, D] (None without `window`), what the settled rows put in the cache, and how
      many of them count, int32 [B].
    """
    schedule, layout = sampler.spec.schedule, sampler.spec.layout
    # In plain autoregression the newest settled token predicts the next, so it is fed in its round.
    spare = int(not window and layout.plain(schedule))
    count = _feedable(sampler, state, capacity, spare)
    step = jnp.minimum(state.step, schedule.steps - 1)

    def rows_of(step, slot, count):
        return layouts.query_rows(layout, schedule, step, slot, count, capacity, window=window)

    rows = jax.vmap(rows_of)(step, state.filled, count)
    context = jax.vmap(lambda n: layouts.context_rows(layout, schedule, sampler.slots, n))(
        state.filled
    )
    held, level = _held(sampler, state, rows, step)
    mask = layouts.masks_between(layout, rows, jax.vmap(layouts.concatenate)(context, rows))
    features, new = sampler.network.extend(params, state.cache, held, rows.position, mask, level)
    new = jax.tree.map(lambda x: x[..., :capacity, :], new)
    if not window:
        return None, new, count
    if layout.plain(schedule):
        # The row of the newest settled token predicts the window's only one.
        newest = jnp.maximum(count - 1, 0)[:, None, None]
        return jnp.take_along_axis(features, newest, axis=1), new, count
    # Aligned, the window's own rows; shifted, from the row in front of it on.
    return features[:, capacity : capacity + schedule.width], new, count


def show_all(sampler: Sampler, params, state: Generation) -> jax.Array:
    """Feeds everything that is visible at each text's step; features [B, W, D] of the window."""
    schedule, layout = sampler.spec.schedule, sampler.spec.layout
    step = jnp.minimum(state.step, schedule.steps - 1)
    rows = jax.vmap(lambda s: layouts.generation_rows(layout, schedule, s))(step)
    held, level = _held(sampler, state, rows, step)
    mask = layouts.attention_mask(layout, rows)
    features = sampler.network.features(params, held, rows.position, mask, level)
    source, _ = jax.vmap(lambda r: layouts.predictors(r, schedule.length))(rows)
    position, _ = layouts.window_positions(schedule, step)
    return jnp.take_along_axis(
        features, jnp.take_along_axis(source, position, axis=1)[..., None], axis=1
    )


def _held(sampler: Sampler, state: Generation, rows: layouts.Rows, step: jax.Array):
    """Tokens and noise levels that rows hold at each text's step: int32 and float32 [B, R]."""
    schedule, bos = sampler.spec.schedule, sampler.spec.bos
    tokens = jax.vmap(lambda r, z: layouts.row_tokens(r, z, z, bos))(rows, state.tokens)
    level = schedule.level(step[:, None], jnp.maximum(rows.position, 0)) / schedule.levels
    return tokens, jnp.where(rows.holds_noise, level, 0.0)


def pending_count(sampler: Sampler, state: Generation) -> jax.Array:
    """Settled tokens of each text that are not in the cache yet; none of a text that is done."""
    schedule, layout = sampler.spec.schedule, sampler.spec.layout
    settled = schedule.settled(state.step) + int(layout.alignment == "shifted")
    return jnp.where(state.step < schedule.steps, settled - state.filled, 0)


def _feedable(sampler: Sampler, state: Generation, capacity: int, spare: int = 0) -> jax.Array:
    """How many settled tokens of each text, but the `spare` last, `capacity` rows can feed."""
    schedule, layout = sampler.spec.schedule, sampler.spec.layout
    pending = jnp.maximum(pending_count(sampler, state) - spare, 0)
    count = jnp.minimum(pending, capacity)
    if layout.context == "block_causal":
        # Rows see their whole window, so windows are fed whole.
        shift = int(layout.alignment == "shifted")
        end = state.filled + count - shift
        whole = layouts.window_start(schedule, jnp.clip(end, 0, schedule.length - 1))
        count = jnp.where(pending > capacity, whole + shift - state.filled, count)
    return count


def commit(sampler: Sampler, state: Generation, new, count: jax.Array) -> Generation:
    """Keeps the first `count` settled rows of each text in the cache."""
    capacity = jax.tree.leaves(new)[0].shape[-2]
    number = jnp.arange(capacity)
    slot = jnp.where(number < count[:, None], state.filled[:, None] + number, sampler.slots)
    return dataclasses.replace(
        state, cache=caches.commit(state.cache, new, slot), filled=state.filled + count
    )
