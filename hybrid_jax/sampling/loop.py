"""Generation: one compiled loop for every hyperschedule, alignment, kernel and rule.

Every text (row of the batch) has its own step, key and place in the cache, so that prompts of
different lengths share a batch, adaptive rules move on where they can, and no text depends on its
neighbours. In each round of the loop a text

1. feeds the network its new rows: settled tokens that are not in the cache yet, and the window,
   which may attend to the cache. Settled tokens are fed once, in the round after they settled, and
   need no round of their own; worthless positions are never fed;
2. commits keys and values of the settled tokens;
3. lets the rule update the active positions of the window;
4. moves on to the next step with active positions that are not given.

So the cost of a round is that of the window, not of the text. A text whose settled tokens do not
fit in a round (after a jump over given tokens) spends rounds on feeding them alone.
"""

import dataclasses
import functools
from typing import Any, cast

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from hybrid_jax.errors import UserError, check_count
from hybrid_jax.method import chunked_loss
from hybrid_jax.method import layout as layouts
from hybrid_jax.method.adaptive import Adaptive
from hybrid_jax.method.hyperschedule import Hyperschedule
from hybrid_jax.runtime import sharding
from hybrid_jax.sampling import cache_feed, closing, speculative
from hybrid_jax.sampling.prompts import Prompts, nothing
from hybrid_jax.sampling.speculative import Speculative
from hybrid_jax.sampling.state import Generated, Generation, Place, Sampler, axes_of, put
from hybrid_jax.sampling.update_rule import Rule, Window
from hybrid_jax.sampling.windows import entropy

TO_THE_END = int(np.iinfo(np.int32).max)  # rounds


def generate(
    sampler: Sampler, rule: Rule, params: PyTree, keys: Key[Array, "B"], prompts: Prompts
) -> Generated:
    """Generates texts from start to end.

    Args:
      keys: one for each text; its result depends on its own key and prompt alone.
      prompts: given tokens, built by `prompts.build`.

    Raises:
      UserError: if rule, noise and settings do not go together.
      AssertionError: for prompts of another length than the schedule's, or lacking keys.
    """
    check(sampler, rule)
    length = sampler.spec.schedule.length
    message = f"prompts must have the schedule's {length} positions (see prompts.build)"
    chex.assert_shape([prompts.tokens, prompts.frozen], (None, length), custom_message=message)
    message = "there must be one typed key (jax.random.key) for each prompt"
    chex.assert_shape([keys, prompts.stop], (len(prompts.tokens),), custom_message=message)
    return cast(Generated, _generate(sampler, rule, params, keys, prompts))


def check(sampler: Sampler, rule: Rule) -> None:
    """Raises UserError for a rule or setting that cannot work."""
    rule.check(sampler.spec.kernel, sampler.spec.objective)
    closing.check(sampler.spec, rule)
    if isinstance(sampler.spec.schedule, Adaptive) != rule.free_windows:
        raise UserError(
            "Free windows take a rule and a schedule for it together: build the sampler with the "
            "spec of `rule.spec`."
        )
    if sampler.spec.layout.documents == "separate" and sampler.eos is None:
        raise UserError(
            "This model was trained on separate documents and knows nothing behind the end of one: "
            "choose eos=stop."
        )
    check_count(sampler.prefill, "prefill")
    if sampler.eos is not None and not 0 <= sampler.eos < sampler.spec.kernel.vocab_size:
        raise UserError(
            f"The end token {sampler.eos} is not one of the "
            f"{sampler.spec.kernel.vocab_size} tokens."
        )


@functools.partial(jax.jit, static_argnums=0)
def _generate(
    sampler: Sampler, rule: Rule, params: PyTree, keys: Key[Array, "B"], prompts: Prompts
) -> Generated:
    state = start(sampler, params, keys, prompts)
    return cast(Generated, finish(sampler, advance(sampler, rule, params, state)))


def start(sampler: Sampler, params: PyTree, keys: Key[Array, "B"], prompts: Prompts) -> Generation:
    """The state before the first step of a batch of texts. Arguments are those of `generate`."""
    empty, fresh = idle(sampler, len(prompts.tokens)), np.full(len(prompts.tokens), True)
    return cast(Generation, renew(sampler, params, empty, fresh, keys, prompts))


@functools.partial(jax.jit, static_argnums=(0, 1))
def idle(sampler: Sampler, batch: int) -> Generation:
    """A state without texts, whose places `renew` fills."""
    schedule = sampler.spec.schedule
    keys = jax.random.split(jax.random.key(0), batch)
    state = _begun(sampler, keys, nothing(batch, schedule.length))
    cache = sampler.network.empty_cache(batch, sampler.slots) if sampler.cached else None
    return _placed(dataclasses.replace(state, cache=cache, step=state.nfe + schedule.steps))


def _begun(sampler: Sampler, keys: Key[Array, "B"], given: Prompts) -> Generation:
    """The state before the first step of texts of which nothing is in a cache."""
    kernel = sampler.spec.kernel
    batch, length = given.tokens.shape
    three = jax.vmap(lambda k: jax.random.split(k, 3))(keys)
    key_noise, key_mask, key_steps = jnp.moveaxis(three, 1, 0)

    def noise(key_noise: Array, key_mask: Array) -> Array:
        # MASK, or uniform tokens for a kernel that never masks.
        token = jax.random.randint(key_noise, (length,), 0, kernel.vocab_size, jnp.int32)
        masked = jax.random.uniform(key_mask, (length,)) < kernel.survival(1.0).masked
        return jnp.where(masked, kernel.mask, token)

    zero = jnp.zeros(batch, jnp.int32)
    frozen, stop = jnp.asarray(given.frozen), jnp.asarray(given.stop)
    following = sampler.path.following(~frozen & (jnp.arange(length)[None] < stop[:, None]))
    return Generation(
        tokens=jnp.where(frozen, given.tokens, jax.vmap(noise)(key_noise, key_mask)),
        frozen=frozen,
        stop=stop,
        keys=key_steps,
        confidence=frozen.astype(jnp.float32),
        step=sampler.path.onward(following, zero),
        sweep=zero,
        filled=zero,
        cache=None,
        following=following,
        nfe=zero,
        corrections=zero,
    )


@functools.partial(jax.jit, static_argnums=0, static_argnames="prefills", donate_argnums=2)
def renew(
    sampler: Sampler,
    params: PyTree,
    state: Generation,
    fresh: Bool[Array | np.ndarray, "B"],
    keys: Key[Array, "B"],
    prompts: Prompts,
    *,
    prefills: bool = True,
) -> Generation:
    """Begins new texts in some places: full noise, given tokens, and long prompts in the cache.

    Args:
      state: is donated.
      fresh: the places. Keys and prompts of the others are not read.
      prefills: False where `sampler.prefills` is for all new texts, which leaves the feeding of
        prompts out of the program.
    """

    def choose(new: Array, old: Array) -> Array:
        return jnp.where(jnp.expand_dims(fresh, range(1, old.ndim)), new, old)

    # What the cache held is never read again: none of its slots is filled.
    kept = dataclasses.replace(state, cache=None)
    chosen = jax.tree.map(choose, _begun(sampler, keys, prompts), kept)
    state = dataclasses.replace(chosen, cache=state.cache)
    if prefills and sampler.cached and sampler.slots:
        # Windows must be fed whole where their rows see one another.
        chunk = min(max(sampler.prefill, sampler.spec.schedule.width), sampler.slots)

        def feed(state: Generation) -> Generation:
            _, new, count = cache_feed.show_new(sampler, params, state, chunk, window=False)
            return cache_feed.commit(sampler, state, new, count)

        def waits(state: Generation) -> Array:
            return jnp.any(cache_feed.pending_count(sampler, state) > sampler.capacity)

        state = jax.lax.while_loop(waits, feed, state)
    return _placed(state)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def advance(
    sampler: Sampler,
    rule: Rule,
    params: PyTree,
    state: Generation,
    rounds: Int[ArrayLike, ""] = TO_THE_END,
    live: Int[ArrayLike, ""] = 0,
) -> Generation:
    """Runs the loop until at most `live` texts are not done, or for `rounds` rounds. Donates
    `state`."""
    steps = sampler.spec.schedule.steps

    def goes_on(carry: tuple[Array, Generation]) -> Array:
        left, state = carry
        return (left > 0) & (jnp.sum(state.step < steps) > live)

    one = speculative.round_ if isinstance(rule, Speculative) else _round

    def round_(carry: tuple[Array, Generation]) -> tuple[Array, Generation]:
        left, state = carry
        after = one(sampler, rule, params, state)
        return left - 1, dataclasses.replace(after, step=_ended(sampler, after))

    return _placed(jax.lax.while_loop(goes_on, round_, (jnp.asarray(rounds, jnp.int32), state))[1])


@functools.partial(jax.jit, static_argnums=0)
def finish(sampler: Sampler, state: Generation) -> Generated:
    """The texts of a state, whole on every device of a mesh in use."""
    position = jnp.arange(state.tokens.shape[1])[None]
    length = state.stop
    if sampler.eos is not None:
        ends = _ends(sampler, state.tokens, state.frozen)
        first = jnp.argmax(ends, axis=1)
        length = jnp.where(ends.any(1), jnp.minimum(first + 1, length), length)
    tokens = jnp.where(position < length[:, None], state.tokens, sampler.spec.bos)
    found = Generated(tokens, length, state.step, state.nfe, state.corrections)
    return Generated(*(sharding.constrain(leaf, *("whole",) * leaf.ndim) for leaf in found))


def _placed(state: Generation) -> Generation:
    """The state, cut along texts and heads among the devices of a mesh in use."""
    placed = jax.tree.map(lambda leaf: sharding.constrain(leaf, *axes_of(leaf)), state)
    return cast(Generation, placed)


# ---------------------------------------------------------------------------------------------
# One round.


def _round(sampler: Sampler, rule: Rule, params: PyTree, state: Generation) -> Generation:
    one = functools.partial(_of_window, sampler, rule, params)
    if not rule.horizon:
        return one(state)
    # Wide windows have a program of their own; while a text sweeps, those that do not wait.
    wide = functools.partial(one, again=True)
    return cast(Generation, jax.lax.cond(jnp.any(state.sweep > 0), wide, one, state))


def _of_window(
    sampler: Sampler, rule: Rule, params: PyTree, state: Generation, *, again: bool = False
) -> Generation:
    """A round of the texts in their window or, `again`, of those that sweep over settled ones."""
    schedule, kernel = sampler.spec.schedule, sampler.spec.kernel
    if again:
        live = moves = state.sweep > 0
        view, fed = closing.view(rule, schedule), state
        features = cache_feed.show_again(sampler, view, params, state)
        place = closing.again(schedule, view, state)
    else:
        live = state.step < schedule.steps
        features, ready, fed = cache_feed.show(sampler, params, state, rule.horizon)
        moves = live & ready
        place = closing.enter(rule, state, _place(schedule, state, moves))
    window = _window(state, place)
    step = jnp.minimum(state.step, schedule.steps - 1)
    keys = jax.vmap(lambda k, s, n: jax.random.fold_in(jax.random.fold_in(k, s), n))(
        state.keys, sampler.path.draw(step), state.sweep
    )
    key_read, key_move = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    reading, nats = _read(sampler, rule, params, key_read, features, window, place.position)
    if isinstance(schedule, Adaptive):
        chosen = rule.windows.chosen(schedule, state.step, moves, place, nats)
        state = dataclasses.replace(state, step=chosen)
        step = jnp.minimum(chosen, schedule.steps - 1)
        place = closing.enter(rule, state, _place(schedule, state, moves))
        window = _window(state, place)
    moved, confidence = jax.vmap(functools.partial(rule.move, kernel))(key_move, window, reading)
    moved = jnp.where(place.active, moved, window.tokens)
    changed = place.active & (moved != window.tokens)
    corrected = changed & (window.tokens != kernel.mask)

    after = dataclasses.replace(
        fed,
        tokens=put(state.tokens, place.position, moved, place.active),
        confidence=put(state.confidence, place.position, confidence, place.active),
        nfe=state.nfe + live.astype(jnp.int32),
        corrections=state.corrections + corrected.sum(1, dtype=jnp.int32),
    )
    if state.nats is not None:
        nats = state.nats + jnp.where(changed, reading.nats, 0.0).sum(1)
        after = dataclasses.replace(after, nats=nats)
    sweeps, after = closing.leave(sampler.spec, rule, state, after, place, changed, moves)
    unsure = (place.inside & (moved == kernel.mask)).any(1)
    target = step + 1
    if rule.adaptive:  # a window without MASK has nothing to do until the next one opens
        target = jnp.where(unsure, target, sampler.path.next_opening(step))
    target = sampler.path.onward(state.following, target)
    step = jnp.where(moves & ~sweeps, target, state.step)
    return dataclasses.replace(after, step=step)


def _place(schedule: Hyperschedule, state: Generation, moves: Bool[Array, "B"]) -> Place:
    """The window of each text at its step; only texts that move have active positions."""
    step = jnp.minimum(state.step, schedule.steps - 1)
    position, inside = layouts.window_positions(schedule, step)
    level = schedule.level(step[:, None], position) / schedule.levels
    level_next = schedule.level(step[:, None] + 1, position) / schedule.levels
    changes = inside & (level != level_next)
    given = jnp.take_along_axis(state.frozen, position, axis=1)
    active = changes & ~given & moves[:, None]
    return Place(position, inside, changes, level, level_next, active)


def _window(state: Generation, place: Place) -> Window:
    at, text = functools.partial(jnp.take_along_axis, indices=place.position, axis=1), state.text
    return Window(
        tokens=at(state.tokens),
        # Inactive positions get levels at which no formula divides by zero.
        level=jnp.where(place.changes, place.level, 0.5),
        level_next=jnp.where(place.changes, place.level_next, 0.0),
        active=place.active,
        confidence=at(state.confidence),
        text=None if text is None else at(text),
    )


def _ended(sampler: Sampler, state: Generation) -> Int[Array, "B"]:
    """The step of each text, which is the last one behind a settled eos that no sweep may move."""
    if sampler.eos is None:
        return state.step
    schedule = sampler.spec.schedule
    settled = jnp.arange(schedule.length)[None] < schedule.settled(state.step)[:, None]
    over = jnp.any(settled & _ends(sampler, state.tokens, state.frozen), axis=1)
    return jnp.where(over & (state.sweep == 0), schedule.steps, state.step)


def _read(
    sampler: Sampler,
    rule: Rule,
    params: PyTree,
    key: Key[Array, "B"],
    features: Float[Array, "B W D"],
    window: Window,
    position: Int[Array, "B W"],
) -> tuple[PyTree[Array], Any]:
    """The rule's readings of the window, [B, W], and the entropies that adaptive windows need.

    Logits exist for `spec.chunk` positions a time. Each position has a key of its own, so that
    nothing depends on how positions are grouped.
    """
    spec, kind = sampler.spec, jax.random.key_impl(key)
    keys = jax.vmap(lambda k, p: jax.vmap(lambda i: jax.random.fold_in(k, i))(p))(key, position)

    def read(logits: Float[Array, "N"], data: Array, at: Window) -> tuple[Any, Any]:
        own = jax.random.wrap_key_data(data, impl=kind)  # typed keys cannot be filled with zeros
        reading = rule.read(spec.kernel, spec.objective, own, logits, at)
        if not isinstance(spec.schedule, Adaptive):
            return reading, None
        return reading, entropy(rule.log_prediction(spec.kernel, spec.objective, logits, at))

    found: tuple[Any, Any] = chunked_loss.position_terms(
        read, sampler.network.logits, params, features, jax.random.key_data(keys), window,
        chunk=spec.chunk,
    )  # fmt: skip
    return found


def _ends(
    sampler: Sampler, tokens: Int[Array, "B L"], frozen: Bool[Array, "B L"]
) -> Bool[Array, "B L"]:
    """Positions at which a text may end: eos behind its last given token."""
    given_from_here = jax.lax.cummax(frozen.astype(jnp.int32), axis=1, reverse=True)
    return (tokens == sampler.eos) & (given_from_here == 0)
