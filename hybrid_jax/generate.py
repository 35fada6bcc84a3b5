"""Generates text with a trained model.

    python -m hybrid_jax.generate --workdir=runs/gamma_hybrid --prompt="The function returns"
    python -m hybrid_jax.generate --workdir=runs/epsilon_hybrid --rule=acs --eta=0.5 --watch
    python -m hybrid_jax.generate --workdir=runs/mdlm --infill="The {{3}} returns {{}}."

A text depends on the seed, its number and its prompt; not on those it is generated with, nor on the
devices. All devices are used, and several processes that are started alike share the texts.
"""

import argparse
import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence

import jax
import numpy as np

from hybrid_jax.data import files
from hybrid_jax.errors import UserError
from hybrid_jax.generation import driver, infill
from hybrid_jax.generation import requests as writing
from hybrid_jax.generation.driver import Round
from hybrid_jax.generation.generator import Generator, build, choose_sampling
from hybrid_jax.generation.infill import Choice
from hybrid_jax.generation.requests import Request, Text
from hybrid_jax.generation.terminal import Watch, require_terminal, shown
from hybrid_jax.runtime import command_line
from hybrid_jax.runtime.command_line import path_of, run_command, seed_of, within
from hybrid_jax.runtime.files import GrowingFile, check_writable
from hybrid_jax.runtime.json_text import digest
from hybrid_jax.runtime.processes import assert_same, is_process0, join, on_process0, raise_on_all
from hybrid_jax.runtime.progress import Progress
from hybrid_jax.sampling import rules
from hybrid_jax.sampling.prompts import GAP
from hybrid_jax.training import pretrained

_PIECES = 100  # that a text is run in, for the progress bar
_MOST_TEXTS = 1_000_000


def generate(
    generator: Generator,
    asked: Sequence[Sequence[Request]],
    *,
    seed: int,
    batch_size: int,
    keep: Callable[[Iterable[Text]], None],
    watch: float | None = None,
) -> float:
    """Generates all texts and shows progress on standard error.

    Args:
      asked: the candidates for each text.
      keep: gets texts when they are done.
      watch: show the texts in the first place in the terminal, with so many seconds a frame.

    Returns:
      the seconds that they took without compilation and the choice of lengths.
    """
    choice = Choice(generator, asked, seed)
    requests, chosen, choosing = choice.requests, 0, 0.0
    schedule = generator.sampler.spec.schedule
    steps = schedule.steps
    driver.compile_rounds(generator, requests, batch_size=batch_size)
    begun = time.monotonic()
    with contextlib.ExitStack() as stack:
        if watch is not None:
            show = stack.enter_context(Watch(generator, delay=watch)).on_round
        else:
            bar = stack.enter_context(Progress(total=len(requests) * steps, interval=5.0))

            def show(round_: Round) -> None:
                step = np.where(round_.numbers < 0, 0, round_.step)
                step[list(round_.texts)] = 0
                done = round_.done * steps + int(step.sum())
                bar.update(done, {"texts": chosen})

        # Of the steps of adaptive windows a text takes few: each of its rounds lowers a level.
        most = min(steps, schedule.length * schedule.levels)
        every = max(1, most // _PIECES) if watch is None else 1
        for round_ in driver.rounds(
            generator, requests, seed=seed, batch_size=batch_size, every=every,
            texts_of=choice.texts_of,
        ):  # fmt: skip
            since = time.monotonic()
            texts = choice.take(round_.texts.values())
            choosing += time.monotonic() - since
            chosen += len(texts)
            show(round_)
            keep(texts)
    return time.monotonic() - begun - choosing


def read_requests(options: argparse.Namespace, generator: Generator) -> list[list[Request]]:
    """The texts to generate, the candidates for each.

    Raises:
      UserError: for prompts that cannot be read or do not fit, or too many texts.
    """
    if options.infill and options.length is not None:
        raise UserError("--infill makes texts as long as their gaps do: leave out --length.")
    tokenizer, length = generator.model.tokenizer, generator.sampler.spec.schedule.length
    wanted = length if options.length is None else options.length
    if not 1 <= wanted <= length:
        raise UserError(f"--length={wanted} is outside 1 … {length}, what this model writes.")
    texts = list(options.prompt or [])
    if options.prompt_file:
        texts += files.prompts(options.prompt_file)
    if not texts and not options.infill:
        texts = [""]
    asked = [[writing.beginning(text, tokenizer, stop=wanted)] for text in texts]
    asked += [infill.with_gaps(text, tokenizer, length) for text in options.infill or []]
    driver.check(generator, [candidates[0] for candidates in asked])
    made = sum(map(len, asked)) * options.num_samples
    if made > _MOST_TEXTS:
        raise UserError(
            f"--num_samples={options.num_samples} makes {made} texts, and a command holds at most "
            f"{_MOST_TEXTS}: run several, with other seeds."
        )
    return [candidates for candidates in asked for _ in range(options.num_samples)]


def run(options: argparse.Namespace) -> None:
    """Generates the texts of the options, prints them and writes the record."""
    if options.watch is not None:
        require_terminal()  # before the model is loaded
    if options.out:
        check_writable(options.out)
    mesh = join(options)
    lead = is_process0()
    if options.watch is not None and jax.process_count() > 1:
        raise UserError("--watch shows the texts of one process: leave it out with several.")
    model = pretrained.asked(options, mesh)
    settings = {name: getattr(options, name) for name in (*rules.OPTIONS, "eos")}
    sampling = choose_sampling(model.experiment.sampling, options.rule, settings)
    generator = build(model, sampling, levels=options.levels)
    asked = raise_on_all(read_requests, options, generator)
    record = generator.settings(options.workdir, options.seed)
    if jax.process_count() > 1:
        assert_same(
            "request", digest([record, *([dataclasses.asdict(r) for r in c] for c in asked)])
        )
    texts: list[Text] = []
    early: dict[int, Text] = {}  # done, while one before them is not
    try:
        with GrowingFile((lead and options.out) or os.devnull) as file:

            def keep(done: Iterable[Text], *, gaps: bool = False) -> None:
                early.update((text.number, text) for text in done)
                while early and (gaps or len(texts) in early):
                    texts.append(early.pop(min(early)))
                    file.append(writing.as_lines(texts[-1:], record))

            try:
                seconds = generate(
                    generator,
                    asked,
                    seed=options.seed,
                    batch_size=options.batch_size,
                    keep=lambda done: on_process0(keep, done),
                    watch=options.watch,
                )
            finally:
                keep((), gaps=True)
    finally:  # what was made is not lost when something goes wrong
        for text in (*texts, *early.values()):
            gaps = f", gaps of {' and '.join(map(str, text.lengths))}" if text.lengths else ""
            print(f"--- text {text.number + 1} of {len(asked)}{gaps} ---")
            print(shown(text.text))
    if not lead:
        return
    made = sum(
        len(text.tokens) - sum(i != GAP for i in candidates[0].ids)
        for text, candidates in zip(texts, asked, strict=True)
    )
    print(
        f"{made} tokens in {seconds:.2f} s without compilation: {made / seconds:.1f} tokens/s; "
        f"{np.mean([t.nfe for t in texts]):.1f} NFE and "
        f"{np.mean([t.corrections for t in texts]):.1f} corrections a text "
        f"({sampling.rule}, {generator.sampler.spec.schedule.name})",
        file=sys.stderr,
    )


def _parser() -> argparse.ArgumentParser:
    parser = command_line.Parser(
        prog="python -m hybrid_jax.generate",
        description="Generates text with a trained model.",
        compiles=True,
    )
    add = parser.add_argument
    command_line.add_model(add)
    add("--prompt", action="append", metavar="TEXT", help="beginning of a text; may be repeated")
    add("--prompt_file", type=path_of, metavar="FILE",
        help="prompts, one a line (.jsonl: prompt or text); - for standard input")  # fmt: skip
    add("--infill", action="append", metavar="TEXT",
        help="text with gaps, {{5}} for 5 tokens, {{3-12}} and {{}} for the number that fits best; "
        "may be repeated")  # fmt: skip
    add("--num_samples", type=within(1), default=1, metavar="K", help="texts for each prompt")
    add("--batch_size", type=within(1), default=8, metavar="B", help="texts at a time")
    add("--length", type=int, metavar="N",
        help="tokens of a text, the prompt included (default: the model's)")  # fmt: skip
    add("--levels", type=int, metavar="T", help="steps of a window (default: as trained)")
    add("--rule", choices=list(rules.NAMED), help="update rule (default: the experiment's)")
    for name, setting in rules.OPTIONS.items():
        add(f"--{name}", type=setting.kind, help=rules.describe(name))
    add("--eos", choices=("continue", "stop"), help="at an end-of-document token")
    add("--seed", type=seed_of, default=0)
    add("--out", type=path_of, metavar="FILE", help="JSON lines with tokens, settings and counts")
    add("--watch", type=within(0, 60, float), nargs="?", const=0.05, metavar="SECONDS",
        help="show texts while they are generated, one at a time")  # fmt: skip
    command_line.add_devices(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return run_command(_parser(), argv, run, interrupted="texts that were done are printed")


if __name__ == "__main__":
    sys.exit(main())
