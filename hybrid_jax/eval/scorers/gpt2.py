"""GPT-2 as a scorer of generated text: log-probabilities and features, from published weights.

Pure functions over a dict of float32 arrays, with a scan over stacked layers. The architecture is
that of "Language Models are Unsupervised Multitask Learners" (Radford et al. 2019): pre-norm
blocks, learned positions, GELU in its tanh form, a head tied to the embedding. Weights are read in
the layout of Hugging Face, of any size (see `interop.weights`).

A scorer's number must not depend on where it was computed: products are taken in full float32, also
where accelerators round by default, and texts are padded on the right only, where causal attention
cannot see it. The order of float32 sums remains (1e-5 nats).
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from hybrid_jax.data.tokenizers import gpt2 as tokenizers
from hybrid_jax.data.tokenizers.base import Tokenizer
from hybrid_jax.errors import UserError, check_settings
from hybrid_jax.eval.scorers.base import Scorer
from hybrid_jax.interop import weights
from hybrid_jax.runtime import sharding
from hybrid_jax.runtime.decode import from_values
from hybrid_jax.runtime.sharding import constrain

Params = Mapping[str, Any]
# Parameters: our name, that of the files, axes. Matrices are [in, out] in both.
WHOLE: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("embedding", "wte.weight", ("vocab", "width")),
    ("positions", "wpe.weight", ("context", "width")),
    ("norm", "ln_f.weight", ("width",)),
    ("norm_bias", "ln_f.bias", ("width",)),
)
# Of a layer; in the files after "h.<number>.".
LAYER: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("norm_attention", "ln_1.weight", ("width",)),
    ("norm_attention_bias", "ln_1.bias", ("width",)),
    ("qkv", "attn.c_attn.weight", ("width", "qkv")),
    ("qkv_bias", "attn.c_attn.bias", ("qkv",)),
    ("out", "attn.c_proj.weight", ("width", "width")),
    ("out_bias", "attn.c_proj.bias", ("width",)),
    ("norm_mlp", "ln_2.weight", ("width",)),
    ("norm_mlp_bias", "ln_2.bias", ("width",)),
    ("mlp_in", "mlp.c_fc.weight", ("width", "hidden")),
    ("mlp_in_bias", "mlp.c_fc.bias", ("hidden",)),
    ("mlp_out", "mlp.c_proj.weight", ("hidden", "width")),
    ("mlp_out_bias", "mlp.c_proj.bias", ("width",)),
)
# The head, which is tied to the embedding, and buffers of older files: the causal mask, and what it
# is filled with.
_UNNEEDED = re.compile(r"lm_head\.weight|h\.\d+\.attn\.(bias|masked_bias)")
_TOKENIZER_FILES = ("vocab.json", "merges.txt")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPT2Config:
    """Settings of a GPT-2 by their names in the config.json of Hugging Face.

    Those that would make it another network have the one value of GPT-2.

    Attributes:
      n_positions: the context, most tokens that are read at once.
      n_embd, n_inner: D, and units of the MLP; None for 4 D.
      layer_norm_epsilon: added to variances in layer norms.
    """

    model_type: Literal["gpt2"] = "gpt2"
    activation_function: Literal["gelu_new"] = "gelu_new"
    tie_word_embeddings: Literal[True] = True
    scale_attn_weights: Literal[True] = True
    scale_attn_by_inverse_layer_idx: Literal[False] = False
    add_cross_attention: Literal[False] = False
    vocab_size: int
    n_positions: int
    n_embd: int
    n_layer: int
    n_head: int
    n_inner: int | None = None
    layer_norm_epsilon: float = 1e-5

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner")
        check_settings(self, "A scorer's ", **dict.fromkeys(sizes, 1))
        if self.n_embd % self.n_head:
            raise UserError(
                f"A scorer's n_embd={self.n_embd} does not split into {self.n_head} heads."
            )

    def shape(self, axes: tuple[str, ...]) -> tuple[int, ...]:
        """The shape of a parameter with these axes."""
        sizes = {"vocab": self.vocab_size, "context": self.n_positions, "width": self.n_embd,
                 "qkv": 3 * self.n_embd, "hidden": self.n_inner or 4 * self.n_embd}  # fmt: skip
        return tuple(sizes[axis] for axis in axes)


# ---------------------------------------------------------------------------------------------
# The network.


def features(config: GPT2Config, params: Params, tokens: jax.Array) -> jax.Array:
    """Input of the head, float32 [B, L, D].

    Args:
      tokens: int32 [B, L], L ≤ context.

    Raises:
      ValueError: if L exceeds the context.
    """
    length = tokens.shape[1]
    if length > config.n_positions:
        raise ValueError(f"{length} tokens do not fit the scorer's context of {config.n_positions}")

    def block(x: jax.Array, layer: Mapping[str, jax.Array]) -> tuple[jax.Array, None]:
        y = _norm(
            x, layer["norm_attention"], layer["norm_attention_bias"], config.layer_norm_epsilon
        )
        y = y @ layer["qkv"] + layer["qkv_bias"]
        head = config.n_embd // config.n_head
        y = y.reshape(*y.shape[:-1], 3, config.n_head, head)
        query, key, value = (y[:, :, part] for part in range(3))
        y = jax.nn.dot_product_attention(query, key, value, is_causal=True).reshape(x.shape)
        x = x + y @ layer["out"] + layer["out_bias"]
        y = _norm(x, layer["norm_mlp"], layer["norm_mlp_bias"], config.layer_norm_epsilon)
        y = jax.nn.gelu(y @ layer["mlp_in"] + layer["mlp_in_bias"], approximate=True)
        x = x + y @ layer["mlp_out"] + layer["mlp_out_bias"]
        return constrain(x, "batch", "whole", "whole"), None

    with jax.default_matmul_precision("highest"):
        x = params["embedding"][tokens] + params["positions"][None, :length]
        x, _ = jax.lax.scan(block, constrain(x, "batch", "whole", "whole"), params["layers"])
        return _norm(x, params["norm"], params["norm_bias"], config.layer_norm_epsilon)


def logits(config: GPT2Config, params: Params, found: jax.Array) -> jax.Array:
    """The head: features [..., D] -> float32 [..., V]."""
    with jax.default_matmul_precision("highest"):
        return jnp.einsum("...d,vd->...v", found, params["embedding"])


def _norm(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    centred = x - x.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + epsilon) * scale + bias


# ---------------------------------------------------------------------------------------------
# Loading.


def load(source: str | Path, mesh: Mesh | None = None) -> Scorer:
    """A scorer from a folder, or from the Hugging Face hub by name; see `weights.find`.

    Raises:
      UserError: if files or packages are missing, or hold no GPT-2 with a tied head.
    """
    mesh = mesh or sharding.one_device()
    folder = weights.find(source, others=_TOKENIZER_FILES)
    path = folder / weights.CONFIG
    known = {field.name for field in dataclasses.fields(GPT2Config)}
    values = {name: x for name, x in weights.read_json(path).items() if name in known}
    config = from_values(GPT2Config, values, str(path))
    return Scorer(
        name=str(source), network=config,
        params=jax.device_put(_parameters(folder, config), sharding.everywhere(mesh)), mesh=mesh,
        features=features, logits=logits, vocab_size=config.vocab_size, context=config.n_positions,
        width=config.n_embd,
    )  # fmt: skip


def load_with_tokenizer(source: str | Path, mesh: Mesh | None = None) -> tuple[Scorer, Tokenizer]:
    """`load`, and the tokenizer whose two files lie beside the weights. Raises as `load`."""
    folder = weights.find(source, others=_TOKENIZER_FILES)
    return dataclasses.replace(load(folder, mesh), name=str(source)), tokenizers.load(folder)


def _parameters(folder: Path, config: GPT2Config) -> dict[str, Any]:
    # Destination of each tensor: a view of a whole parameter, or of one layer of it.
    params = {ours: np.empty(config.shape(axes), np.float32) for ours, _, axes in WHOLE}
    layers = {
        ours: np.empty((config.n_layer, *config.shape(axes)), np.float32) for ours, _, axes in LAYER
    }
    places = {theirs: params[ours] for ours, theirs, _ in WHOLE} | {
        f"h.{i}.{theirs}": layers[ours][i]
        for ours, theirs, _ in LAYER
        for i in range(config.n_layer)
    }
    head = weights.fill(places, folder, _UNNEEDED, prefix="transformer.").get("lm_head.weight")
    if head is not None and not np.array_equal(head, params["embedding"]):
        raise UserError(f"The weights in {folder} have a head that is not tied to the embedding.")
    if not all(math.isfinite(float(x.sum())) for x in (*params.values(), *layers.values())):
        raise UserError(f"The weights in {folder} hold values that are not finite.")
    return {**params, "layers": layers}
