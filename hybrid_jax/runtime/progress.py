"""Progress of a run and its estimated end."""

import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TextIO

import tqdm


class Progress(AbstractContextManager["Progress"]):
    """A progress bar on a terminal, plain lines elsewhere. A context manager.

    The first `update` only starts the clock of the rate and of the estimated time left, so that
    compilation, which comes before it, does not count as the speed of a step.
    """

    def __init__(
        self,
        *,
        total: int,
        start: int = 0,
        unit: str = "step",
        interval: float = 0.0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Starts the clock of the elapsed time.

        Args:
          total: step at which the run ends.
          start: step at which this process starts.
          unit: what a step is.
          interval: least number of seconds between plain lines; the last step is always shown.
          stream: where to write; standard error if None.
          clock: current time in seconds.
        """
        self._total, self._unit, self._interval = total, unit, interval
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

    def __exit__(self, *_: object) -> None:
        """Ends the line of the bar, which stays on the screen; may be called again."""
        if self._bar is not None:
            self._bar.close()

    def note(self, text: str) -> None:
        """Shows a separate line, above the bar."""
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
        times = []
        if step > first_step and now > first_time:
            rate = (step - first_step) / (now - first_time)
            parts.append(f"{rate:.3g} {self._unit}{'s' * (self._unit == 'step')}/s")
            left = max(0, self._total - step) / rate
            times = [f"ETA {tqdm.tqdm.format_interval(left)}"]
        parts += [f"elapsed {tqdm.tqdm.format_interval(now - self._begun)}", *times]
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(parts), refresh=False)
            self._bar.n = step
            self._bar.refresh()
        elif step >= self._total or now - self._shown >= self._interval:
            self._shown = now
            print(
                f"{self._unit} {step}/{self._total}  " + "  ".join(parts),
                file=self._stream,
                flush=True,
            )


def _short(number: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.4g}"
