"""Noise: one sentence as the noise level grows, under each kernel."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hybrid_jax.figures import canvas
from hybrid_jax.figures.palette import NOISE
from hybrid_jax.method import noising
from hybrid_jax.method.noising import NoiseKernel

SENTENCE = ("the", "old", "ship", "left", "the", "harbour", "at", "dawn")
OTHERS = ("a", "boat", "by", "empty", "moon", "night", "one", "reached", "river", "train", "under",
          "village", "young")  # fmt: skip
WORDS = sorted({*SENTENCE, *OTHERS})
"""The vocabulary: words of the sentence and some more of their kinds; the token ids are places."""

LEVELS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
SEED = 11


def shown() -> list[NoiseKernel]:
    """The four kernels, the hybrids with more replacement than one would train with."""
    tokens = len(WORDS)
    return [
        noising.absorbing(vocab_size=tokens),
        noising.uniform(vocab_size=tokens),
        noising.gamma_hybrid(vocab_size=tokens, gamma=0.3),
        noising.epsilon_hybrid(vocab_size=tokens, epsilon=0.3),
    ]


def corrupted(kernel: NoiseKernel) -> np.ndarray:
    """The sentence at each of `LEVELS`, int [levels, words].

    All levels use one key, so that a word that is gone at one level is gone at the next.
    """
    clean = jnp.array([WORDS.index(word) for word in SENTENCE], jnp.int32)
    key = jax.random.key(SEED)

    def at(level: jax.Array) -> jax.Array:
        return noising.corrupt(kernel, key, clean, jnp.full(clean.shape, level))

    return np.asarray(jax.jit(jax.vmap(at))(jnp.array(LEVELS, jnp.float32)))


def states(kernel: NoiseKernel, tokens: np.ndarray) -> np.ndarray:
    """State of each word, strings [levels, words]: the names in `palette.NOISE`.

    A replacement that happens to draw the word itself counts as kept: nobody could tell.
    """
    clean = np.array([WORDS.index(word) for word in SENTENCE])
    changed = np.where(tokens == kernel.mask, "masked", "replaced")
    return np.where(tokens == clean, "kept", changed)


def draw() -> bytes:
    """The picture, a PNG: a panel for each kernel."""
    title = "Noise: one sentence as the level λ grows (one draw under each kernel)"
    legend = {name: {"facecolor": style.fill} for name, style in NOISE.items()}
    return canvas.panels(shown(), _panel, size=(11, 5.4), title=title, legend=legend)


def _panel(axes: Any, kernel: NoiseKernel) -> None:
    tokens = corrupted(kernel)
    canvas.grid_axes(axes, len(SENTENCE), len(LEVELS), kernel.name)
    for (row, column), state in np.ndenumerate(states(kernel, tokens)):
        style = NOISE[state]
        word = "MASK" if state == "masked" else WORDS[tokens[row, column]]
        canvas.cell(
            axes, column, row, style.fill, word, fontsize=9, color=style.ink,
            fontweight="bold" if style.bold else "normal",
            fontstyle="italic" if style.underlined else "normal",
        )  # fmt: skip
    axes.set_xticks([])
    axes.set_yticks(np.arange(len(LEVELS)) + 0.5, [f"λ = {level:g}" for level in LEVELS])
