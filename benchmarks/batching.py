"""Texts that end at an end token: places that are filled again, against whole batches.

    python benchmarks/batching.py

Random parameters say every token alike, so that a text ends after about as many tokens as there are
in the vocabulary (bytes: 258).
"""

import argparse
import dataclasses
import sys
import time

import command
import in_turn
import jax
from sampling import network_of

from hybrid_jax.config import Experiment, NoiseConfig, ScheduleConfig
from hybrid_jax.data.settings import DataConfig
from hybrid_jax.data.tokenizers.byte import ByteTokenizer
from hybrid_jax.generation import driver, generator
from hybrid_jax.generation.requests import Request
from hybrid_jax.runtime.command_line import Parser, within
from hybrid_jax.sampling.settings import SamplingConfig
from hybrid_jax.training.pretrained import Pretrained

LENGTH, WIDTH = 1024, 16


def main() -> int:
    parser = Parser(
        description="Times texts of different lengths, in filled places and in batches."
    )
    add = parser.add_argument
    add("--size", default="tiny", choices=["tiny", "small", "base"], help="of the network")
    add("--count", type=within(1), default=200, metavar="N", help="texts (default: %(default)s)")
    add("--batch_size", type=within(1), default=8, metavar="B", help="at a time")
    add("--repeats", type=within(1), default=3)
    add("--out", default="benchmarks/results", metavar="DIR")
    return command.run(parser, _run, folder=True)


def _run(options: argparse.Namespace) -> None:
    tokenizer = ByteTokenizer()
    experiment = Experiment(
        name="batching",
        data=DataConfig(length=LENGTH),
        schedule=ScheduleConfig(family="block", width=WIDTH, levels=WIDTH),
        noise=NoiseConfig(kernel="epsilon"),
        sampling=SamplingConfig(rule="acs", eta=0.25, eos="stop"),
    )
    network = dataclasses.replace(network_of(options.size, "float32"), vocab_size=258)
    own = generator.build(
        Pretrained(
            experiment=experiment,
            tokenizer=tokenizer,
            network=network,
            spec=experiment.spec(tokenizer.vocab_size, tokenizer.bos),
            params=jax.jit(network.init)(jax.random.key(0)),
            step=0,
        )
    )
    texts = [Request(prompt="", ids=[], stop=LENGTH)] * options.count
    size = options.batch_size

    def speed(each: int) -> float:
        """Tokens a second, with so many texts given to the driver at a time."""
        begun = time.perf_counter()
        made = 0
        for first in range(0, options.count, each):
            part = texts[first : first + each]
            made += sum(len(t.tokens) for t in driver.run(own, part, seed=first, batch_size=size))
        return made / (time.perf_counter() - begun)

    speed(size)  # compiles
    pairs = [(speed(size), speed(options.count)) for _ in range(options.repeats)]
    batches, filled = (list(column) for column in zip(*pairs, strict=True))
    lengths = [len(text.tokens) for text in driver.run(own, texts, seed=0, batch_size=size)]
    table = (
        "| tokens of a text | tokens/s, batches | places filled again | ratio (least – most) |\n"
        "|---|---|---|---|\n"
        f"| {in_turn.spread(lengths, 0)} | {in_turn.spread(batches)} | {in_turn.spread(filled)} "
        f"| **{in_turn.spread(in_turn.ratios(filled, batches), 2)}** |"
    )
    shape = {"size": options.size, "texts": options.count, "batch": size, "L": LENGTH, "ω": WIDTH}
    print(in_turn.store("batching", options.out, table, **shape))


if __name__ == "__main__":
    sys.exit(main())
