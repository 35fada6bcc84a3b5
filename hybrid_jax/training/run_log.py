"""What a training tells while it runs: metrics.jsonl, TensorBoard, and a line for people."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hybrid_jax.runtime.metrics_writer import MetricsWriter
from hybrid_jax.runtime.processes import is_process0
from hybrid_jax.runtime.progress import Progress
from hybrid_jax.training.likelihood import BoundEstimate

_SHOWN = ("loss", "grad_norm", "learning_rate", "tokens_per_second", "mfu")


class Log:
    """The log of a run; silent on all processes but the lead. A context manager."""

    def __init__(self, workdir: Path, *, total: int, start: int):
        """Opens it at step `start` of `total`; what was logged after `start` is forgotten.

        Raises `UserError` if the workdir cannot be written.
        """
        self._writer = MetricsWriter(workdir, resume_step=start) if is_process0() else None
        self._progress = Progress(total=total, start=start) if is_process0() else None

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress:
            self._progress.close()
        if self._writer:
            self._writer.close()

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
        """Whether the log that was found has a line of this step and kind; False if not lead."""
        return self._writer is not None and (step, kind) in self._writer.found
