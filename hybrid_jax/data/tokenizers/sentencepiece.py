"""A SentencePiece BPE model, trained here on the text it will encode."""

import dataclasses
import functools
import hashlib
import io
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import sentencepiece

from hybrid_jax.data.tokenizers.base import Tokenizer, write_descriptor
from hybrid_jax.errors import UserError

TRAINING_BYTES = 20_000_000  # more text hardly changes a vocabulary, and is held in memory
_SPECIALS = 4  # pad, bos, eos, unk; no text encodes to them
_SPACE = "▁"  # a space in the model's pieces; the character itself is encoded as bytes
_MODEL = "sentencepiece.model"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SentencePieceTokenizer(Tokenizer):
    """BPE with byte fallback: `decode` gives every text back exactly, whatever its spacing.

    Attributes:
      model: the serialised model.
    """

    model: bytes = dataclasses.field(repr=False)
    name: ClassVar[str] = "sentencepiece"
    bos: ClassVar[int] = 1
    eos: ClassVar[int] = 2

    @functools.cached_property
    def _processor(self) -> sentencepiece.SentencePieceProcessor:
        return sentencepiece.SentencePieceProcessor(model_proto=self.model)

    @property
    def vocab_size(self) -> int:
        return self._processor.vocab_size()

    @functools.cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(b"sentencepiece " + self.model).hexdigest()

    @functools.cached_property
    def token_bytes(self) -> np.ndarray:
        def length(i: int) -> int:
            if i < _SPECIALS:
                return 0
            if self._processor.is_byte(i):
                return 1
            return len(self._processor.id_to_piece(i).replace(_SPACE, " ").encode("utf-8"))

        return np.array([length(i) for i in range(self.vocab_size)], np.int32)

    def encode(self, text: str) -> np.ndarray:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        plain = [text.split(_SPACE) for text in texts]
        encoded = iter(self._processor.encode([part for parts in plain for part in parts]))
        space = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE.encode()]
        rows = []
        for parts in plain:
            ids = list(next(encoded))
            for _ in parts[1:]:
                ids += space + next(encoded)
            rows.append(np.array(ids, np.int32))
        return rows

    def _text(self, ids: list[int]) -> str:
        return str(self._processor.decode([i for i in ids if i >= _SPECIALS]))

    def save(self, folder: Path) -> None:
        (folder / _MODEL).write_bytes(self.model)
        write_descriptor(folder, self)


def load(folder: Path) -> SentencePieceTokenizer:
    """The model saved in a folder. Raises UserError if it is missing or damaged."""
    path = folder / _MODEL
    try:
        tokenizer = SentencePieceTokenizer(model=path.read_bytes())
        if tokenizer.vocab_size <= _SPECIALS:
            raise UserError(f"{path} is damaged: restore it, or prepare the data again.")
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): prepare the data again."
        ) from error
    except RuntimeError as error:  # of the processor, for bytes that are no model
        raise UserError(f"{path} is damaged: restore it, or prepare the data again.") from error
    return tokenizer


def train(
    texts: Iterable[str], *, vocab_size: int, training_bytes: int = TRAINING_BYTES
) -> SentencePieceTokenizer:
    """Trains on the beginning of `texts`; equal texts give equal models.

    Args:
      texts: read up to `training_bytes` bytes of UTF-8.
      vocab_size: N; at least 260 (4 special tokens and 256 bytes) and the characters of the text.

    Raises:
      UserError: if the text is too small or has too many characters for `vocab_size`.
    """
    buffer = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(texts, training_bytes),
            model_writer=buffer,
            model_type="bpe",
            vocab_size=vocab_size,
            num_threads=1,  # stored in the model, whose bytes would depend on it
            byte_fallback=True,
            character_coverage=0.9995,
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            # The next four keep text exact and let parts be encoded one by one.
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            shuffle_input_sentence=False,
            max_sentence_length=1 << 20,  # bytes; longer lines would be left out
            minloglevel=3,  # failures come as exceptions
        )
    except RuntimeError as error:
        raise UserError(_explain(str(error), vocab_size)) from error
    return SentencePieceTokenizer(model=buffer.getvalue())


def _lines(texts: Iterable[str], limit: int) -> Iterator[str]:
    total = 0
    for line in itertools.chain.from_iterable(text.split("\n") for text in texts):
        if line:
            total += len(line.encode("utf-8"))
            if total > limit:
                return
            yield line


def _explain(message: str, vocab_size: int) -> str:
    if most := re.search(r"value <= (\d+)", message):
        return (
            f"vocab_size={vocab_size} is more than this text supports: choose at most "
            f"{most[1]}, or use more text."
        )
    if least := re.search(r"required_chars\. \d+ vs (\d+)", message):
        return (
            f"vocab_size={vocab_size} is too small for the bytes and characters of this text: "
            f"choose at least {least[1]}."
        )
    if "sentences_.empty" in message:
        return "There is no text to train a tokenizer on: use more text."
    return f"SentencePiece could not train a vocabulary of {vocab_size}: {message.strip()}."
