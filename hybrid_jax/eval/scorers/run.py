"""An autoregressive run of this package as a scorer: for tokenizers and machines without a GPT-2.

Such a scorer should have taken no part in making the texts. It is as small as the scored model, so
its numbers compare models and samplers of one project, and not with those of papers.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from hybrid_jax.data.tokenizers.base import Tokenizer
from hybrid_jax.errors import UserError
from hybrid_jax.eval.scorers import base as scoring
from hybrid_jax.models.transformer import Transformer
from hybrid_jax.runtime.files import expanded
from hybrid_jax.training import pretrained


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RunScorer:
    """A trained causal network: a `base.Scorer` that reads behind a beginning-of-sequence token.

    Attributes:
      name: workdir and step of the run.
      network, params: float32 arrays by name.
      tokenizer: of its tokens.
      length: L, tokens of the records that it was trained on; the context is one token more.
    """

    name: str
    network: Transformer
    params: Any = dataclasses.field(repr=False)
    tokenizer: Tokenizer
    length: int
    needs_bos: ClassVar[bool] = True

    @property
    def vocab_size(self) -> int:
        return self.network.vocab_size

    @property
    def context(self) -> int:
        return self.length + 1  # with the beginning-of-sequence token

    @property
    def width(self) -> int:
        return self.network.width

    @functools.cached_property
    def fingerprint(self) -> str:
        return scoring.fingerprint(self.network, self.params)

    def read(
        self, rows: np.ndarray, lengths: np.ndarray, *, nats: bool
    ) -> tuple[jax.Array, jax.Array]:
        token_nats, at_end = _read(self.network, self.params, rows, lengths, nats=nats)
        return token_nats, at_end


def load(workdir: str | Path, *, step: int | Literal["best"] | None = None) -> RunScorer:
    """A scorer from the workdir of a run such as `configs/ar.py` trains.

    Raises:
      UserError: if it cannot be read, or its run is not autoregressive with shifted rows.
    """
    workdir = expanded(workdir)
    model = pretrained.load(workdir, step=step)
    if not model.spec.layout.plain(model.spec.schedule):
        raise UserError(
            f"{workdir} cannot score texts: it holds a run of {model.spec.schedule.name} with "
            f"{model.spec.layout.alignment} rows, where a scorer must predict each token from "
            "those before it; train one with configs/ar.py."
        )
    return RunScorer(
        name=f"{workdir}, step {model.step}",
        network=model.network,
        params=model.params,
        tokenizer=model.tokenizer,
        length=model.spec.schedule.length,
    )


@functools.partial(jax.jit, static_argnames=("network", "nats"))
def _read(
    network: Transformer, params: Any, tokens: jax.Array, lengths: jax.Array, *, nats: bool
) -> tuple[jax.Array, jax.Array]:
    batch, count = tokens.shape
    position = jnp.arange(-1, count - 1)  # the beginning-of-sequence token stands before the text
    causal = position[:, None] >= position
    found = network.features(
        params, tokens, position[None], causal[None], jnp.zeros(tokens.shape, jnp.float32)
    ).astype(jnp.float32)
    at_end = scoring.at_last(found, lengths)
    if not nats:
        return jnp.zeros((batch, count - 1)), at_end

    def logits(feature: jax.Array) -> jax.Array:
        return network.logits(params, feature)[: network.vocab_size]

    return scoring.next_nats(logits, found, tokens), at_end
