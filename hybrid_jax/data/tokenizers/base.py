"""The interface of tokenizers, and what their implementations share.

Real tokens are 0 ... N-1 for N = `vocab_size`. MASK, id N, belongs to the noise: no tokenizer
produces it, and it has no text.
"""

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from hybrid_jax.errors import UserError
from hybrid_jax.runtime.json_text import write_json

DESCRIPTOR = "tokenizer.json"


class Tokenizer(Protocol):
    """Text to ids and back.

    Attributes:
      name: its kind: "sentencepiece", "byte", "char", "gpt2", "hf" or "ids".
      vocab_size: N, the number of real tokens.
      bos, eos: ids put before a text and after a document; they may be the same.
      fingerprint: SHA-256, hexadecimal, of all that defines the mapping between text and ids.
    """

    @property
    def name(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def bos(self) -> int: ...
    @property
    def eos(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...

    @property
    def token_bytes(self) -> np.ndarray:
        """int32 [N]: UTF-8 bytes of the text of each token; 0 for special tokens, and for all
        tokens that stand for no text.

        Summed over `encode(text)` they are the length of the text in bytes.
        """
        ...

    def encode(self, text: str) -> np.ndarray:
        """Ids of a text, int32 [n], without bos and eos; `decode` gives the text back exactly,
        unless the class says what it changes.

        Raises:
          UserError: for a text that it cannot write.
        """
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of each text, on all processors where that helps."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids in 0 ... N.

        Special tokens and MASK give no text, and invalid UTF-8 gives U+FFFD.

        Raises:
          UserError: for an id outside 0 ... N.
        """
        checked = [int(i) for i in ids]
        for i in checked:
            if not 0 <= i <= self.vocab_size:
                raise UserError(
                    f"Token id {i} is outside this tokenizer's 0 ... {self.vocab_size - 1}: it "
                    "comes from another tokenizer."
                )
        runs = itertools.groupby(checked, lambda i: i == self.vocab_size)
        return "".join(self._text(list(run)) for masked, run in runs if not masked)

    def _text(self, ids: list[int]) -> str:
        """`decode` of ids without MASK."""
        ...

    def save(self, folder: Path) -> None:
        """Writes the files that `load_tokenizer` reads into an existing folder."""
        write_descriptor(folder, self)


def write_descriptor(folder: Path, tokenizer: Tokenizer) -> None:
    """Writes the file by which `load_tokenizer` recognises a tokenizer."""
    values = {
        "name": tokenizer.name,
        "vocab_size": tokenizer.vocab_size,
        "bos": tokenizer.bos,
        "eos": tokenizer.eos,
        "fingerprint": tokenizer.fingerprint,
    }
    write_json(folder / DESCRIPTOR, values)
