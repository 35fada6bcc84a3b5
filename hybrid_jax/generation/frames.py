"""A text while it is generated: the state of each token after every round, for all that show it."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, get_args

import numpy as np

from hybrid_jax.data.tokenizers.base import Tokenizer
from hybrid_jax.generation import driver
from hybrid_jax.generation.driver import Round
from hybrid_jax.generation.generator import Generator
from hybrid_jax.generation.requests import Request, Text

TokenState = Literal["given", "settled", "active", "revealed", "corrected", "masked", "worthless"]
STATES: tuple[TokenState, ...] = get_args(TokenState)
MEANINGS: Mapping[TokenState, str] = {
    "given": "part of the prompt, never changed",
    "settled": "final",
    "active": "shown, may still change",
    "revealed": "shown for the first time",
    "corrected": "replaced, or masked again",
    "masked": "not revealed yet",
    "worthless": "not begun",
}
MASK_GLYPH, WORTHLESS_GLYPH = "░", "·"
GLYPHS = {"masked": MASK_GLYPH, "worthless": WORTHLESS_GLYPH}
"""Signs of states without a text of their own."""

UNREADABLE = "\N{REPLACEMENT CHARACTER}"
_LONGEST_CHARACTER = 4  # bytes of UTF-8, and so tokens
_SIGNS = str.maketrans({"\n": "⏎", "\r": "⏎", "\t": " ", "\v": " ", "\f": " "})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frame:
    """A text after a round.

    Attributes:
      cells: the text of each position. A character that is spread over tokens stands in the first
        of their cells, and the others are empty.
      states: of each position.
      step: generation steps done, of `steps`.
      nfe, corrections: so far (see `sampling.state.Generation`).
    """

    cells: tuple[str, ...]
    states: tuple[TokenState, ...]
    step: int
    steps: int
    nfe: int
    corrections: int

    @property
    def counts(self) -> str:
        """The counts in a line."""
        return f"step {self.step}/{self.steps}, NFE {self.nfe}, corrections {self.corrections}"

    def runs(self) -> Iterator[tuple[TokenState, str]]:
        """Neighbours of one state, and their text."""
        cells = zip(self.states, self.cells, strict=True)
        for state, run in itertools.groupby(cells, lambda cell: cell[0]):
            yield state, "".join(text for _, text in run)


class Recorder:
    """Makes the frames of the texts in the first place of a driver, round after round."""

    def __init__(self, generator: Generator):
        self._schedule = generator.sampler.spec.schedule
        self._tokenizer = generator.model.tokenizer
        self._number = -1
        self._before: np.ndarray | None = None

    def frame(self, round_: Round) -> Frame:
        """The text after a round; revealed and corrected is what changed since the one before."""
        state, steps = round_.state, self._schedule.steps
        if round_.numbers[0] != self._number:
            self._number, self._before = int(round_.numbers[0]), None
        step, stop = int(state.step[0]), int(state.stop[0])
        # A copy: the loop will write the next state to the same place.
        tokens = np.array(state.tokens)[0, :stop]
        # The frontier of the round to come: what the network is fed next.
        frontier = int(self._schedule.frontier(min(step + 1, steps)))
        if 0 in round_.texts:  # an end token may have come before
            frontier = len(round_.texts[0].tokens)
        states = states_of(
            tokens,
            self._before,
            np.asarray(state.frozen[0]),
            mask=self._tokenizer.vocab_size,
            settled=int(self._schedule.settled(step)),
            frontier=frontier,
        )
        self._before = tokens
        return Frame(
            cells=tuple(cells_of(self._tokenizer, tokens.tolist(), states)),
            states=tuple(states),
            step=step,
            steps=steps,
            nfe=int(state.nfe[0]),
            corrections=int(state.corrections[0]),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recording:
    """All frames of one text, for pictures: cells stay on one line and keep their width.

    Attributes:
      title: of the run.
      settings: hyperschedule, noise and rule, for people.
      widths: characters of the widest text that each position ever shows.
      frames: the first is the state before the first round.
    """

    title: str
    settings: str
    widths: tuple[int, ...]
    frames: tuple[Frame, ...]
    text: Text


def record(
    generator: Generator, request: Request, *, seed: int, title: str = "", settings: str = ""
) -> Recording:
    """Generates text 0 of `hybrid_jax.generate` with this seed, one round of the loop a frame.

    Raises:
      UserError: if the prompt does not fit.
    """
    recorder = Recorder(generator)
    frames: list[Frame] = []
    (text,) = driver.run(
        generator, [request], seed=seed, batch_size=1, every=1,
        on_round=lambda round_: frames.append(recorder.frame(round_)),
    )  # fmt: skip
    rows = [[on_one_line(cell) for cell in frame.cells] for frame in frames]
    widths = tuple(max(1, *map(len, column)) for column in zip(*rows, strict=True))
    for i, row in enumerate(rows):
        wide = (c * n if c == MASK_GLYPH else c for c, n in zip(row, widths, strict=True))
        frames[i] = dataclasses.replace(frames[i], cells=tuple(wide))
    return Recording(title=title, settings=settings, widths=widths, frames=tuple(frames), text=text)


def states_of(
    tokens: np.ndarray,
    before: np.ndarray | None,
    frozen: np.ndarray,
    *,
    mask: int,
    settled: int,
    frontier: int,
) -> list[TokenState]:
    """The state of each token.

    Args:
      tokens: int32 [n], and `before` of the frame before, if there was one.
      frozen: bool [at least n], given tokens.
      settled, frontier: positions that are final, and that are begun.
    """
    states: list[TokenState] = []
    for i, token in enumerate(tokens):
        was = mask if before is None else before[i]
        if frozen[i]:
            states.append("given")
        elif i >= frontier:
            states.append("worthless")
        elif was not in (mask, token):
            states.append("corrected")
        elif token == mask:
            states.append("masked")
        elif before is not None and was == mask:
            states.append("revealed")
        else:
            states.append("settled" if i < settled else "active")
    return states


def cells_of(
    tokenizer: Tokenizer, tokens: Sequence[int], states: Sequence[TokenState]
) -> list[str]:
    """The text of each position (see `Frame`); tokens that make no character are `UNREADABLE`."""
    mask = tokenizer.vocab_size
    cells: list[str] = []
    while len(cells) < len(tokens):
        i = len(cells)
        if states[i] == "worthless":
            cells.append(WORTHLESS_GLYPH)
        elif tokens[i] == mask:
            cells.append(MASK_GLYPH)
        else:
            text, used = _readable(tokenizer, tokens, states, i)
            cells += [text, *[""] * (used - 1)]
    return cells


def _readable(
    tokenizer: Tokenizer, tokens: Sequence[int], states: Sequence[TokenState], start: int
) -> tuple[str, int]:
    """The shortest text without `UNREADABLE` that begins at a token, and how many tokens it takes;
    the token's own text if there is none."""
    mask = tokenizer.vocab_size
    for end in range(start + 1, min(start + _LONGEST_CHARACTER, len(tokens)) + 1):
        if tokens[end - 1] == mask or states[end - 1] == "worthless":
            break
        text = tokenizer.decode(tokens[start:end])
        if UNREADABLE not in text:
            return text, end - start
    return tokenizer.decode([tokens[start]]), 1


def on_one_line(text: str) -> str:
    """A cell that stays on its line; control characters become signs."""
    return "".join(c if c.isprintable() else UNREADABLE for c in text.translate(_SIGNS))
