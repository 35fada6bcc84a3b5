"""The one writer of JSON, and names of files that only equal values share."""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hybrid_jax.runtime.files import write_atomic


def json_text(values: Any, **layout: Any) -> str:
    """Values as JSON that any strict parser reads: a number that is not finite is null.

    Args:
      values: None, strings, numbers also of NumPy, and dataclasses, mappings, lists and tuples of
        these.
      layout: settings of `json.dumps`, such as indent; characters are not escaped by default.
    """
    text = json.dumps(_plain(values), allow_nan=False, **({"ensure_ascii": False} | layout))
    # Half a character, as in paths that are no UTF-8, has an escape in JSON and no code in UTF-8.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def write_json(path: str | Path, values: Any) -> None:
    """Writes `json_text` in lines. Raises as `write_atomic`."""
    write_atomic(path, json_text(values, indent=1) + "\n")


def digest(values: Any) -> str:
    """SHA-256, hexadecimal, of values as JSON; the order of names does not count."""
    text = json_text(values, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def file_name(label: str, values: Any) -> str:
    """A name for a file that depends on `values`, which no others share: a beginning for people,
    of letters, digits and "_.-", and a digest."""
    readable = re.sub(r"[^A-Za-z0-9_.-]+", "-", label)[:60].strip("-.")
    return f"{readable}-{digest(values)[:16]}"


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
