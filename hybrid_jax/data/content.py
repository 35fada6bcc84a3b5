"""Content of files and texts: its hash, and a stamp that tells without reading if it changed."""

import functools
import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

from hybrid_jax.errors import UserError

# A stamp, which changes when the content does, and a function that computes the SHA-256.
Content = tuple[str, Callable[[], str]]


def of_file(path: Path) -> Content:
    """The content of a file. Raises UserError if it cannot be read, at once or when hashed."""
    return stamp(path), functools.partial(_hash, path)


def of_texts(stamp: str, texts: Callable[[], Iterable[str]]) -> Content:
    """The content of texts that are no files of the user's, in their order."""

    def digest() -> str:
        parts = hashlib.sha256()
        for text in texts():
            parts.update(hashlib.sha256(text.encode("utf-8")).digest())
        return parts.hexdigest()

    return stamp, digest


def stamp(path: Path) -> str:
    """Size of a file in bytes and time of its last change in ns. Raises UserError without one."""
    try:
        found = path.stat()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    return f"{found.st_size} {found.st_mtime_ns}"


def _hash(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
