"""The one exception type for mistakes a user can mend, and how commands report it."""

from __future__ import annotations

import sys
from collections.abc import Callable


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
