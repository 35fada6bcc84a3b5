"""Update rules: what happens to the window in one generation step.

A rule is a frozen dataclass with two pure functions. `read` does the vocabulary-sized work of one
position; `move` turns the readings of a window into its next tokens, and may weigh positions
against one another. Rules know nothing of the loop, the cache or the schedule. Whether a token is
revealed, redrawn or masked again is always drawn apart from which token it becomes: probabilities
close to 1 do not survive inside a draw over a large vocabulary.

Numbers of a rule (η, thresholds, temperature) are traced: changing them compiles nothing anew.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from hybrid_jax.errors import UserError
from hybrid_jax.method import noising
from hybrid_jax.method.noising import NoiseKernel
from hybrid_jax.method.objective import Logits, Objective
from hybrid_jax.sampling import update_rule
from hybrid_jax.sampling.draw import Warp, sample_categorical
from hybrid_jax.sampling.orders import EntropyBound, Margin, MaxProbability
from hybrid_jax.sampling.setting import Setting, setting, settings_of
from hybrid_jax.sampling.speculative import Speculative
from hybrid_jax.sampling.update_rule import Moved, OneKey, Prediction, Rule, Window
from hybrid_jax.sampling.windows import Windows

Number = float | int | Num[Array, ""]
"""A setting: a Python number, or traced."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Ancestral(Rule):
    """The reverse step of the noise kernel itself, exact if the network's prediction is.

    A score-predicting network takes the Tweedie step of its scores, unless a warp asks for its p.

    Tokens of one step are drawn independently, at a cost that falls as 1/T with the steps. But
    ε-noise is all undone in the last step, and part of the cost stays (docs/samplers.md).
    """

    needs_mask: ClassVar[bool] = False

    def read(
        self, kernel: NoiseKernel, objective: Objective, key: OneKey, logits: Logits, at: Window
    ) -> Any:
        if objective.parameterisation != "score" or not self.warp.idle:
            return super().read(kernel, objective, key, logits, at)
        key_reveal, key_token = jax.random.split(key)
        log_step = objective.reverse_step(kernel, logits, at.tokens, at.level_next, at.level)
        stays = jax.random.uniform(key_reveal) < jnp.exp(log_step[-1])
        drawn = jnp.where(stays, kernel.mask, sample_categorical(key_token, log_step[:-1]))
        return drawn, jnp.exp(log_step[drawn])

    def move(
        self, kernel: NoiseKernel, key: OneKey, window: Window, reading: Prediction | Moved
    ) -> Moved:
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
            return update_rule.confident(window, reading, moved)

        weight = noising.token_step(kernel, level_next, level)
        keep = weight.keep + jnp.where(clean == tokens, weight.keep_if_equal, 0.0)
        total = keep + weight.take_clean + weight.redraw_uniform
        choice = jax.random.uniform(key_choice, shape) * total
        moved = jnp.where(choice < keep + weight.take_clean, clean, noise)
        from_token = jnp.where(choice < keep, tokens, moved)
        return update_rule.confident(
            window, reading, jnp.where(tokens == kernel.mask, from_mask, from_token)
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Psi(Ancestral):
    """The ψ-sampler (arXiv 2602.21185): κ q(z_s | z_t, x̂) + (1 − κ) q(z_s | x̂) with x̂ ~ p.

    With probability κ a position takes the reverse step, otherwise x̂ is noised afresh. Every κ
    keeps the marginals q(z_s | x), under all noise. κ = 1 is the ancestral step; under absorbing
    noise this is ReMDM with σ = (1 − κ)(1 − A_s). The paper lets κ vary in time; here it does not.

    At λ a step noises a share (1 − κ)λ of the shown tokens, whose next draws ignore one another.
    With an exact network and T steps the error falls as 1/T for κ = 1, but for κ < 1 as 1/√T under
    absorbing noise, and no faster under uniform noise.
    """

    kappa: Number = setting(float, 0.95, "share κ of reverse steps, the rest is noise", "[0, 1]")
    read = Rule.read  # scores predict x̂ too

    def move(self, kernel: NoiseKernel, key: OneKey, window: Window, reading: Any) -> Moved:
        key_step, key_noise, key_choice = jax.random.split(key, 3)
        stepped, _ = super().move(kernel, key_step, window, reading)
        known = (window.tokens != kernel.mask) & (not kernel.replaces)
        clean = jnp.where(known, window.tokens, reading.token)
        afresh = noising.corrupt(kernel, key_noise, clean, window.level_next)
        steps = jax.random.uniform(key_choice, stepped.shape) < self.kappa
        return update_rule.confident(window, reading, jnp.where(steps, stepped, afresh))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class ACS(Rule):
    """The adaptive correction sampler (arXiv 2504.06416).

    MASK is revealed as x̂ ~ p with the kernel's probability, (λ_t − λ_s)/λ_t for ε-hybrids. A shown
    token of the active window is drawn again from p with probability η λ_s/λ_t. η = 0 never
    corrects: the usual sampler of masked diffusion, which the paper calls original.

    Not even an exact network makes it exact: it never shows noise, which hybrids reckon with, and
    each redraw prefers likely tokens (docs/samplers.md).

    Guidance "confidence" spends the same expected number of corrections in proportion to 1 − p(z),
    where the model doubts the shown token. Closing sweeps come before positions settle: each draws
    them again at their last level with probability η (a step with λ_s = λ_t), until a sweep changes
    nothing. With a horizon h they cover the last h settled windows too, as one wide window that
    sees itself whole (see `sampling.closing`).

    Correction "remask" makes a doubted token MASK, which a later step reveals (T2M, arXiv
    2604.18738, which takes all tokens below a threshold of p). So that as many MASKs are expected
    as without it, MASK is revealed the more often, and no more is spent than that can bear.
    Positions that settle are not masked. Guided corrections of either kind prefer likely tokens.
    """

    eta: Number = setting(float, 0.25, "strength η of corrections, 0 for none", "[0, 1]")
    guidance: str = setting(
        Literal["uniform", "confidence"], "uniform", "where corrections are spent", static=True
    )
    correction: str = setting(
        Literal["redraw", "remask"], "redraw", "what becomes of a doubted token", static=True
    )
    sweeps: int = setting(int, 0, "most closing sweeps", "[0, ∞)", static=True)
    horizon: int = setting(
        int, 0, "settled windows that closing sweeps look at again", "[0, ∞)", static=True
    )

    def check(self, kernel: NoiseKernel, objective: Objective) -> None:
        super().check(kernel, objective)
        for name in ("sweeps", "guidance", "correction"):
            if self.eta == 0 and getattr(self, name) != settings_of(ACS)[name].default:
                raise UserError(f"{name} is of corrections, which eta=0 has none of: leave it out.")
        if self.horizon and not self.sweeps:
            raise UserError("horizon is of closing sweeps: set sweeps too, or leave it out.")
        if self.sweeps and self.correction == "remask":
            raise UserError(
                "Closing sweeps draw tokens again, and nothing reveals what they would mask: leave "
                "out sweeps or correction=remask."
            )
        if self.eta > 0 and not kernel.replaces:
            raise UserError(
                f"Rule acs corrects shown tokens, which a model of {kernel.name} noise has never "
                "learnt to judge: choose rule remdm, or eta=0, or a hybrid model."
            )

    def move(self, kernel: NoiseKernel, key: OneKey, window: Window, reading: Any) -> Moved:
        key_reveal, key_redraw = jax.random.split(key)
        masked = window.tokens == kernel.mask
        shown = window.active & ~masked
        chance = jnp.where(shown, self.eta * window.level_next / window.level, 0.0)
        doubt = jnp.where(shown, 1.0 - reading.current, 0.0)
        weight = doubt if self.guidance == "confidence" else chance
        reveal = noising.reveal_probability(kernel, window.level_next, window.level)
        if self.correction == "remask":
            stays = jnp.where(window.active & masked, 1.0 - reveal, 0.0)
            weight = jnp.where(window.level_next > 0, weight, 0.0)
            chance = proportional_chances(weight, jnp.minimum(chance.sum(), stays.sum()))
            reveal += (1.0 - reveal) * chance.sum() / jnp.maximum(stays.sum(), noising.TINY)
        elif self.guidance == "confidence":
            chance = proportional_chances(weight, chance.sum())
        corrects = ~masked & (jax.random.uniform(key_redraw, chance.shape) < chance)
        revealed = masked & (jax.random.uniform(key_reveal, chance.shape) < reveal)
        if self.correction == "redraw":
            return update_rule.drawn_where(revealed | corrects, window, reading)
        tokens, confidence = update_rule.drawn_where(revealed, window, reading)
        return jnp.where(corrects, kernel.mask, tokens), confidence


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class ReMDM(Rule):
    """Remasking (Wang et al. 2025, arXiv 2503.00307): shown tokens may become MASK again.

    With A the probability of being unmasked and σ ≤ σ_max = min(1, (1 − A_s)/A_t): a shown token is
    masked with probability σ, MASK is revealed as x̂ ~ p with probability
    (A_s − (1 − σ) A_t)/(1 − A_t), which keeps every marginal under masking. Hybrids take what it
    shows for noisy, which it is not: there even an exact network leaves errors (docs/samplers.md).

    Strategy "cap": σ = min(η, σ_max). "rescale": σ = η σ_max. "confidence": σ = η σ_max times the
    softmax, over the shown tokens of the window, of minus the probability that each had when it was
    drawn; 0 for MASK.
    """

    eta: Number = setting(float, 0.02, "strength η of remasking", "[0, 1]")
    strategy: str = setting(
        Literal["cap", "rescale", "confidence"], "cap", "how η sets the chance of remasking",
        static=True,
    )  # fmt: skip

    def check(self, kernel: NoiseKernel, objective: Objective) -> None:
        super().check(kernel, objective)
        if self.eta == 0 and self.strategy != "cap":
            raise UserError("strategy is of remasking, which eta=0 has none of: leave it out.")

    def move(self, kernel: NoiseKernel, key: OneKey, window: Window, reading: Any) -> Moved:
        key_reveal, key_mask = jax.random.split(key)
        before = kernel.survival(window.level)
        after = kernel.survival(window.level_next)
        most = jnp.minimum(1.0, after.masked / jnp.maximum(before.unmasked, noising.TINY))
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
        tokens, confidence = update_rule.drawn_where(masked & revealed, window, reading)
        return jnp.where(forgets, kernel.mask, tokens), confidence


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Threshold(Rule):
    """Reveals every x̂ ~ p with p(x̂) above a threshold (Fast-dLLM, arXiv 2505.22618), and always as
    many of the likeliest as keep pace with the schedule. Shown tokens stay.

    A threshold of 1 leaves the schedule's own number a step. Tokens are drawn first, and likely
    ones kept: they come too often, also one at a time with an exact network (docs/samplers.md).
    """

    threshold: Number = setting(float, 0.9, "probability above which to reveal", "[0, 1]")
    adaptive: ClassVar[bool] = True

    def move(self, kernel: NoiseKernel, key: OneKey, window: Window, reading: Any) -> Moved:
        masked = window.active & (window.tokens == kernel.mask)
        rank = update_rule.rank_of(-reading.probability, masked)
        return update_rule.reveal_surest(
            window, reading, rank, masked, reading.probability > self.threshold
        )


def proportional_chances(weight: Float[Array, " W"], expected: Number) -> Float[Array, " W"]:
    """Probabilities min(1, c·weight) that add up to `expected`.

    `weight` >= 0. Where fewer than `expected` weights are positive, those get 1.
    """
    falling = -jnp.sort(-weight)
    # With the k largest at 1, c shares what is left among the others; k is right once that c
    # brings none of them above 1.
    rest = jnp.flip(jnp.cumsum(jnp.flip(falling)))
    k = jnp.arange(weight.shape[0], dtype=jnp.float32)
    scale = jnp.maximum(expected - k, 0.0) / jnp.maximum(rest, noising.TINY)
    fits = scale * falling <= 1.0 + 1e-6
    return jnp.minimum(1.0, scale[jnp.argmax(fits)] * weight)


# ---------------------------------------------------------------------------------------------
# Rules by name. A new rule is a class above and a line here: flags, configs, the demo's form and
# help texts follow.


COMMON = settings_of(Warp) | settings_of(Windows)
"""Settings of all rules, but for those that are `NamedRule.without` one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NamedRule:
    """A rule as people choose it.

    Attributes:
      about: one line on what it does.
      fixed: settings that the name itself fixes.
      without: settings of all rules that have no effect on it.
    """

    kind: type[Any]
    about: str
    fixed: Mapping[str, float] = dataclasses.field(default_factory=dict)
    without: tuple[str, ...] = ()

    @property
    def settings(self) -> dict[str, Setting]:
        """Its settings and those of all rules, but for `fixed` and `without`."""
        every = {**settings_of(self.kind), **COMMON}
        return {n: known for n, known in every.items() if n not in (*self.fixed, *self.without)}


NAMED = {
    "ancestral": NamedRule(kind=Ancestral, about="the exact reverse step of the noise"),
    "psi": NamedRule(kind=Psi, about="the reverse step, or a prediction noised afresh"),
    "acs": NamedRule(
        kind=ACS, about="reveals, and draws shown tokens of the window again (the paper's sampler)"
    ),
    "remdm": NamedRule(kind=ReMDM, about="reveals, and masks shown tokens again"),
    "threshold": NamedRule(
        kind=Threshold,
        about="reveals tokens likelier than a threshold; moves on as soon as the window is full",
    ),
    "entropy": NamedRule(
        kind=EntropyBound,
        about="reveals together tokens that cost few nats; moves on as soon as the window is full",
    ),
    "margin": NamedRule(
        kind=Margin, about="reveals first where the likeliest token leads the next one by most"
    ),
    "max_probability": NamedRule(
        kind=MaxProbability, about="reveals first where the likeliest token is likeliest"
    ),
    "speculative": NamedRule(
        kind=Speculative,
        about="drafts a window in one call, and keeps what autoregression agrees with in another",
        without=("window_entropy", "window_least"),
    ),
    "greedy": NamedRule(
        kind=Threshold,
        about="the likeliest tokens of the surest positions",
        fixed={"threshold": 1.0, "temperature": 0.0},
        without=("top_k", "top_p"),
    ),
}

OPTIONS = {
    name: known for named in NAMED.values() for name, known in settings_of(named.kind).items()
} | COMMON
"""Every setting of rules, by name; defaults are those of the last rule that has it."""


def with_option(name: str) -> list[str]:
    """The names of the rules that have a setting."""
    return [rule for rule, named in NAMED.items() if name in named.settings]


def describe(option: str) -> str:
    """The help text of a setting: which rules have it, its meaning and its values."""
    known = OPTIONS[option]
    if option in COMMON:
        return f"{known.about}; {known.values}"
    abouts = [f"of {rule}: {NAMED[rule].settings[option].about}" for rule in with_option(option)]
    return f"{'; '.join(abouts)}; {known.values}"


def make(name: str, **settings: Any) -> Rule:
    """The rule of a name, with those of its settings that are not None.

    Raises UserError for an unknown name, or a setting that the rule does not have.
    """
    if name not in NAMED:
        raise UserError(f"There is no rule {name!r}: choose one of {', '.join(NAMED)}.")
    named = NAMED[name]
    given = {key: value for key, value in settings.items() if value is not None}
    for key in given:
        if key in named.fixed:
            raise UserError(f"Rule {name} fixes {key} at {named.fixed[key]:g}: leave {key} out.")
        if key not in named.settings:
            owners = " and ".join(with_option(key)) or "no rule"
            raise UserError(f"Rule {name} has no {key}: it belongs to {owners}; leave it out.")
    given |= named.fixed
    warp, windows = (
        kind(**{key: given.pop(key) for key in settings_of(kind) if key in given})
        for kind in (Warp, Windows)
    )
    rule: Rule = named.kind(**given, warp=warp, windows=windows)
    return rule
