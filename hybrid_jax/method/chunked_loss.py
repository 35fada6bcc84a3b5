"""Terms of many positions: vocabulary-sized arrays exist for one chunk of positions at a time.

Both functions take, for B examples of n positions:

- ``term``, (logits [V], values of a position …) -> float32 scalar (`objective.Objective.term`);
- ``logits``, (head, features [..., D]) -> logits [..., V];
- ``head``, its parameters, and ``features``, of the rows that predict each position;
- ``positions``, what else a term reads, leaves [B, n]; zeros must give a term of 0;
- ``chunk``, positions of an example whose logits exist at the same time. n is padded to a multiple;
  the batch axis stays whole, so that it may be sharded.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, PyTree

Tree = TypeVar("Tree")
Term = Callable[..., Any]
ToLogits = Callable[[Any, Array], Array]
Features = Float[Array, "B n D"]


def position_terms(
    term: Term, logits: ToLogits, head: PyTree, features: Features, *positions: PyTree, chunk: int
) -> Any:
    """The term of every position, [B, n]; it may be a pytree of such."""
    batch, count, _ = features.shape

    def of_chunk(inputs: tuple[Any, ...]) -> Any:
        feature, *rest = inputs
        return jax.vmap(jax.vmap(term))(logits(head, feature), *rest)

    def joined(x: Array) -> Array:
        return jnp.moveaxis(x, 0, 1).reshape(batch, -1, *x.shape[3:])[:, :count]

    inputs = (features, *positions)
    if count <= chunk:
        return of_chunk(inputs)
    return jax.tree.map(joined, jax.lax.map(of_chunk, _split(inputs, count, chunk)))


def summed_terms(
    term: Term, logits: ToLogits, head: PyTree, features: Features, *positions: PyTree, chunk: int
) -> Float32[Array, ""]:
    """The sum of `position_terms`, to be differentiated by `head` and `features`.

    Gradients are taken chunk by chunk while the logits exist, so that these are neither kept nor
    computed a second time: in the forward pass, where nothing asks for gradients yet.
    """

    def of_chunk(head: PyTree, feature: Array, rest: list[Any]) -> Array:
        return jnp.sum(jax.vmap(jax.vmap(term))(logits(head, feature), *rest))

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
    features, *rest = _split((features, *positions), features.shape[1], chunk)
    return total(head, features, rest)


def _split(tree: Tree, count: int, chunk: int) -> Tree:
    """Cuts axis 1 into chunks: [B, count, ...] -> [chunks, B, chunk, ...], filled up with zeros."""
    chunk = min(chunk, count)
    chunks = -(-count // chunk)

    def split(x: Array) -> Array:
        padding = [(0, 0), (0, chunks * chunk - count)] + [(0, 0)] * (x.ndim - 2)
        parts = jnp.pad(x, padding).reshape(x.shape[0], chunks, chunk, *x.shape[2:])
        return jnp.moveaxis(parts, 1, 0)

    return cast(Tree, jax.tree.map(split, tree))
