"""GPT-2's byte-level BPE, from its two published files."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import tiktoken
import tiktoken.load

from hybrid_jax.data.tokenizers.base import decode_runs, write_descriptor
from hybrid_jax.errors import UserError

ENCODER, MERGES = "encoder.json", "vocab.bpe"
_ELSEWHERE = ("vocab.json", "merges.txt")  # the same files as Hugging Face names them
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPT2Tokenizer:
    """50,257 tokens, the last of which, <|endoftext|>, is both bos and eos.

    The characters "<|endoftext|>" in a text are ordinary text.

    Attributes:
      encoder: content of encoder.json.
      merges: content of vocab.bpe.
      ranks: ids of byte strings, which are also the order of merging.
    """

    encoder: bytes = dataclasses.field(repr=False)
    merges: bytes = dataclasses.field(repr=False)
    ranks: Mapping[bytes, int] = dataclasses.field(repr=False)
    name: ClassVar[str] = "gpt2"

    @functools.cached_property
    def _encoding(self) -> tiktoken.Encoding:
        return tiktoken.Encoding(
            "gpt2",
            pat_str=_WORDS,
            mergeable_ranks=dict(self.ranks),
            special_tokens={"<|endoftext|>": len(self.ranks)},
        )

    @property
    def vocab_size(self) -> int:
        return self._encoding.n_vocab

    @property
    def bos(self) -> int:
        return self._encoding.n_vocab - 1

    @property
    def eos(self) -> int:
        return self._encoding.n_vocab - 1

    @functools.cached_property
    def fingerprint(self) -> str:
        digests = (hashlib.sha256(part).digest() for part in (self.encoder, self.merges))
        return hashlib.sha256(b"gpt2 " + b"".join(digests)).hexdigest()

    @functools.cached_property
    def token_bytes(self) -> np.ndarray:
        lengths = [len(self._encoding.decode_single_token_bytes(i)) for i in range(self.eos)]
        return np.array([*lengths, 0], np.int32)

    def encode(self, text: str) -> np.ndarray:
        return np.array(self._encoding.encode_ordinary(text), np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        rows = self._encoding.encode_ordinary_batch(list(texts))
        return [np.array(row, np.int32) for row in rows]

    def decode(self, ids: Iterable[int], *, mask_text: str = "") -> str:
        def text(run: list[int]) -> str:
            return self._encoding.decode([i for i in run if i != self.eos], errors="replace")

        return decode_runs(ids, self.vocab_size, mask_text, text)

    def save(self, folder: Path) -> None:
        (folder / ENCODER).write_bytes(self.encoder)
        (folder / MERGES).write_bytes(self.merges)
        write_descriptor(folder, self)


def load(folder: Path) -> GPT2Tokenizer:
    """The tokenizer of the two files in a folder, encoder.json and vocab.bpe, or vocab.json and
    merges.txt as Hugging Face calls them.

    Raises:
      UserError: if a file is missing, or the two are not a byte-level BPE.
    """
    names = (ENCODER, MERGES)
    if not any((folder / name).exists() for name in names):
        names = _ELSEWHERE if (folder / _ELSEWHERE[0]).exists() else names
    try:
        encoder, merges = ((folder / name).read_bytes() for name in names)
    except OSError as error:
        raise UserError(
            f"The GPT-2 tokenizer needs the files {names[0]} and {names[1]} in {folder}: "
            f"{error.filename}: {error.strerror}."
        ) from error
    try:
        with _without_cache():
            ranks = tiktoken.load.data_gym_to_mergeable_bpe_ranks(
                vocab_bpe_file=str(folder / names[1]), encoder_json_file=str(folder / names[0])
            )
    except (
        AssertionError, ValueError, KeyError, TypeError, AttributeError, RecursionError
    ) as error:  # fmt: skip
        raise UserError(
            f"{names[0]} and {names[1]} in {folder} are damaged or do not belong together: fetch "
            "them again."
        ) from error
    return GPT2Tokenizer(encoder=encoder, merges=merges, ranks=ranks)


@contextlib.contextmanager
def _without_cache() -> Iterator[None]:
    """Keeps tiktoken from copying the files into a cache that goes by their paths alone."""
    before = os.environ.get("TIKTOKEN_CACHE_DIR")
    os.environ["TIKTOKEN_CACHE_DIR"] = ""
    try:
        yield
    finally:
        if before is None:
            del os.environ["TIKTOKEN_CACHE_DIR"]
        else:
            os.environ["TIKTOKEN_CACHE_DIR"] = before
