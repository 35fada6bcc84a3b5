"""Generated texts from the files that generation writes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hybrid_jax.errors import UserError
from hybrid_jax.generation import requests


@dataclasses.dataclass(frozen=True, kw_only=True)
class Samples:
    """Generated texts, as `python -m hybrid_jax.generate --out` writes them.

    Attributes:
      texts: without special tokens.
      tokens: the same as ids of the model's tokenizer, int32 [n] each.
      settings: of the sampler; with `nfe` and `corrections`, their means over texts, and
        `prompted`, how many texts began with a prompt, which is scored like the rest.
    """

    texts: tuple[str, ...]
    tokens: tuple[np.ndarray, ...]
    settings: Mapping[str, Any]


def read(path: str | Path) -> Samples:
    """Texts from a file that generation wrote.

    Raises:
      UserError: if it cannot be read, is no such file, is empty, or holds texts of different
        settings.
    """
    own = {field.name for field in dataclasses.fields(requests.Text)}
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The texts in {path} cannot be read: {error}.") from error
    texts, tokens, nfe, corrections, prompted = [], [], [], [], 0
    settings: dict[str, Any] | None = None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            texts.append(str(values["text"]))
            tokens.append(np.array(values["tokens"], np.int32).reshape(-1))
            nfe.append(float(values["nfe"]))
            corrections.append(float(values["corrections"]))
            prompted += bool(values["prompt"])
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise UserError(
                f"Line {number} of {path} is no text that hybrid_jax.generate --out wrote."
            ) from error
        these = {name: value for name, value in values.items() if name not in own}
        if settings is not None and these != settings:
            raise UserError(f"{path} holds texts of different settings: score one sampler a time.")
        settings = these
    if settings is None:
        raise UserError(f"There are no texts in {path}.")
    settings = {
        **settings,
        "nfe": float(np.mean(nfe)),
        "corrections": float(np.mean(corrections)),
        "prompted": prompted,
    }
    return Samples(texts=tuple(texts), tokens=tuple(tokens), settings=settings)
