"""Orders: rules that choose positions by the plain predictions alone.

What an order reveals next is a function of what is shown, and the tokens of a step are drawn apart
from one another. So a text comes about in one way only, and has an exact likelihood (see
`sampling.likelihood`).
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, Num

from hybrid_jax.method.noising import NoiseKernel
from hybrid_jax.sampling import update_rule
from hybrid_jax.sampling.setting import setting
from hybrid_jax.sampling.update_rule import Moved, OneKey, Rule, Window
from hybrid_jax.sampling.windows import entropy


@dataclasses.dataclass(frozen=True, kw_only=True)
class Order(Rule):
    """Base of orders: the positions of least `doubt` are revealed, of equal ones the first.

    Without a `doubt` of its own it goes from left to right. A step reveals as many as keep pace
    with the schedule: one at a time if a window has as many steps as positions. Shown tokens stay.
    """

    adaptive: ClassVar[bool] = True

    def sure(
        self, doubt: Float32[Array, "W"], rank: Int[Array, "W"], masked: Bool[Array, "W"]
    ) -> Bool[Array, "W"]:
        """Positions to reveal besides; it may look at the doubts of masked ones only."""
        return jnp.zeros_like(masked)

    def move(self, kernel: NoiseKernel, key: OneKey, window: Window, reading: Any) -> Moved:
        masked = window.active & (window.tokens == kernel.mask)
        rank = update_rule.rank_of(reading.doubt, masked)
        sure = self.sure(reading.doubt, rank, masked)
        return update_rule.reveal_surest(window, reading, rank, masked, sure)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class EntropyBound(Order):
    """Reveals the surest positions together as long as the entropies of all but the most uncertain
    of them add up to at most a bound (arXiv 2505.24857), which limits what is lost by drawing them
    independently; and always as many as keep pace with the schedule. Shown tokens stay.

    One at a time it is exact under masking. But few calls for all positions together lose more than
    with random places (docs/samplers.md).
    """

    bound: float | int | Num[Array, ""] = setting(
        float, 0.5, "nats to spend on revealing together", "[0, ∞)"
    )

    def doubt(self, log_p: Float[Array, "N"]) -> Float32[Array, ""]:
        return entropy(log_p)

    def sure(
        self, doubt: Float32[Array, "W"], rank: Int[Array, "W"], masked: Bool[Array, "W"]
    ) -> Bool[Array, "W"]:
        rising = jnp.sort(jnp.where(masked, doubt, jnp.inf))
        # The most uncertain member of a set is its last: what counts is the sum before it.
        before = jnp.cumsum(rising) - rising
        return before[rank] <= self.bound


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Margin(Order):
    """Reveals first where the likeliest token leads the next one by most (arXiv 2502.06768)."""

    def doubt(self, log_p: Float[Array, "N"]) -> Float32[Array, ""]:
        two: Float32[Array, "2"] = jax.lax.top_k(jnp.exp(log_p), 2)[0]
        return two[1] - two[0]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class MaxProbability(Order):
    """Reveals first where the likeliest token is likeliest; any token is drawn there."""

    def doubt(self, log_p: Float[Array, "N"]) -> Float32[Array, ""]:
        return -jnp.exp(log_p.max())
