"""What became of each token of a text while it is generated: the words that the terminal, the
animation and its legend share.

- ``given``      part of the prompt: it never changes,
- ``settled``    final, and in the cache,
- ``active``     shown, but in the window: it may still change,
- ``revealed``   shown in this round for the first time,
- ``corrected``  shown before this round, and changed or masked again in it,
- ``masked``     MASK in the window,
- ``worthless``  not begun: it carries nothing, and the network is not shown it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

Kind = Literal["given", "settled", "active", "revealed", "corrected", "masked", "worthless"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def kinds_of(
    tokens: Sequence[int],
    before: Sequence[int] | None,
    *,
    mask: int,
    frozen: Sequence[bool],
    settled: int,
    frontier: int,
) -> list[Kind]:
    """The kind of each position.

    Args:
      tokens: ids [L] after a round.
      before: ids [L] before it; None for the first state.
      mask: id of MASK.
      frozen: [L], given tokens.
      settled: number of leading positions that are final.
      frontier: number of leading positions that have begun.
    """
    kinds: list[Kind] = []
    for i, token in enumerate(tokens):
        was = token if before is None else before[i]
        if frozen[i]:
            kinds.append("given")
        elif was not in (mask, token):
            kinds.append("corrected")
        elif i >= max(settled, frontier):
            kinds.append("worthless")
        elif token == mask:
            kinds.append("masked")
        elif was == mask:
            kinds.append("revealed")
        else:
            kinds.append("settled" if i < settled else "active")
    return kinds
