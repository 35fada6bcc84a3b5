"""Pairs of a prompt and an answer, each a record of its own: the answer alone is to be learned."""

import numpy as np

from hybrid_jax.data.mixture import mixed
from hybrid_jax.errors import UserError

FIELDS = ("prompt", "answer")
Piece = str | tuple[str, str]  # of a document, or a pair


def is_pairs(source: str) -> bool:
    """True for a source of pairs (see `sources.documents`), or a mixture of such."""
    return any(one.startswith("pairs:") for one in mixed(source))


def texts(piece: Piece) -> tuple[str, ...]:
    """The texts of a piece, which are encoded one by one."""
    return (piece,) if isinstance(piece, str) else piece


def checked(where: str, prompt: str | None, answer: str | None) -> tuple[str, str]:
    """A pair, whose prompt may be empty. Raises UserError if there is no answer."""
    if not (answer and answer.strip()):
        raise UserError(f"{where} has no answer: add it or drop the pair.")
    return prompt or "", answer


def lengths(tokens: np.ndarray, given: np.ndarray, eos: int) -> np.ndarray:
    """Tokens of each pair with its first eos, int32 [n].

    Args:
      tokens: records, int32 [n, L].
      given: tokens of the prompts, int32 [n]; an answer has no eos, but a prompt may.
    """
    ends = (tokens == eos) & (np.arange(tokens.shape[1]) >= given[:, None])
    return np.asarray(np.argmax(ends, axis=1) + 1, np.int32)
