"""Generates text with a trained model.

    python -m hybrid_jax.generate --workdir=runs/gamma_hybrid --prompt="The function returns"
    python -m hybrid_jax.generate --workdir=runs/epsilon_hybrid --rule=acs --eta=0.5 --watch
    python -m hybrid_jax.generate --workdir=runs/mdlm --infill="The {{3}} returns {{5}}."

A text depends on the seed, its number and its prompt; not on the batch it is generated in.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hybrid_jax import trained
from hybrid_jax.atomic import write_atomic
from hybrid_jax.config import SamplingConfig
from hybrid_jax.data.tokenizers import Tokenizer
from hybrid_jax.errors import UserError, exit_status
from hybrid_jax.frames import Frames
from hybrid_jax.metrics import Progress
from hybrid_jax.sampling import loop, prompts, rules
from hybrid_jax.sampling.prompts import GAP, Prompts
from hybrid_jax.sampling.rule import Rule
from hybrid_jax.sampling.state import Generated, Generation, Sampler
from hybrid_jax.trained import Trained
from hybrid_jax.watch import Watch, require_terminal

_PIECES = 100  # that a batch is run in, for the progress bar


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
    calls: int
    corrections: int


def generate(
    sampler: Sampler,
    rule: Rule,
    params: Any,
    tokenizer: Tokenizer,
    requests: Sequence[Request],
    *,
    seed: int,
    batch_size: int,
    watch: float | None = None,
) -> tuple[list[Text], float]:
    """Generates all requests, batch by batch, showing progress on standard error.

    Args:
      watch: show the first text of each batch in the terminal, with so many seconds a frame.

    Returns:
      the texts, and the seconds that they took without compilation.
    """
    loop.check(sampler, rule)
    schedule = sampler.problem.schedule
    texts: list[Text] = []
    seconds = 0.0
    batches = [requests[i : i + batch_size] for i in range(0, len(requests), batch_size)]
    progress: Any = contextlib.nullcontext()
    if watch is None:
        progress = Progress(total=len(batches) * schedule.steps, interval=5.0)
    with progress:
        for number, batch in enumerate(batches):
            # The last batch is filled up, so that all have one shape and compile once.
            filled = [*batch, *[batch[-1]] * (batch_size - len(batch))]
            given = prompts.build(
                [request.ids for request in filled],
                length=schedule.length,
                tokens=sampler.problem.kernel.tokens,
                stop=[request.stop for request in filled],
            )
            numbers = number * batch_size + np.arange(batch_size)
            keys = keys_of(seed, numbers)
            if not number:  # compile everything before the clock starts
                state = loop.start(sampler, params, keys, given)
                for _ in range(2):  # its own result may live elsewhere than what it starts from
                    state = loop.advance(sampler, rule, params, state, 0)
                jax.block_until_ready(loop.finish(sampler, given, state))
            begun = time.monotonic()
            frames = Frames(schedule, tokenizer, given)
            first: int | None = None
            piece = max(1, schedule.steps // _PIECES) if watch is None else 1
            with contextlib.nullcontext() if watch is None else Watch(delay=watch) as screen:
                for state in rounds(sampler, rule, params, keys, given, piece=piece):
                    if screen:
                        screen.show(frames.of(state))
                        continue
                    now = int(np.min(state.step))
                    first = now if first is None else first
                    share = (now - first) / max(1, schedule.steps - first)
                    place = number * schedule.steps + int(share * (schedule.steps - 1))
                    progress.update(place, {"texts": len(texts)})
            result = jax.device_get(loop.finish(sampler, given, state))
            seconds += time.monotonic() - begun
            texts += texts_from(result, batch, tokenizer, first=len(texts))
            if watch is None:
                progress.update((number + 1) * schedule.steps, {"texts": len(texts)})
    return texts, seconds


def rounds(
    sampler: Sampler, rule: Rule, params: Any, keys: jax.Array, given: Prompts, *, piece: int = 1
) -> Iterator[Generation]:
    """Generates a batch: yields the state before the first round and after every `piece` of them.

    A state is gone once the next one is asked for, which is written to the same place.
    """
    state = loop.start(sampler, params, keys, given)
    yield state
    while (np.asarray(state.step) < sampler.problem.schedule.steps).any():
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
                calls=int(result.calls[row]),
                corrections=int(result.corrections[row]),
            )
        )
    return texts


def settings_of(
    workdir: str | Path, model: Trained, sampler: Sampler, sampling: SamplingConfig, seed: int
) -> dict[str, Any]:
    """What texts depend on, to stand beside each of them."""
    return {
        "workdir": str(workdir),
        "step": model.step,
        "seed": seed,
        "schedule": sampler.problem.schedule.name,
        "noise": sampler.problem.kernel.name,
        "sampling": {k: v for k, v in dataclasses.asdict(sampling).items() if k != "count"},
    }


def write(file: str | Path, texts: Sequence[Text], settings: Mapping[str, Any]) -> None:
    """Writes texts as JSON lines, each with the settings; `eval.samples` reads them."""
    lines = [
        json.dumps({**dataclasses.asdict(text), **settings}, ensure_ascii=False) for text in texts
    ]
    write_atomic(file, "\n".join(lines) + "\n")


# ---------------------------------------------------------------------------------------------
# The command line.


def read_requests(options: argparse.Namespace, tokenizer: Tokenizer, length: int) -> list[Request]:
    """What to generate. Raises UserError for prompts that cannot be read or do not fit."""
    wanted = length if options.length is None else options.length
    if not 1 <= wanted <= length:
        raise UserError(f"--length={wanted} is outside 1 … {length}, what this model writes.")
    texts = list(options.prompt or [])
    if options.prompt_file:
        texts += _lines(options.prompt_file)
    requests = [beginning(text, tokenizer, stop=wanted) for text in texts]
    requests += [with_gaps(text, tokenizer, length) for text in options.infill or []]
    if not requests:
        requests = [beginning("", tokenizer, stop=wanted)]
    # Checked here, all at once, before anything is compiled.
    prompts.build(
        [request.ids for request in requests],
        length=length,
        tokens=tokenizer.vocab_size,
        stop=[request.stop for request in requests],
    )
    return [request for request in requests for _ in range(options.num_samples)]


def _lines(file: str) -> list[str]:
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The prompts in {file} cannot be read: {error}.") from error
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise UserError(f"There are no prompts in {file}: write one a line.")
    return lines


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


def build_sampler(model: Trained, sampling: SamplingConfig, levels: int | None) -> Sampler:
    """A sampler of the model; `levels` for another number of steps a window."""
    problem = model.problem
    if levels is not None:
        if model.experiment.schedule.family == "quenched_ar":
            raise UserError(
                "The levels are the steps of a window, and this model has no windows: leave them "
                "as they are."
            )
        schedule = dataclasses.replace(model.experiment.schedule, levels=levels)
        problem = dataclasses.replace(problem, schedule=schedule.build(problem.schedule.length))
    eos = model.tokenizer.eos if sampling.eos == "stop" else None
    return Sampler(problem=problem, network=model.network, eos=eos)


def run(options: argparse.Namespace) -> None:
    """Generates what the options ask for, prints it and writes the record."""
    for name in ("num_samples", "batch_size"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} must be at least 1, but is {getattr(options, name)}.")
    if options.watch is not None:
        require_terminal()  # before the model is loaded
    model = trained.load(options.workdir, step=options.step)
    names = {field.name for field in dataclasses.fields(SamplingConfig)} - {"count", "rule"}
    settings = {name: getattr(options, name) for name in names}
    sampling = choose_sampling(model.experiment.sampling, options.rule, settings)
    rule = sampling.build()
    sampler = build_sampler(model, sampling, options.levels)
    loop.check(sampler, rule)
    requests = read_requests(options, model.tokenizer, sampler.problem.schedule.length)
    texts, seconds = generate(
        sampler,
        rule,
        model.params,
        model.tokenizer,
        requests,
        seed=options.seed,
        batch_size=min(options.batch_size, len(requests)),
        watch=options.watch,
    )
    if options.out:
        record = settings_of(options.workdir, model, sampler, sampling, options.seed)
        write(options.out, texts, record)
    for text in texts:
        print(f"--- text {text.number + 1} of {len(texts)} ---")
        print(text.text)
    made = sum(
        len(text.tokens) - sum(i != GAP for i in request.ids)
        for text, request in zip(texts, requests, strict=True)
    )
    print(
        f"{made} tokens in {seconds:.2f} s without compilation: {made / seconds:.1f} tokens/s; "
        f"{np.mean([t.calls for t in texts]):.1f} calls and "
        f"{np.mean([t.corrections for t in texts]):.1f} corrections a text "
        f"({sampling.rule}, {sampler.problem.schedule.name})",
        file=sys.stderr,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m hybrid_jax.generate", description="Generates text with a trained model."
    )
    add = parser.add_argument
    add("--workdir", required=True, metavar="DIR", help="folder of the trained run")
    add(
        "--step",
        type=trained.step_of,
        help="checkpoint to use, or 'best' on validation (default: newest)",
    )
    add("--prompt", action="append", metavar="TEXT", help="beginning of a text; may be repeated")
    add("--prompt_file", metavar="FILE", help="prompts, one a line; - for standard input")
    add("--infill", action="append", metavar="TEXT",
        help="text with gaps, {{5}} for 5 tokens; may be repeated")  # fmt: skip
    add("--num_samples", type=int, default=1, metavar="K", help="texts for each prompt")
    add("--batch_size", type=int, default=8, metavar="B", help="texts at a time")
    add("--length", type=int, metavar="N",
        help="tokens of a text, the prompt included (default: the model's)")  # fmt: skip
    add("--levels", type=int, metavar="T", help="steps of a window (default: as trained)")
    add("--rule", choices=rules.NAMES, help="update rule (default: the experiment's)")
    add("--eta", type=float, help="strength of acs and remdm, 0 to 1")
    add("--guidance", help="of acs: uniform or confidence")
    add("--sweeps", type=int, help="of acs: most closing sweeps")
    add("--strategy", help="of remdm: cap, rescale or confidence")
    add("--threshold", type=float, help="of threshold: probability above which to reveal")
    add("--bound", type=float, help="of entropy: nats to spend on revealing together")
    add("--temperature", type=float, help="below 1 for likelier tokens, 0 for the likeliest")
    add("--top_k", type=int, help="draw from the k likeliest tokens")
    add("--top_p", type=float, help="draw from the likeliest tokens of this total probability")
    add("--eos", choices=("continue", "stop"), help="what the end-of-document token means")
    add("--seed", type=int, default=0)
    add("--out", metavar="FILE", help="JSON lines with tokens, settings and counts")
    add("--watch", type=float, nargs="?", const=0.05, metavar="SECONDS",
        help="show the first text of each batch while it is generated")  # fmt: skip
    return parser


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    options = _parser().parse_args(argv)
    return exit_status(lambda: run(options), interrupted="nothing was written")


if __name__ == "__main__":
    sys.exit(main())
