"""Speed of a training, without compilation, evaluation and checkpoints.

A number describes the steps between two log lines, from the end of the first to that of the last.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator


@dataclasses.dataclass(kw_only=True)
class Throughput:
    """A clock of steps. The first `read` only starts it: compilation comes before that.

    Attributes:
      tokens: tokens in a step, on all devices together.
      devices: number of devices that share a step.
      peak: specified FLOP/s of a device; None if unknown.
      clock: current time in seconds.
    """

    tokens: int
    devices: int
    peak: float | None
    clock: Callable[[], float] = time.perf_counter

    _since: float | None = None
    _paused: float = 0.0
    _waited: float = 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """A block that waits for input."""
        begun = self.clock()
        yield
        self._waited += self.clock() - begun

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """A block that is not training and does not count."""
        begun = self.clock()
        yield
        self._paused += self.clock() - begun

    def read(self, steps: int, flops: float) -> dict[str, float]:
        """Speed over the `steps` since the last call, which must be done; empty at the first call.

        Args:
          flops: model FLOPs in these steps, on all devices together.

        Returns:
          "step_seconds"; "tokens_per_second" in all and "tokens_per_second_per_device";
          "input_wait", the share of time spent waiting for input; and, where the peak is known,
          "mfu", model FLOPs utilisation.
        """
        now = self.clock()
        since, waited = self._since, self._waited
        spent = now - since - self._paused if since is not None else 0.0
        self._since, self._paused, self._waited = now, 0.0, 0.0
        if spent <= 0 or not steps:
            return {}
        rate = steps / spent
        values = {
            "step_seconds": 1 / rate,
            "tokens_per_second": rate * self.tokens,
            "tokens_per_second_per_device": rate * self.tokens / self.devices,
            "input_wait": waited / spent,
        }
        if self.peak:
            values["mfu"] = flops / spent / (self.devices * self.peak)
        return values
