"""Tokenizers by name: made for a corpus, or loaded from a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from hybrid_jax.data.content import Content
from hybrid_jax.data.tokenizers import gpt2, sentencepiece
from hybrid_jax.data.tokenizers.base import DESCRIPTOR, Tokenizer
from hybrid_jax.data.tokenizers.byte import ByteTokenizer
from hybrid_jax.errors import UserError
from hybrid_jax.runtime.decode import parse_json
from hybrid_jax.runtime.files import expanded


def make_tokenizer(name: str, texts: Iterable[str], *, vocab_size: int) -> Tokenizer:
    """The tokenizer of a name, trained where it is to be.

    Args:
      name: "sentencepiece" (trained on `texts`), "byte", or "gpt2:FOLDER" with encoder.json and
        vocab.bpe in that folder.
      texts: read for "sentencepiece" only.
      vocab_size: N for "sentencepiece"; the others have their own.

    Raises:
      UserError: for an unknown or incomplete `name`, missing files, or an impossible `vocab_size`.
    """
    kind, _, folder = name.partition(":")
    if kind == "gpt2" and not folder:
        raise UserError(
            f"The gpt2 tokenizer needs a folder with {gpt2.ENCODER} and {gpt2.MERGES}: write "
            "gpt2:FOLDER."
        )
    if kind == "gpt2":
        return gpt2.load(expanded(folder))
    if name == "sentencepiece":
        return sentencepiece.train(texts, vocab_size=vocab_size)
    if name == "byte":
        return ByteTokenizer()
    raise UserError(f"Unknown tokenizer {name!r}: choose sentencepiece, byte or gpt2:FOLDER.")


def contents(name: str) -> dict[str, Content]:
    """The content of each file that `make_tokenizer` reads. Raises UserError as it does."""
    kind, _, folder = name.partition(":")
    return gpt2.contents(expanded(folder)) if kind == "gpt2" else {}


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer saved in a folder.

    Raises:
      UserError: if there is none, or its files are damaged.
    """
    folder = expanded(folder)
    path = folder / DESCRIPTOR
    try:
        descriptor = parse_json(path.read_bytes())
        name, fingerprint = descriptor["name"], descriptor["fingerprint"]
    except OSError as error:
        raise UserError(
            f"{folder} holds no tokenizer ({DESCRIPTOR}: {error.strerror}): prepare the data first."
        ) from error
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is damaged: prepare the data again in a new folder.") from error
    loaders: dict[str, Callable[[Path], Tokenizer]] = {
        "byte": lambda folder: ByteTokenizer(),
        "gpt2": gpt2.load,
        "sentencepiece": sentencepiece.load,
    }
    if not isinstance(name, str) or name not in loaders:
        raise UserError(f"{path} names an unknown tokenizer, {name!r}: prepare the data again.")
    tokenizer = loaders[name](folder)
    if tokenizer.fingerprint != fingerprint:
        raise UserError(
            f"The tokenizer's files in {folder} are not those that {DESCRIPTOR} describes: restore "
            "them, or prepare the data again in a new folder."
        )
    return tokenizer
