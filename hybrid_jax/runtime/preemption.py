"""Stopping a run from outside so that nothing is lost.

Schedulers and clouds announce with SIGTERM that a machine will be taken away; people press Ctrl-C.
During training, either makes every process finish the same step, save it and exit.
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Self

import jax
from jax.experimental import multihost_utils

from hybrid_jax.errors import Interrupted

PREEMPTED = 75  # exit status after SIGTERM: run the same command again (EX_TEMPFAIL of sysexits.h)
STOPPED = 130  # exit status after Ctrl-C


class Signals:
    """SIGTERM and Ctrl-C, polled after each step. A context manager.

    Outside of `deferred` they raise `Interrupted` and KeyboardInterrupt at once. In a run of
    several processes JAX handles SIGTERM, and tells all of them of a signal to one.
    """

    def __init__(self) -> None:
        self._received: signal.Signals | None = None
        self._deferred = False

    def __enter__(self) -> Self:
        if not jax.distributed.is_initialized():
            self._before = signal.signal(signal.SIGTERM, self._terminate)
        return self

    def __exit__(self, *_: object) -> None:
        if not jax.distributed.is_initialized():
            signal.signal(signal.SIGTERM, self._before)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """A block in which signals wait for `reached`; a second Ctrl-C raises at once."""
        before = signal.signal(signal.SIGINT, self._interrupt)
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
            signal.signal(signal.SIGINT, before)

    def reached(self, step: int) -> bool:
        """True if the run is to save and stop now, after `step`; the same on all processes.

        All of them must call this after every step.
        """
        if jax.distributed.is_initialized():
            return multihost_utils.reached_preemption_sync_point(step)
        return self._received is not None

    def stopped(self, step: int) -> Interrupted:
        """The exception to raise once `step` is saved."""
        by_hand = self._received == signal.SIGINT
        return Interrupted(
            f"{'stopped' if by_hand else 'preempted'} after step {step}, which is saved",
            STOPPED if by_hand else PREEMPTED,
        )

    def _terminate(self, number: int, _: FrameType | None) -> None:
        self._received = self._received or signal.Signals(number)
        if not self._deferred:
            raise Interrupted("terminated", PREEMPTED)

    def _interrupt(self, number: int, _: FrameType | None) -> None:
        if self._received is not None:
            raise KeyboardInterrupt
        self._received = signal.Signals(number)
        if jax.distributed.is_initialized():
            os.kill(os.getpid(), signal.SIGTERM)  # JAX knows how to tell the others
