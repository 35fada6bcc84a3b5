"""Products of rows and a kernel, as compilers are fast at them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32


def of_rows(x: Float[Array, "B R D"], kernel: Float[Array, "D E"]) -> Float[Array, "B R E"]:
    """x @ kernel over one axis of rows: gradients of kernels that sum over two are slow on CPU."""
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], -1)


@jax.custom_vjp
def wide(rows: Float[Array, "n D"], kernel: Float[Array, "D V"]) -> Float32[Array, "n V"]:
    """A product with float32 results, whose gradients are products in the type of the operands.

    Otherwise a result's float32 cotangent would make both of them float32 products, at half the
    speed of 16 bits or less.
    """
    return jnp.dot(rows, kernel, preferred_element_type=jnp.float32)


def _gradients(
    operands: tuple[Array, Array], cotangent: Float32[Array, "n V"]
) -> tuple[Array, Array]:
    rows, kernel = operands
    cotangent = cotangent.astype(rows.dtype)
    return jnp.dot(cotangent, kernel.T), jnp.dot(rows.T, cotangent)


wide.defvjp(lambda rows, kernel: (wide(rows, kernel), (rows, kernel)), _gradients)
