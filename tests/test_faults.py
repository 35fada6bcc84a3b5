"""Whole runs in processes of their own that are stopped, killed, misled and starved."""

import random
import signal
import socket
import subprocess
import sys
import time

import pytest
import runs

from hybrid_jax import main

pytestmark = pytest.mark.slow

SUM = "the same command continues from the newest checkpoint"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return runs.prepare(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """An uninterrupted run on one device, which everything else is compared with."""
    workdir = tmp_path_factory.mktemp("whole")
    ((status, _, err),) = runs.run(config, workdir)
    assert status == 0, err
    return workdir


def reached(workdir, step, child, timeout=600.0):
    """Waits until a run has logged a step; False if it ended before."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if any(line["step"] >= step for line in runs.metrics(workdir)):
            return True
        if child.poll() is not None:
            return False
        time.sleep(0.02)
    raise AssertionError(f"step {step} was not reached in {timeout} s")


def saving(workdir, child, timeout=600.0):
    """Waits until a save is in progress; False if the run ended before."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if any(workdir.glob("checkpoints/*tmp*")):
            return True
        if child.poll() is not None:
            return False
        time.sleep(0.0005)
    raise AssertionError("no save was seen")


def losses(workdir):
    """Loss by step of the training lines, each of which there is once."""
    lines = [line for line in runs.metrics(workdir) if line["kind"] == "train"]
    steps = [line["step"] for line in lines]
    assert steps == sorted(set(steps))
    return {line["step"]: line["loss"] for line in lines}


def flip_a_byte(step_folder):
    files = [path for path in step_folder.glob("state/**/d/*") if path.is_file()]
    file = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x10
    file.write_bytes(content)


def test_interrupted_is_uninterrupted_bit_for_bit(config, whole, tmp_path):
    """Killed during a save, stopped in both clean ways, and damaged."""
    chance = random.Random(0)
    workdir = tmp_path / "run"
    for how in ("kill in a save", "ctrl-c", "term"):
        known = max((line["step"] for line in runs.metrics(workdir)), default=0)
        with runs.started(config, [workdir]) as (child,):
            goes_on = reached(workdir, known + chance.choice([5, 10]), child)
            if how == "kill in a save":
                goes_on = goes_on and saving(workdir, child)
            else:
                time.sleep(chance.uniform(0, 0.1))
            assert goes_on, child.communicate()
            child.send_signal({"term": signal.SIGTERM, "ctrl-c": signal.SIGINT}.get(how, 9))
            status, _, err = runs.finished([child])[0]
        if how in ("term", "ctrl-c"):
            assert status == {"term": 75, "ctrl-c": 130}[how]
            step = max(losses(workdir))
            assert f"after step {step}, which is saved; {SUM}" in err
            assert runs.latest_step(workdir / "checkpoints") == step
        else:
            assert status == -signal.SIGKILL
    flipped = workdir / "checkpoints" / str(runs.latest_step(workdir / "checkpoints"))
    flip_a_byte(flipped)
    ((status, out, err),) = runs.run(config, workdir)
    assert status == 0, err
    assert f"The checkpoint {flipped} is damaged" in err
    assert (flipped.parent / "quarantine" / flipped.name).is_dir()
    assert "resuming at step" in out
    assert runs.checksums(workdir, 120) == runs.checksums(whole, 120)
    expected, found = losses(whole), losses(workdir)
    assert expected.keys() <= found.keys()  # a clean stop adds a line
    valid, expected = (
        [line for line in runs.metrics(folder) if line["kind"] == "valid"]
        for folder in (workdir, whole)
    )
    assert [line["step"] for line in valid] == [30, 60, 90, 120]
    assert valid == expected


def test_two_processes_stop_together_and_one_goes_on(config, whole, tmp_path):
    workdir = tmp_path / "run"
    with runs.started(
        config, [workdir] * 2, "--config.train.steps=60", "--config.mesh.tensor=2", devices=2
    ) as children:
        assert reached(workdir, 10, children[0])
        children[1].send_signal(signal.SIGTERM)
        results = runs.finished(children)
    assert [status for status, _, _ in results] == [75, 75], results
    step = runs.latest_step(workdir / "checkpoints")
    for _, _, err in results:
        assert f"preempted after step {step}, which is saved; {SUM}" in err
    ((status, out, err),) = runs.run(config, workdir, "--config.train.steps=60")
    assert status == 0, err
    assert f"resuming at step {step}" in out
    expected, found = losses(whole), losses(workdir)
    shared = expected.keys() & found.keys()
    # A line is the mean since the line before it, and the stop has added one.
    compared = [s for s in shared if not step < s < step + 5]
    assert len(compared) >= 11
    for s in compared:
        assert found[s] == pytest.approx(expected[s], abs=1e-4), s


def test_processes_with_different_settings(config, tmp_path):
    results = []
    with runs.started(config, [tmp_path] * 2, extra={1: ["--config.noise.gamma=0.5"]}) as children:
        results = runs.finished(children)
    for status, _, err in results:
        assert status == 2
        assert (
            "error: Process 1 has another configuration than process 0 (noise.gamma is 0.5 and "
            "not 0.05)" in err
        )
    assert list(tmp_path.iterdir()) == []


def test_a_workdir_that_is_not_shared(config, tmp_path):
    with runs.started(config, [tmp_path / "a", tmp_path / "b"]) as children:
        results = runs.finished(children)
    for status, _, err in results:
        assert status == 2
        assert "is another folder here than on process 0: name a --workdir on a file system" in err


def test_a_full_disk_stops_all_processes(config, whole, tmp_path):
    del whole  # which has prepared the data
    limit = '[[ "$*" != *--process=1* ]] || ulimit -f 40'  # in KiB, of one file
    results = runs.run(config, tmp_path, processes=2, shell=limit)
    for (status, _, err), elsewhere in zip(results, ("On process 1: ", ""), strict=True):
        assert status == 2, err
        # Beside what is said of steps there is one line, the last.
        said = [line for line in err.splitlines() if not line.startswith(("step ", "[Gloo]"))]
        assert len(said) == 1, err
        assert said[0].startswith(f"error: {elsewhere}Cannot write {tmp_path}/checkpoints (")
    assert runs.latest_step(tmp_path / "checkpoints") is None


LOG = """
import sys
from pathlib import Path
from hybrid_jax.config import Experiment
from hybrid_jax.runtime import processes
from hybrid_jax.training.run_log import Log
processes.start(sys.argv[1], 2, int(sys.argv[2]))
with Log(Path(sys.argv[3]), Experiment(name="run"), start=5) as log:
    print(log.has(5, "valid"), log.has(5, "train"))
"""


def test_all_processes_know_what_is_logged(tmp_path):
    """An evaluation after a resume is due on all or on none: alone, one would wait for ever."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 5, "kind": "valid", "nll": 1.0}\n')
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    children = [
        subprocess.Popen(
            [sys.executable, "-c", LOG, address, str(process), str(tmp_path)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for process in (0, 1)
    ]  # fmt: skip
    try:
        for status, out, err in runs.finished(children, timeout=120):
            assert status == 0, err
            assert out.endswith("True False\n")
    finally:
        for child in children:
            child.kill()


ALONE = """
import sys
from hybrid_jax.runtime import processes as distributed
distributed.start(sys.argv[1], 2, int(sys.argv[2]), timeout=2)
"""


@pytest.mark.parametrize("process", [0, 1])
def test_processes_that_do_not_come(process):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    done = subprocess.run(
        [sys.executable, "-c", ALONE, address, str(process)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert "error: Not all processes came within 2 s" in done.stderr
    assert "check that each of them was started" in done.stderr


def test_meshes_and_processes_without_meaning(config, tmp_path, capsys):
    workdir = f"--workdir={tmp_path}/run"
    for flags, message in (
        ([workdir, "--coordinator=host:1"], "belong together"),
        ([workdir, "--coordinator=host", "--processes=2", "--process=0"], "is not HOST:PORT"),
        ([workdir, "--coordinator=host:65536", "--processes=2", "--process=0"], "not HOST:PORT"),
        ([workdir, "--coordinator=host:1", "--processes=2", "--process=2"], "is not one of 0 … 1"),
        ([workdir, "--config.mesh.fsdp=3"], "mesh.fsdp=3 does not fit 8 devices:"),
        ([workdir, "--config.mesh.fsdp=-1"], "Only one of mesh.data, mesh.fsdp and"),
        (["--workdir=/proc/run"], "error: Cannot write /proc/run"),
    ):
        assert main.main([f"--config={config}", *flags]) == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1
