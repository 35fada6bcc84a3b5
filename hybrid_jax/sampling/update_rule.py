"""The interface of an update rule: its input, its output, and functions that rules share."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, Key

from hybrid_jax.errors import UserError
from hybrid_jax.method import objective as objectives
from hybrid_jax.method.noising import NoiseKernel
from hybrid_jax.method.objective import Objective
from hybrid_jax.sampling.draw import Warp, sample_categorical


class Window(NamedTuple):
    """The window of one text before a step.

    Attributes:
      tokens: z_t.
      level, level_next: λ_t > λ_s where active (0.5 and 0 elsewhere).
      active: positions that may move: their level changes, and they are not given.
      confidence: the probability that each shown token had when it was drawn.
    """

    tokens: Int[Array, "*B W"]
    level: Float32[Array, "*B W"]
    level_next: Float32[Array, "*B W"]
    active: Bool[Array, "*B W"]
    confidence: Float32[Array, "*B W"]


class Prediction(NamedTuple):
    """The network's prediction of one position (or of a window), reduced over the vocabulary.

    Attributes:
      token: x̂ ~ p after temperature, top-k and top-p.
      probability: p(x̂) of the plain p.
      current: p(z) of the token shown now; of MASK, 0.
      entropy: of the plain p, nats.
    """

    token: Int[Array, "*W"]
    probability: Float32[Array, "*W"]
    current: Float32[Array, "*W"]
    entropy: Float32[Array, "*W"]


@runtime_checkable
class Rule(Protocol):
    """Interface of a rule to the loop.

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
        self,
        kernel: NoiseKernel,
        objective: Objective,
        key: Key[Array, ""],
        logits: Float[Array, "V"],
        noisy: Int[Array, ""],
        level: Float32[Array, ""],
        level_next: Float32[Array, ""],
    ) -> Any:
        """Vocabulary-sized work of one position: a pytree of scalars."""

    def move(
        self, kernel: NoiseKernel, key: Key[Array, ""], window: Window, reading: Any
    ) -> tuple[Int[Array, "W"], Float32[Array, "W"]]:
        """One step, from readings with a leading axis [W]: tokens and their confidence.

        Values at inactive positions are ignored.
        """


PLAIN = Warp()


def predict(
    kernel: NoiseKernel,
    objective: Objective,
    warp: Warp,
    key: Key[Array, ""],
    logits: Float[Array, "V"],
    noisy: Int[Array, ""],
    level: Float32[Array, ""],
) -> Prediction:
    """The prediction of the clean token of one position."""
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


@runtime_checkable
class Warped(Protocol):
    """A rule that draws tokens from a warped p."""

    @property
    def warp(self) -> Warp: ...


def read_prediction(
    rule: Warped,
    kernel: NoiseKernel,
    objective: Objective,
    key: Key[Array, ""],
    logits: Float[Array, "V"],
    noisy: Int[Array, ""],
    level: Float32[Array, ""],
    level_next: Float32[Array, ""],
) -> Prediction:
    """`Rule.read` of the rules that need nothing but the prediction of the clean token."""
    return predict(kernel, objective, rule.warp, key, logits, noisy, level)


def drawn_where(
    moves: Bool[Array, "W"], window: Window, reading: Prediction
) -> tuple[Int[Array, "W"], Float32[Array, "W"]]:
    """The window with x̂, and its probability as confidence, where `moves`."""
    tokens = jnp.where(moves, reading.token, window.tokens)
    return tokens, jnp.where(moves, reading.probability, window.confidence)


def confident(
    window: Window, reading: Prediction, tokens: Int[Array, "W"]
) -> tuple[Int[Array, "W"], Float32[Array, "W"]]:
    """Tokens, with the confidence of those that are new (of random ones, that of x̂)."""
    return tokens, jnp.where(tokens != window.tokens, reading.probability, window.confidence)


def rank_of(
    cost: Float[Array, "W"] | Int[Array, "W"], candidates: Bool[Array, "W"]
) -> Int[Array, "W"]:
    """Place of each candidate by rising cost, 0 first; others come after all candidates."""
    order = jnp.argsort(jnp.where(candidates, cost, jnp.inf))
    return jnp.zeros_like(order).at[order].set(jnp.arange(order.shape[0]))


def reveal_surest(
    window: Window,
    reading: Prediction,
    rank: Int[Array, "W"],
    masked: Bool[Array, "W"],
    sure: Bool[Array, "W"],
) -> tuple[Int[Array, "W"], Float32[Array, "W"]]:
    """Reveals masked positions that are sure, and in the order of `rank` as many as keep pace.

    No more MASKs are left than the schedule expects, at least one goes, and none settles as MASK.
    """
    expected = jnp.sum(jnp.where(window.active, window.level_next, 0.0))
    # Levels are fractions in float32: 3 · (1/3) should count as 1.
    quota = jnp.maximum(1, masked.sum() - jnp.floor(expected + 1e-4).astype(jnp.int32))
    reveal = sure | (rank < quota) | (window.level_next <= 0)
    return drawn_where(masked & reveal, window, reading)


def check_masks(kernel: NoiseKernel, rule: str) -> None:
    """Raises UserError if the noise never shows MASK, which the rule works on."""
    if not kernel.masks:
        raise UserError(
            f"Rule {rule} works on MASK, which {kernel.name} noise never shows: choose ancestral."
        )
