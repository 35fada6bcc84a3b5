"""Several processes as one run: how they start, agree, and fail together.

Every process runs the same program on its own devices. An error that only one of them sees (a full
disk, another configuration, a missing file) must reach the others before their next collective
operation, where they would wait for ever: `raise_on_all` and `assert_same` see to that. With one
process they do nothing.
"""

import argparse
import contextlib
import importlib.util
import itertools
import os
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ParamSpec, TextIO, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from hybrid_jax.errors import UserError
from hybrid_jax.runtime import compilation_cache, sharding
from hybrid_jax.runtime.files import writing

P = ParamSpec("P")
T = TypeVar("T")

TIMEOUT = 300  # seconds within which all processes must join
# Seconds that a process waits for the others when it ends. They may be waiting for this one in an
# operation that only its end breaks off, so not for long.
_SHUTDOWN = 15


def start(
    coordinator: str = "",
    processes: int | None = None,
    process: int | None = None,
    *,
    timeout: int = TIMEOUT,
) -> None:
    """Joins the other processes of the run, before any other use of JAX.

    On a TPU pod and under SLURM, JAX finds the others by itself. Elsewhere they must be named;
    without names there is one process.

    Args:
      coordinator: HOST:PORT of process 0, reachable by all.
      processes: number of processes.
      process: number of this one, from 0.
      timeout: seconds within which all must join; afterwards this process exits with status 2.

    Raises:
      UserError: if only some of the three are given, or one is invalid.
    """
    given = [bool(coordinator), processes is not None, process is not None]
    if any(given) and not all(given):
        raise UserError(
            "--coordinator, --processes and --process belong together: give all three, or none."
        )
    if processes is not None and process is not None:
        host, _, port = coordinator.rpartition(":")
        if not (host and port.isdecimal() and len(port) <= 5 and 0 < int(port) < 1 << 16):
            raise UserError(f"--coordinator={coordinator} is not HOST:PORT.")
        if not 0 <= process < processes:
            raise UserError(
                f"--process={process} is not one of 0 … {processes - 1} (--processes={processes})."
            )
        where = f"process {process} of {processes}, coordinator {coordinator}"
    elif int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in os.environ:
        where = f"task {os.environ['SLURM_PROCID']} of {os.environ['SLURM_NTASKS']} of SLURM"
    elif _on_tpu():
        where = "a TPU host"
    else:
        return
    with _watchdog(where, timeout):
        jax.distributed.initialize(
            coordinator or None,
            processes,
            process,
            # Longer than the watchdog's: JAX would end the process with a stack trace.
            initialization_timeout=timeout + 60,
            shutdown_timeout_seconds=_SHUTDOWN,
        )
    # Processes that tune a program for GPUs together would wait for one that reads it.
    if compilation_cache.in_use() and jax.process_count() > 1:
        compilation_cache.avoid()


def join(options: argparse.Namespace) -> Mesh:
    """`start` by the flags of `command_line.add_devices`, and the mesh of all devices."""
    start(options.coordinator, options.processes, options.process)
    return sharding.make_mesh(sharding.MeshConfig(data=-1, fsdp=1, tensor=options.tensor))


def is_process0() -> bool:
    """True if this is the process that prints and writes for all."""
    return jax.process_index() == 0


def say(text: str, file: TextIO | None = None) -> None:
    """Prints on process 0 alone, at once; to standard output if `file` is None."""
    if is_process0():
        print(text, file=file, flush=True)


def raise_on_all(action: Callable[P, T], *args: P.args, **settings: P.kwargs) -> T:
    """Calls `action` on every process; a `UserError` on one of them is raised on all.

    All processes must call this at the same place. It waits for the slowest.
    """
    if jax.process_count() == 1:
        return action(*args, **settings)
    result: T | None = None
    failure = ""
    try:
        result = action(*args, **settings)
    except UserError as error:
        failure = str(error)
    for number, text in enumerate(_gather(failure)):
        if text:
            raise UserError(
                text if number == jax.process_index() else f"On process {number}: {text}"
            )
    return result  # type: ignore[return-value]  # without an error there is a result


def on_process0(action: Callable[P, object], *args: P.args, **settings: P.kwargs) -> None:
    """`raise_on_all` for what process 0 alone does."""
    raise_on_all(lambda: action(*args, **settings) if is_process0() else None)


def process0_first(action: Callable[P, T], *args: P.args, **settings: P.kwargs) -> T:
    """`raise_on_all`, with process 0 acting before the others.

    The others find its work done on a shared disk, and do it themselves otherwise.
    """
    on_process0(action, *args, **settings)
    return raise_on_all(action, *args, **settings)


def assert_same(
    what: str, text: str, *, difference: Callable[[str, str], str] | None = None
) -> None:
    """Raises `UserError` on all processes unless they all have the same `text`.

    Args:
      what: name of the text in the message.
      difference: (text of process 0, another text) -> a phrase that says where they differ.
    """
    if jax.process_count() == 1:
        return
    first, *others = _gather(text)
    for number, other in enumerate(others, 1):
        if other != first:
            where = f" ({difference(first, other)})" if difference else ""
            raise UserError(
                f"Process {number} has another {what} than process 0{where}: start all processes "
                "with the same command, code and data."
            )


def of_process0(text: str) -> str:
    """The text that process 0 has."""
    return text if jax.process_count() == 1 else _gather(text)[0]


class PartedError(RuntimeError):
    """Another process is at another place of the program, where something has failed."""


class Barriers:
    """Places where all processes wait for one another, in any thread, but one after the other.

    They are counted, and each process says which one it takes it for. A process that leaves some
    out because it has failed thus meets the others at the next. By their names, as Orbax has them,
    both sides would wait until their time is up.
    """

    def __init__(self, client: Any, name: str):
        """Of the coordination service's `client`, under a name that all processes give."""
        self._client, self._name = client, name
        self._numbers = itertools.count()
        self._parted = False

    def wait(self, *, key: str, timeout_ms: int) -> None:
        """Blocks until all are here. Raises PartedError if one says another `key`, then always."""
        if self._parted:
            raise PartedError(key)
        number = next(self._numbers)
        place, own = f"{self._name}/{number}", jax.process_index()
        self._client.key_value_set(f"{place}/{own}", key)
        self._client.wait_at_barrier(f"{place}/all", timeout_ms)
        if number:  # which all have read, since they are here
            self._client.key_value_delete(f"{self._name}/{number - 1}/{own}")
        self._parted = {said for _, said in self._client.key_value_dir_get(f"{place}/")} != {key}
        if self._parted:
            raise PartedError(key)


def check_shared(folder: Path) -> None:
    """Raises `UserError` on all processes unless they see the same existing folder."""
    if jax.process_count() == 1:
        return
    token = folder / f".shared.{of_process0(uuid.uuid4().hex)}"

    def write() -> None:
        with writing(folder):
            token.touch()

    def see() -> None:
        if not token.exists():
            raise UserError(
                f"{folder} is another folder here than on process 0: name a --workdir on a file "
                "system that all hosts share."
            )

    on_process0(write)
    try:
        raise_on_all(see)
    finally:
        if is_process0():
            token.unlink()


def _gather(text: str) -> list[str]:
    """The texts of all processes."""
    data = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(data.size, np.int32))
    padded = np.zeros(max(int(sizes.max()), 1), np.uint8)
    padded[: data.size] = data
    rows = multihost_utils.process_allgather(padded)
    return [bytes(row[:size]).decode() for row, size in zip(rows, sizes.tolist(), strict=True)]


def _on_tpu() -> bool:
    """True if this host has TPU chips and the library for them."""
    wanted = os.environ.get("JAX_PLATFORMS") or "tpu"
    if "tpu" not in wanted.split(",") or not importlib.util.find_spec("libtpu"):
        return False
    return any(Path("/dev").glob("accel*")) or any(Path("/dev/vfio").glob("[0-9]*"))


@contextlib.contextmanager
def _watchdog(where: str, seconds: float) -> Iterator[None]:
    """Ends the process with a sentence if the block, which cannot be interrupted, takes longer."""

    def give_up() -> None:
        print(
            f"error: Not all processes came within {seconds:g} s (this is {where}): check that "
            "each of them was started, that they name the same coordinator, and that its port can "
            "be reached from here.",
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
