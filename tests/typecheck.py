"""The type checker of the tests (see `conftest`)."""

from collections.abc import Callable
from typing import Any

import beartype


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """beartype, for all but the `__init__` of dataclasses.

    They check settings themselves, with messages, and JAX rebuilds the registered ones with leaves
    that are no arrays.
    """
    return function if function.__name__ == "__init__" else beartype.beartype(function)
