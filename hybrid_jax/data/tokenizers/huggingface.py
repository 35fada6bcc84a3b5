"""A tokenizer of the Hugging Face library `tokenizers`, from its file tokenizer.json."""

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from hybrid_jax.data import content
from hybrid_jax.data.tokenizers.base import Tokenizer, write_descriptor
from hybrid_jax.data.tokenizers.gpt2 import BYTES
from hybrid_jax.errors import UserError, require
from hybrid_jax.runtime import weights
from hybrid_jax.runtime.decode import parse_json
from hybrid_jax.runtime.files import expanded, one_line
from hybrid_jax.runtime.json_text import json_text

_FILE, _CONFIG = "tokenizer.json", "tokenizer_config.json"
_COPY = "huggingface.json"  # of the file, because our descriptor has its name
# Settings of tokenizer_config.json that name the token, then usual tokens.
_BOS = ("bos_token", "cls_token"), ("<|endoftext|>", "<s>", "<bos>", "<|begin_of_text|>", "[CLS]")
_EOS = ("eos_token", "sep_token"), ("<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>", "[SEP]")
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


class _Parts(NamedTuple):
    """Contents of the files; the library's object may change, and would lose that in a pickle."""

    library: Any
    bos: int
    eos: int
    vocab_size: int
    special: frozenset[int]


@functools.lru_cache(maxsize=4)
def _read(file: bytes, config: bytes) -> _Parts:
    """Raises an exception of any kind for files that are damaged."""
    values = parse_json(file)
    # Else texts would be cut, or encoded in another way each time.
    values |= {"truncation": None, "padding": None}
    if values["model"].get("dropout"):
        values["model"]["dropout"] = None
    library = require("tokenizers", "tokenizers").Tokenizer.from_str(json_text(values))
    ids: dict[str, int] = library.get_vocab()
    size = max(ids.values()) + 1
    named = parse_json(config)
    bos, eos = _id(ids, named, *_BOS), _id(ids, named, *_EOS)
    ends = [i for i in (bos, eos) if i is not None] or [size]
    bos, eos = ends[0], ends[-1]
    library.add_special_tokens([library.id_to_token(i) for i in {bos, eos} if i < size])
    library.encode_special_tokens = True  # as the characters that they are written with
    added = library.get_added_tokens_decoder()
    special = {bos, eos, *(i for i, token in added.items() if token.special)}
    return _Parts(library, bos, eos, max(size, eos + 1), frozenset(special))


def _id(
    ids: Mapping[str, int], config: Mapping[str, Any], names: Sequence[str], usual: Sequence[str]
) -> int | None:
    """The id of the first token that is known, of the settings `names` and then of `usual` ones."""
    given = [config.get(name) for name in names]
    tokens = [one.get("content") if isinstance(one, dict) else one for one in given]
    return next((ids[t] for t in (*tokens, *usual) if isinstance(t, str) and t in ids), None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer.json, without the cuts, padding and special tokens that it may add.

    Byte-level tokenizers give every text back exactly. Others may change it: they normalise letters
    and spaces, and have [UNK], which has no text, for what they lack. Special tokens have no text,
    and their characters in a text, as in "</s>", are ordinary text. Files that have no end of
    documents get one, with an id of its own.

    Attributes:
      file: content of tokenizer.json.
      config: content of tokenizer_config.json, which may name bos and eos; empty if there is none.
    """

    file: bytes = dataclasses.field(repr=False)
    config: bytes = dataclasses.field(repr=False)
    name: ClassVar[str] = "hf"

    @property
    def _parts(self) -> _Parts:
        return _read(self.file, self.config)

    @property
    def vocab_size(self) -> int:
        return self._parts.vocab_size

    @property
    def bos(self) -> int:
        return self._parts.bos

    @property
    def eos(self) -> int:
        return self._parts.eos

    @functools.cached_property
    def fingerprint(self) -> str:
        ends = f"hf {self.bos} {self.eos} ".encode()
        return hashlib.sha256(ends + hashlib.sha256(self.file).digest()).hexdigest()

    @functools.cached_property
    def token_bytes(self) -> np.ndarray:
        """int32 [N]: bytes of what `decode` makes of each token behind another."""
        library, special = self._parts.library, self._parts.special
        decoder = json_text(json.loads(self.file).get("decoder"))
        plain = {i: t for t, i in library.get_vocab().items() if i not in special}
        found = np.zeros(self.vocab_size, np.int32)
        if '"ByteLevel"' in decoder:
            for i, token in plain.items():
                found[i] = len(token) if BYTES.keys() >= set(token) else len(token.encode("utf-8"))
            return found
        before = next((i for i in sorted(plain) if library.decode([i]).strip()), None)
        first = [] if before is None else [before]
        texts = library.decode_batch([first, *([*first, i] for i in plain)])
        sizes = [len(text.encode("utf-8")) for text in texts]
        for (i, token), size in zip(plain.items(), sizes[1:], strict=True):
            is_byte = '"ByteFallback"' in decoder and _BYTE.fullmatch(token)
            found[i] = 1 if is_byte else max(0, size - sizes[0])
        return found

    def encode(self, text: str) -> np.ndarray:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        rows = self._parts.library.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(row.ids, np.int32) for row in rows]

    def _text(self, ids: list[int]) -> str:
        plain = [i for i in ids if i not in self._parts.special]
        return str(self._parts.library.decode(plain, skip_special_tokens=False))

    def write(self, folder: Path) -> None:
        """Writes the two files under the names that Hugging Face's loaders look for."""
        (folder / _FILE).write_bytes(self.file)
        (folder / _CONFIG).write_bytes(self.config)

    def save(self, folder: Path) -> None:
        (folder / _COPY).write_bytes(self.file)
        (folder / _CONFIG).write_bytes(self.config)
        write_descriptor(folder, self)


def load(source: Path) -> HuggingFaceTokenizer:
    """The tokenizer of a file tokenizer.json, or of a folder with that file or one that was saved.

    Raises:
      UserError: if it is missing or damaged, or the package `tokenizers` is.
    """
    require("tokenizers", "tokenizers")
    path, config = _paths(source)
    try:
        made = HuggingFaceTokenizer(
            file=path.read_bytes(), config=config.read_bytes() if config.exists() else b"{}"
        )
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): name a folder with {_FILE}, or the file."
        ) from error
    try:
        _ = made.token_bytes
    except Exception as error:  # of which the library has no narrower kind
        raise UserError(
            f"{path} is no {_FILE} of Hugging Face, or damaged ({one_line(error)}): fetch it again."
        ) from error
    return made


def find(name: str) -> Path:
    """The file, or the folder with it, that a name means: a path, or a model of the hub.

    Raises:
      UserError: if there is no such path and no such model can be fetched.
    """
    path = expanded(name)
    if path.exists() or not weights.of_hub(name):
        return path
    return weights.fetch(name, [_FILE, _CONFIG], f"name a folder with {_FILE}, or the file")


def contents(source: Path) -> dict[str, content.Content]:
    """The content of the files of `load`. Raises UserError if tokenizer.json is missing."""
    path, config = _paths(source)
    return {str(p): content.of_file(p) for p in (path, config) if p == path or p.exists()}


def _paths(source: Path) -> tuple[Path, Path]:
    if source.is_dir():
        source /= _COPY if (source / _COPY).exists() else _FILE
    return source, source.with_name(_CONFIG)
