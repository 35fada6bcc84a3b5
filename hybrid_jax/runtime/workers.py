"""Processes that share the work of one command, and end with it."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any

from hybrid_jax.errors import Interrupted, UserError

Ask = Callable[[Any], Any]
_PROGRAM = "import sys; from hybrid_jax.runtime import workers; workers.serve(int(sys.argv[1]))"


def available() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(
    count: int, jobs: Iterator[Any], answer: Ask = lambda question: None
) -> Generator[Any, None, None]:
    """The results of jobs, in the order in which they end.

    Args:
      count: processes at most. One is this process itself.
      jobs: tuples of a function of a module and its arguments; read when a process is free for one.
        The function gets one more argument, a function that asks this process a question.
      answer: to a question.

    Raises:
      UserError, OSError: as a job does.
      Interrupted: if a process ends before its job.
    """
    if count == 1:
        for function, *arguments in jobs:
            yield function(*arguments, answer)
        return
    busy: dict[Connection, subprocess.Popen[bytes]] = {}
    try:
        for job in jobs:
            ours, process = _start()
            busy[ours] = process
            ours.send(job)
            if len(busy) == count:
                break
        while busy:
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                try:
                    is_result, value = connection.recv()
                    if not is_result:
                        connection.send(answer(value))
                        continue
                except (EOFError, ConnectionError) as error:
                    raise _ended(busy[connection]) from error
                if isinstance(value, UserError | OSError):
                    raise value
                yield value
                if (job := next(jobs, None)) is not None:
                    connection.send(job)
                else:
                    connection.close()
                    busy.pop(connection).wait()
    finally:
        for connection, process in busy.items():
            connection.close()
            process.kill()
            process.wait()


def serve(descriptor: int) -> None:
    """The program of a process: does the jobs that come, until the other side is gone."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the other side decides when this one ends
    connection = Connection(descriptor)

    def ask(question: Any) -> Any:
        connection.send((False, question))
        return connection.recv()

    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            function, *arguments = connection.recv()
            try:
                result = function(*arguments, ask)
            except ConnectionError:
                return
            except (UserError, OSError) as error:
                result = error
            connection.send((True, result))


def _start() -> tuple[Connection, subprocess.Popen[bytes]]:
    """A new process, and the connection to it, which ends with either side.

    It imports what its jobs need and nothing else, so it starts fast where this process is large.
    """
    ours, theirs = Pipe()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,  # Ctrl-C is for this process alone
        )
    return ours, process


def _ended(process: subprocess.Popen[bytes]) -> Interrupted:
    status = process.wait()
    how = f"was killed by signal {-status} (is there enough memory?)" if status < 0 else "failed"
    return Interrupted(f"a process that shares the work {how}", 2)
