"""A run's folder: it belongs to one experiment and says so in config.json."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from hybrid_jax.config import Experiment
from hybrid_jax.data import tokenizers
from hybrid_jax.data.tokenizers.base import Tokenizer
from hybrid_jax.errors import UserError
from hybrid_jax.runtime.files import unwritable, write_atomic

_FILE = "config.json"
_TOKENIZER = "tokenizer"

# Settings that may differ when a run is continued: they change how long it trains and what it
# prints, not what it is (more steps also stretch the learning-rate schedule).
_FREE = (
    "name",
    "data.dir",
    "evaluation",
    "mesh",
    "sampling",
    "model.remat",
    "model.unroll",
    "train.accumulation",
    "train.board",
    "train.checkpoint_every",
    "train.eval_every",
    "train.keep",
    "train.log_every",
    "train.loss_chunk",
    "train.steps",
)


def check(workdir: Path, experiment: Experiment) -> None:
    """Raises UserError if `workdir` holds another experiment, naming the first difference."""
    if not (workdir / _FILE).exists():
        return
    for name, old, new in _differences(_plain(load(workdir)), _plain(experiment)):
        if not any(name == free or name.startswith(f"{free}.") for free in _FREE):
            raise UserError(
                f"{workdir} holds a run with {name}={old!r}, not {new!r}: choose another "
                "--workdir, or the settings of that run."
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
    """The experiment of a workdir. Raises UserError if there is none."""
    path = workdir / _FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{workdir} holds no run: there is no config.json in it.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    return Experiment.from_config(values)


def load_tokenizer(workdir: Path) -> Tokenizer:
    """The tokenizer of a workdir. Raises UserError if there is none, or it is damaged."""
    folder = workdir / _TOKENIZER
    if not folder.is_dir():
        raise UserError(
            f"{workdir} holds no tokenizer: run the training command with this --workdir once more."
        )
    return tokenizers.load_tokenizer(folder)


def difference(first: str, other: str) -> str:
    """Where two experiments, as JSON, differ first: "noise.gamma is 0.1 and not 0.2"."""
    name, a, b = next(_differences(json.loads(first), json.loads(other)))
    return f"{name} is {b!r} and not {a!r}"


def _plain(experiment: Experiment) -> dict:
    return json.loads(experiment.to_json())


def _differences(
    old: Mapping, new: Mapping, prefix: str = ""
) -> Iterator[tuple[str, object, object]]:
    for name in new:
        if isinstance(new[name], Mapping):
            yield from _differences(old[name], new[name], f"{prefix}{name}.")
        elif old[name] != new[name]:
            yield f"{prefix}{name}", old[name], new[name]
