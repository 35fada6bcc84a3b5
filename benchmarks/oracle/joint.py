"""Rules whose tokens are drawn together: what they sample if nothing is lost by factorising.

A rule draws the token of each position from p(x_i | all that is shown), without a look at the
others of the same call. Here the tokens of a window are one draw from their joint distribution,
which a chain gives from left to right. All the rest is the rule's: places, numbers, corrections. So
what is left of its error is its own doing, and the difference the cost of factorising.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from hybrid_jax.errors import UserError
from hybrid_jax.method.noising import NoiseKernel
from hybrid_jax.method.objective import Logits, Objective
from hybrid_jax.sampling.draw import Warp, sample_categorical
from hybrid_jax.sampling.update_rule import Moved, OneKey, Rule, Window


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Jointly(Rule):
    """A rule that is given joint draws. Its network is an `Oracle` that looks ahead.

    Attributes:
      rule: the rule, whose readings are `Prediction`s.
      log_step: [V, V], log p of the next token, [from, to].
    """

    rule: Rule
    log_step: Float32[Array, "V V"]

    @property
    def adaptive(self) -> bool:  # type: ignore[override]
        return self.rule.adaptive

    @property
    def sweeps(self) -> int:
        return self.rule.sweeps

    def check(self, kernel: NoiseKernel, objective: Objective) -> None:
        self.rule.check(kernel, objective)
        if not self.rule.warp.idle:
            raise UserError("A warp narrows each position alone: it has no joint draw.")

    def read(
        self, kernel: NoiseKernel, objective: Objective, key: OneKey, logits: Logits, at: Window
    ) -> Any:
        log_p, ahead = jnp.split(logits, 2)
        return self.rule.read(kernel, objective, key, log_p, at), log_p, ahead

    def move(self, kernel: NoiseKernel, key: OneKey, window: Window, reading: Any) -> Moved:
        prediction, log_p, ahead = reading
        key_tokens, key_move = jax.random.split(key)
        keys = jax.random.split(key_tokens, len(log_p))
        first = sample_categorical(keys[0], log_p[0])

        def following(before: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
            token = sample_categorical(at[0], self.log_step[before] + at[1])
            return token, token

        rest = jax.lax.scan(following, first, (keys[1:], ahead[1:]))[1]
        token = jnp.concatenate([first[None], rest])
        probability = jnp.exp(jnp.take_along_axis(log_p, token[:, None], axis=1)[:, 0])
        drawn = prediction._replace(token=token, probability=probability)
        return self.rule.move(kernel, key_move, window, drawn)


def jointly(rule: Rule, step: Float32[Array, "V V"]) -> Jointly:
    return Jointly(rule=rule, log_step=jnp.log(step), warp=Warp())
