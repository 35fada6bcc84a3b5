"""Text to token ids and back: SentencePiece (trained here), bytes, and GPT-2's BPE."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import sentencepiece
import tiktoken

from hybrid_jax.errors import UserError

_TRAINING_BYTES = 20_000_000  # more text hardly changes a vocabulary, but takes memory
_GPT2_PATTERN = (
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)


class Tokenizer(Protocol):
    """Real tokens are 0 … vocab_size − 1; MASK, id vocab_size, is the noise's and not here."""

    name: str
    vocab_size: int
    bos: int
    eos: int
    fingerprint: str

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, int32, without bos and eos."""

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; bos, eos and MASK give no text. UserError for ids above MASK."""

    def save(self, folder: Path) -> None:
        """Writes what `load_tokenizer` needs."""


class SentencePiece:
    """A SentencePiece model."""

    name = "sentencepiece"
    _file = "sentencepiece.model"

    def __init__(self, model: bytes):
        self._model = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.vocab_size = self._processor.vocab_size()
        self.bos, self.eos = self._processor.bos_id(), self._processor.eos_id()
        self.fingerprint = hashlib.sha256(model).hexdigest()

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> SentencePiece:
        """BPE with byte fallback; the same texts give the same model.

        Every text comes back exactly, but for the character "▁" (U+2581), which SentencePiece
        itself uses for the space.
        """
        buffer = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=_lines(texts),
                model_writer=buffer,
                model_type="bpe",
                vocab_size=vocab_size,
                num_threads=1,
                byte_fallback=True,
                character_coverage=0.9995,
                pad_id=0,
                bos_id=1,
                eos_id=2,
                unk_id=3,
                normalization_rule_name="identity",
                remove_extra_whitespaces=False,
                add_dummy_prefix=False,
                split_digits=True,
                user_defined_symbols=["\n"],
                shuffle_input_sentence=False,
                max_sentence_length=100_000,
                minloglevel=2,
            )
        except (RuntimeError, OSError) as error:
            raise UserError(
                f"SentencePiece cannot learn vocab_size={vocab_size} from this text: choose a "
                f"smaller vocabulary (at least 300) or more text."
            ) from error
        return cls(buffer.getvalue())

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.asarray(ids, np.int32) for ids in self._processor.encode(list(texts))]

    def decode(self, ids: Iterable[int]) -> str:
        return self._processor.decode(_real_ids(ids, self))

    def save(self, folder: Path) -> None:
        (folder / self._file).write_bytes(self._model)
        _describe(folder, self)

    @classmethod
    def load(cls, folder: Path) -> SentencePiece:
        return cls((folder / cls._file).read_bytes())


class Bytes:
    """UTF-8 bytes, and two specials."""

    name = "byte"
    vocab_size = 258
    bos, eos = 256, 257
    fingerprint = hashlib.sha256(b"byte/258").hexdigest()

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(_real_ids(ids, self)).decode("utf-8", errors="replace")

    def save(self, folder: Path) -> None:
        _describe(folder, self)

    @classmethod
    def load(cls, folder: Path) -> Bytes:
        return cls()


class GPT2:
    """GPT-2's byte-level BPE from its two files; <|endoftext|> separates documents."""

    name = "gpt2"
    _files = ("encoder.json", "vocab.bpe")

    def __init__(self, folder: Path):
        self._folder = folder
        for file in self._files:
            if not (folder / file).is_file():
                raise UserError(
                    f"The gpt2 tokenizer needs {' and '.join(self._files)} in {folder}: "
                    f"{file} is missing."
                )
        try:
            ranks = _gpt2_ranks(*((folder / file).read_text("utf-8") for file in self._files))
        except (ValueError, KeyError) as error:
            raise UserError(f"The files of GPT-2's tokenizer in {folder} are damaged.") from error
        self.bos = self.eos = len(ranks)
        self.vocab_size = len(ranks) + 1
        self._encoding = tiktoken.Encoding(
            "gpt2",
            pat_str=_GPT2_PATTERN,
            mergeable_ranks=ranks,
            special_tokens={"<|endoftext|>": self.eos},
        )
        content = b"".join((folder / file).read_bytes() for file in self._files)
        self.fingerprint = hashlib.sha256(content).hexdigest()

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        # Ordinary: a document that spells <|endoftext|> is text and does not end there.
        return [np.asarray(self._encoding.encode_ordinary(text), np.int32) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        return self._encoding.decode(_real_ids(ids, self), errors="replace")

    def save(self, folder: Path) -> None:
        for file in self._files:
            shutil.copyfile(self._folder / file, folder / file)
        _describe(folder, self)

    @classmethod
    def load(cls, folder: Path) -> GPT2:
        return cls(folder)


def _gpt2_ranks(encoder: str, merges: str) -> dict[bytes, int]:
    """Byte strings to ids, from the text of encoder.json and vocab.bpe.

    Both files spell bytes as printable characters: a byte that is one stands for itself, the
    others follow from U+0100 on. Ids are the ranks of the merges, which is checked.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    byte_of = {chr(byte): byte for byte in printable}
    byte_of |= {chr(256 + place): byte for place, byte in enumerate(others)}

    def to_bytes(spelled: str) -> bytes:
        return bytes(byte_of[character] for character in spelled)

    ids = json.loads(encoder)
    del ids["<|endoftext|>"]
    ranks = {to_bytes(token): rank for token, rank in ids.items()}
    pairs = [line.split() for line in merges.split("\n")[1:] if line]
    for rank, (left, right) in enumerate(pairs, start=256):
        if ranks[to_bytes(left) + to_bytes(right)] != rank:
            raise ValueError(f"merge {rank} is not token {rank}")
    return ranks


_KINDS = {kind.name: kind for kind in (SentencePiece, Bytes, GPT2)}


def make_tokenizer(spec: str, texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """The tokenizer "sentencepiece" (trained on `texts`), "byte" or "gpt2:FOLDER"."""
    kind, _, argument = spec.partition(":")
    if kind == "sentencepiece":
        return SentencePiece.train(texts, vocab_size)
    if kind == "byte":
        return Bytes()
    if kind == "gpt2" and argument:
        return GPT2(Path(argument))
    raise UserError(f"Unknown tokenizer {spec!r}: known are sentencepiece, byte and gpt2:FOLDER.")


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer saved in `folder`. UserError if there is none or its files changed."""
    path = Path(folder) / "tokenizer.json"
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        tokenizer = _KINDS[described["name"]].load(Path(folder))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"There is no tokenizer in {folder}: prepare the data again.") from error
    if tokenizer.fingerprint != described["fingerprint"]:
        raise UserError(f"The tokenizer files in {folder} have changed: prepare the data again.")
    return tokenizer


def _describe(folder: Path, tokenizer: Tokenizer) -> None:
    values = {"name": tokenizer.name, "fingerprint": tokenizer.fingerprint}
    (folder / "tokenizer.json").write_text(json.dumps(values) + "\n", encoding="utf-8")


def _lines(texts: Iterable[str]):
    taken = 0
    for text in texts:
        yield from (line for line in text.split("\n") if line)
        taken += len(text)
        if taken > _TRAINING_BYTES:
            return


def _real_ids(ids: Iterable[int], tokenizer: Tokenizer) -> list[int]:
    real = []
    for token in map(int, ids):
        if not 0 <= token <= tokenizer.vocab_size:
            raise UserError(
                f"Token id {token} is outside the vocabulary of {tokenizer.vocab_size} tokens."
            )
        if token not in (tokenizer.bos, tokenizer.eos, tokenizer.vocab_size):
            real.append(token)
    return real
