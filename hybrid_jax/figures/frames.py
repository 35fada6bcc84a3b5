"""One text while it is generated, round by round: what the animation shows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hybrid_jax.data.tokenizers.base import Tokenizer
from hybrid_jax.figures.palette import MASK_GLYPH, WORTHLESS_GLYPH
from hybrid_jax.generation import requests
from hybrid_jax.generation.kinds import Kind, kinds_of
from hybrid_jax.generation.requests import Request, Text
from hybrid_jax.sampling import loop, prompts
from hybrid_jax.sampling.state import Generation, Sampler
from hybrid_jax.sampling.update_rule import Rule
from hybrid_jax.training import pretrained

UNREADABLE = "\N{REPLACEMENT CHARACTER}"
_LONGEST_CHARACTER = 4  # bytes of UTF-8, and so tokens
_SIGNS = {"\n": "⏎", "\r": "⏎", "\t": " ", "\v": " ", "\f": " "}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frame:
    """A text after a round.

    Attributes:
      cells: what each position shows, one or more characters on one line.
      kinds: what each position is.
      step: generation steps done, of `Recording.steps`.
      calls: of the network so far.
      corrections: so far, as the loop counts them (also in a window's positions behind the text).
    """

    cells: tuple[str, ...]
    kinds: tuple[Kind, ...]
    step: int
    nfe: int
    corrections: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recording:
    """All frames of one text; the first is the state before the first round.

    Attributes:
      title: of the run.
      settings: hyperschedule, noise and rule, for people.
      steps: S.
      text: the finished text, as `generate` gives it.
    """

    title: str
    settings: str
    steps: int
    frames: tuple[Frame, ...]
    text: Text


def record(
    sampler: Sampler,
    rule: Rule,
    params: Any,
    tokenizer: Tokenizer,
    request: Request,
    *,
    seed: int,
    title: str,
    settings: str,
) -> Recording:
    """Generates text 0 of `generate` with this seed, one round of the loop a frame.

    Raises:
      UserError: if rule and noise do not go together, or the prompt does not fit.
    """
    loop.check(sampler, rule)
    schedule = sampler.spec.schedule
    given = prompts.build(
        [request.ids],
        length=schedule.length,
        vocab_size=sampler.spec.kernel.vocab_size,
        stop=request.stop,
    )
    state = loop.start(sampler, params, requests.keys_of(seed, np.arange(1)), given)
    frames = []
    before = None
    while True:
        # Copies, because the loop reuses the memory of its state.
        tokens = np.array(state.tokens[0])
        done = int(state.step[0]) >= schedule.steps
        result = jax.device_get(loop.finish(sampler, given, state)) if done else None
        length = request.stop if result is None else int(result.length[0])
        frames.append(_frame(sampler, tokenizer, given, state, tokens, before, length))
        if result is not None:
            break
        before = tokens
        state = loop.advance(sampler, rule, params, state, 1)
    (text,) = requests.texts_from(result, [request], tokenizer, first=0)
    shown = tuple(_until(frame, request.stop) for frame in frames)
    return Recording(title=title, settings=settings, steps=schedule.steps, frames=shown, text=text)


def record_run(workdir: str | Path, *, prompt: str = "", seed: int = 0) -> Recording:
    """A text of a trained run, with the run's own rule.

    Raises:
      UserError: if the run cannot be opened, or the prompt does not fit.
    """
    model = pretrained.load(workdir)
    sampling = model.experiment.sampling
    sampler = requests.build_sampler(model, sampling, None)
    ids = [int(i) for i in model.tokenizer.encode(prompt)]
    spec = model.spec
    return record(
        sampler,
        sampling.build(),
        model.params,
        model.tokenizer,
        Request(prompt=prompt, ids=ids, stop=spec.schedule.length),
        seed=seed,
        title=Path(workdir).resolve().name,
        settings=f"{spec.schedule.name}, {spec.kernel.name}, {sampling.rule}",
    )


def _frame(
    sampler: Sampler,
    tokenizer: Tokenizer,
    given: prompts.Prompts,
    state: Generation,
    tokens: np.ndarray,
    before: np.ndarray | None,
    length: int,
) -> Frame:
    """A frame of all positions; those from `length` on, behind an end token, are worthless."""
    schedule, mask = sampler.spec.schedule, sampler.spec.kernel.mask
    step = int(state.step[0])
    kinds = kinds_of(
        tokens,
        before,
        np.asarray(given.frozen[0]),
        mask=mask,
        settled=int(schedule.settled(step)),
        # The window of the round to come: what the network is shown next.
        frontier=int(schedule.frontier(min(step + 1, schedule.steps))),
    )
    kinds[length:] = ["worthless"] * (len(kinds) - length)
    return Frame(
        cells=tuple(cells_of(tokenizer, tokens.tolist(), kinds)),
        kinds=tuple(kinds),
        step=step,
        nfe=int(state.nfe[0]),
        corrections=int(state.corrections[0]),
    )


def _until(frame: Frame, stop: int) -> Frame:
    return dataclasses.replace(frame, cells=frame.cells[:stop], kinds=frame.kinds[:stop])


def cells_of(tokenizer: Tokenizer, tokens: Sequence[int], kinds: Sequence[Kind]) -> list[str]:
    """What each position shows.

    A character that is spread over tokens stands in the first of their cells, and the others are
    empty; tokens that make no character show `UNREADABLE`.
    """
    mask = tokenizer.vocab_size
    cells: list[str] = []
    while len(cells) < len(tokens):
        i = len(cells)
        if kinds[i] == "worthless":
            cells.append(WORTHLESS_GLYPH)
        elif tokens[i] == mask:
            cells.append(MASK_GLYPH)
        else:
            text, used = _readable(tokenizer, tokens, kinds, i)
            cells += [_line(text), *[""] * (used - 1)]
    return cells


def _readable(tokenizer, tokens, kinds, start: int) -> tuple[str, int]:
    """The shortest text without `UNREADABLE` that begins at a token, and how many tokens it takes;
    the token's own text if there is none."""
    mask = tokenizer.vocab_size
    alone = tokenizer.decode([tokens[start]])
    text = alone
    for used in range(1, _LONGEST_CHARACTER + 1):
        end = start + used
        if end > len(tokens) or tokens[end - 1] == mask or kinds[end - 1] == "worthless":
            break
        text = tokenizer.decode(tokens[start:end])
        if UNREADABLE not in text:
            return text, used
    return alone, 1


def _line(text: str) -> str:
    """Text that stays on its line; control characters become signs."""
    signs = "".join(_SIGNS.get(character, character) for character in text)
    return "".join(c if c.isprintable() else UNREADABLE for c in signs)


def widths(recording: Recording) -> list[int]:
    """Characters of the widest text that each position ever shows, so that no other one moves."""
    columns = zip(*(frame.cells for frame in recording.frames), strict=True)
    return [max(1, *(len(text) for text in column)) for column in columns]


def status(recording: Recording, frame: Frame) -> str:
    """The counts of a frame in a line."""
    return (
        f"step {frame.step}/{recording.steps}, {frame.nfe} calls, {frame.corrections} corrections"
    )
