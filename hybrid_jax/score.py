"""Scores given texts with a trained model, or ranks ways to go on from a prompt.

    python -m hybrid_jax.score --workdir=runs/mdlm --texts=texts.txt
    python -m hybrid_jax.score --workdir=runs/ar --prompt="2 plus 2 makes " --choice=4 --choice=5

A score is a bound on −log p of the text (behind the prompt, if one is given): an upper bound with
the standard error of its draws, and the likelihood itself for autoregression. Choices are ranked by
it, each with the chance that its place before the next one is noise of the draws, which all share.
"""

import argparse
import dataclasses
import sys

from hybrid_jax.data import files
from hybrid_jax.errors import UserError
from hybrid_jax.eval import score as scores
from hybrid_jax.eval.score import Score
from hybrid_jax.generation.terminal import shown
from hybrid_jax.runtime import command_line
from hybrid_jax.runtime.command_line import check_mode, path_of, seed_of, within
from hybrid_jax.runtime.files import check_writable, write_atomic
from hybrid_jax.runtime.json_text import json_text
from hybrid_jax.runtime.processes import join, on_process0, raise_on_all, say
from hybrid_jax.training import pretrained

MODES = {"--texts": ("texts",), "--choice": ("choice",)}
_SHOWN = 48  # characters of a text


def run(options: argparse.Namespace) -> None:
    """Scores the texts of the options, prints a table and writes the record."""
    check_mode(options, "--choice" if options.choice else "--texts", MODES)
    if not options.texts and not options.choice:
        raise UserError("Say what to score: --texts=FILE, or --choice=TEXT twice or more.")
    if options.choice and len(options.choice) < 2:
        raise UserError("There is one --choice, and nothing to choose from: give more of them.")
    if options.out:
        check_writable(options.out)
    mesh = join(options)
    texts = raise_on_all(lambda: options.choice or files.prompts(options.texts))
    model = pretrained.asked(options, mesh)
    found = raise_on_all(
        scores.score, model, texts, prompt=options.prompt, draws=options.draws, seed=options.seed
    )
    order = sorted(range(len(texts)), key=lambda n: found[n].nll if options.choice else n)
    sign = "=" if found[0].exact else "≤"
    say(f"{model.experiment.name}, step {model.step}: −log p {sign} the nats below")
    width = 8 if options.choice else 0
    say(f"{'nats':>20}{'a token':>9}{'bits/byte':>11}{'tokens':>8}{'noise'[:width]:>{width}}  text")
    for number, after in zip(order, [*order[1:], None], strict=True):
        chance = ""
        if options.choice and after is not None:
            chance = f"{scores.chance_of_noise(found[number], found[after]):.3f}"
        say(f"{_row(found[number])}{chance:>{width}}  {_short(texts[number])}")
    if options.out:
        record = {name: getattr(options, name) for name in ("workdir", "prompt", "draws", "seed")}
        record["schedule"] = model.spec.schedule.name
        record["step"] = model.step  # beside `draws`, their number in place of their nats
        lines = [
            json_text({"text": text, **dataclasses.asdict(own), **record}) + "\n"
            for text, own in zip(texts, found, strict=True)
        ]
        on_process0(write_atomic, options.out, "".join(lines))


def _row(own: Score) -> str:
    error = "" if own.exact else f" ± {own.nll_se:.2f}"
    nats = f"{own.nll:.2f}{error}"
    bits = f"{own.bits_per_byte:.3f}" if own.bytes else "–"  # of tokens that stand for no text
    return f"{nats:>20}{own.nats_per_token:>9.3f}{bits:>11}{own.tokens:>8}"


def _short(text: str) -> str:
    """The beginning of a text, on one line."""
    line = " ".join(shown(text).split("\n"))
    return line if len(line) <= _SHOWN else f"{line[: _SHOWN - 1]}…"


def _parser() -> argparse.ArgumentParser:
    parser = command_line.Parser(
        prog="python -m hybrid_jax.score",
        description="Scores given texts, or ranks ways to go on from a prompt.",
        compiles=True,
    )
    add = parser.add_argument
    command_line.add_model(add)
    add("--texts", type=path_of, metavar="FILE",
        help="texts, one a line (.jsonl: in the field text); - for standard input")  # fmt: skip
    add("--choice", action="append", metavar="TEXT", help="a text to rank; twice or more")
    add("--prompt", default="", metavar="TEXT", help="beginning, which is not scored itself")
    add("--draws", type=within(2), default=64, metavar="K", help="of noise for each (default: 64)")
    add("--seed", type=seed_of, default=0, help="of the draws (default: 0)")
    add("--out", type=path_of, metavar="FILE", help="JSON lines with scores and settings")
    command_line.add_devices(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return command_line.run_command(_parser(), argv, run, interrupted="nothing was written")


if __name__ == "__main__":
    sys.exit(main())
