"""`UserError`, the one exception for any error the user can fix, and how commands report it."""

from __future__ import annotations

import importlib
import sys
import typing
from collections.abc import Callable
from typing import Any


class UserError(Exception):
    """Bad input or configuration.

    The message is one clear sentence: what was wrong and what to do. Command-line
    programs print it without a traceback and exit with status 2.
    """


class Interrupted(Exception):
    """The program was stopped from outside.

    Attributes:
      status: the exit status to end with.
    """

    def __init__(self, said: str, status: int):
        super().__init__(said)
        self.status = status


def exit_status(command: Callable[[], object], *, interrupted: str) -> int:
    """Runs a command.

    Returns:
      0; 2 after a `UserError`, whose sentence is printed; the status of an `Interrupted`, or 130
      after Ctrl-C, both with the sentence `interrupted`.
    """
    try:
        command()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        print(f"{stop}; {interrupted}", file=sys.stderr)
        return stop.status
    except KeyboardInterrupt:
        print(f"interrupted; {interrupted}", file=sys.stderr)
        return 130
    return 0


def require(module: str, extra: str) -> Any:
    """Imports a module of an optional package.

    Args:
      module: dotted name.
      extra: of this package, that brings it.

    Raises:
      UserError: if it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"This needs {module.partition('.')[0]}: install it with pip install "
            f"'hybrid_jax[{extra}]'."
        ) from error


def check_literals(section: Any, prefix: str = "") -> None:
    """Checks the fields of a dataclass whose type is a `Literal`.

    Raises:
      UserError: naming the first field (after `prefix`) with another value, and the values it may
        have.
    """
    for name, hint in typing.get_type_hints(type(section)).items():
        known = typing.get_args(hint)
        value = getattr(section, name)
        if typing.get_origin(hint) is typing.Literal and value not in known:
            raise UserError(
                f"{prefix}{name} must be one of {', '.join(map(str, known))}, but is {value!r}."
            )
