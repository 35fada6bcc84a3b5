"""GPT-2's byte-level BPE, from its two published files."""

import dataclasses
import functools
import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import tiktoken

from hybrid_jax.data import content
from hybrid_jax.data.tokenizers.base import Tokenizer, write_descriptor
from hybrid_jax.errors import UserError

ENCODER, MERGES = "encoder.json", "vocab.bpe"
_ELSEWHERE = ("vocab.json", "merges.txt")  # the same files as Hugging Face names them
_END = "<|endoftext|>"
_SPECIAL = re.compile(r"<.+>|\[.+\]")
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# The files write each byte as a character: itself where it can be seen, else one from 256 on.
_SEEN = [byte for byte in range(256) if chr(byte).isprintable() and byte != ord(" ")]
BYTES = {chr(byte): byte for byte in _SEEN} | {
    chr(256 + number): byte for number, byte in enumerate(sorted(set(range(256)) - set(_SEEN)))
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPT2Tokenizer(Tokenizer):
    """A byte-level BPE; of GPT-2 itself, 50,257 tokens.

    Special tokens have no text, and their characters in a text, as in "<|endoftext|>", are ordinary
    text.

    Attributes:
      encoder: content of encoder.json.
      merges: content of vocab.bpe.
      ranks: ids of byte strings, which are also the order of merging; other ids are special.
      bos, eos: <|endoftext|> is both; without it, <s> and </s>.
      vocab_size: N.
    """

    encoder: bytes = dataclasses.field(repr=False)
    merges: bytes = dataclasses.field(repr=False)
    ranks: Mapping[bytes, int] = dataclasses.field(repr=False)
    bos: int = 0  # values, where `Tokenizer` has properties
    eos: int = 0
    vocab_size: int = 0
    name: ClassVar[str] = "gpt2"

    @functools.cached_property
    def _encoding(self) -> tiktoken.Encoding:
        return tiktoken.Encoding(
            "gpt2", pat_str=_WORDS, mergeable_ranks=dict(self.ranks), special_tokens={}
        )

    @functools.cached_property
    def fingerprint(self) -> str:
        digests = (hashlib.sha256(part).digest() for part in (self.encoder, self.merges))
        return hashlib.sha256(b"gpt2 " + b"".join(digests)).hexdigest()

    @functools.cached_property
    def token_bytes(self) -> np.ndarray:
        lengths = np.zeros(self.vocab_size, np.int32)
        for token, i in self.ranks.items():
            lengths[i] = len(token)
        return lengths

    def encode(self, text: str) -> np.ndarray:
        return np.array(self._encoding.encode_ordinary(text), np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        rows = self._encoding.encode_ordinary_batch(list(texts))
        return [np.array(row, np.int32) for row in rows]

    def _text(self, ids: list[int]) -> str:
        return self._encoding.decode([i for i in ids if self.token_bytes[i]], errors="replace")

    def save(self, folder: Path) -> None:
        (folder / ENCODER).write_bytes(self.encoder)
        (folder / MERGES).write_bytes(self.merges)
        write_descriptor(folder, self)


def load(folder: Path) -> GPT2Tokenizer:
    """The tokenizer of the two files in a folder, encoder.json and vocab.bpe, or vocab.json and
    merges.txt as Hugging Face calls them; special tokens, in <> or [], may have been added.

    Raises:
      UserError: if a file is missing, or the two are not a byte-level BPE.
    """
    names = _names(folder)
    try:
        encoder, merges = ((folder / name).read_bytes() for name in names)
    except OSError as error:
        raise UserError(
            f"The GPT-2 tokenizer needs the files {names[0]} and {names[1]} in {folder}: "
            f"{error.filename}: {error.strerror}."
        ) from error
    try:
        return _tokenizer(encoder, merges)
    except (ValueError, RecursionError) as error:
        fault = error.args[0] if type(error) is ValueError else "are damaged"
        raise UserError(
            f"{names[0]} and {names[1]} in {folder} {fault}: fetch both again, from one model."
        ) from error


def contents(folder: Path) -> dict[str, content.Content]:
    """The content of the two files in a folder. Raises UserError if one is missing."""
    paths = [folder / name for name in _names(folder)]
    return {str(path): content.of_file(path) for path in paths}


def _names(folder: Path) -> tuple[str, str]:
    here = any((folder / name).exists() for name in (ENCODER, MERGES))
    return _ELSEWHERE if not here and (folder / _ELSEWHERE[0]).exists() else (ENCODER, MERGES)


def _tokenizer(encoder: bytes, merges: bytes) -> GPT2Tokenizer:
    """Raises ValueError with a predicate for the two contents if they are no byte-level BPE."""
    ids = json.loads(encoder)
    pairs = [pair for line in merges.decode("utf-8-sig").split("\n") if (pair := line.split())]
    if pairs and pairs[0][0] == "#version:":
        del pairs[0]
    if not isinstance(ids, dict) or {*map(repr, ids.values())} != {*map(repr, range(len(ids)))}:
        raise ValueError("do not give each token an id from 0 on")
    made = ["".join(pair) for pair in pairs]
    for pair, token in zip(pairs, made, strict=True):
        if len(pair) != 2 or not set(token) <= set(BYTES):
            raise ValueError(f"are damaged at the merge {' '.join(pair)[:40]!r}")
    special = ids.keys() - BYTES.keys() - set(made)
    strange = [token for token in sorted(special) if not _SPECIAL.fullmatch(token)]
    strange += [token for token in (*BYTES, *made) if token not in ids]
    if strange:
        raise ValueError(f"do not belong together: only one of them has {strange[0]!r}")
    if any(ids[first] >= ids[second] for first, second in itertools.pairwise(made)):
        raise ValueError("differ in the order of their tokens, which is not supported")
    size = len(ids)  # also the id of an end that the files leave out
    bos, eos = (int(ids[_END] if _END in ids else ids.get(name, size)) for name in ("<s>", "</s>"))
    return GPT2Tokenizer(
        encoder=encoder,
        merges=merges,
        ranks={bytes(BYTES[c] for c in token): ids[token] for token in (*BYTES, *made)},
        bos=bos,
        eos=eos,
        vocab_size=max(size, bos + 1, eos + 1),
    )
