"""Speed of a training, without compilation, evaluation and checkpoints.

A number describes the steps between two log lines, from the end of the first to that of the last.
"""

import contextlib
import time
from collections.abc import Callable, Iterator


class Throughput:
    """A clock of steps. The first `read` only starts it: compilation comes before that."""

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
          tokens: tokens in a step, on all devices together.
          devices: number of devices that share a step.
          flops: model FLOPs in a step, on all devices together.
          peak: specified FLOP/s of a device; None if unknown.
          clock: current time in seconds.
        """
        self._tokens, self._devices, self._flops, self._peak = tokens, devices, flops, peak
        self._clock = clock
        self._since: float | None = None
        self._paused = 0.0
        self._waited = 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """A block that waits for input."""
        begun = self._clock()
        yield
        self._waited += self._clock() - begun

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """A block that is not training and does not count."""
        begun = self._clock()
        yield
        self._paused += self._clock() - begun

    def read(self, steps: int) -> dict[str, float]:
        """Speed over the `steps` since the last call, which must be done; empty at the first call.

        Returns:
          "step_seconds"; "tokens_per_second" in all and "tokens_per_second_per_device";
          "input_wait", the share of time spent waiting for input; and, where the peak is known,
          "mfu", model FLOPs utilisation.
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
