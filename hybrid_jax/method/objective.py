"""Bounds on −log p(x) and training losses, for every hyperschedule and kernel.

One bound covers them all::

    −log p(x) ≤ Σ_s Σ_{i active at s} E_{z ~ q_τ[s](·|x)} KL( q(z'_i | z_i, x_i) ‖ p_θ(z'_i | z) )

with z' at level τ[s + 1]. Its terms are either these KL divergences (``time="discrete"``) or their
limit for infinitely fine steps, the score entropy (``time="continuous"``). Absorbing noise turns a
term into a weighted cross-entropy; one position a step turns the bound into the exact likelihood.

The training loss and the reported bound are separate: the ε-hybrid of the paper trains a weighted
cross-entropy, which is no bound, and reports a bound.
"""

import dataclasses
from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32, Key

from hybrid_jax.errors import UserError, check_settings, only, resolved
from hybrid_jax.method import noising, scores
from hybrid_jax.method.hyperschedule import Hyperschedule
from hybrid_jax.method.noising import Level, NoiseKernel, Token

Time = Literal["discrete", "continuous"]
Levels = Literal["uniform", "bell"]
Parameterisation = Literal["mean", "context", "score"]
Logits = Float[Array, "V"]
Scalar = Float[Array, ""]

# Continuous levels stay this far inside (0, 1): float32 cannot tell them from the ends beyond it.
_MARGIN = 1e-6


class Draw(NamedTuple):
    """Noise levels drawn for one example (or a batch), per position.

    Attributes:
      level: λ at which the noisy token is drawn.
      level_next: λ after the step (discrete time).
      measure: dλ that this draw stands for (continuous time); 0 where nothing happens.
      active: whether the position has a term.
    """

    level: Float[Array, "*B L"]
    level_next: Float[Array, "*B L"]
    measure: Float[Array, "*B L"]
    active: Bool[Array, "*B L"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """The meaning of the network's output, and its training loss.

    Attributes:
      parameterisation: of the logits.
        "mean": of the clean token given everything shown (x0-prediction).
        "context": of the clean token given its context. The evidence of the shown token z itself
        is known exactly and added here, p(x | z) ∝ p(x | context) q(z | x), so that masked and
        shown positions ask the same of the network. (For absorbing noise: MDLM's carry-over.)
        "score": log-ratios of the noisy marginals (SEDD).
      loss: "bound": the bound of `time`. "weighted_cross_entropy": the ε-hybrid loss of the paper,
        masked positions weigh 1/λ, replaced ones λ_w(1−ε)/(1−λ), kept ones λ_w ε/(1−λ).
      time: levels of the training loss, "discrete" (the schedule's own) or "continuous" (drawn
        inside each step).
      levels: of the training loss, "uniform" or drawn from the "bell" of `to_bell`. A level counts
        as often as it is drawn, so from a bell the loss is no bound.
      shown_weight: λ_w of the weighted cross-entropy; 1 for None.
    """

    parameterisation: Parameterisation = "mean"
    loss: Literal["bound", "weighted_cross_entropy"] = "bound"
    time: Time = "discrete"
    levels: Levels = "uniform"
    shown_weight: float | None = only(1.0, loss="weighted_cross_entropy")

    def __post_init__(self) -> None:
        check_settings(self, "objective.", shown_weight=0)

    def check(self, kernel: NoiseKernel) -> None:
        """Raises UserError for combinations without meaning."""
        if self.loss == "weighted_cross_entropy" and self.parameterisation == "score":
            raise UserError(
                "The weighted cross-entropy needs objective.parameterisation=mean or context."
            )
        if self.time == "discrete" or self.loss != "bound":
            return
        if kernel.jumps_at_zero:
            raise UserError(
                f"{kernel.name} noise jumps on leaving level 0, so its bound has no continuous "
                "form: choose time=discrete or loss=weighted_cross_entropy."
            )
        if not kernel.has_rates:
            raise UserError(
                f"{kernel.name} noise defines no rates, which the bound in continuous time needs: "
                "define them (NoiseKernel.rates) or choose time=discrete."
            )

    # Terms of one position. Logits are float32 [V >= N]; tokens and levels are scalars.

    def log_prediction(
        self, kernel: NoiseKernel, logits: Logits, noisy: Token, level: Level
    ) -> Float[Array, "{kernel.vocab_size}"]:
        """Reads the network's output, float32 [N]: log p of the clean token, or log-scores.

        Scores are scaled as in SEDD: a constant output means that every token is as likely as noise
        of this level makes it.
        """
        real = logits[: kernel.vocab_size].astype(jnp.float32)
        if self.parameterisation == "score":
            inside = jnp.clip(level, _MARGIN, 1.0 - _MARGIN)
            odds = jnp.log(inside) - jnp.log1p(-inside)  # log(e^σ − 1)
            return real - odds - jnp.log(jnp.float32(kernel.vocab_size))
        if self.parameterisation == "context" and kernel.replaces:
            survival = kernel.survival(level)
            # log q(z | x = z) − log q(z | x ≠ z); MASK matches no token and tells nothing.
            evidence = jnp.log1p(
                kernel.vocab_size * survival.kept / jnp.maximum(survival.replaced, _MARGIN**2)
            )
            real = real + jnp.where(jnp.arange(kernel.vocab_size) == noisy, evidence, 0.0)
        return jax.nn.log_softmax(real)

    def reverse_step(
        self, kernel: NoiseKernel, logits: Logits, noisy: Token, level_s: Level, level_t: Level
    ) -> Float[Array, "{kernel.vocab_size}+1"]:
        """log p_θ(z_s = · | z_t) of the network's output, float32 [N + 1]."""
        if self.parameterisation != "score":
            prediction = self.log_prediction(kernel, logits, noisy, level_t)
            return noising.reverse_mean(kernel, prediction, noisy, level_s, level_t)
        level_t = jnp.minimum(level_t, scores.HIGHEST_SCORE_LEVEL)
        prediction = self.log_prediction(kernel, logits, noisy, level_t)
        return scores.reverse_score(kernel, prediction, noisy, level_s, level_t)

    def discrete_term(
        self,
        kernel: NoiseKernel,
        logits: Logits,
        token: Token,
        noisy: Token,
        level: Level,
        level_next: Level,
    ) -> Scalar:
        """KL( q(z_s | z_t, x) ‖ p_θ(z_s | z_t) ) of one position in nats."""
        if self.parameterisation != "score" and not kernel.replaces:
            # Absorbing noise: (λ_t − λ_s)/λ_t · (−log p(x)) where the token is masked.
            prediction = self.log_prediction(kernel, logits, noisy, level)
            reveal = noising.reveal_probability(kernel, level_next, level)
            return jnp.where(noisy == kernel.mask, -reveal * prediction[token], 0.0)
        true = noising.posterior(kernel, token, noisy, level_next, level)
        guess = self.reverse_step(kernel, logits, noisy, level_next, level)
        possible = true > -jnp.inf
        difference = jnp.where(possible, true, 0.0) - jnp.where(possible, guess, 0.0)
        return jnp.sum(jnp.where(possible, jnp.exp(true) * difference, 0.0))

    def continuous_term(
        self, kernel: NoiseKernel, logits: Logits, token: Token, noisy: Token, level: Level
    ) -> Scalar:
        """Score entropy of one position in nats per dλ (arXiv 2504.06416 section 4; SEDD eq. 5).

        With true ratios r and estimates s over real tokens, ``Σ_y r_y φ(log s_y − log r_y)`` with
        ``φ(d) = e^d − 1 − d``, times the rate of masking where the position is masked and 1/N of
        that of replacement (y ≠ z) where it shows a token (1 − γ and γ/N for the γ-hybrid), times
        dσ/dλ = 1/(1 − λ). True scores make its integral the entropy of the data.
        """
        prediction = self.log_prediction(kernel, logits, noisy, level)
        masked = noisy == kernel.mask
        survival = kernel.survival(level)
        if self.parameterisation != "score" and not kernel.replaces:
            density = kernel.masking_density(level)
            return jnp.where(masked, -prediction[token] * density / survival.masked, 0.0)
        if self.parameterisation != "score":
            score = scores.score_of_mean(kernel, prediction, noisy, level)
        else:
            score = prediction
        clean, _, other = scores.true_score(kernel, token, noisy, level)
        z = jnp.minimum(noisy, kernel.vocab_size - 1)
        everywhere = jnp.sum(_entropy_gap(score, other))
        # The sum above took every token for an "other" one: correct the clean one, and a shown z.
        at_token = _entropy_gap(score[token], clean) - _entropy_gap(score[token], other)
        at_noisy = _entropy_gap(score[z], other)
        shown = everywhere - at_noisy + jnp.where(z == token, 0.0, at_token)
        rates = kernel.rates(level)
        replacing = rates.replacing / kernel.vocab_size
        term = jnp.where(masked, rates.masking * (everywhere + at_token), replacing * shown)
        return term / (1.0 - level)

    def weighted_cross_entropy(
        self, kernel: NoiseKernel, logits: Logits, token: Token, noisy: Token, level: Level
    ) -> Scalar:
        """The ε-hybrid training loss of the paper for one position, per dλ."""
        prediction = self.log_prediction(kernel, logits, noisy, level)
        clean = jnp.maximum(1.0 - level, _MARGIN)
        shown = resolved(self).shown_weight / clean
        weight = jnp.where(
            noisy == kernel.mask,
            1.0 / jnp.maximum(level, _MARGIN),
            jnp.where(noisy == token, kernel.jump, 1.0 - kernel.jump) * shown,
        )
        return -weight * prediction[token]

    def term(
        self, kernel: NoiseKernel, logits: Logits, token: Token, noisy: Token, draw: Draw
    ) -> Scalar:
        """The term of the training loss of one position in nats, 0 where it is inactive."""
        # Inactive positions get levels at which no formula divides by zero.
        level = jnp.where(draw.active, draw.level, 0.5)
        level_next = jnp.where(draw.active, draw.level_next, 0.0)
        if self.loss == "weighted_cross_entropy":
            term = draw.measure * self.weighted_cross_entropy(kernel, logits, token, noisy, level)
        elif self.time == "continuous":
            term = draw.measure * self.continuous_term(kernel, logits, token, noisy, level)
        else:
            term = self.discrete_term(kernel, logits, token, noisy, level, level_next)
        return jnp.where(draw.active, term, 0.0)


def _entropy_gap(log_score: Float[Array, "*N"], log_ratio: Float[Array, ""]) -> Float[Array, "*N"]:
    """s − r log s + r(log r − 1) = r φ(log s − log r), without cancellation; s where r = 0."""
    zero = log_ratio == -jnp.inf
    ratio = jnp.where(zero, 0.0, log_ratio)
    gap = log_score - ratio
    return jnp.where(zero, jnp.exp(log_score), jnp.exp(ratio) * (jnp.expm1(gap) - gap))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bound:
    """A bound to report.

    Attributes:
      kernel: the noise of the bound: that of training, or absorbing for a network trained with
        any noise (what the paper does for ε-hybrid).
      time: "discrete" or "continuous".
      ends_known: whether the rows show where documents end. It is a bound on −log p(text | ends)
        then, which is below that of the text.
    """

    kernel: NoiseKernel
    time: Time
    ends_known: bool = False

    @property
    def label(self) -> str:
        ends = ", ends of documents known" if self.ends_known else ""
        return f"{self.kernel.name}, {self.time} time{ends}"


def draw_uniforms(
    key: Key[Array, ""], schedule: Hyperschedule, time: Time, count: int, index: Int[Array, "b"]
) -> Float[Array, "b {schedule.phase_groups}"]:
    """Stratified uniforms for a batch: each on its own uniform in [0, 1), all together even.

    Args:
      key: one key for the whole batch.
      count: number of examples of the global batch.
      index: int32 [b], global indices of the examples wanted here.

    Returns:
      float32 [b, phase_groups]. A pure function of (key, count, index): it does not depend on which
      device or process asks for which examples.
    """
    groups = schedule.phase_groups
    if schedule.phases == 1 and time == "discrete":
        return jnp.zeros((index.shape[0], groups))  # nothing to draw (autoregression)
    key_order, key_jitter = jax.random.split(key)
    total = count * groups
    order = jax.random.permutation(key_order, total).reshape(count, groups)
    jitter = jax.random.uniform(key_jitter, (count, groups))
    return ((order.astype(jnp.float32) + jitter) / total)[index]


def to_bell(uniform: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """Warps uniforms of flat and block schedules: λ has more of the middle (arXiv 2605.13026).

    A share of 0.2 stays uniform; the rest has a normal density over λ with mean 0.3 and deviation
    0.2, cut to (0, 1). The warp rises, so draws stay stratified.
    """
    place = np.linspace(0.0, 1.0, 513)
    middle = (place[1:] + place[:-1]) / 2
    bell = np.exp(-0.5 * ((1.0 - middle - 0.3) / 0.2) ** 2)
    chance = 0.2 / len(bell) + 0.8 * bell / bell.sum()
    below = jnp.asarray(np.append(0.0, np.cumsum(chance)), jnp.float32)
    return jnp.interp(uniform, below, jnp.asarray(place, jnp.float32))


def draw(
    schedule: Hyperschedule,
    kernel: NoiseKernel,
    time: Time,
    uniform: Float[Array, "{schedule.phase_groups}"],
    levels: Levels = "uniform",
) -> tuple[Int32[Array, "{schedule.phase_groups}"], Draw]:
    """Turns uniforms into phases, and levels with fields [L].

    In continuous time the place inside a step is not uniform but pushed away from its start, by
    just as much as the integrand (1 − λ)^−c grows at λ → 1 (c is `NoiseKernel.growth`, γ for the
    γ-hybrid): the weighted integrand stays bounded. Where positions settle, λ is drawn as a square:
    a position masked at λ weighs 1/λ, whose variance under even draws, ∫ dλ/λ, has no end. (Not so
    with levels from a bell, which count as often as they are drawn.)
    """
    chex.assert_shape(uniform, (schedule.phase_groups,))
    scaled = (uniform if levels == "uniform" else to_bell(uniform)) * schedule.phases
    phase = jnp.minimum(scaled.astype(jnp.int32), schedule.phases - 1)
    step, window_step = schedule.tile(phase)
    position = jnp.arange(schedule.length)
    now = schedule.level(step, position)
    after = schedule.level(step + 1, position)
    top = schedule.levels
    active = now != after
    level, level_next = now / top, after / top
    if time == "discrete":
        return phase, Draw(level, level_next, level - level_next, active)

    place = scaled - phase.astype(jnp.float32)
    power = 1.0 / (1.0 - kernel.growth)
    rest = jnp.broadcast_to(1.0 - place**power, (schedule.windows,))
    density = jnp.broadcast_to(power * place ** (power - 1.0), (schedule.windows,))
    # Positions of one window share the place: they move together.
    groups = schedule.phase_groups
    window = jnp.zeros_like(step) if groups == 1 else jnp.searchsorted(window_step, step)
    if levels == "uniform":
        settles = jnp.zeros(schedule.windows, bool).at[window].max(active & (after == 0))
        density *= jnp.where(settles, 2.0 * rest, 1.0)
        rest = jnp.where(settles, rest**2, rest)
    step_size = level - level_next
    exact = level_next + rest[window] * step_size
    exact = jnp.where(active, jnp.clip(exact, _MARGIN, 1.0 - _MARGIN), level)
    return phase, Draw(exact, level_next, density[window] * step_size, active)
