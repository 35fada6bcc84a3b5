"""The base of update rules, their input and output, and functions that they share."""

import abc
import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, Key

from hybrid_jax.errors import UserError
from hybrid_jax.method.loss import Spec
from hybrid_jax.method.noising import NoiseKernel
from hybrid_jax.method.objective import Logits, Objective
from hybrid_jax.sampling.draw import Warp, sample_categorical
from hybrid_jax.sampling.setting import check_ranges
from hybrid_jax.sampling.windows import Windows

OneKey = Key[Array, ""]
Moved = tuple[Int[Array, "W"], Float32[Array, "W"]]
"""The next tokens of a window, and the confidence in each."""


class Window(NamedTuple):
    """The window of one text before a step; of one of its positions, all fields are scalars.

    Attributes:
      tokens: z_t.
      level, level_next: λ_t > λ_s where active (0.5 and 0 elsewhere).
      active: positions that may move: their level changes, and they are not given.
      confidence: the probability that each shown token had when it was drawn.
      text: tokens to take in place of x̂ ~ p, for the likelihood of a given text; None to draw.
    """

    tokens: Int[Array, "*B W"]
    level: Float32[Array, "*B W"]
    level_next: Float32[Array, "*B W"]
    active: Bool[Array, "*B W"]
    confidence: Float32[Array, "*B W"]
    text: Int[Array, "*B W"] | None = None


class Prediction(NamedTuple):
    """The network's prediction of one position (or of a window), reduced over the vocabulary.

    Attributes:
      token: x̂ ~ p after temperature, top-k and top-p, or that of a given text.
      probability: p(x̂) of the plain p.
      current: p(z) of the token shown now; of MASK, 0.
      doubt: by which an order ranks positions (see `orders.Order`); 0 under other rules.
      nats: −log p(x̂) of the plain p.
    """

    token: Int[Array, "*W"]
    probability: Float32[Array, "*W"]
    current: Float32[Array, "*W"]
    doubt: Float32[Array, "*W"]
    nats: Float32[Array, "*W"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule(abc.ABC):
    """Base of update rules: draws from the network's prediction in a window that holds MASK.

    Attributes:
      warp: of the prediction, before a token is drawn from it.
      windows: the choice of their widths.
      adaptive: whether a text moves on as soon as its window holds no MASK.
      needs_mask: whether it goes only with noise that masks.
      takes_levels: whether the number of steps of a window says anything to it.
    """

    warp: Warp = Warp()
    windows: Windows = Windows()  # noqa: RUF009 - frozen
    adaptive: ClassVar[bool] = False
    needs_mask: ClassVar[bool] = True
    takes_levels: ClassVar[bool] = True

    @property
    def sweeps(self) -> int:
        """Most closing sweeps (see `rules.ACS`)."""
        return 0

    @property
    def free_windows(self) -> bool:
        """True if windows begin and end where texts tell (see `method.adaptive`)."""
        return self.windows.window_entropy is not None

    @property
    def horizon(self) -> int:
        """Settled windows that closing sweeps look at again."""
        return 0

    def spec(self, spec: Spec) -> Spec:
        """The spec that texts of this rule are made with. Raises UserError if it has none."""
        return self.windows.spec(spec)

    def check(self, kernel: NoiseKernel, objective: Objective) -> None:
        """Raises UserError for settings without meaning, or a kernel it does not go with."""
        self.warp.check()
        self.windows.check()
        check_ranges(self)
        if self.needs_mask and not kernel.masks:
            raise UserError(
                f"This rule works on MASK, which {kernel.name} noise never shows: choose ancestral."
            )

    def log_prediction(
        self, kernel: NoiseKernel, objective: Objective, logits: Logits, at: Window
    ) -> Float[Array, "N"]:
        """log p of the clean token of one position."""
        if objective.parameterisation == "score":
            # The step to level 0 of the scores is their prediction of the clean token.
            return objective.reverse_step(kernel, logits, at.tokens, 0.0, at.level)[:-1]
        return objective.log_prediction(kernel, logits, at.tokens, at.level)

    def doubt(self, log_p: Float[Array, "N"]) -> Float32[Array, ""]:
        """The doubt about one position, from its plain prediction alone (see `Prediction`)."""
        return jnp.zeros((), jnp.float32)

    def read(
        self, kernel: NoiseKernel, objective: Objective, key: OneKey, logits: Logits, at: Window
    ) -> Any:
        """Vocabulary-sized work of one position: a pytree of scalars, by default a `Prediction`."""
        log_p = self.log_prediction(kernel, objective, logits, at)
        token = sample_categorical(key, self.warp(log_p)) if at.text is None else at.text
        p = jnp.exp(log_p)
        shown = at.tokens != kernel.mask
        return Prediction(
            token=token,
            probability=p[token],
            current=jnp.where(shown, p[jnp.where(shown, at.tokens, 0)], 0.0),
            doubt=self.doubt(log_p),
            nats=-log_p[token],
        )

    @abc.abstractmethod
    def move(self, kernel: NoiseKernel, key: OneKey, window: Window, reading: Any) -> Moved:
        """One step, from readings with a leading axis [W]. Inactive positions are ignored."""


def drawn_where(moves: Bool[Array, "W"], window: Window, reading: Prediction) -> Moved:
    """The window with x̂, and its probability as confidence, where `moves`."""
    tokens = jnp.where(moves, reading.token, window.tokens)
    return tokens, jnp.where(moves, reading.probability, window.confidence)


def confident(window: Window, reading: Prediction, tokens: Int[Array, "W"]) -> Moved:
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
) -> Moved:
    """Reveals masked positions that are sure, and in the order of `rank` as many as keep pace.

    No more MASKs are left than the schedule expects, at least one goes, and none settles as MASK.
    """
    expected = jnp.sum(jnp.where(window.active, window.level_next, 0.0))
    # Levels are fractions in float32: 3 · (1/3) should count as 1.
    quota = jnp.maximum(1, masked.sum() - jnp.floor(expected + 1e-4).astype(jnp.int32))
    reveal = sure | (rank < quota) | (window.level_next <= 0)
    return drawn_where(masked & reveal, window, reading)
