"""How fast a training runs, measured so that the number can be trusted.

Compilation, evaluation and checkpoints are left out: a number describes the steps between two log
lines, from the moment that the first is done to the moment that the last is.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator


class Throughput:
    """Times steps. The first `read` only starts the clock: compilation comes before it."""

    def __init__(
        self,
        *,
        tokens: int,
        devices: int,
        flops: float,
        peak: float | None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        """Starts with an unknown speed.

        Args:
          tokens: of a step, all devices together.
          devices: how many share a step.
          flops: of the model in a step, all devices together.
          peak: floating-point operations a second that a device is sold with; None if unknown.
          clock: current time in seconds.
        """
        self._tokens, self._devices, self._flops, self._peak = tokens, devices, flops, peak
        self._clock = clock
        self._since: float | None = None
        self._paused = 0.0
        self._waited = 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around whatever waits for input."""
        begun = self._clock()
        yield
        self._waited += self._clock() - begun

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Around whatever is not training."""
        begun = self._clock()
        yield
        self._paused += self._clock() - begun

    def read(self, steps: int) -> dict[str, float]:
        """Numbers on the `steps` since the last call, which must be done; empty at the first call.

        Returns:
          "step_seconds"; "tokens_per_second" in all and "tokens_per_second_per_device"; "mfu",
          model FLOPs utilisation as a share of the peak, where the peak is known; and
          "input_wait", the share of the time that was spent waiting for input.
        """
        now = self._clock()
        since, waited = self._since, self._waited
        spent = now - since - self._paused if since is not None else 0.0
        self._since, self._paused, self._waited = now, 0.0, 0.0
        if spent <= 0 or not steps:
            return {}
        rate = steps / spent
        values = {
            "step_seconds": 1 / rate,
            "tokens_per_second": rate * self._tokens,
            "tokens_per_second_per_device": rate * self._tokens / self._devices,
            "input_wait": waited / spent,
        }
        if self._peak:
            values["mfu"] = rate * self._flops / (self._devices * self._peak)
        return values
