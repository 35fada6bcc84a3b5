"""Errors in settled windows: does a horizon repair them?

    python benchmarks/planted.py --out=benchmarks/results/planted.md

Texts of a chain of letters, whose exact network takes the model's place (`benchmarks/oracle/`). All
windows before the last one have settled; in the window h before it one letter is replaced by
another. The last window is written with closing sweeps over each horizon. Counted are the planted
errors that end as the true letter and those that do not stay, and the right settled letters within
the horizon that do not stay (the chain allows many: no correction is wrong for that alone); calls
and rows of the network for this last window. ± is the standard error over texts of both seeds.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator

import command
import device
import jax
import jax.numpy as jnp
import numpy as np
from oracle import chain as chains
from oracle.cells import kernel_of
from oracle.network import params_of, sampler_of

from hybrid_jax.data import sources
from hybrid_jax.method import hyperschedule
from hybrid_jax.method.layout import Layout
from hybrid_jax.method.loss import Spec
from hybrid_jax.method.objective import Objective
from hybrid_jax.runtime.command_line import Parser, within
from hybrid_jax.runtime.files import write_atomic
from hybrid_jax.sampling import closing, loop, prompts
from hybrid_jax.sampling.rules import ACS
from hybrid_jax.training.statistics import mean_and_standard_error

WINDOWS, WIDTH, LEVELS, SWEEPS = 6, 8, 4, 2
SEEDS = (0, 1)


def planted(chain: chains.Chain, count: int, back: int, seed: int):
    """True texts, the same with one error in the window `back` before the last, and its place."""
    draw = np.random.default_rng(seed)
    true = chain.draw(draw, count, WINDOWS * WIDTH).astype(np.int32)
    place = (WINDOWS - 1 - back) * WIDTH + draw.integers(0, WIDTH, count)
    wrong, row = true.copy(), np.arange(count)
    wrong[row, place] += draw.integers(1, len(chain.start), count).astype(np.int32)
    return true, wrong % len(chain.start), place


def written(chain: chains.Chain, rule: ACS, texts: np.ndarray, seed: int):
    """Texts whose last window is written anew, and their calls."""
    schedule = hyperschedule.block(length=texts.shape[1], width=WIDTH, levels=LEVELS)
    spec = Spec(
        schedule=schedule, kernel=kernel_of("epsilon 0.01", len(chain.start)), layout=Layout(),
        objective=Objective(), chunk=texts.shape[1],
    )  # fmt: skip
    sampler, params = sampler_of(spec), params_of(chain)
    keys = jax.random.split(jax.random.key(seed), len(texts))
    state = loop.start(sampler, params, keys, prompts.nothing(*texts.shape))
    settled = np.arange(texts.shape[1]) < (WINDOWS - 1) * WIDTH
    state = dataclasses.replace(
        state,
        tokens=jnp.where(settled[None], texts, state.tokens),
        step=jnp.full_like(state.step, (WINDOWS - 1) * LEVELS),
    )
    found = loop.finish(sampler, loop.advance(sampler, rule, params, state))
    # Rounds that only feed, since all these windows settled at once.
    feeding = -(-(WINDOWS - 1) // (rule.horizon + 1)) - 1
    return np.asarray(found.tokens), np.asarray(found.nfe) - feeding


def lines(chain: chains.Chain, count: int) -> Iterator[str]:
    yield "| windows back | horizon | repaired | moved | right letters moved | calls | rows |"
    yield "|---|---|---|---|---|---|---|"
    for back in (1, 2, 3):
        for horizon in (0, 1, 2, 3):
            rule = ACS(eta=0.5, guidance="confidence", sweeps=SWEEPS, horizon=horizon)
            parts: list[list[np.ndarray]] = []
            for seed in SEEDS:
                true, wrong, place = planted(chain, count, back, seed)
                after, calls = written(chain, rule, wrong, seed)
                row = np.arange(count)
                seen = slice((WINDOWS - 1 - horizon) * WIDTH, (WINDOWS - 1) * WIDTH)
                right = (wrong == true)[:, seen]
                lost = ((after != true)[:, seen] & right).sum(1) / np.maximum(right.sum(1), 1)
                at = after[row, place]
                parts.append([at == true[row, place], at != wrong[row, place], lost, calls])
            values = [np.concatenate(one).astype(float) for one in zip(*parts, strict=True)]
            cells = ["{:.3f} ± {:.3f}".format(*mean_and_standard_error(v)) for v in values[:3]]
            schedule = hyperschedule.block(length=WINDOWS * WIDTH, width=WIDTH, levels=LEVELS)
            sweeps = values[3].mean() - LEVELS
            wide = closing.view(rule, schedule).width
            rows = LEVELS * WIDTH + (horizon + 1) * WIDTH + sweeps * wide
            cells += [f"{values[3].mean():.2f}", f"{rows:.0f}"]
            yield f"| {back} | {horizon} | {' | '.join(cells)} |"


def _run(options: argparse.Namespace) -> None:
    chain = chains.of_letters(sources.documents("pydocs"))
    about = (
        f"{len(SEEDS)} seeds of {options.texts} texts of {WINDOWS} windows of {WIDTH} letters, T = "
        f"{LEVELS}, ε = 0.01, ACS η = 0.5 guided by confidence with at most {SWEEPS} sweeps, on "
    )
    table = "\n".join(lines(chain, options.texts))
    write_atomic(options.out, f"{about}{device.origin()}\n\n{table}\n")


def main() -> int:
    parser = Parser(description="Repair of errors in settled windows, with an exact network.")
    parser.add_argument("--texts", type=within(2), default=256, help="of a seed (%(default)s)")
    parser.add_argument("--out", required=True, help="Markdown file for the table")
    return command.run(parser, _run)


if __name__ == "__main__":
    sys.exit(main())
