"""One forward pass over a batch: a term of the bound or of the loss for every position.

This is where schedule, noise, layout, network and objective meet; training and evaluation share it.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol, runtime_checkable

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, Key, PyTree

from hybrid_jax.errors import UserError
from hybrid_jax.method import chunked_loss, noising, objective
from hybrid_jax.method import layout as layouts
from hybrid_jax.method.hyperschedule import Hyperschedule
from hybrid_jax.method.layout import Layout
from hybrid_jax.method.mask_blocks import Pattern, training_pattern
from hybrid_jax.method.noising import NoiseKernel
from hybrid_jax.method.objective import Bound, Draw, Objective, Time


@runtime_checkable
class Network(Protocol):
    """Interface of a network (see `models.transformer.Transformer`)."""

    def features(
        self,
        params: PyTree,
        tokens: Int[Array, "B R"],
        position: Int[Array, "#B R"],
        mask: Bool[Array, "#B R R"] | Pattern,
        level: Float32[Array, "B R"],
        dropout_keys: Key[Array, "B"] | None = None,
    ) -> Float[Array, "B R D"]: ...

    def head(self, params: PyTree) -> PyTree: ...

    def logits(self, params: PyTree, features: Float[Array, "*B D"]) -> Float[Array, "*B V"]: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
    """A hyperschedule, a noise kernel, a layout and an objective that go together.

    Attributes:
      bos: id of the beginning-of-sequence token (shifted layouts).
      chunk: positions of an example whose logits exist at the same time.
    """

    schedule: Hyperschedule
    kernel: NoiseKernel
    layout: Layout
    objective: Objective
    bos: int = 0
    chunk: int = 128

    def __post_init__(self) -> None:
        self.layout.check(self.schedule)
        self.objective.check(self.kernel)
        if self.chunk < 1:
            raise UserError(f"The chunk of positions must be at least 1, but is {self.chunk}.")

    def for_bound(self, bound: Bound) -> Spec:
        """The same network evaluated by a bound: with its noise, its time and no training loss."""
        objective = dataclasses.replace(
            self.objective, loss="bound", time=bound.time, shown_weight=None
        )
        return dataclasses.replace(self, kernel=bound.kernel, objective=objective)


def batch_terms(
    spec: Spec,
    network: Network,
    params: PyTree,
    tokens: Int[Array, "b {spec.schedule.length}"],
    index: Int[Array, "b"],
    key: Key[Array, ""],
    *,
    count: int,
    time: Time,
    loss: bool,
) -> Float32[Array, "b {spec.schedule.length}"]:
    """Draws levels and noise, and returns the terms of every position.

    Args:
      tokens: int32 [b, L].
      index: int32 [b], place of each example in the global batch of `count`. Noise is a function
        of (key, index): it does not depend on devices, processes or accumulation.
      key: one key for the whole batch.
      time: levels drawn at the schedule's steps or inside them.
      loss: terms of the training loss, or of the bound.

    Returns:
      float32 [b, L] in nats; the sum over an example has the bound (or loss) on −log p(x) as its
      mean.
    """
    noisy, phase, draw = corrupt_batch(spec, tokens, index, key, count=count, time=time)
    return drawn_terms(spec, network, params, tokens, noisy, phase, draw, time=time, loss=loss)


def batch_loss(
    spec: Spec,
    network: Network,
    params: PyTree,
    tokens: Int[Array, "b {spec.schedule.length}"],
    index: Int[Array, "b"],
    key: Key[Array, ""],
    *,
    count: int,
    dropout_key: Key[Array, ""] | None = None,
) -> Float32[Array, ""]:
    """The training loss of a batch in nats per token, float32 scalar, to be differentiated.

    The mean of `batch_terms` with the objective's own time and loss; arguments as there.

    Args:
      dropout_key: one for the whole batch; None for no dropout.
    """
    time = spec.objective.time
    noisy, phase, draw = corrupt_batch(spec, tokens, index, key, count=count, time=time)
    keys = None if dropout_key is None else _of_examples(dropout_key, index)
    features, exists = _predicting(spec, network, params, tokens, noisy, phase, draw, keys)
    total = chunked_loss.summed_terms(
        spec.objective,
        spec.kernel,
        network.logits,
        network.head(params),
        features,
        tokens,
        noisy,
        draw._replace(active=draw.active & exists),
        time=time,
        loss=True,
        chunk=spec.chunk,
    )
    return total * (spec.schedule.phases / tokens.size)


def corrupt_batch(
    spec: Spec,
    tokens: Int[Array, "b {spec.schedule.length}"],
    index: Int[Array, "b"],
    key: Key[Array, ""],
    *,
    count: int,
    time: Time,
) -> tuple[
    Int[Array, "b {spec.schedule.length}"], Int32[Array, "b {spec.schedule.phase_groups}"], Draw
]:
    """Draws levels and noise; arguments as for `batch_terms`."""
    _check_batch(spec, tokens, index)
    key_level, key_noise = jax.random.split(key)
    uniforms = objective.draw_uniforms(key_level, spec.schedule, time, count, index)
    phase, draw = jax.vmap(lambda u: objective.draw(spec.schedule, spec.kernel, time, u))(uniforms)
    keys = _of_examples(key_noise, index)
    noisy = jax.vmap(lambda k, x, d: noising.corrupt(spec.kernel, k, x, d.level))(
        keys, tokens, draw
    )
    return noisy, phase, draw


def drawn_terms(
    spec: Spec,
    network: Network,
    params: PyTree,
    tokens: Int[Array, "b {spec.schedule.length}"],
    noisy: Int[Array, "b {spec.schedule.length}"],
    phase: Int32[Array, "b {spec.schedule.phase_groups}"],
    draw: Draw,
    *,
    time: Time,
    loss: bool,
) -> Float32[Array, "b {spec.schedule.length}"]:
    """`batch_terms` for the draws of `corrupt_batch`."""
    features, exists = _predicting(spec, network, params, tokens, noisy, phase, draw)
    terms = chunked_loss.position_terms(
        spec.objective,
        spec.kernel,
        lambda f: network.logits(params, f),
        features,
        tokens,
        noisy,
        draw._replace(active=draw.active & exists),
        time=time,
        loss=loss,
        chunk=spec.chunk,
    )
    return terms * spec.schedule.phases


def _predicting(
    spec: Spec,
    network: Network,
    params: PyTree,
    tokens: Int[Array, "b L"],
    noisy: Int[Array, "b L"],
    phase: Int32[Array, "b groups"],
    draw: Draw,
    dropout_keys: Key[Array, "b"] | None = None,
) -> tuple[Float[Array, "b L D"], Bool[Array, "b L"]]:
    """Features of the row that predicts each position, and whether there is one."""
    schedule, layout = spec.schedule, spec.layout
    rows = jax.vmap(lambda p: layouts.training_rows(layout, schedule, p))(phase)
    held = jax.vmap(lambda r, z, x: layouts.row_tokens(r, z, x, spec.bos))(rows, noisy, tokens)
    level = jax.vmap(layouts.row_levels)(rows, draw.level)
    # Windows that settle whole do not move with the phase: one pattern serves the whole batch.
    shared = jax.tree.map(lambda x: x[:1], rows) if schedule.settles_whole else rows
    pattern = training_pattern(layout, schedule, shared)
    features = network.features(params, held, shared.position, pattern, level, dropout_keys)
    source, exists = jax.vmap(lambda r: layouts.predictors(r, schedule.length))(rows)
    return jnp.take_along_axis(features, source[..., None], axis=1), exists


def _check_batch(spec: Spec, tokens: Array, index: Array) -> None:
    """Raises AssertionError for tokens that are not records of the schedule's length."""
    length = spec.schedule.length
    chex.assert_shape(
        tokens, (None, length),
        custom_message=f"tokens must be int [batch, {length}]: records of the schedule's length",
    )  # fmt: skip
    chex.assert_shape(
        index, (tokens.shape[0],), custom_message="index must hold one place for each record"
    )


def _of_examples(key: Key[Array, ""], index: Int[Array, "b"]) -> Key[Array, "b"]:
    """One key for each example of a batch."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
