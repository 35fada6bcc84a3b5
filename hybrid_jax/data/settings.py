"""The section ``data`` of an experiment."""

import dataclasses
from typing import Any

from hybrid_jax.data import mixture, tokenizers
from hybrid_jax.data.mixture import mixed
from hybrid_jax.data.pairs import is_pairs
from hybrid_jax.errors import UserError, check_settings, free, only, resolved

_NOT_PREPARED = ("dir", "padded", "weights")  # settings that do not change records
_LONGEST = 2**20  # tokens of a record, each of which a schedule has a number for


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """A text, and how it becomes records (see `hybrid_jax.data.prepare`).

    Attributes:
      source, valid_source: where documents come from; a share of `source` is held out when
        `valid_source` is empty.
      tokenizer: "sentencepiece", "byte", "char", "gpt2:FOLDER", "hf:NAME" or "ids:VOCABULARY"
        or "saved:FOLDER", see `data.tokenizers.make_tokenizer`.
      vocab_size: of a sentencepiece tokenizer, which is trained; 512 for None.
      length: L, tokens of a record.
      weights: of the sources of a mixture, "0.7,0.3", and those from a later step on, "0.7,0.3
        1000:0.2,0.8" (see `data.mixture`); equal for None.
      padded: whether the tokens behind the end of a pair, each an eos, are learned too, as models
        need that write all positions of a window; True for None.
      dir: folder of prepared records; empty for one under `data/` named after these settings.
    """

    source: str = "pydocs"
    valid_source: str = ""
    tokenizer: str = "sentencepiece"
    vocab_size: int | None = only(512, tokenizer="sentencepiece")
    length: int = 64
    weights: str | None = only(source="mix:*")
    padded: bool | None = only(True, source=("pairs:*", "mix:*pairs:*"))
    dir: str = free("")

    def __post_init__(self) -> None:
        check_settings(self, "data.", vocab_size=1, length=1)
        if self.length > _LONGEST:
            raise UserError(f"data.length must be at most {_LONGEST}, but is {self.length}.")
        tokenizers.split_name(self.tokenizer, whole=False)
        mixture.parse(self.weights or "", len(mixed(self.source)))

    @property
    def preparation(self) -> dict[str, Any]:
        """The settings by the names of `prepare.prepare`."""
        values = dataclasses.asdict(self) | {"vocab_size": self.expected_vocab_size}
        return {name: value for name, value in values.items() if name not in _NOT_PREPARED}

    @property
    def pairs(self) -> bool:
        """True if records are pairs of a prompt and an answer (see `data.pairs`)."""
        return is_pairs(self.source)

    @property
    def is_padded(self) -> bool:
        """`padded`, or the value that None stands for."""
        return bool(resolved(self).padded)

    @property
    def expected_vocab_size(self) -> int:
        """N, the number of real tokens, without the tokenizer at hand."""
        return int(resolved(self).vocab_size or tokenizers.expected_size(self.tokenizer))
