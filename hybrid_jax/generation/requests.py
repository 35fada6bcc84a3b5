"""Requests for texts, and the texts that answer them: built, written to files and read again.

A file of texts has a JSON object a line: the fields of `Text` and all settings it depends on.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hybrid_jax.data import files
from hybrid_jax.data.tokenizers.base import Tokenizer
from hybrid_jax.errors import UserError, check_text
from hybrid_jax.runtime.decode import from_values, parse_json
from hybrid_jax.runtime.files import write_atomic
from hybrid_jax.runtime.json_text import json_text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """One text to generate.

    Attributes:
      prompt: the given text, for the record.
      ids: its first tokens, ids or `sampling.prompts.GAP`.
      stop: tokens wanted, given ones included.
      lengths: of its open gaps, where it is one of several candidates (see `infill`).
    """

    prompt: str
    ids: list[int]
    stop: int
    lengths: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text:
    """One generated text.

    Attributes:
      number: its place among all.
      text: given and generated, without special tokens.
      tokens: the same as ids.
      nfe: rounds of the network that it took.
      corrections: shown tokens that were replaced or masked again on the way.
      lengths: chosen for its open gaps.
    """

    number: int
    prompt: str
    text: str
    tokens: tuple[int, ...]
    nfe: int
    corrections: int
    lengths: tuple[int, ...] = ()


def beginning(text: str, tokenizer: Tokenizer, *, stop: int) -> Request:
    """A text of `stop` tokens that begins with this one.

    Raises:
      UserError: if it is no text, or `stop` is no whole number.
    """
    check_text(text, "The prompt")
    if not hasattr(stop, "__index__"):
        raise UserError(f"A text has a whole number of tokens, and not {stop!r}.")
    return Request(prompt=text, ids=[int(i) for i in tokenizer.encode(text)], stop=stop)


def write(file: str | Path, texts: Sequence[Text], settings: Mapping[str, Any]) -> None:
    """Writes texts with their settings, for `read`."""
    write_atomic(file, as_lines(texts, settings))


def as_lines(texts: Sequence[Text], settings: Mapping[str, Any]) -> str:
    """Texts with their settings, a JSON object a line."""
    return "".join(json_text({**dataclasses.asdict(t), **settings}) + "\n" for t in texts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Samples:
    """Generated texts from a file.

    Attributes:
      texts: without special tokens.
      tokens: the same as ids of the model's tokenizer, int32 [n] each.
      settings: as written; with `nfe` and `corrections`, their means over texts, and `prompted`,
        the number of texts that began with a prompt, which is scored like the rest.
    """

    texts: tuple[str, ...]
    tokens: tuple[np.ndarray, ...]
    settings: Mapping[str, Any]


def read(path: str | Path, tokenizer: Tokenizer) -> Samples:
    """Texts from a file of `write`.

    Args:
      tokenizer: that the texts must be of.

    Raises:
      UserError: if it cannot be read, is no such file, is empty, or holds texts of different
        settings or of another tokenizer.
    """
    texts: list[Text] = []
    tokens = []
    settings: dict[str, Any] = {}
    for number, line in enumerate(files.lines(str(path)), start=1):
        if not line.strip():
            continue
        try:
            values = parse_json(line)
            names = [field.name for field in dataclasses.fields(Text)]
            own = {name: values.pop(name) for name in names if name in values}
            text = from_values(Text, own, "text")
            tokens.append(np.array(text.tokens, np.int32))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, UserError) as error:
            raise UserError(
                f"Line {number} of {path} is no text that this version of hybrid_jax.generate "
                "writes: generate it anew, or score texts of other programs in Python with "
                "hybrid_jax.eval.text_quality.evaluate."
            ) from error
        if texts and values != settings:
            raise UserError(f"{path} holds texts of different settings: score one sampler a time.")
        texts.append(text)
        settings = values
    if not texts:
        raise UserError(f"There are no texts in {path}.")
    # Files of earlier versions do not name the tokenizer: their texts tell.
    known = settings.get("tokenizer", tokenizer.fingerprint) == tokenizer.fingerprint
    if not known or not all(_decodes(tokenizer, text) for text in texts):
        raise UserError(
            f"The texts in {path} are of another tokenizer than that of --workdir: name the run "
            f"that wrote them, {settings.get('workdir', 'which they do not say')}."
        )
    return Samples(
        texts=tuple(text.text for text in texts),
        tokens=tuple(tokens),
        settings={
            **settings,
            "nfe": float(np.mean([text.nfe for text in texts])),
            "corrections": float(np.mean([text.corrections for text in texts])),
            "prompted": sum(bool(text.prompt) for text in texts),
        },
    )


def of_one_sampler(settings: Sequence[Mapping[str, Any]]) -> bool:
    """True if `Samples.settings` of several files are of one sampler and different seeds."""
    varies = ("seed", "nfe", "corrections")
    samplers = [{k: v for k, v in each.items() if k not in varies} for each in settings]
    seeds = {each.get("seed") for each in settings}
    return all(each == samplers[0] for each in samplers) and len(seeds) == len(settings) > 1


def _decodes(tokenizer: Tokenizer, text: Text) -> bool:
    """True if the tokens of a `Text` are its text under a tokenizer."""
    try:
        return bool(tokenizer.decode(text.tokens) == text.text)
    except UserError:  # an id that it does not have
        return False
