"""Update rules: what happens to the window in one generation step.

A rule is a frozen dataclass with two pure functions. `read` does the vocabulary-sized work of one
position; `move` turns the readings of a window into its next tokens, and may weigh positions
against one another. Rules know nothing of the loop, the cache or the schedule. Whether a token is
revealed, redrawn or masked again is always drawn apart from which token it becomes: probabilities
close to 1 do not survive inside a draw over a large vocabulary.

Numbers of a rule (η, thresholds, temperature) are traced: changing them compiles nothing anew.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from hybrid_jax.errors import UserError
from hybrid_jax.method import noising
from hybrid_jax.method import objective as objectives
from hybrid_jax.method.noising import NoiseKernel
from hybrid_jax.method.objective import Objective
from hybrid_jax.sampling.draw import Warp, sample_categorical
from hybrid_jax.sampling.update_rule import (
    PLAIN,
    Prediction,
    Rule,
    check_masks,
    check_share,
    confident,
    drawn_where,
    predict,
    rank_of,
    read_prediction,
    reveal_surest,
)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["warp"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Ancestral:
    """The reverse step of the noise kernel itself, exact if the network's prediction is.

    A score-predicting network takes the Tweedie step of its scores, unless a warp asks for its p.
    """

    warp: Warp = PLAIN
    adaptive: ClassVar[bool] = False
    sweeps: ClassVar[int] = 0

    def check(self, kernel: NoiseKernel, objective: Objective) -> None:
        self.warp.check()

    def read(self, kernel, objective, key, logits, noisy, level, level_next):
        if objective.parameterisation != "score" or not self.warp.idle:
            return predict(kernel, objective, self.warp, key, logits, noisy, level)
        key_reveal, key_token = jax.random.split(key)
        log_step = objectives.reverse_step(objective, kernel, logits, noisy, level_next, level)
        stays = jax.random.uniform(key_reveal) < jnp.exp(log_step[-1])
        drawn = jnp.where(stays, kernel.mask, sample_categorical(key_token, log_step[:-1]))
        return drawn, jnp.exp(log_step[drawn])

    def move(self, kernel, key, window, reading):
        if not isinstance(reading, Prediction):
            return reading
        tokens, level, level_next = window.tokens, window.level, window.level_next
        key_reveal, key_noise, key_token, key_choice = jax.random.split(key, 4)
        shape = tokens.shape
        clean = reading.token
        noise = jax.random.randint(key_token, shape, 0, kernel.vocab_size, jnp.int32)
        after = kernel.survival(level_next)

        shown = jnp.where(jax.random.uniform(key_noise, shape) < after.replaced, noise, clean)
        reveal = noising.reveal_probability(kernel, level_next, level)
        revealed = jax.random.uniform(key_reveal, shape) < reveal
        from_mask = jnp.where(revealed, shown, tokens)
        if not kernel.replaces:
            moved = jnp.where(tokens == kernel.mask, from_mask, tokens)
            return confident(window, reading, moved)

        weight = noising.token_step(kernel, level_next, level)
        keep = weight.keep + jnp.where(clean == tokens, weight.keep_if_equal, 0.0)
        total = keep + weight.take_clean + weight.redraw_uniform
        choice = jax.random.uniform(key_choice, shape) * total
        moved = jnp.where(choice < keep + weight.take_clean, clean, noise)
        from_token = jnp.where(choice < keep, tokens, moved)
        return confident(window, reading, jnp.where(tokens == kernel.mask, from_mask, from_token))


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["eta", "warp"],
    meta_fields=["guidance", "sweeps"],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class ACS:
    """The adaptive correction sampler (arXiv 2504.06416).

    MASK is revealed as x̂ ~ p with the kernel's probability, (λ_t − λ_s)/λ_t for ε-hybrids. A shown
    token of the active window is drawn again from p with probability η λ_s/λ_t. η = 0 never
    corrects: the usual sampler of masked diffusion, which the paper calls original.

    Attributes:
      eta: η in [0, 1].
      guidance: "uniform": as above. "confidence": the same expected number of corrections, spent
        in proportion to 1 − p(z), where the model doubts what is shown.
      sweeps: before positions settle, up to so many further calls at their last level draw each of
        them again with probability η (a step with λ_s = λ_t), until a sweep changes nothing.
    """

    eta: float | jax.Array = 0.25
    guidance: Literal["uniform", "confidence"] = "uniform"
    sweeps: int = 0
    warp: Warp = PLAIN
    adaptive: ClassVar[bool] = False

    def check(self, kernel: NoiseKernel, objective: Objective) -> None:
        self.warp.check()
        check_share("eta", self.eta)
        check_masks(kernel, "acs")
        if self.guidance not in ("uniform", "confidence"):
            raise UserError(f"guidance must be uniform or confidence, but is {self.guidance}.")
        if self.sweeps < 0:
            raise UserError(f"sweeps must be 0 or more, but is {self.sweeps}.")
        if self.sweeps and self.eta == 0:
            raise UserError("Closing sweeps correct with probability eta, which is 0: raise eta.")
        if self.eta > 0 and not kernel.replaces:
            raise UserError(
                f"Rule acs corrects shown tokens, which a model of {kernel.name} noise has never "
                "learnt to judge: choose rule remdm, or eta=0, or a hybrid model."
            )

    read = read_prediction

    def move(self, kernel, key, window, reading):
        key_reveal, key_redraw = jax.random.split(key)
        shown = window.active & (window.tokens != kernel.mask)
        chance = jnp.where(shown, self.eta * window.level_next / window.level, 0.0)
        if self.guidance == "confidence":
            doubt = jnp.where(shown, 1.0 - reading.current, 0.0)
            chance = proportional_chances(doubt, chance.sum())
        redraw = jax.random.uniform(key_redraw, chance.shape) < chance
        reveal = noising.reveal_probability(kernel, window.level_next, window.level)
        revealed = jax.random.uniform(key_reveal, chance.shape) < reveal
        moves = jnp.where(window.tokens == kernel.mask, revealed, redraw)
        return drawn_where(moves, window, reading)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["eta", "warp"],
    meta_fields=["strategy"],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class ReMDM:
    """Remasking (Wang et al. 2025, arXiv 2503.00307): shown tokens may become MASK again.

    With A the probability of being unmasked and σ ≤ σ_max = min(1, (1 − A_s)/A_t): a shown token is
    masked with probability σ, MASK is revealed as x̂ ~ p with probability
    (A_s − (1 − σ) A_t)/(1 − A_t), which keeps every marginal.

    Attributes:
      eta: η in [0, 1].
      strategy: "cap": σ = min(η, σ_max). "rescale": σ = η σ_max. "confidence": σ = η σ_max times
        the softmax, over the shown tokens of the window, of minus the probability that each had
        when it was drawn; 0 for MASK.
    """

    eta: float | jax.Array = 0.02
    strategy: Literal["cap", "rescale", "confidence"] = "cap"
    warp: Warp = PLAIN
    adaptive: ClassVar[bool] = False
    sweeps: ClassVar[int] = 0

    def check(self, kernel: NoiseKernel, objective: Objective) -> None:
        self.warp.check()
        check_share("eta", self.eta)
        check_masks(kernel, "remdm")
        if self.strategy not in ("cap", "rescale", "confidence"):
            raise UserError(f"strategy must be cap, rescale or confidence, but is {self.strategy}.")

    read = read_prediction

    def move(self, kernel, key, window, reading):
        key_reveal, key_mask = jax.random.split(key)
        before = kernel.survival(window.level)
        after = kernel.survival(window.level_next)
        most = jnp.minimum(1.0, after.masked / jnp.maximum(before.unmasked, 1e-30))
        masked = window.tokens == kernel.mask
        if self.strategy == "cap":
            sigma = jnp.minimum(self.eta, most)
        elif self.strategy == "rescale":
            sigma = self.eta * most
        else:
            shown = window.active & ~masked
            doubt = jnp.where(shown, -window.confidence, -jnp.inf)
            share = jnp.exp(doubt - jax.nn.logsumexp(jnp.where(shown.any(), doubt, 0.0)))
            sigma = self.eta * most * share
        # A_s − A_t, without cancellation, and what remasking takes away.
        gained = noising.reveal_probability(kernel, window.level_next, window.level)
        reveal = gained + sigma * before.unmasked / before.masked
        revealed = jax.random.uniform(key_reveal, sigma.shape) < reveal
        forgets = ~masked & (jax.random.uniform(key_mask, sigma.shape) < sigma)
        tokens, confidence = drawn_where(masked & revealed, window, reading)
        return jnp.where(forgets, kernel.mask, tokens), confidence


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["threshold", "warp"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Threshold:
    """Reveals every x̂ ~ p with p(x̂) above a threshold (Fast-dLLM, arXiv 2505.22618), and always as
    many of the likeliest as keep pace with the schedule. Shown tokens stay.

    Attributes:
      threshold: in [0, 1]; 1 leaves the schedule's own number a step.
    """

    threshold: float | jax.Array = 0.9
    warp: Warp = PLAIN
    adaptive: ClassVar[bool] = True
    sweeps: ClassVar[int] = 0

    def check(self, kernel: NoiseKernel, objective: Objective) -> None:
        self.warp.check()
        check_share("threshold", self.threshold)
        check_masks(kernel, "threshold")

    read = read_prediction

    def move(self, kernel, key, window, reading):
        masked = window.active & (window.tokens == kernel.mask)
        rank = rank_of(-reading.probability, masked)
        return reveal_surest(window, reading, rank, masked, reading.probability > self.threshold)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["bound", "warp"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class EntropyBound:
    """Reveals the surest positions together as long as the entropies of all but the most uncertain
    of them add up to at most a bound (arXiv 2505.24857), which limits what is lost by drawing them
    independently; and always as many as keep pace with the schedule. Shown tokens stay.

    Attributes:
      bound: in nats, 0 or more.
    """

    bound: float | jax.Array = 0.5
    warp: Warp = PLAIN
    adaptive: ClassVar[bool] = True
    sweeps: ClassVar[int] = 0

    def check(self, kernel: NoiseKernel, objective: Objective) -> None:
        self.warp.check()
        if not self.bound >= 0:
            raise UserError(f"bound must be 0 nats or more, but is {self.bound}.")
        check_masks(kernel, "entropy")

    read = read_prediction

    def move(self, kernel, key, window, reading):
        masked = window.active & (window.tokens == kernel.mask)
        rank = rank_of(reading.entropy, masked)
        rising = jnp.sort(jnp.where(masked, reading.entropy, jnp.inf))
        # The most uncertain member of a set is its last: what counts is the sum before it.
        before = jnp.cumsum(rising) - rising
        return reveal_surest(window, reading, rank, masked, before[rank] <= self.bound)


def greedy() -> Threshold:
    """The likeliest tokens of the surest positions, the schedule's own number a step."""
    return Threshold(threshold=1.0, warp=Warp(temperature=0.0))


def proportional_chances(weight: jax.Array, expected: jax.Array) -> jax.Array:
    """Probabilities min(1, c·weight) that add up to `expected`, float32 [W].

    `weight` >= 0. Where fewer than `expected` weights are positive, those get 1.
    """
    falling = -jnp.sort(-weight)
    # With the k largest at 1, c shares what is left among the others; k is right once that c
    # brings none of them above 1.
    rest = jnp.flip(jnp.cumsum(jnp.flip(falling)))
    k = jnp.arange(weight.shape[0], dtype=jnp.float32)
    scale = jnp.maximum(expected - k, 0.0) / jnp.maximum(rest, 1e-30)
    fits = scale * falling <= 1.0 + 1e-6
    return jnp.minimum(1.0, scale[jnp.argmax(fits)] * weight)


_NAMED: dict[str, type] = {
    "ancestral": Ancestral,
    "acs": ACS,
    "remdm": ReMDM,
    "threshold": Threshold,
    "entropy": EntropyBound,
}
NAMES = (*_NAMED, "greedy")


def settings_of(name: str) -> tuple[str, ...]:
    """The settings of a rule by their names, without those of the warp."""
    kind = _NAMED.get(name)
    return tuple(f.name for f in dataclasses.fields(kind) if f.name != "warp") if kind else ()


def make(name: str, *, warp: Warp = PLAIN, **settings: Any) -> Rule:
    """The rule of a name, with those settings that are not None.

    Raises:
      UserError: for an unknown name, or a setting that belongs to another rule.
    """
    if name not in NAMES:
        raise UserError(f"There is no rule {name!r}: choose one of {', '.join(NAMES)}.")
    given = {key: value for key, value in settings.items() if value is not None}
    if name == "greedy" and warp.temperature is not None:
        given["temperature"] = warp.temperature  # it has its own
    kind = _NAMED.get(name)
    for key in given:
        if key not in settings_of(name):
            users = [n for n in _NAMED if key in settings_of(n)]
            belongs = (
                f"it belongs to {' and '.join(users)}" if users else "it takes the likeliest token"
            )
            raise UserError(f"Rule {name} has no {key}: {belongs}; leave it out.")
    if kind is None:
        return dataclasses.replace(greedy(), warp=dataclasses.replace(warp, temperature=0.0))
    return kind(warp=warp, **given)
