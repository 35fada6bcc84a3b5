"""The driver of generation: requests in batches of one shape, through the compiled loop, to texts.

A text depends on the seed, its number and its request, not on the batch that it is written in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from hybrid_jax.errors import UserError, check_seed
from hybrid_jax.generation.requests import Request, Text
from hybrid_jax.runtime import sharding
from hybrid_jax.sampling import loop, prompts
from hybrid_jax.sampling.prompts import Prompts
from hybrid_jax.sampling.state import Generated, Generation, Sampler
from hybrid_jax.sampling.update_rule import Rule
from hybrid_jax.training.pretrained import Pretrained

_TO_THE_END = np.iinfo(np.int32).max


@dataclasses.dataclass(frozen=True, kw_only=True)
class Round:
    """A batch between two rounds of the loop.

    Attributes:
      first: number of its first text.
      given: of the batch.
      state: of the loop; its memory is reused once the next round is asked for.
      texts: of the batch once it is done, else none.
    """

    first: int
    given: Prompts
    state: Generation
    texts: tuple[Text, ...] = ()


def run(
    model: Pretrained,
    sampler: Sampler,
    rule: Rule,
    requests: Sequence[Request],
    *,
    seed: int,
    batch_size: int,
    on_round: Callable[[Round], None] | None = None,
    every: int | None = None,
) -> list[Text]:
    """Generates the texts of all requests.

    Args:
      batch_size: texts at a time.
      on_round: called with each of `rounds`.
      every: see `rounds`.

    Raises:
      UserError: if rule, noise and settings do not go together, a prompt does not fit, or seed or
        batch size is out of range.
    """
    texts: list[Text] = []
    for round_ in rounds(
        model, sampler, rule, requests, seed=seed, batch_size=batch_size, every=every
    ):
        if on_round is not None:
            on_round(round_)
        texts += round_.texts
    return texts


def rounds(
    model: Pretrained,
    sampler: Sampler,
    rule: Rule,
    requests: Sequence[Request],
    *,
    seed: int,
    batch_size: int,
    every: int | None = None,
) -> Iterator[Round]:
    """Generates batch by batch. Arguments and errors are those of `run`.

    Args:
      every: yields each batch before its first round, after every so many rounds, and done; None
        yields it only when it is done.
    """
    loop.check(sampler, rule)
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1, but is {batch_size}.")
    for first in range(0, len(requests), batch_size):
        batch = requests[first : first + batch_size]
        given = build_prompts(sampler, batch, batch_size)
        keys = keys_of(seed, first + np.arange(batch_size))
        state = loop.start(sampler, model.params, keys, given)
        done = False
        while not done:
            if every is not None:
                yield Round(first=first, given=given, state=state)
            state = loop.advance(sampler, rule, model.params, state, every or _TO_THE_END)
            done = every is None or bool(
                (_on_host(state.step) >= sampler.spec.schedule.steps).all()
            )
        result = _on_host(loop.finish(sampler, given, state))
        texts = tuple(
            _text(model, request, result, row, first + row) for row, request in enumerate(batch)
        )
        yield Round(first=first, given=given, state=state, texts=texts)


def compile_rounds(
    model: Pretrained, sampler: Sampler, rule: Rule, requests: Sequence[Request], *, batch_size: int
) -> None:
    """Compiles `rounds` for these arguments, so that a clock that starts later leaves it out."""
    given = build_prompts(sampler, requests[:batch_size], batch_size)
    state = loop.start(sampler, model.params, keys_of(0, np.arange(batch_size)), given)
    for _ in range(2):  # its own result may live elsewhere than what it starts from
        state = loop.advance(sampler, rule, model.params, state, 0)
    jax.block_until_ready(loop.finish(sampler, given, state))


def build_prompts(
    sampler: Sampler, requests: Sequence[Request], batch_size: int | None = None
) -> Prompts:
    """The prompts of a batch, filled up to `batch_size`, so that all compile once.

    Raises:
      UserError: if a prompt does not fit.
    """
    filled = [*requests, *[requests[-1]] * ((batch_size or 0) - len(requests))]
    return prompts.build(
        [request.ids for request in filled],
        length=sampler.spec.schedule.length,
        vocab_size=sampler.spec.kernel.vocab_size,
        stop=[request.stop for request in filled],
    )


def keys_of(seed: int, numbers: np.ndarray) -> jax.Array:
    """One key for each text, from the seed and the text's number. Raises UserError for no seed."""
    key = jax.random.key(check_seed(seed))
    return jax.vmap(lambda n: jax.random.fold_in(key, n))(numbers)


def _text(model: Pretrained, request: Request, result: Generated, row: int, number: int) -> Text:
    ids = tuple(int(i) for i in result.tokens[row, : result.length[row]])
    return Text(
        number=number,
        prompt=request.prompt,
        text=model.tokenizer.decode(ids),
        tokens=ids,
        nfe=int(result.nfe[row]),
        corrections=int(result.corrections[row]),
    )


def _on_host(tree: Any) -> Any:
    """Arrays as NumPy, whole also where the devices of a mesh in use hold pieces of them."""
    mesh = jax.sharding.get_mesh()
    if not mesh.empty:
        tree = jax.jit(lambda x: x, out_shardings=sharding.everywhere(mesh))(tree)
    return jax.device_get(tree)
