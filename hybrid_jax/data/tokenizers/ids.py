"""Texts that are ids already: numbers separated by spaces, of proteins, music or events."""

import dataclasses
import hashlib
from typing import ClassVar

import numpy as np

from hybrid_jax.data.tokenizers.base import Tokenizer
from hybrid_jax.errors import MOST_WHOLE, UserError

# No comma and no tab: long documents are cut at spaces and ends of lines (`splits.cut`), and a
# number must not be cut.
_CHARACTERS = frozenset("0123456789 \r\n")
_SHOWN = 40  # characters of a text in a sentence


@dataclasses.dataclass(frozen=True, kw_only=True)
class IdTokenizer(Tokenizer):
    """The numbers 0 ... n-1 as tokens of the same ids; bos and eos are n.

    `decode` puts a space behind each id, so texts can be joined as those of other tokenizers can.
    Tokens have no bytes, because there is no text to count them in.

    Attributes:
      symbols: n.
    """

    symbols: int
    name: ClassVar[str] = "ids"

    @property
    def vocab_size(self) -> int:
        return self.symbols + 1

    @property
    def bos(self) -> int:
        return self.symbols

    @property
    def eos(self) -> int:
        return self.symbols

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"ids {self.symbols}".encode()).hexdigest()

    @property
    def token_bytes(self) -> np.ndarray:
        return np.zeros(self.vocab_size, np.int32)

    def encode(self, text: str) -> np.ndarray:
        """The ids of a text. Raises UserError for one out of range, and for other characters."""
        shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
        if strange := set(text) - _CHARACTERS:
            raise UserError(
                f"The record {shown!r} holds {min(strange)!r}: write ids separated by spaces, such "
                "as '3 17 4'."
            )
        words = text.split()
        # Lengths first: Python refuses to read very long numbers.
        for word in words:
            if len(word) > 10 or int(word) >= self.symbols:
                raise UserError(
                    f"The id {word[:12]} of the record {shown!r} is outside 0 … "
                    f"{self.symbols - 1}, those of the tokenizer ids:{self.symbols}."
                )
        return np.array([int(word) for word in words], np.int32)

    def _text(self, ids: list[int]) -> str:
        return "".join(f"{i} " for i in ids if i != self.eos)


def of_vocabulary(text: str) -> IdTokenizer:
    """The tokenizer of so many ids. Raises UserError for what is no such number."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 10):
        raise UserError(
            f"The tokenizer ids:{text} does not say how many ids there are: write ids:VOCABULARY, "
            "such as ids:128 for the ids 0 … 127."
        )
    if not 1 <= int(text) < MOST_WHOLE - 1:
        raise UserError(f"The tokenizer ids:{text} must have 1 … {MOST_WHOLE - 2} ids.")
    return IdTokenizer(symbols=int(text))
