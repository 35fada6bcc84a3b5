"""Sampling with and without the cache, side by side.

    python benchmarks/sampling.py
    python benchmarks/sampling.py --size=base --dtype=bfloat16 --cases=3     # on a GPU

Random parameters (speed does not depend on them). A round is one call of the network with all that
belongs to it: attention, head, draws, update rule, cache. Shapes are static, so every round of a
case costs the same and tokens/s follows from the cost of a round; for the first case a whole
text is generated as well, as a check. Cached and uncached rounds are
measured in turn, several times, so that a machine that changes its speed changes both.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import command
import in_turn
import jax
import jax.numpy as jnp

from hybrid_jax.config import Experiment
from hybrid_jax.method import hyperschedule, noising
from hybrid_jax.method.layout import Layout
from hybrid_jax.method.loss import Spec
from hybrid_jax.method.objective import Objective
from hybrid_jax.models.transformer import Transformer
from hybrid_jax.presets import sized
from hybrid_jax.runtime.command_line import Parser
from hybrid_jax.sampling import loop, prompts
from hybrid_jax.sampling.rules import ACS
from hybrid_jax.sampling.state import Sampler

RULE = ACS(eta=0.25)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One shape, with the first `given` tokens given. Uncached rounds are left out where they would
    take minutes.
    """

    length: int = 1024
    width: int = 16
    levels: int = 16
    batch: int = 1
    given: int = 0
    shifted: bool = False
    uncached: bool = True
    whole: bool = False

    def sampler(self, network: Transformer, *, cached: bool) -> Sampler:
        spec = Spec(
            schedule=hyperschedule.block(length=self.length, width=self.width, levels=self.levels),
            kernel=noising.epsilon_hybrid(vocab_size=network.vocab_size, epsilon=0.01),
            layout=Layout(alignment="shifted" if self.shifted else "aligned"),
            objective=Objective(),
        )
        return Sampler(spec=spec, network=network, cached=cached)


CASES = [
    Case(whole=True),
    Case(batch=8),
    Case(length=256),
    Case(length=512),
    Case(length=2048),
    Case(length=4096, uncached=False),
    Case(width=1, levels=1, shifted=True),
    Case(width=4, levels=4),
    Case(width=64, levels=64),
    Case(levels=4),
    Case(batch=32, uncached=False),
]
FILLED = [
    Case(length=512, given=256),
    Case(length=4096, given=256),
    Case(length=512, given=256, batch=8),
    Case(length=1024, given=512, batch=8),
]


class Rounds:
    """A sampler whose rounds can be timed."""

    def __init__(self, case: Case, network: Transformer, params, *, cached: bool):
        self.case, self.params = case, params
        self.sampler = case.sampler(network, cached=cached)
        self.steps = self.sampler.spec.schedule.steps
        self.keys = jax.random.split(jax.random.key(0), case.batch)
        given = [[0] * case.given] * case.batch
        self.given = prompts.build(given, length=case.length, vocab_size=network.vocab_size)
        self.restart()
        for _ in range(2):  # compiles: the first state may live elsewhere than those that follow
            self.run(1)
        compiled = loop.advance.lower(self.sampler, RULE, params, self.state, 1).compile()
        memory = compiled.memory_analysis()
        self.megabytes = (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 1e6

    def restart(self) -> None:
        self.done = 0
        self.state = jax.block_until_ready(
            loop.start(self.sampler, self.params, self.keys, self.given)
        )

    def run(self, rounds: int) -> float:
        """Milliseconds a round."""
        if self.done + rounds > self.steps:
            self.restart()
        begun = time.perf_counter()
        self.state = loop.advance(self.sampler, RULE, self.params, self.state, rounds)
        jax.block_until_ready(self.state)
        self.done += rounds
        return (time.perf_counter() - begun) * 1e3 / rounds


def products(network: Transformer, case: Case) -> Callable[[], Any]:
    """The matrix products of a round and nothing else, one after the other, to be run.

    Rows are those of the window; they attend to `case.given` cached rows and to one another.
    """
    width, heads, hidden = network.width, network.heads, network.hidden
    batch, rows, layers = case.batch, case.width, network.layers
    held = (layers, batch, heads, case.given + rows, width // heads)
    key, value = (jnp.zeros(held, network.dtype) for _ in range(2))
    shapes = {
        "qkv": (layers, width, 3 * width), "out": (layers, width, width),
        "mlp_in": (layers, width, hidden), "mlp_out": (layers, hidden, width),
        "head": (width, network.rows),
    }  # fmt: skip
    weights = {name: jnp.zeros(shape, network.dtype) for name, shape in shapes.items()}

    @jax.jit
    def run(weights, key, value, x):
        for layer in range(layers):
            query = (x @ weights["qkv"][layer])[:, :width]
            query = query.reshape(batch, heads, rows, -1)
            scores = jnp.einsum("bhrk,bhmk->bhrm", query, key[layer])
            seen = jnp.einsum("bhrm,bhmk->bhrk", scores, value[layer]).reshape(x.shape)
            x = seen @ weights["out"][layer] @ weights["mlp_in"][layer] @ weights["mlp_out"][layer]
        return x @ weights["head"]

    x = jnp.zeros((batch * rows, width), network.dtype)
    return lambda: run(weights, key, value, x)


def rounds_as_markdown(network: Transformer, params=None, *, repeats: int) -> list[str]:
    """Cached rounds of the cases `FILLED`, in turn with one another and with their products."""
    params = jax.jit(network.init)(jax.random.key(0)) if params is None else params
    rounds = [Rounds(case, network, params, cached=True) for case in FILLED]
    alone = [products(network, case) for case in FILLED]
    times: list[list[float]] = [[] for _ in FILLED]
    parts: list[list[float]] = [[] for _ in FILLED]
    for repeat in range(repeats + 1):
        for number, (case, of_case) in enumerate(zip(FILLED, rounds, strict=True)):
            of_case.restart()
            of_round = of_case.run(case.levels)  # all of a block
            of_products = in_turn.milliseconds({"": alone[number]}, repeats=case.levels)[""]
            if repeat:
                times[number].append(of_round)
                parts[number].append(statistics.median(of_products))
    lines = [
        "| L | given | batch | ms a round | ms of its products | round over products |",
        "|---|---|---|---|---|---|",
    ]
    for case, whole, part in zip(FILLED, times, parts, strict=True):
        lines.append(
            f"| {case.length} | {case.given} | {case.batch} | {in_turn.spread(whole)} | "
            f"{in_turn.spread(part)} | **{in_turn.spread(in_turn.ratios(whole, part))}** |"
        )
    ratio = in_turn.spread(in_turn.ratios(times[1], times[0]), 2)
    long, short = FILLED[1], FILLED[0]
    return [
        *lines, "",
        f"A round at L = {long.length} over L = {short.length}, {short.given} given: **{ratio}**.",
    ]  # fmt: skip


def network_of(size: str, dtype: str) -> Transformer:
    """The network of a size of `hybrid_jax.presets`, in the given type."""
    config = sized("sampling", size)
    config.model.dtype = dtype
    experiment = Experiment.from_config(config)
    return experiment.network(experiment.data.expected_vocab_size)


def measure(case: Case, network: Transformer, params, *, repeats: int) -> str:
    """A row of the table."""
    cached = Rounds(case, network, params, cached=True)
    uncached = Rounds(case, network, params, cached=False) if case.uncached else None
    times: list[list[float]] = [[], []]
    for _ in range(repeats):
        # Whole windows, because the round after a window has settled also feeds it.
        times[0].append(cached.run(max(case.levels, 16)))
        if uncached:
            times[1].append(uncached.run(2))

    def speed(milliseconds: float) -> float:
        return case.length * case.batch / milliseconds / cached.steps * 1e3

    with_cache = f"{speed(statistics.median(times[0])):.1f}"
    if case.whole:
        cached.restart()
        with_cache += f" (whole text: {speed(cached.run(cached.steps)):.1f})"
    other = ["–"] * 4
    if uncached:
        median = statistics.median(times[1])
        ratios = in_turn.spread(in_turn.ratios(times[1], times[0]))
        without = [f"{speed(median):.2f}", f"{uncached.megabytes:.0f}"]
        other = [f"{median:.0f}", f"**{ratios}**", *without]
    cells = [
        case.length, f"{case.width}{', shifted' if case.shifted else ''}", case.levels, case.batch,
        cached.steps, in_turn.spread(times[0]), *other[:2], with_cache, other[2],
        f"{cached.megabytes:.0f}", other[3],
    ]  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def main() -> int:
    parser = Parser(description="Times sampling with and without the cache.")
    add = parser.add_argument
    add("--size", default="small", choices=["tiny", "small", "base"], help="of the network")
    add("--dtype", default="float32", choices=["float32", "bfloat16"])
    add("--cases", type=int, default=len(CASES), help="only the first ones (default: all)")
    add("--repeats", type=int, default=5)
    add("--rounds", action=argparse.BooleanOptionalAction, default=True, help="the second table")
    add("--out", default="benchmarks/results", metavar="DIR")
    return command.run(parser, _run, folder=True)


def _run(options: argparse.Namespace) -> None:
    network = network_of(options.size, options.dtype)
    params = jax.jit(network.init)(jax.random.key(0))
    shape = {"size": options.size, "dtype": options.dtype, "rule": "ACS η=0.25"}
    lines = [
        "| L | ω | T | batch | calls | ms a round, cached | uncached | ratio (least – most) | "
        "tokens/s, cached | uncached | MB, cached | uncached |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    cases = CASES[: options.cases]
    for number, case in enumerate(cases, 1):
        begun = time.monotonic()
        lines.append(measure(case, network, params, repeats=options.repeats))
        in_turn.note(f"case {number} of {len(cases)}: {time.monotonic() - begun:.0f} s")
        in_turn.store("sampling", options.out, "\n".join(lines), **shape)
    if options.rounds:
        lines += ["", *rounds_as_markdown(network, params, repeats=options.repeats)]
    print(in_turn.store("sampling", options.out, "\n".join(lines), **shape))


if __name__ == "__main__":
    sys.exit(main())
