"""`UserError`, the one exception for any error the user can fix; how commands report it; and the
checks of settings that raise it.
"""

import contextlib
import dataclasses
import fnmatch
import functools
import importlib
import io
import os
import select
import stat
import sys
import typing
from collections.abc import Callable, Mapping
from typing import Any, TextIO

MOST_WHOLE = 2**31 - 1  # of int32, which arrays count in
MOST_SEED = 2**32 - 1  # JAX would cut longer seeds to their last 32 bits
MOST_FLOAT = 3.4028234663852886e38  # of float32
_PIPE_CLOSED = 141  # as shells report a program that SIGPIPE ended


class UserError(Exception):
    """Bad input or configuration.

    The message is one clear sentence: what was wrong and what to do. Command-line
    programs print it without a traceback and exit with status 2. It stays one line that every
    terminal can show: what is not printable in it, such as a newline in a name, is escaped.
    """

    def __init__(self, sentence: str):
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in sentence))


class Interrupted(Exception):
    """The program was stopped from outside, and ends with this exit status."""

    def __init__(self, said: str, status: int):
        super().__init__(said)
        self.status = status


def exit_status(command: Callable[[], object], *, interrupted: str) -> int:
    """Runs a command.

    What it prints and the terminal cannot show is shown as escapes, such as \\u03b3.

    Returns:
      0; 2 after a `UserError`, whose sentence is printed, or when standard output is full or
      closed; the status of an `Interrupted`, or 130 after Ctrl-C, both with the sentence
      `interrupted`; 141, quietly, when the reader of its output has gone.
    """
    if sys.stderr is None:  # closed, and `print` would take standard output in its place
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - stays open
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    said, status = "", 0
    try:
        if sys.stdout is None:
            raise UserError("Standard output is closed: send it to a file, or to /dev/null.")
        try:
            command()
        finally:
            sys.stdout.flush()  # what is left fails here, or Python complains of it at its end
    except UserError as error:
        said, status = f"error: {error}", 2
    except Interrupted as stop:
        said, status = f"{stop}; {interrupted}", stop.status
    except KeyboardInterrupt:
        said, status = f"interrupted; {interrupted}", 130
    except UnicodeEncodeError as error:
        if error.encoding == "utf-8":
            raise
        name, encoding = error.object, error.encoding
        said = f"error: The locale knows no name {name!a} ({encoding}): set PYTHONUTF8=1."
        status = 2
    except OSError as error:
        if not (_fails(sys.stdout) or _fails(sys.stderr)):
            raise
        if isinstance(error, BrokenPipeError):
            return _PIPE_CLOSED
        said, status = f"error: Standard output cannot be written: {error.strerror or error}.", 2
    if said:
        with contextlib.suppress(OSError):
            print(said, file=sys.stderr, flush=True)
    return status


def _fails(stream: TextIO) -> bool:
    """True if a stream cannot be written; what waits in it is thrown away then.

    A stream that has failed forgets what it did not write, so it has to be tried: a pipe is asked
    for its reader, and anything else gets an empty line.
    """
    with contextlib.suppress(io.UnsupportedOperation):  # it is no file
        descriptor = stream.fileno()
        kind = os.fstat(descriptor).st_mode
        poll = select.poll()
        poll.register(descriptor, 0)
        try:
            stream.flush()
            if poll.poll(0):
                raise BrokenPipeError
            if not (stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind)):
                stream.write("\n")
                stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)
            stream.flush()
            return True
    return False


def require(module: str, extra: str) -> Any:
    """A module that needs other packages, by its dotted name. Raises UserError, which names what is
    not installed and the extra of this package that brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"This needs {(error.name or module).partition('.')[0]}: install it with pip install "
            f"'hybrid_jax[{extra}]'."
        ) from error


def hints_of(section: Any) -> dict[str, Any]:
    """The types of a dataclass's fields, by name."""
    return _type_hints(section)


@functools.cache  # whose own signature type checkers know; it refuses the type of a dataclass
def _type_hints(section: Any) -> dict[str, Any]:
    every = typing.get_type_hints(section)
    return {field.name: every[field.name] for field in dataclasses.fields(section)}


def check_literals(section: Any, prefix: str = "") -> None:
    """Checks the fields of a dataclass whose type is a `Literal`.

    Raises:
      UserError: naming the first field (after `prefix`) with another value, and the values it may
        have.
    """
    for name, hint in hints_of(type(section)).items():
        known = typing.get_args(hint)
        value = getattr(section, name)
        if typing.get_origin(hint) is typing.Literal and value not in known:
            raise UserError(
                f"{prefix}{name} must be one of {', '.join(map(str, known))}, but is {value!r}."
            )


# ---------------------------------------------------------------------------------------------
# Settings: what fields of configuration dataclasses say of themselves, and its checks.


def free(default: Any) -> Any:
    """A field that a run may change when it is continued.

    Such a setting is a way to compute or to report; it is not part of what the run is.
    """
    return dataclasses.field(default=default, metadata={"identity": False})


def only(natural: Any = None, **choices: str | tuple[str, ...]) -> Any:
    """A field that has an effect only beside some values of other fields of its dataclass.

    Its default is None, which stands for `natural` where it has an effect.

    Args:
      choices: by the name of another field, the value or values that it belongs to, in which "*"
        stands for any text.
    """
    known = {name: (v,) if isinstance(v, str) else v for name, v in choices.items()}
    return dataclasses.field(default=None, metadata={"natural": natural, "only": known})


def void(section: type, values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Settings that are given but have no effect beside the others.

    Args:
      section: a dataclass.
      values: of its fields by name; one that is missing has its default.
      prefix: of the names in sentences, such as "noise.".

    Returns:
      by the name of each such setting, a sentence that says what it belongs to.
    """
    fields = {field.name: field for field in dataclasses.fields(section)}
    found = {}
    for name, field in fields.items():
        for other, known in field.metadata.get("only", {}).items():
            beside = values.get(other, fields[other].default)
            if values.get(name) is not None and not _suits(beside, known):
                found[name] = (
                    f"{prefix}{name} belongs to {prefix}{other}={' or '.join(known)} and has no "
                    f"effect with {beside}: leave it out, or set it to None."
                )
    return found


def resolved(section: Any) -> Any:
    """The section with the natural value of each setting that is None and has an effect."""
    fields = [field for field in dataclasses.fields(section) if "only" in field.metadata]
    values = {
        field.name: field.metadata["natural"]
        for field in fields
        if getattr(section, field.name) is None
        and all(
            _suits(getattr(section, other), known)
            for other, known in field.metadata["only"].items()
        )
    }
    return dataclasses.replace(section, **values)


def _suits(value: Any, known: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(str(value), one) for one in known)


def check_settings(section: Any, prefix: str = "", **least: float) -> None:
    """Checks a section's values: literals, settings without effect, and ranges of numbers.

    Args:
      prefix: of the names in sentences, such as "noise.".
      least: by the name of a field, the smallest value that it may have.

    Raises:
      UserError: for the first that is wrong.
    """
    check_literals(section, prefix)
    for sentence in void(type(section), vars(section), prefix).values():
        raise UserError(sentence)
    for name, smallest in least.items():
        value = getattr(section, name)
        if value is not None and not value >= smallest:
            raise UserError(f"{prefix}{name} must be at least {smallest}, but is {value}.")
    for name, value in vars(section).items():
        if name == "seed":
            check_seed(value, f"{prefix}seed")
        else:
            check_number(value, f"{prefix}{name}")


def check_number(value: Any, name: str) -> None:
    """Raises UserError for an int or a float that arrays of 32 bits cannot hold."""
    most = MOST_WHOLE if isinstance(value, int) else MOST_FLOAT
    if isinstance(value, int | float) and abs(value) > most:
        raise UserError(f"{name} must be at most {most}, but is {value}.")


def check_count(value: Any, name: str, least: int = 1) -> None:
    """Raises UserError for what is no whole number, or one below `least`."""
    if not hasattr(value, "__index__"):
        raise UserError(f"{name} must be a whole number, but is {value!r}.")
    if value < least:
        raise UserError(f"{name} must be at least {least}, but is {value}.")


def check_text(text: Any, name: str = "The text") -> None:
    """Raises UserError for what is no text, or holds what UTF-8 cannot write."""
    if not isinstance(text, str):
        raise UserError(f"{name} must be a str, but is a {type(text).__name__}.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"{name} is not UTF-8: it holds half a character (a lone surrogate) at character "
            f"{error.start + 1}."
        ) from error


def check_seed(seed: Any, name: str = "seed") -> int:
    """The seed. Raises UserError for one that JAX does not have, but would take for another."""
    if not (hasattr(seed, "__index__") and 0 <= int(seed) <= MOST_SEED):
        raise UserError(f"{name} must be a whole number in 0 … {MOST_SEED}, but is {seed!r}.")
    return int(seed)
