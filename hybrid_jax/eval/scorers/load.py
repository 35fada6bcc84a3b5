"""Scorers by name, each with the tokenizer that it reads."""

from jax.sharding import Mesh

from hybrid_jax.data.tokenizers.base import Tokenizer
from hybrid_jax.errors import UserError
from hybrid_jax.eval.scorers import gpt2, run
from hybrid_jax.eval.scorers.base import Scorer


def load(name: str, mesh: Mesh | None = None) -> tuple[Scorer, Tokenizer]:
    """The scorer of a name, with its tokenizer.

    Args:
      name: "run:DIR", the workdir of an autoregressive run, or "gpt2:SOURCE", a folder or a name on
        the Hugging Face hub such as "gpt2-large", with the tokenizer's files beside the weights.
      mesh: of the devices to use; None for the first one.

    Raises:
      UserError: for anything else, or if it cannot be read.
    """
    kind, _, source = name.partition(":")
    if kind == "run" and source:
        return run.load(source, mesh)
    if kind == "gpt2" and source:
        return gpt2.load_with_tokenizer(source, mesh)
    raise UserError(
        f"There is no scorer {name!r}: write run:DIR for an autoregressive run, or gpt2:FOLDER, or "
        "gpt2:NAME for one of the Hugging Face hub."
    )
