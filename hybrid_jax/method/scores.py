"""Scores: ratios s_y = q_t(y)/q_t(z) of the noisy marginals, as in score entropy (SEDD).

Functions are written for one token, as in `noising`.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from hybrid_jax.method.noising import TINY, Level, NoiseKernel, Token, log_add, safe_log

HIGHEST_SCORE_LEVEL = 1.0 - 1e-4
"""Scores at higher noise levels are read as scores at this one."""


def score_of_mean(
    kernel: NoiseKernel, log_p: Float[Array, "N"], noisy: Token, level: Level
) -> Float[Array, "N"]:
    """log s_y of an x0-prediction: log Σ_x p(x|z) q(y|x)/q(z|x) over real tokens, float32 [N].

    A prediction that is the true posterior p(x|z) gives the true ratios. The entry of `noisy`
    itself is 0. `level` < 1: at full noise every ratio is 0 or 1.
    """
    survival = kernel.survival(level)
    noise = survival.replaced / kernel.vocab_size
    odds = jnp.log(survival.unmasked) - jnp.log(jnp.maximum(survival.masked, TINY))
    from_mask = odds + log_add(jnp.log(survival.kept) + log_p, safe_log(noise))
    if not kernel.replaces:
        return from_mask
    z = jnp.minimum(noisy, kernel.vocab_size - 1)
    # D0 = (1−B)/N and D1 = D0 + B: probability of another token, and of the token itself.
    floor = jnp.maximum(noise, TINY)
    up = survival.kept / floor  # D1/D0 − 1
    pz = jnp.exp(log_p[z])
    base = -jnp.expm1(jnp.minimum(log_p[z], 0.0)) + pz * floor / (floor + survival.kept)
    ratio = base + jnp.exp(log_p) * up
    from_token = jnp.where(jnp.arange(kernel.vocab_size) == z, 0.0, jnp.log(ratio))
    return jnp.where(noisy == kernel.mask, from_mask, from_token)


def true_score(
    kernel: NoiseKernel, token: Token, noisy: Token, level: Level
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """log q(y|x)/q(z|x) for the three values it takes: y = x, y = z, any other real y."""
    survival = kernel.survival(level)
    other = survival.replaced / kernel.vocab_size
    same = other + survival.kept
    here = jnp.where(
        noisy == kernel.mask,
        survival.masked / jnp.maximum(survival.unmasked, TINY),
        jnp.where(noisy == token, same, other),
    )
    log_here = jnp.log(jnp.maximum(here, TINY))
    return (jnp.log(same) - log_here, jnp.zeros_like(log_here), safe_log(other) - log_here)


def reverse_score(
    kernel: NoiseKernel, log_score: Float[Array, "N"], noisy: Token, level_s: Level, level_t: Level
) -> Float[Array, "N+1"]:
    """log P(z_s = ·) of the exact Tweedie step for estimated scores, float32 [N + 1].

    ``P(y) ∝ [e^{−ΔσQ} s]_y [e^{ΔσQ}]_{z,y}``; with Σ over real tokens written S, the inverse is
    ``(1/a)[s_y/b + (1 − 1/b) S/N]`` for tokens and ``s_mask + (1 − 1/a) S`` for MASK. Estimated
    scores can make entries negative: those are set to 0 and the rest normalised. At λ = 1 all
    ratios are 0 or 1 and tell nothing, so scores mean those at `HIGHEST_SCORE_LEVEL` there.

    Args:
      log_score: float32 [N], log s_y over real tokens (the entry of `noisy` is ignored).
    """
    move = kernel.survival_between(level_s, jnp.minimum(level_t, HIGHEST_SCORE_LEVEL))
    ids = jnp.arange(kernel.vocab_size)
    scores = jnp.where(ids == noisy, 1.0, jnp.exp(log_score))
    total = scores.sum()
    kept = jnp.maximum(move.kept, TINY)
    back = (scores - move.replaced * total / kernel.vocab_size) / kept  # times a, which cancels
    is_mask = noisy == kernel.mask
    noise = move.replaced / kernel.vocab_size
    to_noisy = jnp.where(is_mask, move.masked, noise + jnp.where(ids == noisy, move.kept, 0.0))
    tokens = back * to_noisy
    # Data holds no MASK, whatever the estimates say.
    may_stay = is_mask & (jnp.asarray(level_s) > 0)
    stays = jnp.where(may_stay, move.unmasked - move.masked * total, 0.0)
    weights = jnp.maximum(jnp.append(tokens, stays), 0.0)
    return safe_log(weights / jnp.maximum(weights.sum(), TINY))
