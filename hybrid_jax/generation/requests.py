"""What a model is asked to write, and what it wrote: shared by commands and measurements.

A request is tokens and gaps, a sampler is the model at some pace, and a text is what came of a
request. A text depends on the seed, its number and its request, not on the batch it is written in.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hybrid_jax.data.tokenizers.base import Tokenizer
from hybrid_jax.errors import UserError
from hybrid_jax.runtime.files import write_atomic
from hybrid_jax.sampling import loop
from hybrid_jax.sampling.prompts import GAP, Prompts
from hybrid_jax.sampling.settings import SamplingConfig
from hybrid_jax.sampling.state import Generated, Generation, Sampler
from hybrid_jax.sampling.update_rule import Rule
from hybrid_jax.training.pretrained import Model


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """One text to generate.

    Attributes:
      prompt: what it was asked with, for the record.
      ids: its first tokens, ids or `GAP`.
      stop: tokens wanted, given ones included.
    """

    prompt: str
    ids: list[int]
    stop: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text:
    """One generated text.

    Attributes:
      number: its place among all.
      text: given and generated, without special tokens.
      tokens: the same as ids.
      calls: of the network that it took.
      corrections: shown tokens that were replaced or masked again on the way.
    """

    number: int
    prompt: str
    text: str
    tokens: list[int]
    nfe: int
    corrections: int


def beginning(text: str, tokenizer: Tokenizer, *, stop: int) -> Request:
    """A text of `stop` tokens that begins with this one."""
    return Request(prompt=text, ids=[int(i) for i in tokenizer.encode(text)], stop=stop)


def with_gaps(text: str, tokenizer: Tokenizer, length: int) -> Request:
    """This text, in which ``{{n}}`` stands for n tokens to fill.

    Raises:
      UserError: if there is none, or one is longer than `length`, what the model writes.
    """
    parts = re.split(r"\{\{([0-9]+)\}\}", text)
    if len(parts) == 1:
        shown = text if len(text) <= 40 else f"{text[:40]}…"
        raise UserError(
            f"The text {shown!r} has no gap: write {{{{5}}}} where 5 tokens are to be filled in."
        )
    ids: list[int] = []
    for i, part in enumerate(parts):
        # The number of digits first: Python refuses to read very long numbers.
        if i % 2 and (len(part) > 9 or int(part) > length):
            raise UserError(
                f"The gap {{{{{part[:12]}}}}} is longer than the {length} tokens that the model "
                "writes."
            )
        ids += [GAP] * int(part) if i % 2 else [int(token) for token in tokenizer.encode(part)]
    return Request(prompt=text, ids=ids, stop=max(1, len(ids)))


def choose_sampling(
    trained_with: SamplingConfig, rule: str | None, settings: Mapping[str, Any]
) -> SamplingConfig:
    """The experiment's settings, with those that are not None; another rule starts afresh."""
    given = {name: value for name, value in settings.items() if value is not None}
    if rule is not None and rule != trained_with.rule:
        return SamplingConfig(rule=rule, **{"eos": trained_with.eos, **given})
    return dataclasses.replace(trained_with, **given)


def build_sampler(model: Model, sampling: SamplingConfig, levels: int | None) -> Sampler:
    """A sampler of the model; `levels` for another number of steps a window."""
    spec = model.spec
    if levels is not None:
        if model.experiment.schedule.family == "quenched_ar":
            raise UserError(
                "The levels are the steps of a window, and this model has no windows: leave them "
                "as they are."
            )
        schedule = dataclasses.replace(model.experiment.schedule, levels=levels)
        spec = dataclasses.replace(spec, schedule=schedule.build(spec.schedule.length))
    eos = model.tokenizer.eos if sampling.eos == "stop" else None
    return Sampler(spec=spec, network=model.network, eos=eos)


def rounds(
    sampler: Sampler, rule: Rule, params: Any, keys: jax.Array, given: Prompts, *, piece: int = 1
) -> Iterator[Generation]:
    """Generates a batch: yields the state before the first round and after every `piece` of them.

    A state is gone once the next one is asked for, which is written to the same place.
    """
    state = loop.start(sampler, params, keys, given)
    yield state
    while (np.asarray(state.step) < sampler.spec.schedule.steps).any():
        state = loop.advance(sampler, rule, params, state, piece)
        yield state


def keys_of(seed: int, numbers: np.ndarray) -> jax.Array:
    """One key for each text, from the seed and the text's number."""
    return jax.vmap(lambda n: jax.random.fold_in(jax.random.key(seed), n))(numbers)


def texts_from(
    result: Generated, requests: Sequence[Request], tokenizer: Tokenizer, *, first: int
) -> list[Text]:
    """The texts of a batch: its first rows answer `requests`, the others only fill it up.

    Args:
      result: of `loop.finish`, on the host.
      first: number of the first text.
    """
    texts = []
    for row, request in enumerate(requests):
        ids = [int(i) for i in result.tokens[row, : result.length[row]]]
        texts.append(
            Text(
                number=first + row,
                prompt=request.prompt,
                text=tokenizer.decode(ids),
                tokens=ids,
                nfe=int(result.nfe[row]),
                corrections=int(result.corrections[row]),
            )
        )
    return texts


def settings_of(
    workdir: str | Path, model: Model, sampler: Sampler, sampling: SamplingConfig, seed: int
) -> dict[str, Any]:
    """What texts depend on, to stand beside each of them."""
    return {
        "workdir": str(workdir),
        "step": model.step,
        "seed": seed,
        "schedule": sampler.spec.schedule.name,
        "noise": sampler.spec.kernel.name,
        "sampling": {k: v for k, v in dataclasses.asdict(sampling).items() if k != "count"},
    }


def write(file: str | Path, texts: Sequence[Text], settings: Mapping[str, Any]) -> None:
    """Writes texts as JSON lines, each with the settings; `eval.samples` reads them."""
    lines = [
        json.dumps({**dataclasses.asdict(text), **settings}, ensure_ascii=False) for text in texts
    ]
    write_atomic(file, "\n".join(lines) + "\n")
