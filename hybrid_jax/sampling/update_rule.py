"""What an update rule is: its interface, what it sees, and what rules share."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from hybrid_jax.errors import UserError
from hybrid_jax.method import objective as objectives
from hybrid_jax.method.noising import NoiseKernel
from hybrid_jax.method.objective import Objective
from hybrid_jax.sampling.draw import Warp, sample_categorical


class Window(NamedTuple):
    """The window of one text before a step; fields [W].

    Attributes:
      tokens: int32, z_t.
      level, level_next: float32, λ_t > λ_s where active (0.5 and 0 elsewhere).
      active: bool, positions that may move: their level changes, and they are not given.
      confidence: float32, the probability that each shown token had when it was drawn.
    """

    tokens: jax.Array
    level: jax.Array
    level_next: jax.Array
    active: jax.Array
    confidence: jax.Array


class Prediction(NamedTuple):
    """What the network says of one position, reduced over the vocabulary.

    Attributes:
      token: int32, x̂ ~ p after temperature, top-k and top-p.
      probability: float32, p(x̂) of the plain p.
      current: float32, p(z) of the token shown now; of MASK, 0.
      entropy: float32, of the plain p, nats.
    """

    token: jax.Array
    probability: jax.Array
    current: jax.Array
    entropy: jax.Array


@runtime_checkable
class Rule(Protocol):
    """What the loop asks of a rule.

    Attributes:
      adaptive: whether a text moves on as soon as its window holds no MASK.
      sweeps: most closing sweeps (see `ACS`).
    """

    @property
    def adaptive(self) -> bool: ...
    @property
    def sweeps(self) -> int: ...

    def check(self, kernel: NoiseKernel, objective: Objective) -> None:
        """Raises UserError for settings without meaning, or a kernel it does not go with."""

    def read(
        self, kernel: NoiseKernel, objective: Objective, key, logits, noisy, level, level_next
    ) -> Any:
        """Work of one position: logits [V], scalars -> a pytree of scalars."""

    def move(
        self, kernel: NoiseKernel, key, window: Window, reading
    ) -> tuple[jax.Array, jax.Array]:
        """One step: readings with a leading axis [W] -> tokens int32 [W] and confidence [W].

        What it says of inactive positions is ignored.
        """


PLAIN = Warp()


def predict(
    kernel: NoiseKernel, objective: Objective, warp: Warp, key, logits, noisy, level
) -> Prediction:
    """The prediction of the clean token of one position: logits [V], scalars -> scalars."""
    if objective.parameterisation == "score":
        # The step to level 0 of the scores is their prediction of the clean token.
        log_p = objectives.reverse_step(objective, kernel, logits, noisy, 0.0, level)[:-1]
    else:
        log_p = objectives.log_prediction(objective, kernel, logits, noisy, level)
    token = sample_categorical(key, warp(log_p))
    p = jnp.exp(log_p)
    shown = noisy != kernel.mask
    return Prediction(
        token=token,
        probability=p[token],
        current=jnp.where(shown, p[jnp.where(shown, noisy, 0)], 0.0),
        entropy=-jnp.sum(jnp.where(p > 0, p * log_p, 0.0)),
    )


def read_prediction(rule, kernel, objective, key, logits, noisy, level, level_next) -> Prediction:
    """`Rule.read` of the rules that need nothing but the prediction of the clean token."""
    return predict(kernel, objective, rule.warp, key, logits, noisy, level)


def drawn_where(moves, window, reading):
    """The window with x̂, and its probability as confidence, where `moves`."""
    tokens = jnp.where(moves, reading.token, window.tokens)
    return tokens, jnp.where(moves, reading.probability, window.confidence)


def confident(window, reading, tokens):
    """Tokens, with the confidence of those that are new (of random ones, that of x̂)."""
    return tokens, jnp.where(tokens != window.tokens, reading.probability, window.confidence)


def rank_of(cost, candidates):
    """Place of each candidate by rising cost, 0 first; others come after all candidates."""
    order = jnp.argsort(jnp.where(candidates, cost, jnp.inf))
    return jnp.zeros_like(order).at[order].set(jnp.arange(order.shape[0]))


def reveal_surest(window, reading, rank, masked, sure):
    """Reveals masked positions that are sure, and in the order of `rank` as many as keep pace: no
    more MASKs are left than the schedule expects, at least one goes, and none settles as MASK."""
    expected = jnp.sum(jnp.where(window.active, window.level_next, 0.0))
    # Levels are fractions in float32: 3 · (1/3) should count as 1.
    quota = jnp.maximum(1, masked.sum() - jnp.floor(expected + 1e-4).astype(jnp.int32))
    reveal = sure | (rank < quota) | (window.level_next <= 0)
    return drawn_where(masked & reveal, window, reading)


def check_share(name: str, value) -> None:
    """Raises UserError unless `value` lies in [0, 1]."""
    if not 0 <= value <= 1:
        raise UserError(f"{name} must lie in [0, 1], but is {value}.")


def check_masks(kernel: NoiseKernel, rule: str) -> None:
    """Raises UserError if the noise never shows MASK, which the rule works on."""
    if kernel.gamma == 1:
        raise UserError(
            f"Rule {rule} works on MASK, which {kernel.name} noise never shows: choose ancestral."
        )
