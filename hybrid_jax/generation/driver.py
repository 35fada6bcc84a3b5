"""The driver of generation: requests through the compiled loop, to texts.

A fixed number of places is worked on together. A text that is done makes room for the next request
at once, so that none waits for the longest of a batch (continuous batching). A text depends on the
seed, its number and its request: not on its place, on what is beside it, or on the devices.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import jax
import numpy as np
from jax.typing import ArrayLike

from hybrid_jax.errors import check_count, check_seed
from hybrid_jax.generation.generator import Generator
from hybrid_jax.generation.requests import Request, Text
from hybrid_jax.runtime import sharding
from hybrid_jax.sampling import loop, prompts
from hybrid_jax.sampling.prompts import GAP, Prompts
from hybrid_jax.sampling.state import Generation, Sampler


@dataclasses.dataclass(frozen=True, kw_only=True)
class Round:
    """The texts in work, between two rounds of the loop.

    Attributes:
      numbers: int [places], of the text in each place, −1 for none.
      step: int [places], generation steps done of each of these texts.
      state: of the loop; its memory is reused once the next round is asked for.
      texts: those that this round has finished, by place.
      done: number of texts finished so far, these included.
    """

    numbers: np.ndarray
    step: np.ndarray
    state: Generation
    texts: Mapping[int, Text] = dataclasses.field(default_factory=dict)
    done: int


def run(
    generator: Generator,
    requests: Sequence[Request],
    *,
    seed: int,
    batch_size: int,
    on_round: Callable[[Round], None] | None = None,
    every: int | None = None,
) -> list[Text]:
    """Generates the texts of all requests, in their order.

    Args:
      batch_size: texts at a time.
      on_round: called with each of `rounds`.
      every: see `rounds`.

    Raises:
      UserError: if a prompt does not fit, or seed or batch size is out of range.
    """
    texts: list[Text] = []
    for round_ in rounds(generator, requests, seed=seed, batch_size=batch_size, every=every):
        if on_round is not None:
            on_round(round_)
        texts += round_.texts.values()
    return sorted(texts, key=lambda text: text.number)


def rounds(
    generator: Generator,
    requests: Sequence[Request],
    *,
    seed: int,
    batch_size: int,
    every: int | None = None,
    texts_of: Sequence[int] | None = None,
) -> Iterator[Round]:
    """Generates the texts of all requests. Arguments and errors are those of `run`.

    Args:
      every: yields when texts have begun, after at most so many rounds, and when texts are done;
        None yields only when texts are done.
      texts_of: number of the text that each request is a candidate for, of which what is drawn
        depends; None where each is a text of its own.
    """
    if not requests:
        return
    check(generator, requests)
    check_seed(seed)
    work = _Work(generator, requests, batch_size, texts_of)
    numbers, step = np.full(work.places, -1), np.zeros(work.places, int)
    begun = done = 0
    with work.on_devices():
        state = loop.idle(generator.sampler, work.places)
    while True:
        free = np.flatnonzero(numbers < 0)[: batch_size - np.count_nonzero(numbers >= 0)]
        new = np.arange(begun, min(begun + len(free), len(requests)))
        if len(new):
            places, begun = free[: len(new)], begun + len(new)
            numbers[places] = new
            state = work.begin(state, seed, places, new)
            step = np.where(np.isin(np.arange(work.places), places), 0, step)
            if every is not None:
                yield Round(numbers=numbers.copy(), step=step, state=state, done=done)
        live = int(np.count_nonzero(numbers >= 0))
        if not live:
            return
        # While requests wait, a place is filled again as soon as it is free.
        least = live - 1 if begun < len(requests) else 0
        state = work.advance(state, every or loop.TO_THE_END, least)
        step, texts = work.found(state, numbers)
        done += len(texts)
        if texts or every is not None:
            yield Round(numbers=numbers.copy(), step=step, state=state, texts=texts, done=done)
        numbers[list(texts)] = -1


def compile_rounds(generator: Generator, requests: Sequence[Request], *, batch_size: int) -> None:
    """Compiles `rounds` for these arguments, so that a clock that starts later leaves it out."""
    work = _Work(generator, requests, batch_size)
    with work.on_devices():
        state = loop.idle(generator.sampler, work.places)
    state = work.begin(state, 0, np.arange(1), np.arange(1))
    work.found(work.advance(state, 0, 0), np.full(work.places, -1))


def check(generator: Generator, requests: Sequence[Request]) -> None:
    """Raises UserError if a prompt does not fit the generator."""
    spec = generator.sampler.spec
    different = _different(requests)
    prompts.check(
        [request.ids for request in different],
        length=spec.schedule.length,
        vocab_size=spec.kernel.vocab_size,
        stop=[request.stop for request in different],
    )


def prefills(generator: Generator, requests: Sequence[Request]) -> bool:
    """True if a prompt may need rounds of its own (see `Sampler.prefills`)."""
    most = max(sum(i != GAP for i in request.ids) for request in _different(requests))
    return generator.sampler.prefills(most)


def keys_of(seed: ArrayLike, numbers: ArrayLike) -> jax.Array:
    """One key for each text, from the seed and the texts' numbers, int [B]."""
    key = jax.random.key(seed)
    return jax.vmap(lambda n: jax.random.fold_in(key, n))(numbers)


def _different(requests: Sequence[Request]) -> list[Request]:
    """Each of the requests once, where many are the same object."""
    return list({id(request): request for request in requests}.values())


class _Work:
    """The steps of `rounds`, on the devices of the model."""

    def __init__(
        self,
        generator: Generator,
        requests: Sequence[Request],
        batch_size: int,
        texts_of: Sequence[int] | None = None,
    ):
        check_count(batch_size, "batch_size")
        self._generator, self._requests = generator, requests
        self._texts_of = np.asarray(range(len(requests)) if texts_of is None else texts_of)
        # A place for each device at least; those above the batch size stay empty.
        shards = sharding.batch_shards(generator.model.mesh)
        self.places = -(-min(batch_size, len(requests)) // shards) * shards
        self._prefills = prefills(generator, requests)  # one program for all
        self.on_devices = functools.partial(sharding.use, generator.model.mesh)

    def begin(
        self, state: Generation, seed: int, places: np.ndarray, numbers: np.ndarray
    ) -> Generation:
        """Begins texts, by their numbers, in some places."""
        spec = self._generator.sampler.spec
        length, kernel = spec.schedule.length, spec.kernel
        of_place = np.full(self.places, -1, np.int32)
        of_place[places] = self._texts_of[numbers]
        ids: list[list[int]] = [[]] * self.places
        stop = [length] * self.places
        for place, number in zip(places, numbers, strict=True):
            ids[place], stop[place] = self._requests[number].ids, self._requests[number].stop
        given = prompts.build(ids, length=length, vocab_size=kernel.vocab_size, stop=stop)
        own = self._generator
        with self.on_devices():
            begun = _begin(
                own.sampler, self._prefills, own.model.params, state, np.uint32(seed), of_place,
                given,
            )  # fmt: skip
        return cast(Generation, begun)

    def advance(self, state: Generation, rounds: int, live: int) -> Generation:
        """See `loop.advance`."""
        own = self._generator
        with self.on_devices():
            after = loop.advance(own.sampler, own.rule, own.model.params, state, rounds, live)
        return cast(Generation, after)

    def found(self, state: Generation, numbers: np.ndarray) -> tuple[np.ndarray, dict[int, Text]]:
        """The step of each place, and the texts that are done, by place."""
        with self.on_devices():
            found = jax.device_get(loop.finish(self._generator.sampler, state))
        texts, steps = {}, self._generator.sampler.spec.schedule.steps
        for place in np.flatnonzero((found.step >= steps) & (numbers >= 0)).tolist():
            number = int(numbers[place])
            ids = tuple(found.tokens[place, : found.length[place]].tolist())
            texts[place] = Text(
                number=number,
                prompt=self._requests[number].prompt,
                text=self._generator.model.tokenizer.decode(ids),
                tokens=ids,
                nfe=int(found.nfe[place]),
                corrections=int(found.corrections[place]),
                lengths=self._requests[number].lengths,
            )
        return np.array(found.step), texts


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def _begin(
    sampler: Sampler,
    prefills: bool,
    params: Any,
    state: Generation,
    seed: jax.Array,
    numbers: jax.Array,
    given: Prompts,
) -> Generation:
    """`loop.renew` for texts of these numbers, −1 where a place stays as it is."""
    keys = keys_of(seed, numbers)  # here: processes share NumPy's values, but not arrays of theirs
    begun = loop.renew(sampler, params, state, numbers >= 0, keys, given, prefills=prefills)
    return cast(Generation, begun)
