"""Temperature, top-k and top-p: how a predicted distribution is sharpened before drawing."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from hybrid_jax.errors import UserError


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["temperature", "top_k", "top_p"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Warp:
    """What is done to p before a token is drawn from it; None leaves p alone.

    Values may change without compiling anew; whether they are None may not.

    Attributes:
      temperature: p^(1/temperature), renormalised; 0 takes the likeliest token.
      top_k: only the k likeliest tokens (and those as likely as the k-th).
      top_p: only the fewest likeliest tokens that together have this probability (after top_k).
    """

    temperature: float | jax.Array | None = None
    top_k: int | jax.Array | None = None
    top_p: float | jax.Array | None = None

    def check(self) -> None:
        """Raises UserError for values without meaning."""
        if self.temperature is not None and not self.temperature >= 0:
            raise UserError(f"temperature must be 0 or more, but is {self.temperature}.")
        if self.top_k is not None and not self.top_k >= 1:
            raise UserError(f"top_k must be at least 1, but is {self.top_k}.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p must lie in (0, 1], but is {self.top_p}.")

    @property
    def idle(self) -> bool:
        """Whether p stays as it is."""
        return self.temperature is None and self.top_k is None and self.top_p is None

    def __call__(self, log_p: jax.Array) -> jax.Array:
        """log p float32 [N] -> warped, normalised log p [N]."""
        if self.temperature is not None:
            # At 0 this is a point mass on the likeliest token, and stays finite.
            cold = jnp.maximum(jnp.asarray(self.temperature, jnp.float32), 1e-6)
            log_p = jax.nn.log_softmax((log_p - log_p.max()) / cold)
        if self.top_k is None and self.top_p is None:
            return log_p
        falling = -jnp.sort(-log_p)
        allowed = jnp.ones_like(falling, bool)
        if self.top_k is not None:
            allowed &= jnp.arange(falling.shape[0]) < self.top_k
        if self.top_p is not None:
            share = jax.nn.softmax(jnp.where(allowed, falling, -jnp.inf))
            allowed &= jnp.cumsum(share) - share < self.top_p  # what stands before it
        least = jnp.min(jnp.where(allowed, falling, jnp.inf))
        return jax.nn.log_softmax(jnp.where(log_p >= least, log_p, -jnp.inf))
