"""The tokenizers by name: made for a corpus, or loaded from a folder."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from hybrid_jax.data import gpt2, sentencepiece_bpe
from hybrid_jax.data.tokenizer_protocol import (
    DESCRIPTOR,
    Tokenizer,
    decode_runs,
    write_descriptor,
)
from hybrid_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Byte:
    """The bytes of UTF-8 as tokens 0 ... 255, bos 256 and eos 257."""

    name: ClassVar[str] = "byte"
    vocab_size: ClassVar[int] = 258
    bos: ClassVar[int] = 256
    eos: ClassVar[int] = 257

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(b"byte 256 257").hexdigest()

    @functools.cached_property
    def token_bytes(self) -> np.ndarray:
        return (np.arange(self.vocab_size) < 256).astype(np.int32)

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int], *, mask_text: str = "") -> str:
        def text(run: list[int]) -> str:
            return bytes(i for i in run if i < 256).decode("utf-8", errors="replace")

        return decode_runs(ids, self.vocab_size, mask_text, text)

    def save(self, folder: Path) -> None:
        write_descriptor(folder, self)


def make_tokenizer(spec: str, texts: Iterable[str], *, vocab_size: int) -> Tokenizer:
    """The tokenizer that a specification names.

    Args:
      spec: "sentencepiece" (trained on `texts`), "byte", or "gpt2:FOLDER" with encoder.json and
        vocab.bpe in that folder.
      texts: read for "sentencepiece" only.
      vocab_size: N for "sentencepiece"; the others have their own.

    Raises:
      UserError: for an unknown or incomplete `spec`, missing files, or an impossible `vocab_size`.
    """
    kind, _, folder = spec.partition(":")
    if kind == "gpt2" and not folder:
        raise UserError(
            f"The gpt2 tokenizer needs a folder with {gpt2.ENCODER} and {gpt2.MERGES}: write "
            "gpt2:FOLDER."
        )
    if kind == "gpt2":
        return gpt2.load(Path(folder).expanduser())
    if spec == "sentencepiece":
        return sentencepiece_bpe.train(texts, vocab_size=vocab_size)
    if spec == "byte":
        return Byte()
    raise UserError(f"Unknown tokenizer {spec!r}: choose sentencepiece, byte or gpt2:FOLDER.")


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer saved in a folder.

    Raises:
      UserError: if there is none, or its files are damaged.
    """
    path = Path(folder) / DESCRIPTOR
    try:
        descriptor = json.loads(path.read_bytes())
        name, fingerprint = descriptor["name"], descriptor["fingerprint"]
    except OSError as error:
        raise UserError(
            f"{folder} holds no tokenizer ({DESCRIPTOR}: {error.strerror}): prepare the data first."
        ) from error
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is damaged: prepare the data again in a new folder.") from error
    loaders: dict[str, Callable[[Path], Tokenizer]] = {
        "byte": lambda folder: Byte(),
        "gpt2": gpt2.load,
        "sentencepiece": sentencepiece_bpe.load,
    }
    if name not in loaders:
        raise UserError(f"{path} names an unknown tokenizer, {name!r}: prepare the data again.")
    tokenizer = loaders[name](Path(folder))
    if tokenizer.fingerprint != fingerprint:
        raise UserError(
            f"The tokenizer's files in {folder} are not those that {DESCRIPTOR} describes: restore "
            "them, or prepare the data again in a new folder."
        )
    return tokenizer
