"""An autoregressive run of this package as a scorer: for tokenizers and machines without a GPT-2.

Such a scorer should have taken no part in making the texts. It is as small as the scored model, so
its numbers compare models and samplers of one project, and not with those of papers.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from hybrid_jax.data.tokenizers.base import Tokenizer
from hybrid_jax.errors import UserError
from hybrid_jax.eval.scorers.base import Scorer
from hybrid_jax.models.transformer import Transformer
from hybrid_jax.runtime.files import expanded
from hybrid_jax.training import pretrained


def load(workdir: str | Path, mesh: Mesh | None = None) -> tuple[Scorer, Tokenizer]:
    """A scorer from the workdir of a run such as `configs/ar.py` trains, and its tokenizer.

    It reads behind a beginning-of-sequence token; its context is one token more than the records
    that it was trained on.

    Raises:
      UserError: if it cannot be read, or its run is not autoregressive with shifted rows.
    """
    workdir = expanded(workdir)
    model = pretrained.load(workdir, mesh=mesh)
    if not model.spec.layout.plain(model.spec.schedule):
        raise UserError(
            f"{workdir} cannot score texts: it holds a run of {model.spec.schedule.name} with "
            f"{model.spec.layout.alignment} rows, where a scorer must predict each token from "
            "those before it; train one with configs/ar.py."
        )
    scorer = Scorer(
        name=f"{workdir}, step {model.step}", network=model.network, params=model.params,
        mesh=model.mesh, features=_features, logits=_logits, vocab_size=model.network.vocab_size,
        context=model.spec.schedule.length + 1, width=model.network.width, needs_bos=True,
    )  # fmt: skip
    return scorer, model.tokenizer


def _features(network: Transformer, params: Any, tokens: jax.Array) -> jax.Array:
    # The beginning-of-sequence token stands before the text.
    position = jnp.arange(-1, tokens.shape[1] - 1)
    causal = position[:, None] >= position
    return network.features(
        params, tokens, position[None], causal[None], jnp.zeros(tokens.shape, jnp.float32)
    ).astype(jnp.float32)


def _logits(network: Transformer, params: Any, feature: jax.Array) -> jax.Array:
    return network.logits(params, feature)[: network.vocab_size]
