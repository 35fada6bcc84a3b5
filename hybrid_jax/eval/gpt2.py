"""GPT-2 as a judge of generated text: log-probabilities and features, from published weights.

Pure functions over a dict of float32 arrays, with a scan over stacked layers. The architecture is
that of "Language Models are Unsupervised Multitask Learners" (Radford et al. 2019): pre-norm
blocks, learned positions, GELU in its tanh form, a head tied to the embedding. Weights are read
from a folder in the layout of Hugging Face (`config.json` and safetensors), of any size.

A judge's number must not depend on where it was computed: products are taken in full float32 also
where accelerators round by default, and texts are padded on the right only, where causal attention
cannot see it. What is left is the order of float32 sums (1e-5 nats).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hybrid_jax.errors import UserError
from hybrid_jax.sharding import constrain

_WIDTHS = 128  # rows are padded to a multiple, so that few shapes are compiled
_CHUNK = 256  # positions whose logits exist at the same time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of a GPT-2.

    Attributes:
      tokens: V, entries of the vocabulary.
      context: most tokens that are read at once (1024 in the published models).
      width, layers, heads, hidden: D, depth, attention heads, units of the MLP.
      epsilon: added to variances in layer norms.
    """

    tokens: int
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
                raise UserError(f"A judge's {name} must be a number from 1 on, but is {value!r}.")
        if self.width % self.heads:
            raise UserError(f"A judge's width {self.width} does not split into {self.heads} heads.")

    def shape(self, axes: tuple[str, ...]) -> tuple[int, ...]:
        """The shape of a parameter with these axes."""
        return tuple(3 * self.width if axis == "qkv" else getattr(self, axis) for axis in axes)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Judge:
    """A GPT-2 with its parameters.

    Attributes:
      name: what it was loaded as.
      config: its sizes.
      params: float32 arrays by name; those under "layers" have an axis of layers in front.
    """

    name: str
    config: Config
    params: Mapping[str, Any] = dataclasses.field(repr=False)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256, hexadecimal, of names, shapes and values; not of how files packed them."""
        digest = hashlib.sha256(repr(self.config).encode())
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.params):
            digest.update(f"{jax.tree_util.keystr(path)} {leaf.shape}".encode())
            digest.update(np.ascontiguousarray(leaf).data)
        return digest.hexdigest()


class Scores(NamedTuple):
    """What a judge says about texts.

    Attributes:
      nats: float32 [B, L − 1], −log p(token i + 1 | tokens up to i); 0 past the end of a text.
      features: float32 [B, D], the last layer's output, normalised, at each text's last token.
    """

    nats: np.ndarray
    features: np.ndarray


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
        raise ValueError(f"{length} tokens do not fit the judge's context of {config.context}")

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
    """Nats [B, R − 1] and features [B, D] of rows of at most a context.

    Nats past a row's length mean nothing; without `nats` they are 0.
    """
    found = features(config, params, tokens)
    at_end = jnp.take_along_axis(found, (lengths - 1)[:, None, None], axis=1)[:, 0]
    batch, count = tokens.shape[0], tokens.shape[1] - 1
    if not nats:
        return jnp.zeros((batch, count)), at_end

    def one(row: tuple[jax.Array, jax.Array]) -> jax.Array:
        feature, target = row
        scores = logits(params, feature)
        return jax.nn.logsumexp(scores) - scores[target]

    rows = (found[:, :-1].reshape(-1, config.width), tokens[:, 1:].reshape(-1))
    return jax.lax.map(one, rows, batch_size=_CHUNK).reshape(batch, count), at_end


# ---------------------------------------------------------------------------------------------
# Texts of any length.


def score(judge: Judge, tokens: np.ndarray, lengths: np.ndarray, *, batch_size: int = 8) -> Scores:
    """Nats of every token but a text's first, and features of each text.

    A text longer than the judge's context C is read in windows of C tokens, the first at its
    beginning, each C/2 further than the one before and the last one at its end. A token is scored
    in the first window that holds it, hence with at least C/2 tokens before it; the features are
    those of the last window.

    Args:
      tokens: int32 [B, L] in 0 … V − 1; what lies past a text's length is not read.
      lengths: int [B] in 1 … L.
      batch_size: windows at a time. The result does not depend on it, nor on L, but for float32
        rounding.

    Raises:
      UserError: for tokens outside the vocabulary, lengths outside 1 … L, or no texts.
    """
    return _scores(judge, tokens, lengths, batch_size, nats=True)


def last_features(
    judge: Judge, tokens: np.ndarray, lengths: np.ndarray, *, batch_size: int = 8
) -> np.ndarray:
    """The features of `score` alone, float32 [B, D], which need no head. Raises as `score`."""
    return _scores(judge, tokens, lengths, batch_size, nats=False).features


class _Window(NamedTuple):
    text: int
    start: int
    length: int
    known: int  # tokens of the text that are scored already, or need no score


def _windows(lengths: np.ndarray, context: int) -> list[_Window]:
    stride = max(1, context // 2)
    windows = []
    for text, length in enumerate(int(n) for n in lengths):
        known = 1
        for start in (*range(0, max(0, length - context), stride), max(0, length - context)):
            windows.append(_Window(text, start, min(context, length - start), known))
            known = start + context
    return windows


def _scores(
    judge: Judge, tokens: np.ndarray, lengths: np.ndarray, batch_size: int, *, nats: bool
) -> Scores:
    tokens, lengths = np.asarray(tokens), np.asarray(lengths)
    _check(judge.config, tokens, lengths, batch_size)
    if not judge.config.context > 1:
        raise UserError("A judge with a context of one token cannot score texts.")
    out = np.zeros((len(tokens), tokens.shape[1] - 1), np.float32)
    last = np.zeros((len(tokens), judge.config.width), np.float32)
    # Windows of like lengths together, so that little is padded.
    windows = sorted(_windows(lengths, judge.config.context), key=lambda w: (w.length, w.text))
    for first in range(0, len(windows), batch_size):
        batch = windows[first : first + batch_size]
        widest = min(-(-batch[-1].length // _WIDTHS) * _WIDTHS, judge.config.context)
        rows = np.zeros((batch_size, max(2, widest)), np.int32)
        sizes = np.ones(batch_size, np.int32)
        for row, window in enumerate(batch):
            sizes[row] = window.length
            stop = window.start + window.length
            rows[row, : window.length] = tokens[window.text, window.start : stop]
        found = _read(judge.config, judge.params, rows, sizes, nats=nats)
        each, at_end = (np.asarray(part) for part in found)
        for row, window in enumerate(batch):
            stop = window.start + window.length
            known = window.known - window.start
            out[window.text, window.known - 1 : stop - 1] = each[row, known - 1 : window.length - 1]
            if stop == lengths[window.text]:
                last[window.text] = at_end[row]
    return Scores(out, last)


def _check(config: Config, tokens: np.ndarray, lengths: np.ndarray, batch_size: int) -> None:
    if tokens.ndim != 2 or lengths.shape != tokens.shape[:1]:
        raise ValueError(f"tokens {tokens.shape} and lengths {lengths.shape} must be [B, L], [B]")
    if batch_size < 1:
        raise UserError(f"The judge's batch_size must be at least 1, but is {batch_size}.")
    if not len(tokens):
        raise UserError("There are no texts to judge.")
    if lengths.min() < 1 or lengths.max() > tokens.shape[1]:
        raise UserError(f"Lengths of judged texts must lie in 1 … {tokens.shape[1]}.")
    inside = np.arange(tokens.shape[1]) < lengths[:, None]
    wrong = tokens[inside & ((tokens < 0) | (tokens >= config.tokens))]
    if len(wrong):
        raise UserError(
            f"Token {wrong[0]} is outside the judge's 0 … {config.tokens - 1}: it comes from "
            "another tokenizer."
        )
