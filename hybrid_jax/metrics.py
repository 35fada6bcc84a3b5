"""Numbers about a run: their estimates and errors, their log, and the progress line."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TextIO

import numpy as np
import tensorboardX
import tqdm

from hybrid_jax.atomic import write_atomic
from hybrid_jax.errors import UserError


def mean_and_standard_error(
    values: np.ndarray, weights: np.ndarray | None = None
) -> tuple[float, float]:
    """Mean over independent units (records), and its standard error.

    With weights, such as tokens per record, this is the ratio estimate Σwv / Σw. The weights vary
    with the records, so its error is that of a ratio, to first order:
    sqrt(n/(n−1) Σ w²(v − mean)²) / Σw.

    Args:
      values: float [n], one per record, such as its mean nats per token.
      weights: float [n], ≥ 0 with a positive sum; None for equal weights.

    Returns:
      (mean, standard error) in the unit of ``values``; the error is NaN for one record.

    Raises:
      UserError: if there are no records, or all weights are 0.
      ValueError: if shapes differ or a weight is negative.
    """
    values = np.asarray(values, np.float64)
    weights = np.ones_like(values) if weights is None else np.asarray(weights, np.float64)
    if values.ndim != 1 or values.shape != weights.shape:
        raise ValueError(f"values {values.shape} and weights {weights.shape} must be equal, [n]")
    if (weights < 0).any():
        raise ValueError("a weight is negative")
    total = weights.sum()
    if total == 0:
        raise UserError("There are no records to average; give a data set that holds some text.")
    mean = float((weights * values).sum() / total)
    n = len(values)
    if n == 1:
        return mean, math.nan
    squares = float((weights**2 * (values - mean) ** 2).sum())
    return mean, math.sqrt(n / (n - 1) * squares) / float(total)


def perplexity(nats_mean: float, nats_se: float) -> tuple[float, float]:
    """Perplexity and its standard error from nats per token, to first order; infinite past
    what a float64 holds."""
    try:
        value = math.exp(nats_mean)
    except OverflowError:
        return math.inf, math.inf
    return value, value * nats_se


def bits_per_byte(nats_per_token: float, bytes_per_token: float) -> float:
    """Bits per byte of text. Raises ValueError unless ``bytes_per_token`` > 0."""
    if bytes_per_token <= 0:
        raise ValueError(f"bytes_per_token is {bytes_per_token}; it must be greater than 0")
    return nats_per_token / math.log(2) / bytes_per_token


class MetricsWriter:
    """Appends to ``<workdir>/metrics.jsonl`` and to TensorBoard files. A context manager.

    A line is ``{"step": 10, "kind": "train", "loss": 2.5, …}``. Values that are not finite are
    the strings "nan", "inf" and "-inf", which `float` reads back; JSON has no numbers for them.
    Only one process of a run may write.

    Attributes:
      path: of the log.
      found: (step, kind) of the lines that were there when it was opened.
    """

    def __init__(self, workdir: str | os.PathLike[str], *, resume_step: int):
        """Opens the log, without what was logged after ``resume_step``.

        Args:
          workdir: folder of the run; created if absent.
          resume_step: step of the restored checkpoint, 0 for a new run. Lines of later steps,
            which will be logged again, and a last line cut off by a kill are dropped.

        Raises:
          UserError: if the folder cannot be written, or a line before the last is not one of
            this log's.
        """
        self.path = Path(workdir) / "metrics.jsonl"
        self.found: set[tuple[int, str]] = set()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists():
                self.found = _drop_after(self.path, resume_step)
            self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - closed by close()
            # TensorBoard hides what an earlier file logged at purge_step and later.
            self._board = tensorboardX.SummaryWriter(
                str(self.path.parent / "tensorboard"),
                purge_step=resume_step + 1 if resume_step else None,
                # The name's time has a resolution of a second, within which a run may resume.
                filename_suffix=f".{os.getpid()}.{time.monotonic_ns()}",
            )
        except OSError as error:
            raise self._unwritable(error) from error

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """Appends one line, on disk when this returns but for the system's own buffers.

        Args:
          step: updates made so far.
          kind: "train", "valid", …; TensorBoard shows ``<kind>/<name>``.
          values: by name, which is neither "step" nor "kind".

        Raises:
          UserError: if the file cannot be written.
          ValueError: for a reserved name.
        """
        if reserved := {"step", "kind"} & values.keys():
            raise ValueError(f"a metric may not be called {' or '.join(sorted(reserved))}")
        numbers = {name: float(value) for name, value in values.items()}
        line = {name: x if math.isfinite(x) else str(x) for name, x in numbers.items()}
        try:
            self._file.write(json.dumps({"step": int(step), "kind": kind, **line}) + "\n")
            self._file.flush()
            for name, value in numbers.items():
                if math.isfinite(value):  # TensorBoard cannot plot the others
                    self._board.add_scalar(f"{kind}/{name}", value, int(step))
        except OSError as error:
            raise self._unwritable(error) from error

    def close(self) -> None:
        """Writes out and closes the files; may be called again."""
        self._file.close()
        self._board.close()

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(
            f"Cannot write {self.path} ({error.strerror or error}); "
            "make it writable, free space there, or name another working directory."
        )


def _drop_after(path: Path, step: int) -> set[tuple[int, str]]:
    """Removes the lines of later steps; returns (step, kind) of the others."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    kept = []
    found = set()
    for number, line in enumerate(lines, start=1):
        if number == len(lines) and not line.endswith("\n"):
            break  # cut off by a kill; a whole line ends in a newline
        try:
            values = json.loads(line)
            line_step, kind = values["step"], values["kind"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(
                f"Line {number} of {path} is not a line of metrics; mend it, or move the file away."
            ) from error
        if line_step <= step:
            kept.append(line)
            found.add((line_step, kind))
    if len(kept) < len(lines):
        write_atomic(path, "".join(kept))
    return found


class Progress:
    """Shows how far a run is: a bar on a terminal, plain lines elsewhere. A context manager.

    The first `update` only starts the clock of the rate and of the estimated time of arrival, so
    that compilation, which comes before it, is not taken for the speed of a step.
    """

    def __init__(
        self,
        *,
        total: int,
        start: int = 0,
        interval: float = 0.0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Starts at once.

        Args:
          total: step at which the run ends.
          start: step at which this process starts.
          interval: least number of seconds between plain lines; the last step is always shown.
          stream: where to write; standard error if None.
          clock: current time in seconds.
        """
        self._total, self._interval = total, interval
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._begun = clock()
        self._first: tuple[int, float] | None = None
        self._shown = -math.inf
        self._bar: tqdm.tqdm | None = None
        if self._stream.isatty():
            # Containers give terminals without a size, where tqdm would show nothing.
            columns = os.get_terminal_size(self._stream.fileno()).columns
            self._bar = tqdm.tqdm(
                total=total,
                initial=start,
                file=self._stream,
                dynamic_ncols=columns > 0,
                ncols=None if columns else 100,
                # tqdm's own rate and remaining time would count the compilation.
                bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}",
            )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def note(self, text: str) -> None:
        """Shows a line of its own, above the bar."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)

    def update(self, step: int, values: Mapping[str, float]) -> None:
        """Shows ``step``, the values, speed, elapsed time and estimated time left."""
        now = self._clock()
        if self._first is None:
            self._first = (step, now)
        parts = [f"{name} {_short(value)}" for name, value in values.items()]
        first_step, first_time = self._first
        if step > first_step and now > first_time:
            rate = (step - first_step) / (now - first_time)
            parts.append(f"{rate:.3g} steps/s")
            times = [f"ETA {format_seconds(max(0, self._total - step) / rate)}"]
        else:
            times = []
        parts += [f"elapsed {format_seconds(now - self._begun)}", *times]
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(parts), refresh=False)
            self._bar.n = step
            self._bar.refresh()
        elif step >= self._total or now - self._shown >= self._interval:
            self._shown = now
            print(f"step {step}/{self._total}  " + "  ".join(parts), file=self._stream, flush=True)

    def close(self) -> None:
        """Leaves the bar on the screen and ends its line; may be called again."""
        if self._bar is not None:
            self._bar.close()


def format_seconds(seconds: float) -> str:
    """A duration for people, from its two largest units: ``"7s"``, ``"1m 20s"``, ``"2d 3h"``."""
    if not math.isfinite(seconds):
        return "unknown"
    left = max(0, round(seconds))
    days, left = divmod(left, 86400)
    hours, left = divmod(left, 3600)
    minutes, left = divmod(left, 60)
    if days:
        return f"{days}d {hours}h"
    if hours:
        return f"{hours}h {minutes}m"
    return f"{minutes}m {left}s" if minutes else f"{left}s"


def _short(number: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.4g}"
