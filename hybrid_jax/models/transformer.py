"""The transformer: pre-norm, with the options of `ModelConfig`.

A thin Linen module (parameters and einsums) behind `Transformer`, a frozen description with pure
functions: `init`; `features`, and `extend`, the same on top of a cache; `logits`. The head is apart
from the body because losses stream it over the vocabulary.

By default the architecture is that of the released HDLM models (arXiv 2504.06416 section 5, after
SEDD/MDLM): layer norm without bias, no bias in attention, bias in the MLP and the untied head,
RoPE, and for γ-hybrids adaLN on σ = −log(1 − λ) of each row. Options make it a GPT-2 or a Llama.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, Key

from hybrid_jax.errors import resolved
from hybrid_jax.method.mask_blocks import Pattern
from hybrid_jax.models import attention, products, rotary
from hybrid_jax.models.cache import AXES as CACHE_AXES
from hybrid_jax.models.cache import Cache
from hybrid_jax.models.settings import ModelConfig
from hybrid_jax.runtime.sharding import constrain, gathered

Params = dict[str, Any]
"""Parameters by name, nested."""

Activations = Float[Array, "B R D"]

_LANES = 128  # output rows are padded to a multiple of the accelerators' vector width
_TIME_FREQUENCIES = 128
_HIGHEST_LEVEL = 1.0 - 1e-4  # of the conditioning: σ stays finite
_BASE_STD = 0.02
_ACTIVATIONS = ("batch", "whole", "whole")

# Logical axes (see `sharding`) of each parameter; those of a layer have the layers in front.
_AXES: dict[str, tuple[str, ...]] = {
    "embedding": ("vocab", "embed"),
    "position_embedding": ("whole", "embed"),
    "norm": ("whole",),
    "norm_bias": ("whole",),
    "head/kernel": ("embed", "vocab"),
    "head/bias": ("vocab",),
    "level/in/kernel": ("whole", "whole"),
    "level/in/bias": ("whole",),
    "level/out/kernel": ("whole", "whole"),
    "level/out/bias": ("whole",),
}
_LAYER_AXES: dict[str, tuple[str, ...]] = {
    "condition": ("whole", "embed"),
    "condition_bias": ("whole",),
    "norm_attention": ("whole",),
    "norm_attention_bias": ("whole",),
    "qkv": ("embed", "whole", "heads"),
    "qkv_bias": ("whole", "heads"),
    # In place of qkv where keys have fewer heads.
    "query": ("embed", "whole", "heads"),
    "query_bias": ("whole", "heads"),
    "key_value": ("embed", "whole", "heads"),
    "key_value_bias": ("whole", "heads"),
    "norm_q": ("whole",),
    "norm_q_bias": ("whole",),
    "norm_k": ("whole",),
    "norm_k_bias": ("whole",),
    "out": ("heads", "embed"),
    "out_bias": ("whole",),
    "norm_mlp": ("whole",),
    "norm_mlp_bias": ("whole",),
    "mlp_gate": ("embed", "mlp"),
    "mlp_gate_bias": ("mlp",),
    "mlp_in": ("embed", "mlp"),
    "mlp_in_bias": ("mlp",),
    "mlp_out": ("mlp", "embed"),
    "mlp_out_bias": ("whole",),
}
_ACTIVATION: dict[str, Callable[[Array], Array]] = {
    "gelu": functools.partial(nn.gelu, approximate=True),
    "relu2": lambda x: jnp.square(nn.relu(x)),
    "silu": nn.silu,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transformer(ModelConfig):
    """A network over N real tokens and MASK.

    Attributes:
      vocab_size: N; the others are those of `ModelConfig`.
    """

    vocab_size: int

    @property
    def rows(self) -> int:
        """Rows of the embedding and columns of the head: N + 1, padded."""
        return -(-(self.vocab_size + 1) // _LANES) * _LANES

    def init(self, key: Key[Array, ""]) -> Params:
        """Parameters as a nested dict; leaves under "layers" have a leading axis of layers."""
        row, mask = jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1, 1), bool)
        level = jnp.zeros((1, 1))
        params = _Body(self).init(jax.random.split(key)[0], None, row, row, mask, level, None)
        head = {} if self.tied else {"kernel": jnp.zeros((self.width, self.rows))}
        if self.head_bias:
            head["bias"] = jnp.zeros(self.rows)
        return {**params["params"], **({"head": head} if head else {})}

    @property
    def shapes(self) -> Params:
        """Shapes and types of the parameters."""
        return cast(Params, jax.tree.map(lambda shape: shape, _shapes(self)))  # dicts of its own

    @property
    def axes(self) -> dict[str, tuple[str, ...]]:
        """Logical axes of each parameter by its path, "layers/qkv"."""
        layers = {f"layers/{name}": ("whole", *axes) for name, axes in _LAYER_AXES.items()}
        return _AXES | layers

    def features(
        self,
        params: Params,
        tokens: Int[Array, "B R"],
        position: Int[Array, "#B R"],
        mask: Bool[Array, "#B R R"] | Pattern,
        level: Float32[Array, "B R"],
        dropout_keys: Key[Array, "B"] | None = None,
    ) -> Float[Array, "B R {self.width}"]:
        """Features of rows, the input of the head.

        Args:
          tokens: in [0, N] (N is MASK).
          position: of the tokens.
          mask: True where a query (axis 1) may attend to a key (axis 2); or the pattern for it.
          level: noise level λ of each row; used if `condition` is set.
          dropout_keys: one for each example, for training with dropout; None turns dropout off.
        """
        out = _Body(self).apply(_body(params), None, tokens, position, mask, level, dropout_keys)
        return cast(jax.Array, out)

    def empty_cache(self, batch: int, slots: int) -> Cache:
        """A cache for `slots` rows of each of `batch` examples, in `dtype`."""
        shape = (self.layers, batch, self.groups, slots, self.head_size)
        empty = constrain(jnp.zeros(shape, self.dtype), *CACHE_AXES)
        return Cache(empty, empty)

    def extend(
        self,
        params: Params,
        cache: Cache,
        tokens: Int[Array, "B R"],
        position: Int[Array, "#B R"],
        mask: Bool[Array, "#B R M"],
        level: Float32[Array, "B R"],
    ) -> tuple[Float[Array, "B R {self.width}"], Cache]:
        """`features` of new rows that may also attend to cached ones.

        Args:
          cache: M slots for each example.
          mask: of the cached rows and the new ones, in this order.
          tokens, position, level: of the R new rows, as for `features`.

        Returns:
          features, and what the new rows would put in the cache ([layers, B, G, R, K];
          `cache.commit` writes those that are final).
        """
        out = _Body(self).apply(_body(params), cache, tokens, position, mask, level, None)
        return cast(tuple[jax.Array, Cache], out)

    def head(self, params: Params) -> Params:
        """The parameters that `logits` reads."""
        names = ("embedding", "head") if self.tied else ("head",)
        return {name: params[name] for name in names if name in params}

    def logits(
        self, params: Params, features: Float[Array, "*B {self.width}"]
    ) -> Float32[Array, "*B {self.rows}"]:
        """Logits of features; columns from N on mean nothing.

        Args:
          params: those of `head`, or all.
        """
        # Gathered along the width, and not the much larger logits summed over it.
        if self.tied:
            kernel = gathered(params["embedding"], self.dtype, *_AXES["embedding"]).T
        else:
            kernel = gathered(params["head"]["kernel"], self.dtype, *_AXES["head/kernel"])
        rows = features.astype(self.dtype).reshape(-1, self.width)
        out: Array = products.wide(rows, kernel)
        if self.head_bias:
            out = out + params["head"]["bias"][None]
        return out.reshape(*features.shape[:-1], -1)


@functools.lru_cache
def _shapes(network: Transformer) -> Params:
    shapes: Params = jax.eval_shape(network.init, jax.random.key(0))
    return shapes


def _body(params: Params) -> Params:
    return {"params": {name: value for name, value in params.items() if name != "head"}}


class _Body(nn.Module):
    config: Transformer

    @nn.compact
    def __call__(
        self,
        cache: Cache | None,
        tokens: Int[Array, "B R"],
        position: Int[Array, "#B R"],
        mask: Bool[Array, "#B R M"] | Pattern,
        level: Float32[Array, "B R"],
        dropout_keys: Key[Array, "B"] | None,
    ) -> Activations | tuple[Activations, Cache | None]:
        c = self.config
        table = self.param("embedding", nn.initializers.normal(_BASE_STD), (c.rows, c.width))
        # Back in float32, because the gradients of many rows are added in one entry.
        table = gathered(table, c.dtype, *_AXES["embedding"]).astype(jnp.float32)
        x = constrain(table[tokens], *_ACTIVATIONS)
        condition = None
        if c.condition:
            sigma = -jnp.log1p(-jnp.minimum(level, _HIGHEST_LEVEL))
            if c.embedding_gamma:
                keep = jnp.exp(-c.embedding_gamma * sigma)[..., None]
                x = keep * x + (1.0 - keep) * _to_rank(table[c.vocab_size], 3)
            condition = _LevelEmbedding(c, name="level")(sigma).astype(c.dtype)
        if c.position == "learned":
            shape = (c.positions, c.width)
            places = self.param("position_embedding", nn.initializers.normal(_BASE_STD), shape)
            places = gathered(places, c.dtype, *_AXES["position_embedding"]).astype(jnp.float32)
            # The first row is before the text, at −1.
            x = constrain(x + places[position + 1], *_ACTIVATIONS)

        block = nn.remat(_Block, prevent_cse=False) if c.remat else _Block
        layers = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, *(nn.broadcast,) * 5),
            length=c.layers,
            unroll=min(c.unroll, c.layers),
        )(c, name="layers")
        number = jnp.arange(c.layers)
        x, new = layers(x.astype(c.dtype), number, cache, position, mask, condition, dropout_keys)
        x = _norm(self, "norm", x)
        return x if cache is None else (x, new)


class _LevelEmbedding(nn.Module):
    """Sinusoids of σ and a two-layer MLP, as in DiT."""

    config: Transformer

    @nn.compact
    def __call__(self, sigma: Float32[Array, "B R"]) -> Float32[Array, "B R C"]:
        exponent = jnp.arange(_TIME_FREQUENCIES, dtype=jnp.float32) / _TIME_FREQUENCIES
        angle = sigma[..., None] * _to_rank(jnp.exp(-math.log(10_000.0) * exponent), 3)
        waves = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
        width = self.config.condition
        hidden = nn.silu(nn.Dense(width, name="in")(waves))
        return nn.silu(nn.Dense(width, name="out")(hidden))


class _Block(nn.Module):
    config: Transformer

    @nn.compact
    def __call__(
        self,
        x: Activations,
        number: Int[Array, ""],
        cached: Cache | None,
        position: Int[Array, "#B R"],
        mask: Bool[Array, "#B R M"] | Pattern,
        condition: Float[Array, "B R C"] | None,
        dropout_keys: Key[Array, "B"] | None,
    ) -> tuple[Activations, Cache | None]:
        c = self.config
        dtype = x.dtype
        size = c.heads * c.head_size
        scaled = nn.initializers.normal(_BASE_STD / math.sqrt(2 * c.layers))

        modulation: list[Array | None] = [None] * 6
        if condition is not None:
            kernel = self.param("condition", nn.initializers.zeros, (c.condition, 6 * c.width))
            bias = self.param("condition_bias", nn.initializers.zeros, (6 * c.width,))
            kernel = gathered(kernel, dtype, *_LAYER_AXES["condition"])
            of_level = condition @ kernel + _to_rank(bias.astype(dtype), 3)
            modulation = [*jnp.split(of_level, 6, axis=-1)]
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = modulation

        def weight(name: str, shape: tuple[int, ...], init: Any = None) -> Array:
            value = self.param(name, init or nn.initializers.normal(shape[0] ** -0.5), shape)
            return gathered(value, dtype, *_LAYER_AXES[name])

        def product(name: str, x: Array, size: int, biased: bool, init: Any = None) -> Array:
            out = products.of_rows(x, weight(name, (x.shape[-1], size), init))
            if biased:
                out = out + _to_rank(weight(f"{name}_bias", (size,), nn.initializers.zeros), 3)
            return out

        def in_heads(name: str, parts: int, heads: int) -> list[Array]:
            """Each of the parts as [B, heads, R, K]."""
            # An axis of its own for the parts, so that cutting the heads cuts each of them.
            shape = (parts, heads * c.head_size)
            kernel = weight(name, (c.width, *shape))
            found = [products.of_rows(y, kernel[:, part]) for part in range(parts)]
            if c.qkv_bias:
                bias = weight(f"{name}_bias", shape, nn.initializers.zeros)
                found = [x + _to_rank(bias[part], 3) for part, x in enumerate(found)]
            return [x.reshape(*x.shape[:-1], heads, -1).swapaxes(1, 2) for x in found]

        def add(residual: Array, update: Array, gate: Array | None, site: int) -> Array:
            if dropout_keys is not None and c.dropout:
                update = _drop(update, dropout_keys, 2 * number + site, c.dropout)
            # Gates start at 0 (DiT): a fresh conditioned layer is the identity.
            update = update if gate is None else gate * update
            return constrain(residual + update, *_ACTIVATIONS)

        y = _modulate(_norm(self, "norm_attention", x), shift_1, scale_1)
        if c.groups == c.heads:
            query, key, value = in_heads("qkv", 3, c.heads)
        else:
            (query,) = in_heads("query", 1, c.heads)
            key, value = in_heads("key_value", 2, c.groups)
        if c.qk_norm:
            query, key = _norm(self, "norm_q", query), _norm(self, "norm_k", key)
        if c.position == "rotary":
            theta, stretch = resolved(c).rope_theta, rotary.scaling(c.rope_scaling)
            frequency = rotary.frequencies(c.head_size // 2, theta, stretch)
            query, key = (rotary.rotate(x, position, frequency) for x in (query, key))
        y = attention.attend(query, key, value, mask, cached, number, backend=c.attention)
        y = y.swapaxes(1, 2).reshape(*x.shape[:-1], size)
        x = add(x, product("out", y, c.width, c.out_bias, scaled), gate_1, site=0)

        y = _modulate(_norm(self, "norm_mlp", x), shift_2, scale_2)
        wide = product("mlp_in", y, c.hidden, c.mlp_bias)
        if c.gated:
            wide *= _ACTIVATION[c.activation](product("mlp_gate", y, c.hidden, c.mlp_bias))
        else:
            wide = _ACTIVATION[c.activation](wide)
        y = product("mlp_out", wide, c.width, c.mlp_bias, scaled)
        # What stays in the cache; training has none, and keeps nothing.
        new = None if cached is None else Cache(key, value)
        return add(x, y, gate_2, site=1), new


def _drop(x: Activations, keys: Key[Array, "B"], place: Int[Array, ""], rate: float) -> Activations:
    """Dropout as a function of (key of the example, place in the network) alone.

    A batch may be cut among devices and accumulation rounds in any way.
    """

    def keep(key: Array) -> Array:
        return jax.random.bernoulli(jax.random.fold_in(key, place), 1.0 - rate, x.shape[1:])

    return jnp.where(jax.vmap(keep)(keys), x / (1.0 - rate), 0.0)


def _modulate(x: Activations, shift: Activations | None, scale: Activations | None) -> Activations:
    return x if shift is None or scale is None else x * (1.0 + scale) + shift


def _norm(module: _Body | _Block, name: str, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """Layer norm, or RMS norm (arXiv 1910.07467), in float32, back in the type of x."""
    c = module.config
    scale = module.param(name, nn.initializers.ones, x.shape[-1:])
    wide = x.astype(jnp.float32)
    if c.norm == "layer":
        wide = wide - wide.mean(-1, keepdims=True)
    variance = jnp.square(wide).mean(-1, keepdims=True)
    scaled = wide * jax.lax.rsqrt(variance + c.norm_epsilon) * _to_rank(scale, x.ndim)
    if c.norm_bias:
        bias = module.param(f"{name}_bias", nn.initializers.zeros, x.shape[-1:])
        scaled = scaled + _to_rank(bias, x.ndim)
    return scaled.astype(x.dtype)


def _to_rank(x: Float[Array, "D"], rank: int) -> Float[Array, "... D"]:
    """x with leading axes of size 1."""
    return jnp.expand_dims(x, range(rank - 1))
