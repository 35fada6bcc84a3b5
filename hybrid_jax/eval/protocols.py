"""Named and versioned protocols, which define the numbers on generated text.

**hdlm**, after arXiv 2504.06416. Certain, from its public code: GPT-2 large reads the generated
token ids as they are, with nothing in front; perplexity is the *mean over texts* of the exponential
of a text's mean nats, which is at least the usual exponential of the mean and moves with single
bad texts; entropy is that of a text's tokens in nats, after decoding without special tokens and
encoding again; MAUVE reads at most 128 texts of at most 128 tokens on each side. Assumed: that the
paper's tables were made by that code with these defaults. Not reproduced: it drops the texts left
over after whole batches of 4, counts an empty text as entropy 0 (here: not at all), and runs one
seed of another k-means.

**mdlm**, after arXiv 2406.07524. Certain, from its public code: GPT-2 large; texts are decoded with
their end-of-document marks and encoded again, the mark as one token; nothing is put in front; at
most as many tokens are read as the model generates (1024); perplexity is the exponential of all
nats over all tokens, of which each text's first end mark counts and later ones do not. Assumed:
entropy in nats as above, and MAUVE on texts of at most 1024 tokens: neither is in that paper, but
both are reported by later ones that use its perplexity. Not reproduced: it drops the texts left
over after whole batches, and scores one padding token after each text shorter than the longest.

**standard**, this project's own: as mdlm, but with <|endoftext|> in front, so that a text's first
token counts as well, with every end mark scored, and nothing cut off.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from hybrid_jax.errors import UserError, check_settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenEvalProtocol:
    """Definition of the numbers on generated text; by default that of "standard".

    Attributes:
      name, version: the version changes whenever the code changes a number.
      retokenised: the scorer reads the text, encoded by its own tokenizer; otherwise token ids as
        they were generated, which must be of its tokenizer.
      bos: put <|endoftext|> in front, which is not scored.
      ends_scored: which of these tokens count towards perplexity, in each text.
      max_tokens: how many tokens of a text are read; None for all.
      average: perplexity is the exponential of all nats over all tokens ("tokens"), or the mean
        over texts of the exponential of a text's mean nats ("texts").
      mauve_tokens, mauve_texts: how many tokens of a text, and how many texts of each set, MAUVE
        reads; None for all.
    """

    name: str
    version: int = 1
    retokenised: bool = True
    bos: bool = True
    ends_scored: Literal["all", "first"] = "all"
    max_tokens: int | None = None
    average: Literal["tokens", "texts"] = "tokens"
    mauve_tokens: int | None = 1024
    mauve_texts: int | None = None

    def __post_init__(self) -> None:
        check_settings(self, "A protocol's ", max_tokens=2, mauve_tokens=2, mauve_texts=2)


PROTOCOLS: Mapping[str, GenEvalProtocol] = MappingProxyType(
    {
        known.name: known
        for known in (
            GenEvalProtocol(name="standard"),
            GenEvalProtocol(
                name="hdlm", retokenised=False, bos=False, average="texts", mauve_tokens=128,
                mauve_texts=128,
            ),
            GenEvalProtocol(name="mdlm", bos=False, ends_scored="first", max_tokens=1024),
        )
    }
)  # fmt: skip


def protocol(name: str) -> GenEvalProtocol:
    """The protocol of a name. Raises UserError for an unknown one."""
    if name not in PROTOCOLS:
        raise UserError(f"Unknown protocol {name!r}: choose {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[name]
