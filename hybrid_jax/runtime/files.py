"""Small files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Sequence
from pathlib import Path

from hybrid_jax.errors import UserError


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path with the home folder in place of a leading "~", as shells write it.

    Raises `UserError` where nothing can be, so that it is enough to look for files afterwards: a
    name that is too long, or a folder that may not be entered.
    """
    text = os.path.expanduser(path)
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
        try:
            path.write_bytes(data)
        except OSError as error:
            raise unwritable(path, error) from error
        return
    # In the same folder, because a rename is atomic only within one file system.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            temporary.unlink()


def unwritable(path: Path, error: Exception) -> UserError:
    """The error to raise when `path` could not be written."""
    return UserError(
        f"Cannot write {path} ({one_line(error)}); "
        "make it writable, free space there, or name another working directory."
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
