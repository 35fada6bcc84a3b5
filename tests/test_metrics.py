"""Estimates, the log of metrics, the progress line, and numbers on speed."""

import io
import json
import math
import os

import numpy as np
import pytest

from hybrid_jax.errors import UserError
from hybrid_jax.runtime.boards import Board
from hybrid_jax.runtime.metrics_writer import MetricsWriter
from hybrid_jax.runtime.progress import Progress
from hybrid_jax.runtime.throughput import Throughput
from hybrid_jax.training.statistics import bits_per_byte, mean_and_standard_error, perplexity


def lines_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_writes_lines(tmp_path):
    with MetricsWriter(tmp_path / "run", resume_step=0) as writer:
        writer.write(1, "train", {"loss": np.float32(2.5), "rate": 1})
        writer.write(2, "valid", {"loss": 2.25})
        assert len(lines_of(tmp_path / "run")) == 2  # while the run goes on
    assert lines_of(tmp_path / "run") == [
        {"step": 1, "kind": "train", "loss": 2.5, "rate": 1.0},
        {"step": 2, "kind": "valid", "loss": 2.25},
    ]


def test_values_that_are_not_finite(tmp_path):
    with MetricsWriter(tmp_path, resume_step=0) as writer:
        writer.write(1, "train", {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1.0})
    text = (tmp_path / "metrics.jsonl").read_text()
    line = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert line == {"step": 1, "kind": "train", "a": None, "b": None, "c": None, "d": 1.0}


def test_resuming_drops_what_will_be_logged_again(tmp_path):
    with MetricsWriter(tmp_path, resume_step=0) as writer:
        for step in (10, 20, 30):
            writer.write(step, "train", {"loss": step})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 15, "ki')  # cut off by a kill
    with MetricsWriter(tmp_path, resume_step=20) as writer:
        assert [line["step"] for line in lines_of(tmp_path)] == [10, 20]
        writer.write(30, "train", {"loss": -30})
    assert [line["loss"] for line in lines_of(tmp_path)] == [10, 20, -30]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_cut_off_character_is_dropped_with_its_line(tmp_path):
    whole = b'{"step": 1, "kind": "train"}\n'
    (tmp_path / "metrics.jsonl").write_bytes(whole + '{"step": 2, "kind": "ε'.encode()[:-1])
    MetricsWriter(tmp_path, resume_step=5).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole


def test_mistakes(tmp_path):
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": 1, "kind": "train"}\nnot JSON\n{"step": 2, "kind": "train"}\n')
    with pytest.raises(UserError, match=r"Line 2 of .*metrics\.jsonl is not a line of metrics"):
        MetricsWriter(tmp_path, resume_step=5)
    with pytest.raises(UserError, match=r"Cannot write .*metrics\.jsonl/metrics\.jsonl \("):
        MetricsWriter(log, resume_step=0)
    with (
        MetricsWriter(tmp_path / "new", resume_step=0) as writer,
        pytest.raises(ValueError, match="called step"),
    ):
        writer.write(1, "train", {"step": 2})


def test_a_full_disk_is_one_sentence_and_the_board_is_closed(tmp_path):
    closed = []
    board = Board(write=lambda step, values: None, close=lambda: closed.append(True))
    writer = MetricsWriter(tmp_path, resume_step=0, board=lambda: board)
    writer._file.close()
    writer._file = open("/dev/full", "w", encoding="utf-8")  # noqa: SIM115 - closed by close()
    for action in (lambda: writer.write(1, "train", {"loss": 1.0}), writer.close):
        with pytest.raises(UserError, match=r"Cannot write .*metrics\.jsonl \(No space left"):
            action()
    assert closed == [True]


class Clock:
    """A clock that stands still unless moved."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_progress_lines_leave_out_the_compilation():
    clock, stream = Clock(), io.StringIO()
    with Progress(total=100, stream=stream, clock=clock) as progress:
        clock.now = 60.0  # compilation
        progress.update(1, {"loss": 9.0})
        clock.now = 70.0
        progress.update(21, {"loss": 5.43219, "tokens_per_second": 12_345.0})
        clock.now = 110.0
        progress.update(100, {})
    assert stream.getvalue().splitlines() == [
        "step 1/100  loss 9  elapsed 01:00",
        "step 21/100  loss 5.432  tokens_per_second 12.3k  2 steps/s  elapsed 01:10  ETA 00:39",
        "step 100/100  1.98 steps/s  elapsed 01:50  ETA 00:00",
    ]


def test_progress_interval_and_resumed_start():
    clock, stream = Clock(), io.StringIO()
    with Progress(total=6, start=2, interval=10.0, stream=stream, clock=clock) as progress:
        for step, clock.now in ((3, 1.0), (4, 5.0), (5, 12.0), (6, 13.0)):
            progress.update(step, {})
    assert stream.getvalue().splitlines() == [
        "step 3/6  elapsed 00:01",
        "step 5/6  0.182 steps/s  elapsed 00:12  ETA 00:05",
        "step 6/6  0.25 steps/s  elapsed 00:13  ETA 00:00",
    ]


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a pseudo-terminal")
def test_progress_bar_on_a_terminal():
    clock = Clock()
    controller, terminal = os.openpty()
    with open(terminal, "w") as stream:
        with Progress(total=10, stream=stream, clock=clock) as progress:
            progress.update(1, {"loss": 3.0})
            clock.now = 2.0
            progress.update(5, {"loss": 2.0})
        stream.flush()
        read = b""
        while not read.endswith(b"\n"):  # a terminal passes on pieces
            read += os.read(controller, 1 << 16)
        shown = read.decode()
    os.close(controller)
    assert "50%" in shown
    assert "5/10, loss 2, 2 steps/s, elapsed 00:02, ETA 00:02" in shown
    assert shown.count("\n") == 1


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


def test_mean_and_standard_error():
    mean, error = mean_and_standard_error(np.array([1.0, 2.0, 3.0, 6.0]))
    assert mean == 3.0
    assert error == pytest.approx(np.std([1, 2, 3, 6], ddof=1) / 2)
    equal = mean_and_standard_error(np.array([1.0, 2.0, 3.0, 6.0]), np.full(4, 7.0))
    assert equal == pytest.approx((mean, error))
    one = mean_and_standard_error(np.array([2.0]), np.array([5.0]))
    assert one[0] == 2.0
    assert math.isnan(one[1])


def test_weighted_standard_error_is_the_spread_over_repetitions():
    """Records of random length, whose values depend on the length."""
    rng = np.random.default_rng(0)
    estimates, errors = [], []
    for _ in range(4000):
        weights = rng.integers(1, 50, size=200).astype(float)
        values = 3 + weights / 50 + rng.normal(size=200) / np.sqrt(weights)
        mean, error = mean_and_standard_error(values, weights)
        estimates.append(mean)
        errors.append(error)
    assert np.mean(errors) == pytest.approx(np.std(estimates), rel=0.05)


def test_mistakes_in_averages():
    with pytest.raises(UserError, match="no records"):
        mean_and_standard_error(np.zeros(0))
    with pytest.raises(UserError, match="no records"):
        mean_and_standard_error(np.ones(2), np.zeros(2))
    with pytest.raises(ValueError, match="must be equal"):
        mean_and_standard_error(np.ones(2), np.ones(3))
    with pytest.raises(ValueError, match="negative"):
        mean_and_standard_error(np.ones(2), np.array([2.0, -1.0]))


def test_perplexity_and_bits_per_byte():
    assert perplexity(math.log(20), 0.01) == pytest.approx((20.0, 0.2))
    assert perplexity(1000.0, 0.1) == (math.inf, math.inf)
    assert bits_per_byte(4 * math.log(2), 2.0) == pytest.approx(2.0)
    assert math.isnan(bits_per_byte(1.0, 0.0))
