"""Characters as tokens."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

import numpy as np

from hybrid_jax.data.tokenizers.base import Tokenizer, write_descriptor
from hybrid_jax.errors import UserError
from hybrid_jax.runtime.decode import parse_json
from hybrid_jax.runtime.json_text import write_json

_ALPHABET = "characters.json"
_CODE_POINTS = 0x110000


@dataclasses.dataclass(frozen=True, kw_only=True)
class CharTokenizer(Tokenizer):
    """The characters (code points) of a text as tokens 0 ... n-1; bos and eos are n.

    Attributes:
      characters: in the order of their ids, which is that of Unicode.
    """

    characters: str = dataclasses.field(repr=False)
    name: ClassVar[str] = "char"

    @property
    def vocab_size(self) -> int:
        return len(self.characters) + 1

    @property
    def bos(self) -> int:
        return len(self.characters)

    @property
    def eos(self) -> int:
        return len(self.characters)

    @functools.cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(b"char " + self.characters.encode("utf-8")).hexdigest()

    @functools.cached_property
    def token_bytes(self) -> np.ndarray:
        return np.array([*(len(c.encode("utf-8")) for c in self.characters), 0], np.int32)

    @functools.cached_property
    def _ids(self) -> np.ndarray:
        """int32 [code points]: ids, and -1 for what is no character of the vocabulary."""
        ids = np.full(_CODE_POINTS, -1, np.int32)
        ids[_code_points(self.characters)] = np.arange(len(self.characters))
        return ids

    def encode(self, text: str) -> np.ndarray:
        """Ids of a text. Raises UserError for a character that the vocabulary lacks."""
        ids: np.ndarray = self._ids[_code_points(text)]
        if (ids < 0).any():
            character = text[int(np.argmin(ids))]
            raise UserError(
                f"The character {character!r} (U+{ord(character):04X}) is not among the "
                f"{len(self.characters)} of this tokenizer, those of the text that it was made "
                "for: leave it out, or use tokenizer=byte."
            )
        return ids

    def _text(self, ids: list[int]) -> str:
        return "".join(self.characters[i] for i in ids if i != self.eos)

    def save(self, folder: Path) -> None:
        write_json(folder / _ALPHABET, self.characters)
        write_descriptor(folder, self)


def of_texts(texts: Iterable[str]) -> CharTokenizer:
    """The tokenizer of all characters of some texts. Raises UserError if there are none."""
    found: set[str] = set()
    for text in texts:
        found.update(text)
    if not found:
        raise UserError("There is no text to take characters from: use more text.")
    return CharTokenizer(characters="".join(sorted(found)))


def load(folder: Path) -> CharTokenizer:
    """The tokenizer saved in a folder. Raises UserError if it is missing or damaged."""
    path = folder / _ALPHABET
    try:
        characters = parse_json(path.read_bytes())
        if not isinstance(characters, str) or not characters:
            raise ValueError("it holds no characters")
        return of_texts([characters.encode("utf-8").decode("utf-8")])
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): prepare the data again."
        ) from error
    except ValueError as error:
        raise UserError(f"{path} is damaged: restore it, or prepare the data again.") from error


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), "<u4")
