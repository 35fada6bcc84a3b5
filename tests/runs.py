"""Real training processes for tests: a run so small that its start takes longer than its steps."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

CONFIG = """
from hybrid_jax.presets import sized

def get_config(size="tiny"):
    config = sized("faults", size)
    config.data.source = "files:{folder}/text.txt"
    config.data.dir = "{folder}/data"
    config.data.tokenizer = "byte"
    config.data.length = 16
    config.schedule.width = config.schedule.levels = 4
    config.noise.kernel = "gamma"
    config.noise.gamma = 0.05
    config.objective.parameterisation = "context"
    config.objective.time = "continuous"
    config.model.update(dict(layers=1, width=32, unroll=1, dropout=0.1))
    # A run of fewer steps is the beginning of a run of more.
    config.optimizer.schedule = "constant"
    config.train.update(dict(steps=120, batch_size=8, log_every=5, checkpoint_every=10,
                             eval_every=30, loss_chunk=16))
    config.evaluation.update(dict(records=16, final_records=16, draws=1, batch_size=16))
    config.sampling.count = 0
    return config
"""


def latest_step(folder: Path) -> int | None:
    """The newest step in a checkpoint folder, or None."""
    names = os.listdir(folder) if folder.is_dir() else []
    return max((int(name) for name in names if name.isdecimal()), default=None)


def prepare(folder: Path) -> Path:
    """A config file on a small text; both lie in `folder`."""
    lines = [f"{n} plus {n} makes {2 * n}, and that is all there is to say.\n" for n in range(3000)]
    (folder / "text.txt").write_text("".join(lines), encoding="utf-8")
    config = folder / "faults.py"
    config.write_text(CONFIG.format(folder=folder), encoding="utf-8")
    return config


@contextlib.contextmanager
def started(
    config: Path,
    workdirs: list[Path],
    *flags: str,
    devices: int = 1,
    shell: str = "",
    extra: dict[int, list[str]] | None = None,
) -> Iterator[list[subprocess.Popen]]:
    """Starts one process of a run for each workdir given; kills what is left at the end.

    `shell` is done before, `extra` are flags of single processes.
    """
    command = ["hybrid_jax.main", f"--config={config}", *flags]
    commands = [
        [*command, f"--workdir={workdir}", *(extra or {}).get(number, [])]
        for number, workdir in enumerate(workdirs)
    ]
    with together(commands, config.parent, devices=devices, shell=shell) as children:
        yield children


@contextlib.contextmanager
def together(
    commands: list[list[str]], folder: Path, *, devices: int = 1, shell: str = ""
) -> Iterator[list[subprocess.Popen]]:
    """Starts modules with their flags, as processes of one run; kills what is left at the end.

    They share what they compile in `folder`.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    if not shell:  # which may forbid to write it
        environment["JAX_COMPILATION_CACHE_DIR"] = str(folder / f"cache-{len(commands)}-{devices}")
        environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    children = []
    for number, flags in enumerate(commands):
        command = [sys.executable, "-m", *flags]
        if len(commands) > 1:
            command += [f"--coordinator={address}", f"--processes={len(commands)}",
                        f"--process={number}"]  # fmt: skip
        if shell:
            command = ["bash", "-c", f'{shell}; exec "$@"', "bash", *command]
        children.append(
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
            )
        )
    try:
        yield children
    finally:
        for child in children:
            child.kill()
            child.communicate()


def finished(children: list[subprocess.Popen], timeout: float = 600) -> list[tuple[int, str, str]]:
    """Waits for the processes: (status, stdout, stderr) of each."""
    outputs = [child.communicate(timeout=timeout) for child in children]
    return [
        (child.returncode, out, err) for child, (out, err) in zip(children, outputs, strict=True)
    ]


def run(config: Path, workdir: Path, *flags: str, processes: int = 1, **settings):
    """Runs to the end: (status, stdout, stderr) of each process."""
    with started(config, [workdir] * processes, *flags, **settings) as children:
        return finished(children)


def metrics(workdir: Path) -> list[dict]:
    """The lines of a run's log."""
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return []
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines()]


def checksums(workdir: Path, step: int) -> dict[str, int]:
    """Checksum of every leaf of a checkpoint, as it was saved."""
    path = workdir / "checkpoints" / str(step) / "meta" / "metadata"
    leaves = json.loads(path.read_text(encoding="utf-8"))["leaves"]
    return {leaf["path"]: leaf["checksum"] for leaf in leaves}
