"""Reports of a training while it runs: metrics.jsonl, a board, and a line for people."""

import dataclasses
import functools
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from hybrid_jax.config import Experiment
from hybrid_jax.runtime.boards import open_board
from hybrid_jax.runtime.metrics_writer import MetricsWriter
from hybrid_jax.runtime.processes import is_process0, of_process0
from hybrid_jax.runtime.progress import Progress
from hybrid_jax.training.likelihood import BoundEstimate

_SHOWN = ("loss", "grad_norm", "learning_rate", "tokens_per_second", "mfu")


class Log(ExitStack):
    """The log of a run; silent on all processes but process 0. A context manager."""

    def __init__(self, workdir: Path, experiment: Experiment, *, start: int):
        """Opens it at step `start`; what was logged after `start` is forgotten.

        Raises `UserError` if the workdir cannot be written, or the board cannot be used.
        """
        super().__init__()
        self._writer, self._progress = None, None
        if is_process0():
            settings = dataclasses.asdict(experiment)
            open_it = functools.partial(
                open_board, experiment.train.board, workdir, resume_step=start, config=settings
            )
            writer = MetricsWriter(workdir, resume_step=start, board=open_it)
            self._writer = self.enter_context(writer)
            progress = Progress(total=experiment.train.steps, start=start)
            self._progress = self.enter_context(progress)

    def train(self, step: int, values: Mapping[str, float]) -> None:
        """Means over the steps since the last line. Raises `UserError` if it cannot be written."""
        if self._writer and self._progress:
            self._writer.write(step, "train", values)
            self._progress.update(step, {n: values[n] for n in _SHOWN if n in values})

    def valid(self, step: int, estimate: BoundEstimate) -> None:
        """The bound on validation text. Raises `UserError` if it cannot be written."""
        if self._writer and self._progress:
            self._writer.write(step, "valid", estimate.values())
            self._progress.note(f"step {step}: valid {estimate}")

    def has(self, step: int, kind: str) -> bool:
        """True if the log had a line of this step and kind when opened; the same on all processes.

        All of them must call this.
        """
        found = self._writer is not None and (step, kind) in self._writer.found
        return of_process0("found" if found else "") == "found"
