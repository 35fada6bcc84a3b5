"""Forward passes of the sampler: feed new rows, write settled K/V to the cache."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, PyTree

from hybrid_jax.method import layout as layouts
from hybrid_jax.method.hyperschedule import Hyperschedule, Ramp
from hybrid_jax.models import cache as caches
from hybrid_jax.sampling.state import Generation, Sampler


def show(
    sampler: Sampler, params: PyTree, state: Generation, horizon: int = 0
) -> tuple[Float[Array, "B W D"], Bool[Array, "B"], Generation]:
    """Feeds the network with what is new to it, or with everything if not `sampler.cached`.

    Args:
      horizon: windows by which the cache may have been rolled back (see `closing`).

    Returns:
      features that predict the window; whether the window was shown; the state with a longer cache.
    """
    if not sampler.cached:
        features = show_all(sampler, sampler.spec.schedule, params, state)
        return features, jnp.ones(state.step.shape, bool), state

    capacity = sampler.capacity
    if horizon:
        capacity = min((horizon + 1) * sampler.spec.schedule.width, sampler.slots)

    def wide(state: Generation) -> tuple[Array, PyTree, Array]:
        return show_new(sampler, params, state, capacity)

    def narrow(state: Generation) -> tuple[Array, PyTree, Array]:
        features, _, count = show_new(sampler, params, state, 0)
        new = jax.tree.map(lambda x: jnp.zeros_like(x[..., :capacity, :]), state.cache)
        return features, new, count

    missing = pending_count(sampler, state)
    ready = missing <= capacity
    if not capacity or sampler.spec.layout.plain(sampler.spec.schedule):
        features, new, count = wide(state)  # always alike
    else:
        # Most rounds have nothing to commit. The cache stays outside: branches would copy it.
        features, new, count = jax.lax.cond(jnp.any(missing > 0), wide, narrow, state)
    return features, ready, commit(sampler, state, new, count)


def show_new(
    sampler: Sampler, params: PyTree, state: Generation, capacity: int, *, window: bool = True
) -> tuple[Float[Array, "B W D"], PyTree, Int32[Array, "B"]]:
    """Feeds up to `capacity` settled tokens of each text that are not cached, and the window.

    Returns:
      features that predict the window (meaningless without `window`); what the settled rows put in
      the cache; and how many of them count.
    """
    query = layouts.query(
        sampler.spec.layout, sampler.spec.schedule, state.step, state.filled,
        slots=sampler.slots, capacity=capacity, window=window,
    )  # fmt: skip
    features, new = extend(sampler, params, state, query)
    new = jax.tree.map(lambda x: x[..., :capacity, :], new)
    return features[:, query.window], new, query.settled


def show_again(
    sampler: Sampler, view: Ramp, params: PyTree, state: Generation
) -> Float[Array, "B W D"]:
    """Feeds the window of `view`, which goes back over settled positions (see `closing`).

    Returns features that predict it. What the cache holds of these positions is not looked at.
    """
    if not sampler.cached:
        return show_all(sampler, view, params, state, least=1)
    query = layouts.query(
        sampler.spec.layout, view, state.step, state.filled, slots=sampler.slots, capacity=0
    )
    features, _ = extend(sampler, params, state, query, least=1)
    return features[:, query.window]


def extend(
    sampler: Sampler, params: PyTree, state: Generation, query: layouts.Query, least: int = 0
) -> tuple[Float[Array, "B R D"], PyTree]:
    """Features of the rows of a query, and what they put in the cache."""
    rows = query.rows
    held, level = held_by(sampler, state, rows, least)
    return sampler.network.extend(params, state.cache, held, rows.position, query.mask, level)


def show_all(
    sampler: Sampler, schedule: Hyperschedule, params: PyTree, state: Generation, least: int = 0
) -> Float[Array, "B W D"]:
    """Feeds all that is visible at each text's step; features that predict the window."""
    layout = sampler.spec.layout
    step = jnp.minimum(state.step, schedule.steps - 1)
    rows = jax.vmap(lambda s: layouts.generation_rows(layout, schedule, s))(step)
    held, level = held_by(sampler, state, rows, least)
    mask = layouts.attention_mask(layout, rows)
    features = sampler.network.features(params, held, rows.position, mask, level)
    source, _ = jax.vmap(lambda r: layouts.predictors(r, schedule.length))(rows)
    position, _ = layouts.window_positions(schedule, step)
    return jnp.take_along_axis(
        features, jnp.take_along_axis(source, position, axis=1)[..., None], axis=1
    )


def held_by(
    sampler: Sampler, state: Generation, rows: layouts.Rows, least: int = 0
) -> tuple[Int[Array, "B R"], Float32[Array, "B R"]]:
    """Tokens that rows hold at each text's step, and the levels of noise, `least` or more."""
    schedule, bos = sampler.spec.schedule, sampler.spec.bos
    step = jnp.minimum(state.step, schedule.steps - 1)[:, None]
    tokens = jax.vmap(lambda r, z: layouts.row_tokens(r, z, z, bos))(rows, state.tokens)
    level = jnp.maximum(schedule.level(step, jnp.maximum(rows.position, 0)), least)
    level = level / schedule.levels
    return tokens, jnp.where(rows.holds_noise, level, 0.0)


def pending_count(sampler: Sampler, state: Generation) -> Int[Array, "B"]:
    """Settled tokens of each text that are not in the cache yet; none of a text that is done."""
    return layouts.pending(sampler.spec.layout, sampler.spec.schedule, state.step, state.filled)


def commit(sampler: Sampler, state: Generation, new: PyTree, count: Int[Array, "B"]) -> Generation:
    """Keeps the first `count` settled rows of each text in the cache."""
    capacity = jax.tree.leaves(new)[0].shape[-2]
    number = jnp.arange(capacity)[None]
    slot = jnp.where(number < count[:, None], state.filled[:, None] + number, sampler.slots)
    return dataclasses.replace(
        state, cache=caches.commit(state.cache, new, slot), filled=state.filled + count
    )
