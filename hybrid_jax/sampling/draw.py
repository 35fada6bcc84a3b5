"""Draws of tokens: the one categorical sampler, and the warps of a distribution before it."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int, Int32, Key

from hybrid_jax.errors import UserError
from hybrid_jax.sampling.setting import check_ranges, setting


def sample_categorical(key: Key[Array, ""], logits: Float[Array, "*B N"]) -> Int32[Array, "*B"]:
    """Draws from softmax(logits) over the last axis.

    Works in float32 with high-range Gumbel noise. JAX draws Gumbels in the type of the logits, and
    its float32 default cannot exceed 15.94: over 50k tokens, a tail of total probability 1% would
    be drawn a third too seldom, and bfloat16 logits would put all draws on the first ids.

    The ids are cut into about √N groups, a group is drawn by its total weight and then an id in it:
    the same distribution for 2√N Gumbels instead of N, which at N = 50k would cost more than a
    small network.
    """
    wide = logits.astype(jnp.float32)
    size = 1 << max(0, math.ceil(math.log2(wide.shape[-1]) / 2))
    groups = -(-wide.shape[-1] // size)
    padding = [(0, 0)] * (wide.ndim - 1) + [(0, groups * size - wide.shape[-1])]
    grouped = jnp.pad(wide, padding, constant_values=-jnp.inf)
    grouped = grouped.reshape(*wide.shape[:-1], groups, size)
    key_group, key_member = jax.random.split(key)
    group = _gumbel_max(key_group, jax.nn.logsumexp(grouped, axis=-1))
    chosen = jnp.take_along_axis(grouped, group[..., None, None], axis=-2)[..., 0, :]
    return (group * size + _gumbel_max(key_member, chosen)).astype(jnp.int32)


def _gumbel_max(key: Key[Array, ""], logits: Float32[Array, "*B N"]) -> Int[Array, "*B"]:
    noise = jax.random.gumbel(key, logits.shape, jnp.float32, mode="high")
    return jnp.argmax(logits + noise, axis=-1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Warp:
    """Changes to p before a token is drawn from it; None leaves p alone.

    Values may change without compiling anew; whether they are None may not.
    """

    temperature: float | Array | None = setting(
        float, None, "draw from p^(1/temperature): below 1 likelier tokens, 0 the likeliest",
        "[0, ∞)",
    )  # fmt: skip
    top_k: int | Array | None = setting(
        int, None, "draw from the k likeliest tokens and those as likely as the k-th", "[1, ∞)"
    )
    top_p: float | Array | None = setting(
        float, None, "draw from the fewest likeliest tokens of this total probability, after top_k",
        "(0, 1]",
    )  # fmt: skip

    def check(self) -> None:
        """Raises UserError for values without meaning."""
        check_ranges(self)
        if isinstance(self.temperature, int | float) and self.temperature == 0:
            for name in ("top_k", "top_p"):
                if getattr(self, name) is not None:
                    raise UserError(
                        f"{name} has no effect at temperature 0, which always draws the likeliest "
                        "token: leave it out."
                    )

    @property
    def idle(self) -> bool:
        """True if p stays as it is."""
        return self.temperature is None and self.top_k is None and self.top_p is None

    def __call__(self, log_p: Float32[Array, "N"]) -> Float32[Array, "N"]:
        """The warped, normalised log p of a log p."""
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
