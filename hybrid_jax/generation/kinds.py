"""What became of each token in a round: the kinds of `hybrid_jax.frames`, and what changed.

- ``revealed``   shown in this round for the first time,
- ``corrected``  shown before this round, and changed or masked again in it.
"""

from __future__ import annotations

from typing import Literal, cast, get_args

import numpy as np

from hybrid_jax.generation import frames

Kind = Literal["given", "settled", "active", "revealed", "corrected", "masked", "worthless"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def kinds_of(
    tokens: np.ndarray,
    before: np.ndarray | None,
    frozen: np.ndarray,
    *,
    mask: int,
    settled: int,
    frontier: int,
) -> list[Kind]:
    """The kind of each position; arguments as for `frames.kinds`, whose frames are rounds here."""
    found = frames.kinds(tokens, before, frozen, mask=mask, settled=settled, frontier=frontier)
    if before is not None:
        for i, kind in enumerate(found):
            if kind == "masked" and before[i] != mask:
                found[i] = "corrected"
            elif kind in ("active", "settled") and before[i] == mask:
                found[i] = "revealed"
    return cast(list[Kind], found)
