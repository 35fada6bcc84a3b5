"""A run's folder: it belongs to one experiment (config.json) on certain records (records.json)."""

import contextlib
import dataclasses
import os
import shutil
import socket
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hybrid_jax.config import Experiment
from hybrid_jax.data import manifest as manifests
from hybrid_jax.data import prepare, tokenizers
from hybrid_jax.data.manifest import Manifest
from hybrid_jax.data.settings import DataConfig
from hybrid_jax.data.tokenizers.base import Tokenizer
from hybrid_jax.errors import UserError
from hybrid_jax.models.settings import FORM
from hybrid_jax.runtime.decode import from_values, parse_json
from hybrid_jax.runtime.files import expanded, one_line, write_atomic, writing
from hybrid_jax.runtime.json_text import write_json
from hybrid_jax.runtime.scratch import locked
from hybrid_jax.runtime.weights import WEIGHTS, read_json

_FILE = "config.json"
_RECORDS = "records.json"
ORIGIN = "init.json"  # of a training that starts from another run
_TOKENIZER = "tokenizer"
_LOCK = ".lock"
# What the start of a training makes.
_MADE = (
    _TOKENIZER,
    _RECORDS,
    ORIGIN,
    "checkpoints",
    "metrics.jsonl",
    "board.id",
    "tensorboard",
    "wandb",
)


@contextlib.contextmanager
def held(workdir: Path) -> Iterator[None]:
    """Keeps other trainings out of a workdir, which is made where it is missing.

    The lock ends with the process, however that ends. Where a file system has no locks, as some
    mounts of buckets, everyone is let in. Folders that were made are removed again if they are
    empty at the end.

    Raises:
      UserError: if another training holds the workdir, or it cannot be written.
    """
    made = [folder for folder in (workdir, *workdir.parents) if not os.path.lexists(folder)]
    try:
        with contextlib.ExitStack() as stack:
            with writing(workdir):
                workdir.mkdir(parents=True, exist_ok=True)
                _lock(workdir / _LOCK, stack)
            yield
    finally:
        with contextlib.suppress(OSError):  # one that is not empty, or not there
            for folder in made:
                folder.rmdir()


def _lock(path: Path, stack: contextlib.ExitStack) -> None:
    """Locks a file until the stack is closed. Raises UserError if another process has locked it."""
    path.touch()
    try:
        file = stack.enter_context(locked(path, wait=False))
    except BlockingIOError as error:
        holder = "one that has just ended"
        with contextlib.suppress(FileNotFoundError):
            holder = path.read_text(encoding="utf-8", errors="replace")
        raise UserError(
            f"{path.parent} is in use by another training ({holder}): wait until it ends, stop "
            "it, or choose another --workdir."
        ) from error
    except OSError:
        pass  # no locks here
    else:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        file.flush()
    stack.callback(_remove, path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


@contextlib.contextmanager
def tentative(workdir: Path) -> Iterator[Callable[[], object]]:
    """A start of a training in a workdir, which is left as it was unless the start succeeds.

    Yields:
      a function to call when it has.
    """
    with contextlib.ExitStack() as undo:
        for path in (workdir / name for name in _MADE):
            if not os.path.lexists(path):
                undo.callback(_remove, path)
        yield undo.pop_all


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunData:
    """The records that a run is trained on.

    Attributes:
      identity: see `Manifest.identity`.
      folder: absolute, in which they were when the training last began.
    """

    identity: str
    folder: str

    def check(self, folder: Path, manifest: Manifest) -> None:
        """Raises UserError unless the records of `folder`, with this manifest, are the same."""
        if manifest.identity != self.identity:
            raise UserError(
                f"The run was trained on other data ({self.identity[:12]}, then in {self.folder}) "
                f"than those of {folder} ({manifest.identity[:12]}): bring back the records or the "
                "text of that run, or train in another workdir."
            )


def check(workdir: Path, experiment: Experiment) -> None:
    """Raises UserError if `workdir` holds another experiment, naming the first difference, or a
    model without the state of its training."""
    if (workdir / WEIGHTS).exists():
        raise UserError(
            f"{workdir} holds a model without the state of its training: start one from it, with "
            f"--init={workdir} and another --workdir."
        )
    if not (workdir / _FILE).exists():
        return
    for name, old, new in _differences(load(workdir), experiment, every=False):
        raise UserError(
            f"{workdir} holds a run with {name}={old!r}, not {new!r}: choose another --workdir, or "
            "the settings of that run."
        )


def check_origin(workdir: Path, init: str | Path, step: int | str | None = None) -> None:
    """Raises UserError if `workdir` holds a run that did not start from the run in `init`, or from
    another step of it than this number.

    Folders that are no longer there cannot be compared, and count as the same.
    """
    if not (workdir / _FILE).exists():
        return
    path, found = workdir / ORIGIN, ""
    if path.exists():
        origin = read_json(path)
        own, given = expanded(origin.get("workdir", "")), expanded(init)
        same = not (own.exists() and given.exists()) or own.samefile(given)
        if same and step in (None, "best", origin.get("step")):
            return
        found = f" but from step {origin.get('step')} of {own}"
    raise UserError(
        f"{workdir} holds a run that was not started from {init}{found}: leave out --init to go on "
        "with it, or choose another --workdir."
    )


def claim(
    workdir: Path,
    experiment: Experiment,
    tokenizer: Tokenizer,
    records: tuple[Path, Manifest] | None = None,
) -> None:
    """Makes `workdir` the experiment's, with a copy of its tokenizer: what is needed to generate.

    Args:
      records: folder and manifest of those to train on; None if it is not trained yet.

    Raises:
      UserError: as `check` and `check_tokenizer`, or if it cannot be written, or holds a run on
        other records.
    """
    check(workdir, experiment)
    check_tokenizer(workdir, tokenizer)
    known = load_data(workdir)
    if records and known:
        known.check(*records)
    with writing(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        if not (workdir / _TOKENIZER).exists():
            # Under another name until it is whole.
            part = workdir / f".{_TOKENIZER}.{uuid.uuid4().hex}"
            part.mkdir()
            tokenizer.save(part)
            part.rename(workdir / _TOKENIZER)
    if records:
        data = RunData(identity=records[1].identity, folder=str(records[0].absolute()))
        write_json(workdir / _RECORDS, data)
    write_atomic(workdir / _FILE, experiment.to_json())


def check_tokenizer(workdir: Path, tokenizer: Tokenizer) -> None:
    """Raises UserError if `workdir` holds another tokenizer."""
    if (workdir / _TOKENIZER).exists() and (
        load_tokenizer(workdir).fingerprint != tokenizer.fingerprint
    ):
        raise UserError(
            f"{workdir} holds a run with another tokenizer than that of the prepared data: choose "
            "another --workdir, or the data of that run."
        )


def load_data(workdir: Path) -> RunData | None:
    """The records of a workdir's run; None before its training, or if an older version made it.

    Raises UserError if they cannot be read.
    """
    path = workdir / _RECORDS
    try:
        return from_values(RunData, parse_json(path.read_bytes()), "records")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, UserError) as error:
        reason = str(error).rstrip(".")
        raise UserError(
            f"{path} is damaged ({reason}): restore it, or delete it to go on with any data."
        ) from error


def data_folders(data: DataConfig, known: RunData | None) -> list[Path]:
    """Absolute folders in which a run's records may be, the best first.

    They are the one that the settings name, which depends on the working folder, and the one in
    which the records were; the latter comes first if it alone has them.
    """
    named = expanded(data.dir) if data.dir else prepare.default_dir(**data.preparation)
    folders = dict.fromkeys([named.absolute(), *([Path(known.folder)] if known else [])])
    return sorted(folders, key=lambda folder: not holds(folder, known))


def holds(folder: Path, known: RunData | None) -> bool:
    """True if a folder holds records and, where those of a run are known, these."""
    if not manifests.find(folder):
        return False
    return known is None or Manifest.load(folder).identity == known.identity


def load(workdir: str | Path) -> Experiment:
    """The experiment of a workdir. Raises UserError if there is none, or of a later version."""
    path = expanded(workdir) / _FILE
    try:
        return Experiment.from_json(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{workdir} holds no run: there is no config.json in it.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {one_line(error)}.") from error
    except UserError as error:
        raise UserError(f"{path} describes no run that can be opened: {error}") from error


def form(workdir: str | Path) -> dict[str, str]:
    """Settings of `model` that say what parameters mean, as text of a command line.

    Without those of the conditioning, which a start from the workdir may add. Raises as `load`.
    """
    model = load(workdir).model
    names = (*FORM, *(("positions",) if model.position == "learned" else ()))
    conditioning = ("condition", "embedding_gamma")
    return {f"model.{n}": str(getattr(model, n)).lower() for n in names if n not in conditioning}


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
    name, a, b = _differences(*experiments, every=True)[0]
    return f"{name} is {b!r} and not {a!r}"


def _differences(old: Experiment, new: Experiment, *, every: bool) -> list[tuple[str, Any, Any]]:
    """Settings that differ: (name, old value, new value).

    Args:
      every: those that may change when a run is continued too.
    """
    before, after = (dict(_settings(one.resolved(), every)) for one in (old, new))
    return [(name, before[name], value) for name, value in after.items() if before[name] != value]


def _settings(section: Any, every: bool, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(section):
        name, value = f"{prefix}{field.name}", getattr(section, field.name)
        if not (every or field.metadata.get("identity", True)):
            continue
        if dataclasses.is_dataclass(value):
            yield from _settings(value, every, f"{name}.")
        else:
            yield name, value
