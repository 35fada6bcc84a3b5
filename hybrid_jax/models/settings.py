"""Size and form of the transformer: the options in which families of models differ."""

import dataclasses
from typing import Literal

from hybrid_jax.errors import UserError, check_settings, free, only
from hybrid_jax.models import rotary
from hybrid_jax.models.attention import Backend


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Size and form of the transformer, without its vocabulary.

    Attributes:
      layers, width, heads: depth, model width D, attention heads.
      kv_heads: heads of keys and values, each shared by as many heads of queries (grouped-query
        attention, arXiv 2305.13245); None for `heads`.
      head_width: K; None for width / heads.
      mlp_ratio: MLP width over D; 4 for None.
      mlp_width: the MLP width itself, in place of `mlp_ratio`.
      activation: "gelu" (tanh form), "relu2" (squared ReLU, faster on CPU) or "silu".
      gated: the activation multiplies a second product of the MLP's input (GLU, arXiv 2002.05202).
      position: "rotary" turns queries and keys, "learned" adds a row of a table to the embedding.
      positions: rows that a text may have, the first before it; None for any number. Learned
        positions need it.
      rope_theta: base of the rotary wavelengths; 10,000 for None.
      rope_scaling: None, or "llama3:FACTOR,LOW,HIGH,ORIGINAL" (see `rotary.frequencies`).
      norm: "layer" or "rms" (which subtracts no mean); queries and keys have the same.
      norm_epsilon: added to variances.
      norm_bias: whether layer norms add a bias.
      qkv_bias, out_bias, mlp_bias: whether these products add one.
      tied: the head is the embedding.
      head_bias: whether the head adds a bias.
      condition: width of the noise-level conditioning (adaLN); 0 for none.
      embedding_gamma: mixes token embeddings with that of MASK as e^(−γσ) (released γ-hybrids);
        0 for none. Needs `condition`.
      qk_norm: normalise queries and keys per head, which steadies training at high rates.
      dropout: rate on attention and MLP outputs while training.
      dtype: type of activations; parameters, norms, softmax and losses stay float32.
      remat: recompute a layer's activations in the backward pass.
      unroll: layers per iteration of the scan over layers (1: smallest program; all: fastest on
        CPU).
      attention: backend of `attention.attend` for rows that come with a pattern.
    """

    layers: int = 4
    width: int = 128
    heads: int = 2
    kv_heads: int | None = None
    head_width: int | None = None
    mlp_ratio: int | None = only(4, mlp_width="None")
    mlp_width: int | None = None
    activation: Literal["gelu", "relu2", "silu"] = "gelu"
    gated: bool = False
    position: Literal["rotary", "learned"] = "rotary"
    positions: int | None = None
    rope_theta: float | None = only(10_000.0, position="rotary")
    rope_scaling: str | None = only(position="rotary")
    norm: Literal["layer", "rms"] = "layer"
    norm_epsilon: float = 1e-5
    norm_bias: bool | None = only(False, norm="layer")
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = True
    tied: bool = False
    head_bias: bool = True
    condition: int = 0
    embedding_gamma: float = 0.0
    qk_norm: bool = False
    dropout: float = 0.0
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = free(False)
    unroll: int = free(1)
    attention: Backend = free("auto")

    def __post_init__(self) -> None:
        check_settings(
            self, "model.", layers=1, width=1, heads=1, kv_heads=1, head_width=1, mlp_ratio=1,
            mlp_width=1, positions=1, rope_theta=1, norm_epsilon=0, unroll=1, condition=0,
            embedding_gamma=0,
        )  # fmt: skip
        if self.head_width is None and self.width % (2 * self.heads):
            raise UserError(
                f"model.width={self.width} does not split into model.heads={self.heads} heads of "
                "an even width: choose a multiple of twice the number of heads."
            )
        if self.head_size % 2:
            raise UserError(f"model.head_width must be even, but is {self.head_size}.")
        if self.heads % self.groups:
            raise UserError(
                f"model.heads={self.heads} do not divide among model.kv_heads={self.groups}: "
                "choose a divisor."
            )
        if self.position == "learned" and self.positions is None:
            raise UserError("model.position=learned needs model.positions, the rows of its table.")
        rotary.scaling(self.rope_scaling)
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"model.dropout must lie in [0, 1), but is {self.dropout}.")
        if self.embedding_gamma and not self.condition:
            raise UserError("model.embedding_gamma needs model.condition above 0.")

    @property
    def head_size(self) -> int:
        """K, the width of a head."""
        return self.head_width or self.width // self.heads

    @property
    def groups(self) -> int:
        """G, the heads of keys and values."""
        return self.kv_heads or self.heads

    @property
    def hidden(self) -> int:
        """Width of the MLP."""
        return self.mlp_width or (self.mlp_ratio or 4) * self.width


FORM = tuple(
    field.name
    for field in dataclasses.fields(ModelConfig)
    if field.metadata.get("identity", True) and field.name not in ("positions", "dropout", "dtype")
)
"""Settings that say what the parameters mean, and not how they are trained or computed with."""
