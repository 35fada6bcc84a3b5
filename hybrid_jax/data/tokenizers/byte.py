"""Bytes as tokens."""

import dataclasses
import functools
import hashlib
from typing import ClassVar

import numpy as np

from hybrid_jax.data.tokenizers.base import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class ByteTokenizer(Tokenizer):
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

    def _text(self, ids: list[int]) -> str:
        return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")
