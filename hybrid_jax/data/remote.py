"""Files that are on no local disk, read through fsspec: gs://, s3://, https:// and its others.

Keys, addresses of servers and what is tried again are up to fsspec and the package of a protocol.
"""

import contextlib
import functools
import hashlib
import io
import logging
import math
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from hybrid_jax.data.content import Content
from hybrid_jax.errors import UserError
from hybrid_jax.runtime.files import one_line

_WEB = re.compile("https?://")
# Names of what changes with the content, without capitals and punctuation, the surest first.
_VERSIONS = ("etag", "generation", "lastmodified", "mtime", "created")


def is_remote(name: str) -> bool:
    """True for a URL."""
    return "://" in name


def matching(pattern: str) -> list[str]:
    """The files that a URL names or that match it, in the order of their names.

    Raises:
      UserError: if they cannot be looked for.
    """
    with _telling(pattern):
        system, path = _located(pattern)
        system.invalidate_cache()
        try:
            info = system.info(path)  # a name is no pattern, even with brackets in it
        except FileNotFoundError:
            # "?" comes before the query of a web address.
            magic = re.search(r"[*[]" if _WEB.match(path) else r"[*?[]", path)
            if not magic:
                raise
            from fsspec.utils import glob_translate

            root = path.rfind("/", 0, magic.start())
            depth = math.inf if "**" in path else path.count("/", root)
            matches = re.compile(glob_translate(path)).match
            names = filter(matches, _below(system, path[:root], depth))
            return sorted(map(system.unstrip_protocol, names))
    if info["type"] == "directory":
        raise UserError(f"{pattern} is a folder: name its files, for example {pattern}/*.txt.")
    return [pattern]


def _below(system: Any, folder: str, depth: float) -> Iterator[str]:
    """Files down to a depth. `glob` and `walk` of fsspec take what cannot be listed for empty."""
    for info in system.ls(folder, detail=True):
        name = info["name"].rstrip("/")
        if info["type"] != "directory":
            yield info["name"]
        elif depth > 1 and name != folder:
            yield from _below(system, name, depth - 1)


def content(url: str) -> Content:
    """The content of a file, whose stamp is its size and version as the server tells them.

    Of a server that tells no version, the stamp is the hash. Raises UserError if it cannot be read.
    """
    with _telling(url):
        system, path = _located(url)
        info = {re.sub("[^a-z]", "", name.lower()): it for name, it in system.info(path).items()}
    version = next((info[name] for name in _VERSIONS if info.get(name)), None)
    if version:
        return f"{info['size']} {version}", functools.partial(_hash, url)
    digest = _hash(url)
    return digest, lambda: digest


def opened(url: str) -> BinaryIO:
    """A file to be read in order. It raises UserError for all that goes wrong."""
    with _telling(url):
        system, path = _located(url)
        file = _File(url, system.info(path)["size"], system.open(path, "rb"))
    return cast(BinaryIO, io.BufferedReader(file, 1 << 20))


class _File(io.RawIOBase):
    """Raises UserError for what goes wrong, and for an early end, which not all servers tell."""

    def __init__(self, url: str, size: int | None, file: Any):
        self._url, self._size, self._file, self._at = url, size, file, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _telling(self._url):
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        if not data and self._size not in (None, self._at):
            raise UserError(
                f"{self._url} ended after {self._at} of {self._size} bytes: try it again."
            )
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _located(url: str) -> tuple[Any, str]:
    """The file system of a URL, and its path there."""
    import fsspec  # an extra, and slow to import

    settings: dict[str, Any] = {}
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it prints pages before it raises
    if _WEB.match(url):
        import aiohttp

        settings = {
            "block_size": 0,  # one request for all, since not all servers know ranges
            "headers": {"Accept-Encoding": "identity"},
            "client_kwargs": {
                "auto_decompress": False,  # .gz stays .gz, whatever the server says
                # By default, five minutes for a whole file.
                "timeout": aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=300),
            },
        }
    system, path = fsspec.url_to_fs(url, **settings)
    return system, path


@contextlib.contextmanager
def _telling(url: str) -> Iterator[None]:
    """A block that asks a server: what goes wrong in it becomes a UserError."""
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        raise UserError(
            f"{url} needs another package ({one_line(error)}); those for gs://, s3:// and https:// "
            "come with pip install 'hybrid_jax[remote]'."
        ) from error
    except Exception as error:  # each protocol has errors of its own
        reason = one_line(error)
        if isinstance(error, FileNotFoundError) and error.__cause__ is None:
            reason = "there is no such file or folder"
        raise UserError(
            f"{url} cannot be read ({reason}): check the address, the network and your permission."
        ) from error


def _hash(url: str) -> str:
    with opened(url) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
