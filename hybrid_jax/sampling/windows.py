"""Adaptive windows: the width of the next window, chosen for each text from what is predicted.

A window opens with its greatest width ω, all of it noise. From the plain predictions of that first
round its width is chosen, and the round already works on the window of that width; positions behind
it are not shown again before their own window opens. So no round is spent on the choice. The next
window begins where this one ends. With least = ω, texts are those of the fixed blocks, draw by
draw.

Distribution. Under noise that begins as MASK the width is a function of the settled and the given
tokens alone, not of anything drawn in the window. So the law of a text is a product over windows,
p(text) = Π p(window | all before it), each with the law of a block of that width: as exact as the
rule is on blocks, and with a likelihood where the rule has one (`sampling.likelihood`). Under
uniform noise the width also depends on the noise that the window begins with.

Width. The tokens of a round are drawn apart from one another. Drawn in one round, a window loses
at most Σ H(x_i) minus the largest of its entropies against a joint draw from the same predictor
(arXiv 2505.24857). Chosen is the widest beginning of the window for which that difference is at
most `window_entropy` nats; given tokens have no entropy. More steps a window lose less. Compare
blocks of a dynamic size (DSB, arXiv 2602.05992), which go by confidence.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int32

from hybrid_jax.errors import UserError
from hybrid_jax.method import hyperschedule
from hybrid_jax.method.adaptive import Adaptive
from hybrid_jax.method.loss import Spec
from hybrid_jax.sampling.setting import check_ranges, setting
from hybrid_jax.sampling.state import Place


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Windows:
    """The choice of widths. Numbers may change without compiling anew; None may not."""

    window_entropy: float | Array | None = setting(
        float, None, "end each window where drawing it in one call may lose so many nats",
        "[0, ∞)",
    )  # fmt: skip
    window_least: int | Array = setting(
        int, 1, "positions of the narrowest window with window_entropy", "[1, ∞)"
    )

    def check(self) -> None:
        """Raises UserError for values without meaning."""
        check_ranges(self)
        if self.window_entropy is None and self.window_least != 1:
            raise UserError("window_least has no effect without window_entropy: leave it out.")

    def spec(self, spec: Spec) -> Spec:
        """The spec with adaptive windows in the place of its blocks, if they are asked for.

        Raises UserError where there are no blocks, or none narrower than the text.
        """
        if self.window_entropy is None:
            return spec
        own = spec.schedule
        blocks = hyperschedule.block(length=own.length, width=own.width, levels=own.levels)
        if not (1 < own.width < own.length and own == dataclasses.replace(blocks, name=own.name)):
            raise UserError(
                f"window_entropy chooses the width of blocks of several tokens, and {own.name} has "
                "none: leave it out."
            )
        if self.window_least > own.width:
            raise UserError(
                f"window_least must be at most the {own.width} positions of a window, but is "
                f"{self.window_least}."
            )
        return dataclasses.replace(spec, schedule=Adaptive(blocks=blocks))

    def chosen(
        self,
        schedule: Adaptive,
        step: Int32[Array, "B"],
        moves: Bool[Array, "B"],
        place: Place,
        entropy: Float32[Array, "B W"],
    ) -> Int32[Array, "B"]:
        """The step of each text, with the width of its window if that was still to choose.

        Args:
          place: of the window at its greatest width; `entropy` is that of its predictions, in nats.
        """
        assert self.window_entropy is not None
        first, width, done = schedule.at(step)
        nats = jnp.where(place.active, entropy, 0.0)
        cost = jnp.cumsum(nats, axis=1) - jax.lax.cummax(nats, axis=1)
        fits = jnp.sum(place.inside & (cost <= self.window_entropy), axis=1, dtype=jnp.int32)
        least = jnp.minimum(self.window_least, place.inside.sum(1, dtype=jnp.int32))
        own = schedule.number(first, jnp.maximum(fits, least), done)
        return jnp.where(moves & (width == 0), own, step)


def entropy(log_p: Float[Array, "N"]) -> Float32[Array, ""]:
    """Entropy of a prediction, in nats."""
    p = jnp.exp(log_p)
    return -jnp.sum(jnp.where(p > 0, p * log_p, 0.0))
