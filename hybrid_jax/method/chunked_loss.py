"""Terms of many positions: vocabulary-sized arrays exist for one chunk of positions at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int, PyTree

from hybrid_jax.method import objective as objectives
from hybrid_jax.method.noising import NoiseKernel
from hybrid_jax.method.objective import Draw, Objective, Time

Tree = TypeVar("Tree")


def position_terms(
    objective: Objective,
    kernel: NoiseKernel,
    to_logits: Callable[[Array], Array],
    features: Float[Array, "B n D"],
    tokens: Int[Array, "B n"],
    noisy: Int[Array, "B n"],
    draw: Draw,
    *,
    time: Time,
    loss: bool,
    chunk: int,
) -> Float32[Array, "B n"]:
    """Terms of the loss (`loss=True`) or of the bound for every position, in nats.

    Args:
      to_logits: features [..., D] -> logits [..., V].
      features: of the rows that predict each position.
      tokens, noisy: clean and noisy tokens.
      draw: Draw with fields [B, n].
      chunk: positions of an example whose logits exist at the same time (n is padded to a
        multiple); the batch axis stays whole, so that it may be sharded.

    Returns:
      float32 [B, n]; 0 where inactive. The sum over an example, times `schedule.phases`, has the
      bound as its mean.
    """
    terms = _terms(objective, kernel, time, loss)
    batch, count = tokens.shape

    def of_chunk(inputs: tuple[Any, ...]) -> Array:
        feature, *rest = inputs
        return terms(to_logits(feature), *rest)

    found = jax.lax.map(of_chunk, _split((features, tokens, noisy, draw), count, chunk))
    return jnp.moveaxis(found, 0, 1).reshape(batch, -1)[:, :count]


def summed_terms(
    objective: Objective,
    kernel: NoiseKernel,
    to_logits: Callable[[Any, Array], Array],
    head: PyTree,
    features: Float[Array, "B n D"],
    tokens: Int[Array, "B n"],
    noisy: Int[Array, "B n"],
    draw: Draw,
    *,
    time: Time,
    loss: bool,
    chunk: int,
) -> Float32[Array, ""]:
    """The sum of `position_terms`, float32 scalar, to be differentiated.

    Gradients are taken chunk by chunk while the logits exist, so that these are neither kept nor
    computed a second time: in the forward pass, where nothing asks for gradients yet.

    Args:
      to_logits: (head, features [..., D]) -> logits [..., V].
      head: parameters of the head; gradients are those of `head` and `features`.
      others: as for `position_terms`.
    """
    terms = _terms(objective, kernel, time, loss)

    def of_chunk(head: PyTree, feature: Array, rest: list[Any]) -> Array:
        return jnp.sum(terms(to_logits(head, feature), *rest))

    @jax.custom_vjp
    def total(head: PyTree, features: Array, rest: list[Any]) -> Array:
        def add(summed: Array, inputs: tuple[Any, ...]) -> tuple[Array, None]:
            return summed + of_chunk(head, *inputs), None

        summed: Array = jax.lax.scan(add, jnp.float32(0.0), (features, rest))[0]
        return summed

    def forward(head: PyTree, features: Array, rest: list[Any]) -> tuple[Array, Any]:
        def add(carry: Any, inputs: tuple[Any, ...]) -> tuple[Any, Array]:
            value, (of_head, of_feature) = jax.value_and_grad(of_chunk, argnums=(0, 1))(
                head, *inputs
            )
            return jax.tree.map(jnp.add, carry, (value, of_head)), of_feature

        zero = (jnp.float32(0.0), jax.tree.map(jnp.zeros_like, head))
        (summed, of_head), of_features = jax.lax.scan(add, zero, (features, rest))
        return summed, (of_head, of_features)

    def backward(gradients: Any, scale: Array) -> tuple[Any, ...]:
        scaled = jax.tree.map(lambda x: (scale * x).astype(x.dtype), gradients)
        return *scaled, None

    total.defvjp(forward, backward)
    features, *rest = _split((features, tokens, noisy, draw), tokens.shape[1], chunk)
    return total(head, features, rest)


def _terms(
    objective: Objective, kernel: NoiseKernel, time: Time, loss: bool
) -> Callable[..., Array]:
    """(logits [B, n, V], tokens, noisy, Draw) -> terms float32 [B, n]."""
    cross_entropy = loss and objective.loss == "weighted_cross_entropy"

    def one(logits: Array, token: Array, noisy: Array, draw: Draw) -> Array:
        # Inactive positions get levels at which no formula divides by zero.
        draw = draw._replace(
            level=jnp.where(draw.active, draw.level, 0.5),
            level_next=jnp.where(draw.active, draw.level_next, 0.0),
        )
        if cross_entropy:
            term = draw.measure * objectives.weighted_cross_entropy(
                objective, kernel, logits, token, noisy, draw.level
            )
        elif time == "continuous":
            term = draw.measure * objectives.continuous_term(
                objective, kernel, logits, token, noisy, draw.level
            )
        else:
            term = objectives.discrete_term(
                objective, kernel, logits, token, noisy, draw.level, draw.level_next
            )
        return jnp.where(draw.active, term, 0.0)

    return jax.vmap(jax.vmap(one))


def _split(tree: Tree, count: int, chunk: int) -> Tree:
    """Cuts axis 1 into chunks: [B, count, ...] -> [chunks, B, chunk, ...].

    The last is filled up with zeros, which as positions are inactive.
    """
    chunk = min(chunk, count)
    chunks = -(-count // chunk)

    def split(x: Array) -> Array:
        padding = [(0, 0), (0, chunks * chunk - count)] + [(0, 0)] * (x.ndim - 2)
        parts = jnp.pad(x, padding).reshape(x.shape[0], chunks, chunk, *x.shape[2:])
        return jnp.moveaxis(parts, 1, 0)

    return cast(Tree, jax.tree.map(split, tree))
