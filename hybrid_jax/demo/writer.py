"""One trained model that writes texts for several people, who take turns round by round."""

import dataclasses
import math
import shlex
import threading
from collections.abc import Generator as Iteration
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from hybrid_jax.errors import UserError, check_seed
from hybrid_jax.generation import driver, generator, infill, requests
from hybrid_jax.generation.frames import GLYPHS, MEANINGS, Frame, Recorder
from hybrid_jax.generation.generator import Generator
from hybrid_jax.generation.infill import Choice
from hybrid_jax.generation.player import changes
from hybrid_jax.runtime import decode
from hybrid_jax.sampling import rules
from hybrid_jax.sampling.settings import RuleOptions, given
from hybrid_jax.training.pretrained import Pretrained

MOST_CHARACTERS = 20_000
_MOST_PROGRAMS = 24  # compiled ones that are kept
_HIGHEST = 1e6  # of any number but the seed: beyond, float32 has no use for it


@dataclasses.dataclass(frozen=True, kw_only=True)
class PageRequest(RuleOptions):
    """A request of the page. None stands for what `hybrid_jax.generate` would do.

    Settings of rules (`sampling.rules.OPTIONS`) are fields too.

    Attributes:
      text: the beginning of the text, or with `gaps` a text for `infill.with_gaps`.
      length: tokens of the text; not for texts with gaps.
      levels: steps of a window.
      seed: in 0 ... 2^32 − 1.
    """

    text: str = ""
    gaps: bool = False
    length: int | None = None
    levels: int | None = None
    seed: int = 0
    rule: str | None = None

    def __post_init__(self) -> None:
        if len(self.text) > MOST_CHARACTERS:
            raise UserError(
                f"The text has {len(self.text)} characters, of which at most {MOST_CHARACTERS} are "
                "read: shorten it."
            )
        check_seed(self.seed)
        for name, value in given(self).items():
            if not isinstance(value, str) and abs(value) > _HIGHEST:
                raise UserError(f"{name} is {value}, which is no number to calculate with.")
        if self.gaps and self.length is not None:
            raise UserError("A text with gaps has the length that its gaps give it: leave it out.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A request that can be answered.

    Attributes:
      candidates: for the text; several where lengths are to be chosen.
      command: makes `hybrid_jax.generate` write the same text.
    """

    candidates: list[requests.Request]
    generator: Generator
    seed: int
    about: str
    command: str


class Writer:
    """Writes with one model. All methods may be called from any thread."""

    def __init__(
        self,
        model: Pretrained,
        workdir: str,
        step: int | str | None = None,
        schedule: str | None = None,
    ):
        """`workdir`, `step` and `schedule` name the model on the command line."""
        self._model = model
        named = {"workdir": workdir, "step": step, "schedule": schedule}
        self._source = [f"--{name}={value}" for name, value in named.items() if value is not None]
        # One round at a time, whoever it is for: the device is shared, and nothing compiles twice.
        self._turn = threading.Lock()
        self._compiled: set[Any] = set()

    @property
    def most_levels(self) -> int:
        """The highest number of levels that may be asked for: memory grows with the steps."""
        schedule = self._model.spec.schedule
        return max(schedule.levels, 4 * schedule.width)

    def describe(self) -> dict[str, Any]:
        """The model and all that can be chosen, as JSON values."""
        model, schedule = self._model, self._model.spec.schedule
        offered = list(self._rules())
        own, known = model.experiment.sampling.rule, [rule["name"] for rule in offered]
        return {
            "name": model.experiment.name,
            "about": f"step {model.step} · {schedule.name} · {model.spec.kernel.name} · "
            f"{model.tokenizer.name} tokens",
            "length": schedule.length,
            "characters": MOST_CHARACTERS,
            "levels": {
                "value": model.experiment.schedule.resolved(schedule.length).levels or 1,
                "most": self.most_levels,
                "free": model.experiment.schedule.family != "quenched_ar",
            },
            "rule": own if own in known else known[0],  # it need not go with another schedule
            "rules": offered,
            "states": MEANINGS,
            "glyphs": GLYPHS,
        }

    def _rules(self) -> Iterator[dict[str, Any]]:
        """The rules that go with the model's noise, and their settings, as JSON values."""
        for name, named in rules.NAMED.items():
            sampling = generator.choose_sampling(self._model.experiment.sampling, name, {})
            try:
                generator.build(self._model, sampling)
            except UserError:
                continue
            values = given(sampling)
            settings = [
                {
                    "name": setting.name,
                    "about": f"{setting.about}; {setting.values}",
                    "value": values.get(setting.name, setting.default),
                    "choices": setting.choices,
                    "whole": setting.kind is int,
                    "range": [end for end in setting.bounds if math.isfinite(end)]
                    if setting.within
                    else [],
                }
                for setting in named.settings.values()
            ]
            levels = named.kind.takes_levels
            yield {"name": name, "about": named.about, "settings": settings, "levels": levels}

    def job(self, values: Mapping[str, Any]) -> Job:
        """The work for a request, given as JSON values. Raises UserError for any fault in it."""
        asked = decode.from_values(PageRequest, values, "request")
        model = self._model
        length, tokenizer = model.spec.schedule.length, model.tokenizer
        if asked.levels is not None and asked.levels > self.most_levels:
            raise UserError(
                f"levels is {asked.levels}, but this page takes 1 … {self.most_levels}."
            )
        trained = model.experiment.sampling
        sampling = generator.choose_sampling(trained, asked.rule, given(asked))
        own = generator.build(model, sampling, levels=asked.levels)
        if asked.gaps:
            candidates = infill.with_gaps(asked.text, tokenizer, length)
        else:
            stop = length if asked.length is None else asked.length
            candidates = [requests.beginning(asked.text, tokenizer, stop=stop)]
        driver.check(own, candidates[:1])
        return Job(
            candidates=candidates, generator=own, seed=asked.seed, about=_about(own),
            command=self._command(asked),
        )  # fmt: skip

    def _command(self, asked: PageRequest) -> str:
        arguments = [*self._source, f"--seed={asked.seed}"]
        if asked.text:
            arguments.append(f"--{'infill' if asked.gaps else 'prompt'}={asked.text}")
        named = {"length": asked.length, "levels": asked.levels, "rule": asked.rule, **given(asked)}
        arguments += [f"--{name}={value}" for name, value in named.items() if value is not None]
        return f"python -m hybrid_jax.generate {shlex.join(arguments)}"

    def write(self, job: Job) -> Iterator[dict[str, Any]]:
        """Writes a text: yields events as JSON values.

        The first says whether the loop has yet to be compiled for this rule and these levels; then
        come lengths that are tried, where they are to be chosen, and a frame a round; the last is
        the text. Closing the iterator ends the generation.
        """
        yield {"begun": job.about, "compiling": _program(job) not in self._compiled}
        with self._turn:
            self._make_room(job)
        request = yield from self._chosen(job)
        rounds = driver.rounds(job.generator, [request], seed=job.seed, batch_size=1, every=1)
        recorder = Recorder(job.generator)
        before: Frame | None = None
        while True:
            with self._turn:
                round_ = next(rounds)
                frame = recorder.frame(round_)
                if round_.texts:
                    self._compiled.add(_program(job))
            yield {"frame": changes(frame, before)}
            before = frame
            if round_.texts:
                break
        yield {"done": {**dataclasses.asdict(round_.texts[0]), "command": job.command}}

    def _chosen(self, job: Job) -> Iteration[dict[str, Any], None, requests.Request]:
        """Yields events while candidates are tried, and returns the one that is chosen."""
        if len(job.candidates) == 1:
            return job.candidates[0]
        choice = Choice(job.generator, [job.candidates], job.seed)
        rounds = driver.rounds(
            job.generator, job.candidates, seed=job.seed, batch_size=1, every=1,
            texts_of=choice.texts_of,
        )  # fmt: skip
        best: list[requests.Text] = []
        while not best:
            with self._turn:
                round_ = next(rounds)
                best = choice.take(round_.texts.values())
            yield {"trying": f"{round_.done} of {len(job.candidates)}"}
        return next(each for each in job.candidates if each.lengths == best[0].lengths)

    def _make_room(self, job: Job) -> None:
        """Forgets all programs when one more would be too many; those in use compile again."""
        if _program(job) not in self._compiled and len(self._compiled) >= _MOST_PROGRAMS:
            jax.clear_caches()
            self._compiled.clear()


def _program(job: Job) -> Any:
    """All that the loop is compiled for, and is not traced."""
    own = job.generator
    return own.sampler, jax.tree.structure(own.rule), driver.prefills(own, job.candidates)


def _about(generator: Generator) -> str:
    sampling = generator.sampling
    named = rules.NAMED[sampling.rule]
    defaults = {name: setting.default for name, setting in named.settings.items()}
    values = {**defaults, **given(sampling), **named.fixed}
    shown = [
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in values.items()
        if value is not None
    ]
    return ", ".join([sampling.rule, *shown, generator.sampler.spec.schedule.name])
