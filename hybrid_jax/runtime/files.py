"""Small files that appear whole or not at all."""

import contextlib
import errno
import os
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from hybrid_jax.errors import UserError


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path with the home folder in place of a leading "~", as shells write it.

    Raises `UserError` where nothing can be, so that it is enough to look for files afterwards: a
    name that is too long, a URL, or a folder that may not be entered.
    """
    text = os.path.expanduser(path)
    if "://" in text:
        raise UserError(
            f"{text} is not on a disk here: mount its bucket (see docs/scale.md), and name the "
            "path where it is mounted."
        )
    try:
        os.lstat(text)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        raise UserError(
            f"{text} cannot be a path here ({one_line(error)}): name another."
        ) from error
    return Path(text)


def write_atomic(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Writes a file (text as UTF-8) so that readers see the old content or the new, never a part.

    A device or a pipe, such as /dev/null, is written to and not replaced.

    Raises `UserError` if the file cannot be written, naming the path and the cause.
    """
    path = expanded(path)
    data = content.encode() if isinstance(content, str) else content
    if path.exists() and not path.is_file() and not path.is_dir():
        with writing(path):
            path.write_bytes(data)
        return
    # In the same folder, because a rename is atomic only within one file system.
    temporary = path.with_name(f".{_short(path)}.{uuid.uuid4().hex}")
    try:
        with writing(path):
            _make_parents(path)
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            temporary.unlink()


class GrowingFile(AbstractContextManager["GrowingFile"]):
    """A file that is written piece by piece. A context manager.

    It has its name once the block has ended without an error. Until then, and for good if the block
    ends otherwise, the pieces stand in a ``.part`` file beside it. A device or a pipe, such
    as /dev/null, is written to at once.
    """

    def __init__(self, path: str | os.PathLike[str]):
        """Raises `UserError` if the file could not be written."""
        self.path = expanded(path)
        check_writable(self.path)
        self._own = not self.path.exists() or self.path.is_file()
        unique = f"{_short(self.path)}.{uuid.uuid4().hex[:8]}.part"
        self._part = self.path.with_name(unique) if self._own else self.path
        self._size, self._told = 0, False

    def append(self, text: str) -> None:
        """Writes a piece whole. Raises `UserError`, which says where the others are."""
        data = left = text.encode()
        try:
            _make_parents(self.path)
            with open(self._part, "ab", buffering=0) as file:
                while left:
                    left = left[file.write(left) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                os.truncate(self._part, self._size)
            raise self._failure(error) from error
        self._size += len(data)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._own and self._size and kind is None:
            try:
                with open(self._part, "ab") as file:
                    os.fsync(file.fileno())
                os.replace(self._part, self.path)
            except OSError as error:
                raise self._failure(error) from error
        elif self._own and self._size and not self._told:
            print(f"what was made so far is kept in {self._part}", file=sys.stderr)
        elif self._own and not self._size:
            with contextlib.suppress(OSError):
                self._part.unlink()

    def _failure(self, error: OSError) -> UserError:
        if not (self._own and self._size):
            return unwritable(self.path, error)
        self._told = True
        return UserError(
            f"Cannot write {self.path} ({one_line(error)}): what was made before is kept in "
            f"{self._part}."
        )


def check_writable(path: str | os.PathLike[str], *, folder: bool = False) -> None:
    """Checks before any work that a file can be written, or files in a folder.

    Folders that are missing are not made here, so that a command that refuses leaves nothing.

    Raises `UserError` if it cannot be written.
    """
    path = expanded(path)
    os.fsencode(path)  # names that the locale does not know fail here, and not where they are made
    with writing(path):
        if path.is_dir() and not folder:
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        if folder and path.exists() and not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "it is no folder")
        if path.exists() and not path.is_dir() and not path.is_file():
            if not os.access(path, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return
        places = (path, *path.absolute().parents) if folder else path.absolute().parents
        with tempfile.TemporaryFile(dir=next(place for place in places if place.exists())):
            pass


def _make_parents(path: Path) -> None:
    if not path.parent.exists():  # if it is a file, opening says so better
        path.parent.mkdir(parents=True, exist_ok=True)


def _short(path: Path) -> str:
    """A part of a file's name, so that a longer name is not too long for a file system."""
    return path.name[:50]


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """A block that writes `path`: an OSError in it becomes a UserError."""
    try:
        yield
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: BaseException) -> UserError:
    """The error to raise when `path` could not be written."""
    return UserError(
        f"Cannot write {path} ({one_line(error)}); "
        "make it writable, free space there, or name another place."
    )


def one_line(error: BaseException) -> str:
    """The root cause of an error in a line of at most 200 characters."""
    while error.__cause__ is not None:  # Orbax wraps the reason in pages of settings
        error = error.__cause__
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    line = " ".join(text.split())
    return line if len(line) <= 200 else f"…{line[-200:]}"  # TensorStore puts the cause last


def labels(paths: Sequence[str | os.PathLike[str]]) -> list[str]:
    """The shortest ending of each path that no other has; of different paths, different ones."""
    parts = [Path(path).absolute().parts for path in paths]

    def ending(own: tuple[str, ...]) -> str:
        for size in range(1, len(own)):
            if sum(other[-size:] == own[-size:] for other in parts) == 1:
                return str(Path(*own[-size:]))
        return str(Path(*own))

    return [ending(own) for own in parts]
