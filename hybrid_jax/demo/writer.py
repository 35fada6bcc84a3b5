"""One trained model that writes texts for several people, who take turns round by round."""

from __future__ import annotations

import dataclasses
import math
import shlex
import threading
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from hybrid_jax.errors import UserError
from hybrid_jax.generation import requests
from hybrid_jax.generation.frames import KINDS, Frames
from hybrid_jax.runtime import decode
from hybrid_jax.sampling import loop, prompts, rules
from hybrid_jax.sampling.prompts import Prompts
from hybrid_jax.sampling.settings import SamplingConfig
from hybrid_jax.sampling.state import Sampler
from hybrid_jax.sampling.update_rule import Rule
from hybrid_jax.training.pretrained import Model

MOST_CHARACTERS = 20_000
_MOST_PROGRAMS = 24  # compiled ones that are kept
_HIGHEST = 1e6  # of any number but the seed: beyond, float32 has no use for it
_SETTINGS = ("eta", "guidance", "strategy", "threshold", "bound", "temperature")
_ABOUT = {
    "ancestral": "the exact reverse step of the noise",
    "acs": "reveals, and draws shown tokens of the window again",
    "remdm": "reveals, and masks shown tokens again",
    "threshold": "reveals what is likelier than a threshold",
    "entropy": "reveals together what costs few nats",
    "greedy": "the likeliest tokens of the surest positions",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PageRequest:
    """What somebody asks for. None stands for what `hybrid_jax.generate` would do.

    Attributes:
      text: the beginning of the text, or with `gaps` a text with ``{{n}}`` for n tokens to fill.
      length: tokens of the text; not for texts with gaps.
      levels: steps of a window.
      seed: in 0 ... 2^32 − 1.
      others: of `config.SamplingConfig`.
    """

    text: str = ""
    gaps: bool = False
    length: int | None = None
    levels: int | None = None
    seed: int = 0
    rule: str | None = None
    eta: float | None = None
    guidance: str | None = None
    strategy: str | None = None
    threshold: float | None = None
    bound: float | None = None
    temperature: float | None = None

    def __post_init__(self):
        if len(self.text) > MOST_CHARACTERS:
            raise UserError(
                f"The text has {len(self.text)} characters, of which at most {MOST_CHARACTERS} are "
                "read: shorten it."
            )
        try:
            self.text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UserError("The text holds half a character (a lone surrogate).") from error
        if not 0 <= self.seed < 2**32:
            raise UserError(f"The seed must lie in 0 … {2**32 - 1}, but is {self.seed}.")
        for name in ("eta", "threshold", "bound", "temperature"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and abs(value) <= _HIGHEST):
                raise UserError(f"{name} is {value}, which is no number to calculate with.")
        if self.gaps and self.length is not None:
            raise UserError("A text with gaps has the length that its gaps give it: leave it out.")

    @property
    def sampling(self) -> dict[str, Any]:
        """The settings of the rule and the warp that are not None."""
        values = {name: getattr(self, name) for name in _SETTINGS}
        return {name: value for name, value in values.items() if value is not None}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A wish that can be fulfilled.

    Attributes:
      command: what makes `hybrid_jax.generate` write the same text.
    """

    request: requests.Request
    given: Prompts
    sampler: Sampler
    rule: Rule
    seed: int
    about: str
    command: str


class Writer:
    """Writes with one model. All methods may be called from any thread."""

    def __init__(self, model: Model, workdir: str, step: int | str | None = None):
        """`workdir` and `step` name the model on the command line."""
        self._model = model
        self._source = [f"--workdir={workdir}", *([] if step is None else [f"--step={step}"])]
        # One round at a time, whoever it is for: the device is shared, and nothing compiles twice.
        self._turn = threading.Lock()
        self._compiled: set[Any] = set()

    @property
    def most_levels(self) -> int:
        """The highest number of levels that may be asked for: memory grows with the steps."""
        schedule = self._model.spec.schedule
        return max(schedule.levels, 4 * schedule.width)

    def describe(self) -> dict[str, Any]:
        """What the page needs to know, as JSON values."""
        model, schedule = self._model, self._model.spec.schedule
        return {
            "name": model.experiment.name,
            "about": f"step {model.step} · {schedule.name} · {model.spec.kernel.name} · "
            f"{model.tokenizer.name} tokens",
            "length": schedule.length,
            "characters": MOST_CHARACTERS,
            "levels": {
                "value": schedule.levels,
                "most": self.most_levels,
                "free": model.experiment.schedule.family != "quenched_ar",
            },
            "rule": model.experiment.sampling.rule,
            "rules": [self._describe_rule(name) for name in self._fitting()],
            "kinds": KINDS,
        }

    def _fitting(self) -> list[str]:
        """The rules that go with the model's noise."""
        fit = []
        for name in rules.NAMES:
            rule = requests.choose_sampling(self._model.experiment.sampling, name, {}).build()
            try:
                rule.check(self._model.spec.kernel, self._model.spec.objective)
            except UserError:
                continue
            fit.append(name)
        return fit

    def _describe_rule(self, name: str) -> dict[str, Any]:
        sampling = requests.choose_sampling(self._model.experiment.sampling, name, {})
        rule = sampling.build()
        hints = typing.get_type_hints(type(rule))
        settings = {
            setting: {
                "value": getattr(rule, setting),
                # Of a Literal; other types have none, or are not among what is asked for.
                "choices": [c for c in typing.get_args(hints[setting]) if isinstance(c, str)],
            }
            for setting in rules.settings_of(name)
            if setting in _SETTINGS
        }
        if name != "greedy":
            settings["temperature"] = {"value": sampling.temperature, "choices": []}
        return {"name": name, "about": _ABOUT[name], "settings": settings}

    def job(self, values: Mapping[str, Any]) -> Job:
        """What to do for a wish, given as JSON values.

        Raises:
          UserError: if there is anything wrong with it.
        """
        wish = decode.from_values(PageRequest, values, "request")
        model = self._model
        length, tokenizer = model.spec.schedule.length, model.tokenizer
        if wish.levels is not None and wish.levels > self.most_levels:
            raise UserError(f"levels is {wish.levels}, but this page takes 1 … {self.most_levels}.")
        sampling = requests.choose_sampling(model.experiment.sampling, wish.rule, wish.sampling)
        rule = sampling.build()
        sampler = requests.build_sampler(model, sampling, wish.levels)
        loop.check(sampler, rule)
        if wish.gaps:
            request = requests.with_gaps(wish.text, tokenizer, length)
        else:
            stop = length if wish.length is None else wish.length
            request = requests.beginning(wish.text, tokenizer, stop=stop)
        given = prompts.build(
            [request.ids], length=length, vocab_size=tokenizer.vocab_size, stop=request.stop
        )
        return Job(
            request=request,
            given=given,
            sampler=sampler,
            rule=rule,
            seed=wish.seed,
            about=_about(sampler, sampling, rule),
            command=self._command(wish),
        )

    def _command(self, wish: PageRequest) -> str:
        arguments = [*self._source, f"--seed={wish.seed}"]
        if wish.text:
            arguments.append(f"--{'infill' if wish.gaps else 'prompt'}={wish.text}")
        named = {"length": wish.length, "levels": wish.levels, "rule": wish.rule, **wish.sampling}
        arguments += [f"--{name}={value}" for name, value in named.items() if value is not None]
        return f"python -m hybrid_jax.generate {shlex.join(arguments)}"

    def write(self, job: Job) -> Iterator[dict[str, Any]]:
        """Writes a text: yields what happens, as JSON values.

        The first says whether the loop has yet to be compiled for this rule and these levels; then
        comes a frame a round; the last is the text. Closing the iterator ends the generation.
        """
        yield {"begun": job.about, "compiling": _program(job) not in self._compiled}
        model, tokenizer = self._model, self._model.tokenizer
        with self._turn:
            self._make_room(job)
            keys = requests.keys_of(job.seed, np.arange(1))
        frames = Frames(job.sampler.spec.schedule, tokenizer, job.given)
        states = requests.rounds(job.sampler, job.rule, model.params, keys, job.given)
        state = None
        while True:
            with self._turn:
                following = next(states, None)
                if following is None:
                    break
                state = following
                frame = frames.of(state)
            yield {"frame": dataclasses.asdict(frame)}
        with self._turn:
            result = jax.device_get(loop.finish(job.sampler, job.given, state))
            self._compiled.add(_program(job))
        (text,) = requests.texts_from(result, [job.request], tokenizer, first=0)
        yield {
            "frame": dataclasses.asdict(frames.last(result)),
            "done": {**dataclasses.asdict(text), "command": job.command},
        }

    def _make_room(self, job: Job) -> None:
        """Forgets all programs when one more would be too many; those in use compile again."""
        if _program(job) not in self._compiled and len(self._compiled) >= _MOST_PROGRAMS:
            jax.clear_caches()
            self._compiled.clear()


def _program(job: Job) -> Any:
    """What the loop is compiled for: all that is not traced."""
    return job.sampler, jax.tree.structure(job.rule)


def _about(sampler: Sampler, sampling: SamplingConfig, rule: Rule) -> str:
    settings = {
        **{name: getattr(rule, name) for name in rules.settings_of(sampling.rule)},
        "sweeps": rule.sweeps or None,
        **{name: getattr(sampling, name) for name in ("temperature", "top_k", "top_p")},
    }
    shown = [
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in settings.items()
        if value is not None
    ]
    return ", ".join([sampling.rule, *shown, sampler.spec.schedule.name])
