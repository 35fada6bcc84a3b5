"""A run's folder: it belongs to one experiment and says so in config.json."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hybrid_jax.config import Experiment
from hybrid_jax.data import tokenizers
from hybrid_jax.data.tokenizers.base import Tokenizer
from hybrid_jax.errors import UserError
from hybrid_jax.runtime.files import unwritable, write_atomic

_FILE = "config.json"
_TOKENIZER = "tokenizer"


def check(workdir: Path, experiment: Experiment) -> None:
    """Raises UserError if `workdir` holds another experiment, naming the first difference."""
    if not (workdir / _FILE).exists():
        return
    for name, old, new in _differences(load(workdir), experiment, every=False):
        raise UserError(
            f"{workdir} holds a run with {name}={old!r}, not {new!r}: choose another --workdir, or "
            "the settings of that run."
        )


def claim(workdir: Path, experiment: Experiment, tokenizer: Tokenizer) -> None:
    """Makes `workdir` the experiment's, with a copy of its tokenizer: what is needed to generate.

    Raises UserError as `check`, if it cannot be written, or if it holds another tokenizer.
    """
    check(workdir, experiment)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if not (workdir / _TOKENIZER).exists():
            # Under another name until it is whole.
            part = workdir / f".{_TOKENIZER}.{uuid.uuid4().hex}"
            part.mkdir()
            tokenizer.save(part)
            part.rename(workdir / _TOKENIZER)
    except OSError as error:
        raise unwritable(workdir, error) from error
    if load_tokenizer(workdir).fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"{workdir} holds a run with another tokenizer than that of the prepared data: choose "
            "another --workdir, or the data of that run."
        )
    write_atomic(workdir / _FILE, experiment.to_json())


def load(workdir: Path) -> Experiment:
    """The experiment of a workdir. Raises UserError if there is none, or of a later version."""
    path = workdir / _FILE
    try:
        return Experiment.from_json(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{workdir} holds no run: there is no config.json in it.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    except UserError as error:
        raise UserError(f"{path} describes no run that can be opened: {error}") from error


def load_tokenizer(workdir: Path) -> Tokenizer:
    """The tokenizer of a workdir. Raises UserError if there is none, or it is damaged."""
    folder = workdir / _TOKENIZER
    if not folder.is_dir():
        raise UserError(
            f"{workdir} holds no tokenizer: run the training command with this --workdir once more."
        )
    return tokenizers.load_tokenizer(folder)


def difference(first: str, other: str) -> str:
    """The first difference of two experiments, as JSON: "noise.gamma is 0.1 and not 0.2"."""
    experiments = (Experiment.from_json(text) for text in (first, other))
    name, a, b = next(_differences(*experiments, every=True))
    return f"{name} is {b!r} and not {a!r}"


def _differences(
    old: Experiment, new: Experiment, *, every: bool
) -> Iterator[tuple[str, Any, Any]]:
    """Settings that differ: (name, old value, new value).

    Args:
      every: those that may change when a run is continued too.
    """
    before = dict(_settings(old.resolved(), every))
    for name, value in _settings(new.resolved(), every):
        if before[name] != value:
            yield name, before[name], value


def _settings(section: Any, every: bool, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(section):
        name, value = f"{prefix}{field.name}", getattr(section, field.name)
        if not (every or field.metadata.get("identity", True)):
            continue
        if dataclasses.is_dataclass(value):
            yield from _settings(value, every, f"{name}.")
        else:
            yield name, value
