"""GPT-2 as a scorer of generated text: log-probabilities and features, from published weights.

Pure functions over a dict of float32 arrays, with a scan over stacked layers. The architecture is
that of "Language Models are Unsupervised Multitask Learners" (Radford et al. 2019): pre-norm
blocks, learned positions, GELU in its tanh form, a head tied to the embedding. Weights are read
from a folder in the layout of Hugging Face (`config.json` and safetensors), of any size.

A scorer's number must not depend on where it was computed: products are taken in full float32 also
where accelerators round by default, and texts are padded on the right only, where causal attention
cannot see it. What is left is the order of float32 sums (1e-5 nats).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from hybrid_jax.errors import UserError
from hybrid_jax.eval.scorers import base as scoring
from hybrid_jax.runtime.sharding import constrain


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of a GPT-2.

    Attributes:
      tokens: V, entries of the vocabulary.
      context: most tokens that are read at once (1024 in the published models).
      width, layers, heads, hidden: D, depth, attention heads, units of the MLP.
      epsilon: added to variances in layer norms.
    """

    vocab_size: int
    context: int
    width: int
    layers: int
    heads: int
    hidden: int
    epsilon: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("tokens", "context", "width", "layers", "heads", "hidden"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise UserError(f"A scorer's {name} must be a number from 1 on, but is {value!r}.")
        if self.width % self.heads:
            raise UserError(
                f"A scorer's width {self.width} does not split into {self.heads} heads."
            )

    def shape(self, axes: tuple[str, ...]) -> tuple[int, ...]:
        """The shape of a parameter with these axes."""
        return tuple(3 * self.width if axis == "qkv" else getattr(self, axis) for axis in axes)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class GPT2:
    """A GPT-2 with its parameters: a `scoring.Scorer`, whose features are its last layer's output,
    normalised.

    Attributes:
      name: what it was loaded as.
      config: its sizes.
      params: float32 arrays by name; those under "layers" have an axis of layers in front.
    """

    name: str
    config: Config
    params: Mapping[str, Any] = dataclasses.field(repr=False)

    needs_bos: ClassVar[bool] = False

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def context(self) -> int:
        return self.config.context

    @property
    def width(self) -> int:
        return self.config.width

    @functools.cached_property
    def fingerprint(self) -> str:
        return scoring.fingerprint(self.config, self.params)

    def read(
        self, rows: np.ndarray, lengths: np.ndarray, *, nats: bool
    ) -> tuple[jax.Array, jax.Array]:
        return _read(self.config, self.params, rows, lengths, nats=nats)


# ---------------------------------------------------------------------------------------------
# The network.


def features(config: Config, params: Mapping[str, Any], tokens: jax.Array) -> jax.Array:
    """What the head reads, float32 [B, L, D].

    Args:
      tokens: int32 [B, L], L ≤ context.

    Raises:
      ValueError: if L exceeds the context.
    """
    length = tokens.shape[1]
    if length > config.context:
        raise ValueError(f"{length} tokens do not fit the scorer's context of {config.context}")

    def block(x: jax.Array, layer: Mapping[str, jax.Array]) -> tuple[jax.Array, None]:
        y = _norm(x, layer["norm_attention"], layer["norm_attention_bias"], config.epsilon)
        y = y @ layer["qkv"] + layer["qkv_bias"]
        head = config.width // config.heads
        y = y.reshape(*y.shape[:-1], 3, config.heads, head)
        query, key, value = (y[:, :, part] for part in range(3))
        y = jax.nn.dot_product_attention(query, key, value, is_causal=True).reshape(x.shape)
        x = x + y @ layer["out"] + layer["out_bias"]
        y = _norm(x, layer["norm_mlp"], layer["norm_mlp_bias"], config.epsilon)
        y = jax.nn.gelu(y @ layer["mlp_in"] + layer["mlp_in_bias"], approximate=True)
        x = x + y @ layer["mlp_out"] + layer["mlp_out_bias"]
        return constrain(x, "batch", "whole", "whole"), None

    with jax.default_matmul_precision("highest"):
        x = params["embedding"][tokens] + params["positions"][None, :length]
        x, _ = jax.lax.scan(block, constrain(x, "batch", "whole", "whole"), params["layers"])
        return _norm(x, params["norm"], params["norm_bias"], config.epsilon)


def logits(params: Mapping[str, Any], found: jax.Array) -> jax.Array:
    """The head: features [..., D] -> float32 [..., V]."""
    with jax.default_matmul_precision("highest"):
        return jnp.einsum("...d,vd->...v", found, params["embedding"])


def _norm(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    centred = x - x.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + epsilon) * scale + bias


@functools.partial(jax.jit, static_argnames=("config", "nats"))
def _read(config, params, tokens, lengths, *, nats: bool) -> tuple[jax.Array, jax.Array]:
    found = features(config, params, tokens)
    at_end = scoring.at_last(found, lengths)
    if not nats:
        return jnp.zeros((tokens.shape[0], tokens.shape[1] - 1)), at_end
    return scoring.next_nats(functools.partial(logits, params), found, tokens), at_end
