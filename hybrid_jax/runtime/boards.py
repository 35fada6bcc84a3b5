"""Boards that plot metrics: TensorBoard, trackio and Weights & Biases behind one interface."""

import dataclasses
import os
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from hybrid_jax.errors import UserError, require
from hybrid_jax.runtime.files import one_line, write_atomic, writing

Kind = Literal["none", "tensorboard", "trackio", "wandb"]
_PACKAGES = {"tensorboard": "tensorboardX", "trackio": "trackio", "wandb": "wandb"}
_PROJECT = "hybrid_jax"
_ID = "board.id"


@dataclasses.dataclass(frozen=True)
class Board:
    """A place where metrics are plotted.

    Attributes:
      write: plots finite values by name. A step that was plotted before must have equal values.
      close: writes out what is pending; may be called again.
    """

    write: Callable[[int, Mapping[str, float]], None]
    close: Callable[[], None]


def check(kind: Kind) -> None:
    """Raises UserError if the package of a board is not installed."""
    if kind != "none":
        require(_PACKAGES[kind], "log")


def open_board(
    kind: Kind, workdir: Path, *, resume_step: int, config: Mapping[str, Any]
) -> Board | None:
    """Opens the board of a run; a resumed run continues its own.

    Args:
      workdir: existing folder of the run, whose name the run has on the board.
      resume_step: step of the restored checkpoint, 0 for a new run.
      config: shown beside the metrics, by trackio and wandb.

    Returns:
      The board; None for "none".

    Raises:
      UserError: if the package is missing, or its service cannot be used.
    """
    if kind == "none":
        return None
    package = require(_PACKAGES[kind], "log")
    if kind == "tensorboard":
        return _tensorboard(package, workdir / "tensorboard", resume_step)
    known = _run_id(workdir, resume_step)
    if kind == "trackio":
        name = f"{workdir.resolve().name}-{known}"
        run = package.init(_PROJECT, name, config=dict(config), resume="allow", embed=False)
    else:
        try:
            run = package.init(
                project=os.environ.get("WANDB_PROJECT", _PROJECT),
                name=workdir.resolve().name,
                id=known,
                resume="allow" if resume_step else None,
                config=dict(config),
                dir=workdir,
                settings=package.Settings(console="off"),
            )
        except package.errors.Error as error:
            raise UserError(
                f"wandb cannot start ({one_line(error)}): run `wandb login`, or set "
                "WANDB_MODE=offline."
            ) from error
    write_atomic(workdir / _ID, known)  # of a run that has begun
    return Board(lambda step, values: run.log(dict(values), step=step), run.finish)


def _tensorboard(package: Any, folder: Path, resume_step: int) -> Board:
    with writing(folder):
        writer = package.SummaryWriter(
            str(folder),
            # TensorBoard hides what an earlier file logged at purge_step and later.
            purge_step=resume_step + 1 if resume_step else None,
            # The name's time has a resolution of a second, within which a run may resume.
            filename_suffix=f".{os.getpid()}.{time.monotonic_ns()}",
        )

    def write(step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return Board(write, writer.close)


def _run_id(workdir: Path, resume_step: int) -> str:
    """The id of a run on its board, kept in its workdir."""
    file = workdir / _ID
    if resume_step and file.exists():
        return file.read_text(encoding="utf-8")
    return uuid.uuid4().hex[:8]
