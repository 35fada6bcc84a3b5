"""Numbers on speed, from a clock that the test sets."""

import pytest

from hybrid_jax.runtime.throughput import Throughput


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_numbers_leave_out_compilation_evaluation_and_checkpoints():
    clock = Clock()
    throughput = Throughput(tokens=800, devices=4, peak=1e10, clock=clock)
    clock.now = 30.0  # compilation and the first steps
    assert throughput.read(5, 30e9) == {}
    with throughput.paused():
        clock.now += 100.0
    for _ in range(10):
        with throughput.waiting():
            clock.now += 0.05
        clock.now += 0.15
    assert throughput.read(10, 60e9) == pytest.approx(
        {
            "step_seconds": 0.2,
            "tokens_per_second": 4000.0,
            "tokens_per_second_per_device": 1000.0,
            "input_wait": 0.25,
            "mfu": 0.75,
        }
    )
    clock.now += 1.0
    assert throughput.read(10, 60e9)["step_seconds"] == pytest.approx(0.1)


def test_what_is_not_known_is_not_said():
    clock = Clock()
    throughput = Throughput(tokens=1, devices=1, peak=None, clock=clock)
    throughput.read(1, 1.0)
    assert throughput.read(1, 1.0) == {}  # no time has passed
    clock.now += 1.0
    assert throughput.read(0, 0.0) == {}
    clock.now += 1.0
    assert "mfu" not in throughput.read(1, 1.0)
