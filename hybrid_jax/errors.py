"""The one exception type for mistakes a user can mend, and how commands report it."""

from __future__ import annotations

import sys
from collections.abc import Callable


class UserError(Exception):
    """Bad input or configuration.

    The message is one clear sentence: what was wrong and what to do. Command-line
    programs print it without a traceback and exit with status 2.
    """


def exit_status(command: Callable[[], object], *, interrupted: str) -> int:
    """Runs a command; 0, or 2 with the sentence of a UserError, or 130 with `interrupted`."""
    try:
        command()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted; {interrupted}", file=sys.stderr)
        return 130
    return 0
