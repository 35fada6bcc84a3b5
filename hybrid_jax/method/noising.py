"""Noise: how one token is corrupted at a noise level, and what undoes it.

Real tokens are ``0 … N−1`` and MASK is ``N``. All kernels have one form: a token survives masking
with probability ``A(λ)`` and, if not masked, survives replacement by a uniform token with
probability ``B(λ)`` (a replacement may draw the token itself; it never draws MASK). With
``r = 1 − λ``::

    absorbing   A = r,           B = 1
    uniform     A = 1,           B = r
    γ-hybrid    A = r^(1−γ),     B = r^γ       (arXiv 2504.06416; exp(σQ), σ = −log r, of
                                                Q = (1−γ) Q_absorb + γ Q_uniform, which commute)
    ε-hybrid    A = r,           B = 1 − ε for λ > 0, and 1 at λ = 0

so every formula below is written once, in A and B. Between two levels ``λs < λt`` the survivals
are the ratios ``a = A_t/A_s`` and ``b = B_t/B_s``. All closed forms stay exact in float32 when λ
approaches 0 or 1 (differences are taken with expm1/log1p) and never build an N×N matrix.

Functions are written for one token and mapped with `jax.vmap`. Noise levels are float32 scalars
in [0, 1]; distributions are log-probabilities float32 [N + 1], MASK last. `NoiseKernel` is all that
other modules know of a kernel.
"""

import abc
import dataclasses
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key

from hybrid_jax.errors import UserError

Token = Int[ArrayLike, ""]
Level = Float[ArrayLike, ""]
Levels = Float[ArrayLike, "..."]


class Survival(NamedTuple):
    """Survival probabilities of a token and their complements, each without cancellation.

    Attributes:
      unmasked, masked: A and 1 − A.
      kept, replaced: B and 1 − B, of a token that is not masked.
    """

    unmasked: Float[Array, "..."]
    kept: Float[Array, "..."]
    masked: Float[Array, "..."]
    replaced: Float[Array, "..."]


class Rates(NamedTuple):
    """Rates of the noise process in σ = −log(1 − λ), so dσ = dλ/(1 − λ).

    Attributes:
      masking: −d log A/dσ, of a token to MASK.
      replacing: −d log B/dσ, of a token to a uniform token.
    """

    masking: Float[ArrayLike, "..."]
    replacing: Float[ArrayLike, "..."]


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoiseKernel(abc.ABC):
    """A noise process over N tokens and MASK: the base of `Hybrid` and of kernels of your own.

    Attributes:
      name: for messages and results.
      vocab_size: N, the number of real tokens.
    """

    name: str
    vocab_size: int

    def __post_init__(self) -> None:
        if self.vocab_size < 2:
            raise UserError(f"A noise kernel needs at least 2 tokens, but got {self.vocab_size}.")

    @property
    def mask(self) -> int:
        """The id of MASK."""
        return self.vocab_size

    @property
    def masks(self) -> bool:
        """True if a token can become MASK."""
        return True

    @property
    @abc.abstractmethod
    def replaces(self) -> bool:
        """True if a token can become another token (and so a shown token may be wrong)."""

    @abc.abstractmethod
    def survival_between(self, level_s: Levels, level_t: Levels) -> Survival:
        """a, b and complements of the move from `level_s` < 1 up to `level_t`."""

    def survival(self, level: Levels) -> Survival:
        """A, B and complements at `level` λ (any shape, [0, 1])."""
        return self.survival_between(jnp.zeros_like(jnp.asarray(level, jnp.float32)), level)

    def rates(self, level: Levels) -> Rates:
        """Rates at `level` < 1, which continuous time needs; see `has_rates`."""
        raise NotImplementedError(f"{self.name} defines no rates")

    @property
    def has_rates(self) -> bool:
        """True if the kernel defines `rates`."""
        return type(self).rates is not NoiseKernel.rates

    def masking_density(self, level: Levels) -> Float[ArrayLike, "..."]:
        """−dA/dλ: the share of the tokens that is masked per dλ."""
        per_level = self.rates(level).masking / (1.0 - jnp.asarray(level, jnp.float32))
        return per_level * self.survival(level).unmasked

    @property
    def growth(self) -> float:
        """Exponent c in [0, 1) of the score entropy's growth, (1 − λ)^−c for λ → 1.

        Levels are drawn the less often near 1 the larger it is. Any value is unbiased.
        """
        return 0.0

    @property
    def jump(self) -> float:
        """ε: probability of replacement on leaving level 0, however short the step."""
        return 0.0

    @property
    def jumps_at_zero(self) -> bool:
        """True if there is such a jump, for which continuous time has no term."""
        return self.jump > 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hybrid(NoiseKernel):
    """The four kernels of the paper. Build one with the functions below this class.

    Attributes:
      gamma: share γ of uniform replacement in the rate matrix, in [0, 1].
      epsilon: probability ε of replacement on leaving level 0, in [0, 1).
    """

    gamma: float = 0.0
    epsilon: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.gamma <= 1.0:
            raise UserError(f"gamma must lie in [0, 1], but it is {self.gamma}.")
        if not 0.0 <= self.epsilon < 1.0:
            raise UserError(f"epsilon must lie in [0, 1), but it is {self.epsilon}.")
        if self.gamma and self.epsilon:
            raise UserError("gamma and epsilon cannot both be positive: choose one hybrid.")

    @property
    def masks(self) -> bool:
        return self.gamma < 1

    @property
    def replaces(self) -> bool:
        return self.gamma > 0 or self.epsilon > 0

    @property
    def growth(self) -> float:
        return self.gamma if self.gamma < 1 else 0.0

    @property
    def jump(self) -> float:
        return self.epsilon

    def rates(self, level: Levels) -> Rates:
        return Rates(masking=1.0 - self.gamma, replacing=self.gamma)

    def masking_density(self, level: Levels) -> Float[ArrayLike, "..."]:
        # Exactly 1 where A = 1 − λ.
        return super().masking_density(level) if self.gamma else 1.0

    def survival_between(self, level_s: Levels, level_t: Levels) -> Survival:
        low = jnp.asarray(level_s, jnp.float32)
        high = jnp.asarray(level_t, jnp.float32)
        log_r = jnp.log1p(-(high - low) / (1.0 - low))
        # The powers 0 and 1 are separate cases because 0 · log 0 has no value.
        log_unmasked = jnp.zeros_like(log_r) if self.gamma == 1 else (1 - self.gamma) * log_r
        if self.gamma > 0:
            log_kept = self.gamma * log_r
        else:
            leaves_clean = (low <= 0) & (high > 0)
            log_kept = jnp.where(leaves_clean, jnp.log1p(-jnp.float32(self.epsilon)), 0.0)
        return Survival(
            unmasked=jnp.exp(log_unmasked),
            kept=jnp.exp(log_kept),
            masked=-jnp.expm1(log_unmasked),
            replaced=-jnp.expm1(log_kept),
        )


def absorbing(*, vocab_size: int) -> Hybrid:
    """Masking only (MDLM, BD3-LM, and the parent of SEDD-absorb)."""
    return Hybrid(name="absorbing", vocab_size=vocab_size)


def uniform(*, vocab_size: int) -> Hybrid:
    """Uniform replacement only."""
    return Hybrid(name="uniform", vocab_size=vocab_size, gamma=1.0)


def gamma_hybrid(*, vocab_size: int, gamma: float) -> Hybrid:
    """γ-hybrid: masking and replacement mixed in the rate matrix."""
    return Hybrid(name=f"γ-hybrid(γ={gamma:g})", vocab_size=vocab_size, gamma=gamma)


def epsilon_hybrid(*, vocab_size: int, epsilon: float) -> Hybrid:
    """ε-hybrid: a share ε of the tokens is replaced on leaving level 0; masking after that."""
    return Hybrid(name=f"ε-hybrid(ε={epsilon:g})", vocab_size=vocab_size, epsilon=epsilon)


# ---------------------------------------------------------------------------------------------
# Forward: from a clean token to noise.


def corrupt(
    kernel: NoiseKernel, key: Key[Array, ""], tokens: Int[Array, "L"], level: Float[Array, "L"]
) -> Int[Array, "L"]:
    """Draws z ~ q(· | x), each position at its own level: int32 [L]."""
    chex.assert_rank(tokens, 1)
    chex.assert_equal_shape([tokens, level])
    key_mask, key_replace, key_token = jax.random.split(key, 3)
    shape = tokens.shape
    survival = kernel.survival(level)
    noise = jax.random.randint(key_token, shape, 0, kernel.vocab_size, jnp.int32)
    replaced = jax.random.uniform(key_replace, shape) < survival.replaced
    masked = jax.random.uniform(key_mask, shape) < survival.masked
    return jnp.where(masked, kernel.mask, jnp.where(replaced, noise, tokens))


def transition(
    kernel: NoiseKernel, noisy: Token, level_s: Level, level_t: Level
) -> Float[Array, "{kernel.vocab_size}+1"]:
    """log q(z_t = · | z_s = noisy) for λs < λt, float32 [N + 1]."""
    move = kernel.survival_between(level_s, level_t)
    ids = jnp.arange(kernel.vocab_size)
    uniform_mass = move.unmasked * move.replaced / kernel.vocab_size
    to_tokens = jnp.where(ids == noisy, move.unmasked * move.kept, 0.0) + uniform_mass
    from_token = jnp.append(to_tokens, move.masked)
    from_mask = jnp.zeros(kernel.vocab_size + 1).at[-1].set(1.0)
    return jnp.log(jnp.where(noisy == kernel.mask, from_mask, from_token))


def marginal(
    kernel: NoiseKernel, token: Token, level: Level
) -> Float[Array, "{kernel.vocab_size}+1"]:
    """log q(z_t = · | x = token), float32 [N + 1]."""
    return transition(kernel, token, 0.0, level)


# ---------------------------------------------------------------------------------------------
# Reverse: one step from level λt down to λs.


def posterior(
    kernel: NoiseKernel, token: Token, noisy: Token, level_s: Level, level_t: Level
) -> Float[Array, "{kernel.vocab_size}+1"]:
    """log q(z_s = · | z_t = noisy, x = token) for λs < λt, float32 [N + 1].

    It is the reverse step of a prediction that puts all its mass on `token`.
    """
    certain = jnp.where(jnp.arange(kernel.vocab_size) == token, 0.0, -jnp.inf)
    return reverse_mean(kernel, certain, noisy, level_s, level_t)


def reveal_probability(
    kernel: NoiseKernel, level_s: Levels, level_t: Levels
) -> Float[Array, "..."]:
    """Probability (A_s − A_t)/(1 − A_t) that a MASK at λt shows a token at λs."""
    low = kernel.survival(level_s)
    move = kernel.survival_between(level_s, level_t)
    return low.unmasked * move.masked / jnp.maximum(kernel.survival(level_t).masked, TINY)


class TokenStep(NamedTuple):
    """Weights of the ways a shown token z can step down, given a draw x̂ of the clean token.

    Attributes:
      redraw_uniform, take_clean, keep: for any x̂.
      keep_if_equal: extra weight of keeping z where x̂ = z.
    """

    redraw_uniform: Float[Array, "..."]
    take_clean: Float[Array, "..."]
    keep: Float[Array, "..."]
    keep_if_equal: Float[Array, "..."]


def token_step(kernel: NoiseKernel, level_s: Levels, level_t: Levels) -> TokenStep:
    """Unnormalised weights (1−b)(1−B_s), (1−b)B_s, b(1−B_s) and N·B_t of q(z_s | z_t = z, x̂).

    They sum to 1 − B_t, plus N·B_t where x̂ = z: Bayes' rule for a token that is not masked
    (docs/math.md, "Noise").
    """
    low = kernel.survival(level_s)
    move = kernel.survival_between(level_s, level_t)
    high = kernel.survival(level_t)
    return TokenStep(
        redraw_uniform=move.replaced * low.replaced,
        take_clean=move.replaced * low.kept,
        keep=move.kept * low.replaced,
        keep_if_equal=kernel.vocab_size * high.kept,
    )


def reverse_mean(
    kernel: NoiseKernel, log_p: Float[Array, "N"], noisy: Token, level_s: Level, level_t: Level
) -> Float[Array, "N+1"]:
    """log Σ_x p(x) q(z_s = · | z_t = noisy, x): the step of an x0-prediction.

    Args:
      log_p: float32 [N], the predicted clean token (normalised).
      noisy: z_t.
      level_s, level_t: λs < λt.
    """
    low = kernel.survival(level_s)
    reveal = reveal_probability(kernel, level_s, level_t)
    noise = safe_log(low.replaced / kernel.vocab_size)
    shown = jnp.log(reveal) + log_add(jnp.log(low.kept) + log_p, noise)
    stays = low.masked / jnp.maximum(kernel.survival(level_t).masked, TINY)
    from_mask = jnp.append(shown, safe_log(stays))
    if not kernel.replaces:
        settled = jnp.where(jnp.arange(kernel.vocab_size + 1) == noisy, 0.0, -jnp.inf)
        return jnp.where(noisy == kernel.mask, from_mask, settled)

    z = jnp.minimum(noisy, kernel.vocab_size - 1)
    ids = jnp.arange(kernel.vocab_size)
    weight = token_step(kernel, level_s, level_t)
    high = kernel.survival(level_t)
    # Normalisers of the weights, for x̂ ≠ z and for x̂ = z.
    other = jnp.maximum(high.replaced, TINY)
    equal = high.replaced + weight.keep_if_equal
    log_pz = log_p[z]
    spread = -jnp.expm1(jnp.minimum(log_pz, 0.0)) / other + jnp.exp(log_pz) / equal
    uniform_part = safe_log(spread * weight.redraw_uniform / kernel.vocab_size)
    clean_part = log_p + safe_log(weight.take_clean / jnp.where(ids == z, equal, other))
    keep_part = log_add(
        safe_log(spread * weight.keep), log_pz + safe_log(weight.keep_if_equal / equal)
    )
    tokens = log_add(clean_part, uniform_part)
    tokens = jnp.where(ids == z, log_add(tokens, keep_part), tokens)
    return jnp.where(noisy == kernel.mask, from_mask, jnp.append(tokens, -jnp.inf))


# ---------------------------------------------------------------------------------------------
# Arithmetic of small probabilities.

TINY = 1e-30
"""A number below every probability that float32 levels can produce."""


def log_add(x: Float[Array, "..."], y: Float[Array, "..."]) -> Float[Array, "..."]:
    """log(e^x + e^y), with zero, not undefined, gradients where both are −inf."""
    some = (x > -jnp.inf) | (y > -jnp.inf)
    both = jnp.logaddexp(jnp.where(some, x, 0.0), jnp.where(some, y, 0.0))
    return jnp.where(some, both, -jnp.inf)


def safe_log(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """log with log 0 = −inf and a zero, not undefined, gradient there."""
    positive = x > 0
    return jnp.where(positive, jnp.log(jnp.where(positive, x, 1.0)), -jnp.inf)
