"""Draft and verify: a window is drafted in one call, and kept as far as autoregression agrees.

One network has both views (`schedule.also`, or shifted rows alone): from MASK it predicts a window
all at once, q_i(x | text), and from clean rows the next token, p(x | text, x_1 … x_{i−1}). A round
draws the window from q and reads p behind all of its beginnings in a second call. The draft x_i is
kept with probability min(1, p / q); at the first that is not, a token is drawn from
max(p − q, 0) / Σ, and where all are kept, one more from p (Leviathan et al., arXiv 2211.17192). So
the texts are those of autoregression, whatever the drafts are worth: they only make it faster.

Drafts are drawn apart from one another and from the left context alone, which the proof needs: a
window that is revealed in several calls would not do.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, PyTree

from hybrid_jax.errors import UserError
from hybrid_jax.method import hyperschedule
from hybrid_jax.method import layout as layouts
from hybrid_jax.method.adaptive import Adaptive
from hybrid_jax.method.loss import Spec
from hybrid_jax.method.noising import NoiseKernel
from hybrid_jax.sampling import cache_feed
from hybrid_jax.sampling.draw import sample_categorical
from hybrid_jax.sampling.state import Generation, Sampler, put
from hybrid_jax.sampling.update_rule import Moved, OneKey, Rule, Window


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Speculative(Rule):
    """Autoregression whose tokens are drafted in windows of the schedule's width."""

    takes_levels: ClassVar[bool] = False

    @property
    def free_windows(self) -> bool:
        return True

    def spec(self, spec: Spec) -> Spec:
        own, layout = spec.schedule, spec.layout
        if self.windows.window_entropy is not None:
            raise UserError(
                "speculative keeps as much of a window as is right, and window_entropy has no "
                "effect: leave it out."
            )
        if not (layout.shift and layout.context == "causal"):
            raise UserError(
                "speculative reads the network as autoregression too, which takes "
                "layout.alignment=shifted and layout.context=causal: choose another rule."
            )
        if own.width < 2 or not own.settles_whole:
            raise UserError(
                f"speculative drafts blocks of several tokens, and {own.name} has none: choose "
                "them with --schedule=block:width=8, or another rule."
            )
        width = min(own.width, own.length - 1)  # the last token needs no window
        blocks = hyperschedule.block(length=own.length, width=width, levels=1)
        return dataclasses.replace(spec, schedule=Adaptive(blocks=blocks))

    def move(
        self, kernel: NoiseKernel, key: OneKey, window: Window, reading: PyTree
    ) -> Moved:  # pragma: no cover - `round_` makes its texts
        raise NotImplementedError("texts of this rule are made in rounds of `round_`")


def round_(sampler: Sampler, rule: Rule, params: PyTree, state: Generation) -> Generation:
    """One round: a draft, its verification, and the tokens that are kept."""
    schedule = sampler.spec.schedule
    assert isinstance(schedule, Adaptive)
    live = state.step < schedule.steps
    features, ready, fed = cache_feed.show(sampler, params, state)
    moves = live & ready
    step = jnp.minimum(state.step, schedule.steps - 1)
    first = schedule.at(step).first
    position, inside = layouts.window_positions(schedule, step)
    width = inside.sum(1, dtype=jnp.int32)
    given = jnp.take_along_axis(state.frozen, position, axis=1)
    text = jnp.take_along_axis(state.tokens, position, axis=1)

    keys = jax.vmap(jax.random.fold_in)(state.keys, first)
    key_draft, key_keep, key_next = jnp.moveaxis(
        jax.vmap(lambda k: jax.random.split(k, 3))(keys), 1, 0
    )
    log_q = _predicted(sampler, rule, params, features)
    drafted = jax.vmap(sample_categorical)(key_draft, log_q)
    own = inside & ~given
    draft = dataclasses.replace(fed, tokens=put(fed.tokens, position, drafted, own))
    drafted = jnp.where(given, text, drafted)
    behind, new = _behind_each(sampler, params, draft, first, width)
    log_p = _predicted(sampler, rule, params, behind)

    def of_draft(log: Float[Array, "B W N"]) -> Float[Array, "B W"]:
        return jnp.take_along_axis(log, drafted[..., None], axis=-1)[..., 0]

    chance = jnp.exp(of_draft(log_p[:, :-1]) - of_draft(log_q))
    uniform = jax.vmap(lambda k: jax.random.uniform(k, chance.shape[1:]))(key_keep)
    keep = inside & (given | (uniform < chance))
    kept = jnp.cumprod(keep, axis=1).sum(1, dtype=jnp.int32)
    # Behind the window there is no draft, as if q were nowhere: the token is drawn from p.
    padded = jnp.pad(log_q, ((0, 0), (0, 1), (0, 0)), constant_values=-jnp.inf)
    at = kept[:, None, None]
    p, q = (jnp.exp(jnp.take_along_axis(log, at, axis=1)[:, 0]) for log in (log_p, padded))
    rest = jnp.where((kept < width)[:, None], jnp.maximum(p - q, 0.0), p)
    rest = jnp.where(rest.sum(-1, keepdims=True) > 0, rest, p)  # p = q but for rounding
    token = jax.vmap(sample_categorical)(key_next, jnp.log(rest))

    end = first + kept
    stays = own & moves[:, None] & (position < end[:, None])
    tokens = put(state.tokens, position, drafted, stays)
    last = jnp.minimum(end, schedule.length - 1)[:, None]
    free = moves[:, None] & (end[:, None] < schedule.length)
    free &= ~jnp.take_along_axis(state.frozen, last, axis=1)
    tokens = put(tokens, last, token[:, None], free)

    after = dataclasses.replace(fed, tokens=tokens, nfe=state.nfe + 2 * live.astype(jnp.int32))
    if sampler.cached:
        new = jax.tree.map(lambda x: x[..., 1:, :], new)  # the first is there already
        after = cache_feed.commit(sampler, after, new, jnp.where(moves, kept, 0))
    onward = sampler.path.onward(
        state.following, schedule.number(jnp.minimum(end + 1, schedule.length))
    )
    return dataclasses.replace(after, step=jnp.where(moves, onward, state.step))


def _predicted(
    sampler: Sampler, rule: Rule, params: PyTree, features: Float[Array, "B W D"]
) -> Float[Array, "B W N"]:
    """Warped log p of the tokens that rows predict, of which nothing is known but the rows."""
    spec = sampler.spec
    one, nothing = jnp.float32(1.0), jnp.zeros((), jnp.float32)
    masked = Window(
        tokens=jnp.int32(spec.kernel.mask), level=one, level_next=nothing, active=jnp.bool_(True),
        confidence=nothing,
    )  # fmt: skip

    def read(logits: Float[Array, "V"]) -> Float[Array, "N"]:
        return rule.warp(rule.log_prediction(spec.kernel, spec.objective, logits, masked))

    return jax.vmap(jax.vmap(read))(sampler.network.logits(params, features))


def _behind_each(
    sampler: Sampler,
    params: PyTree,
    draft: Generation,
    first: Int32[Array, "B"],
    width: Int32[Array, "B"],
) -> tuple[Float[Array, "B V D"], PyTree]:
    """Features of the clean rows that predict the window, and the token behind it; and what the
    rows put in the cache.

    The row of the token before the window is shown once more, for what it predicts.
    """
    layout, schedule = sampler.spec.layout, sampler.spec.schedule
    length, most = schedule.length, schedule.width + 1
    gpt = hyperschedule.quenched_ar(length=length)
    step = jnp.minimum(first + width, length - 1)  # of which all before are settled
    if sampler.cached:
        query = layouts.query(layout, gpt, step, first, slots=sampler.slots, capacity=most)
        return cache_feed.extend(sampler, params, draft, query)
    rows = jax.vmap(lambda s: layouts.generation_rows(layout, gpt, s))(step)
    held, level = cache_feed.held_by(sampler, draft, rows)
    mask = layouts.attention_mask(layout, rows)
    features = sampler.network.features(params, held, rows.position, mask, level)
    number = jnp.minimum(first[:, None] + jnp.arange(most)[None], length - 1)
    return jnp.take_along_axis(features, number[..., None], axis=1), None
