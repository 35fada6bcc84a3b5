"""Scorers by name, each with the tokenizer that it reads."""

from __future__ import annotations

from hybrid_jax.data.tokenizers.base import Tokenizer
from hybrid_jax.errors import UserError
from hybrid_jax.eval.scorers import gpt2_weights
from hybrid_jax.eval.scorers import run as run_scorer
from hybrid_jax.eval.scorers.base import Scorer


def load(spec: str) -> tuple[Scorer, Tokenizer]:
    """The scorer that a specification names.

    Args:
      spec: "run:DIR", the workdir of an autoregressive run, or "gpt2:SOURCE", a folder or a name on
        the Hugging Face hub such as "gpt2-large", with the tokenizer's files beside the weights.

    Raises:
      UserError: for anything else, or if it cannot be read.
    """
    kind, _, source = spec.partition(":")
    if kind == "run" and source:
        scorer = run_scorer.load(source)
        return scorer, scorer.tokenizer
    if kind == "gpt2" and source:
        return gpt2_weights.load_with_tokenizer(source)
    raise UserError(
        f"There is no scorer {spec!r}: write run:DIR for an autoregressive run, or gpt2:FOLDER, or "
        "gpt2:NAME for one of the Hugging Face hub."
    )
