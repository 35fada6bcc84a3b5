"""The network of nanoGPT, to be trained in place of the package's: GPT-2 with learned positions and
a head tied to the embedding, which is what its 1.88 nats are of."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int, Key

_STD = 0.02


@dataclasses.dataclass(frozen=True, kw_only=True)
class NanoGPT:
    """A `method.loss.Network` for the rows of autoregression: bos, then the tokens but the last.

    nanoGPT has no bos, and gives the first token of a window: the row of bos is not fed.
    """

    vocab_size: int
    layers: int = 4
    width: int = 128
    heads: int = 4
    context: int = 64
    dropout = 0.0
    axes = {}  # noqa: RUF012 - no parameter is cut among devices

    def init(self, key: Key[Array, ""]) -> dict[str, Any]:
        """Parameters as in nanoGPT's `model.py`, without biases."""
        d, residual = self.width, _STD / math.sqrt(2 * self.layers)
        shapes = {"qkv": (d, 3, d), "out": (d, d), "wide": (d, 4 * d), "narrow": (4 * d, d)}
        shapes |= {"tokens": (self.vocab_size, d), "positions": (self.context, d)}

        def drawn(name: str, key: Key[Array, ""]) -> Array:
            std = residual if name in ("out", "narrow") else _STD
            return std * jax.random.normal(key, shapes[name])

        top, *of_blocks = jax.random.split(key, 1 + self.layers)
        names = ("tokens", "positions")
        params = {n: drawn(n, k) for n, k in zip(names, jax.random.split(top), strict=True)}
        params["norm"] = jnp.ones(d)
        params["blocks"] = [
            {"norm_1": jnp.ones(d), "norm_2": jnp.ones(d)}
            | {
                n: drawn(n, k)
                for n, k in zip(list(shapes)[:4], jax.random.split(own, 4), strict=True)
            }
            for own in of_blocks
        ]
        return params

    def features(
        self, params: Any, tokens: Int[Array, "B R"], position: Any, mask: Any, level: Any,
        dropout_keys: Any = None,
    ) -> Float[Array, "B R {self.width}"]:  # fmt: skip
        """Features of the rows, 0 of the first."""
        x = params["tokens"][tokens[:, 1:]] + params["positions"]
        for block in params["blocks"]:
            parts = jnp.einsum("brd,dpe->pbre", _norm(x, block["norm_1"]), block["qkv"])
            query, key, value = parts.reshape(*parts.shape[:-1], self.heads, -1)
            y = jax.nn.dot_product_attention(query, key, value, is_causal=True)
            x = x + y.reshape(x.shape) @ block["out"]
            y = jax.nn.gelu(_norm(x, block["norm_2"]) @ block["wide"], approximate=False)
            x = x + y @ block["narrow"]
        return jnp.pad(_norm(x, params["norm"]), ((0, 0), (1, 0), (0, 0)))

    def head(self, params: Any) -> Any:
        return {"tokens": params["tokens"]}

    def logits(self, params: Any, features: Float[Array, "*B D"]) -> Float32[Array, "*B N"]:
        return features @ params["tokens"].T


def _norm(x: Float[Array, "*B D"], scale: Float[Array, "#D"]) -> Float[Array, "*B D"]:
    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-5) * scale
