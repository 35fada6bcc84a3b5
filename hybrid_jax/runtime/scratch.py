"""Hidden folders in which something is made before it appears whole under its name; and locks."""

import contextlib
import glob
import os
import shutil
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from hybrid_jax.errors import Interrupted

_LOCK, _WORK = "scratch.lock", "work"


@contextlib.contextmanager
def scratch_folder(target: Path) -> Iterator[Path]:
    """An empty folder beside `target`, on its file system, to be renamed to it.

    What is left of it is removed in the end; after a kill, by the next call with this target. The
    lock, which the system frees when a process dies, tells such a folder from one in use.

    Folders above `target` are made where they are missing; a failure leaves no empty one.

    Raises:
      OSError: if the folder cannot be made.
    """
    with _own_folder(target, uuid.uuid4().hex, shared=False) as folder:
        try:
            yield folder / _WORK
        finally:
            _remove(folder)


@contextlib.contextmanager
def resumed_folder(target: Path, name: str, *, shared: bool) -> Iterator[Path]:
    """The folder of this name beside `target`, with what an earlier process has made in it.

    It is removed in the end; after an error it is kept for the next process, if there is anything
    in it. Folders with other names for this target are removed if no process uses them. Folders
    above it are as with `scratch_folder`.

    Args:
      name: without hyphens.
      shared: among processes that all say so, and for which it is kept. Others wait for them.

    Raises:
      OSError: if the folder cannot be made.
    """
    with _own_folder(target, name, shared=shared) as folder:
        done = False
        try:
            yield folder / _WORK
            done = not shared
        finally:
            if done or not any(folder.glob(f"{_WORK}/*")):
                _remove(folder)


@contextlib.contextmanager
def _own_folder(target: Path, name: str, *, shared: bool) -> Iterator[Path]:
    folder = target.parent / f".{target.name}-{name}"
    makes_parent = not target.parent.exists()
    target.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        if makes_parent:
            stack.callback(_remove_empty, target.parent)
        _remove_unused(target, but=folder)
        while True:
            folder.mkdir(exist_ok=True)
            try:
                stack.enter_context(locked(folder / _LOCK, wait=True, shared=shared))
            except FileNotFoundError:  # the one that had the lock has removed the folder
                continue
            except OSError:  # no locks here, so nobody removes what may be in use
                pass
            break
        (folder / _WORK).mkdir(parents=True, exist_ok=True)
        yield folder


@contextlib.contextmanager
def raise_when_terminated() -> Iterator[None]:
    """SIGTERM and SIGHUP raise `Interrupted`, as Ctrl-C raises, where they would kill at once.

    For the main thread of a command whose `scratch_folder` would be left behind.
    """

    def end(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)  # a second one would interrupt the removal
        raise Interrupted("terminated", 128 + number)

    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) == signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def locked(file: Path, *, wait: bool, shared: bool = False) -> Iterator[BinaryIO]:
    """Holds the lock of a file, which is made where it is missing; the lock ends with the process.

    Args:
      wait: until it is free.
      shared: with others that share it.

    Raises:
      BlockingIOError: if it is taken.
      OSError: where there are no locks, or if the file cannot be opened.
    """
    import fcntl  # which Windows lacks

    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    with contextlib.ExitStack() as stack:
        while True:
            opened = stack.enter_context(open(file, "a+b"))
            fcntl.flock(opened, kind | (0 if wait else fcntl.LOCK_NB))
            # The holder before may have removed the file since it was opened.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(file), os.fstat(opened.fileno())):
                    break
        yield opened


def _remove_unused(target: Path, *, but: Path) -> None:
    """Removes the hidden folders that killed processes left for this target."""
    for left in target.parent.glob(f".{glob.escape(target.name)}-*/{_LOCK}"):
        # Names have no hyphen: with one it is a folder for another target, such as books-2.
        is_ours = left.parent.name.rpartition("-")[0] == f".{target.name}"
        if is_ours and left.parent != but:
            with contextlib.suppress(OSError), locked(left, wait=False):
                _remove(left.parent)


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # there is something in it
        folder.rmdir()


def _remove(folder: Path) -> None:
    """Removes a folder and, last, its lock, so that an unfinished removal can be continued."""
    with contextlib.suppress(OSError):
        shutil.rmtree(folder / _WORK, ignore_errors=True)
        os.unlink(folder / _LOCK)
        os.rmdir(folder)
