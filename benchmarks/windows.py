"""Adaptive windows against fixed ones at equal calls, by exact likelihoods.

    python benchmarks/windows.py --chain=letters --out=benchmarks/results/windows-letters.md
    python benchmarks/windows.py --workdir=RUN --out=benchmarks/results/windows-run.md

Each scheme writes a given text in one way only, so that −log p(text) of its sampler is exact (see
`sampling.likelihood`), and its calls are those of that way. The texts are drawn from a Markov chain
whose exact network takes the model's place (`benchmarks/oracle/`; then the nats are those lost: an
estimate of KL(chain ‖ sampler) from the chain's own texts), or are held-out records of a run.

"against fixed" is the difference to fixed windows of as many calls, one call a window, between
whose widths it interpolates for each text alone; ± is the standard error over texts.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import command
import device
import jax
import numpy as np
from oracle import chain as chains
from oracle import network as oracle

from hybrid_jax.data import sources
from hybrid_jax.data.pipeline import Records
from hybrid_jax.errors import UserError
from hybrid_jax.method import hyperschedule, noising
from hybrid_jax.method.layout import Layout
from hybrid_jax.method.loss import Spec
from hybrid_jax.method.objective import Objective
from hybrid_jax.runtime.command_line import Parser, within
from hybrid_jax.runtime.files import write_atomic
from hybrid_jax.sampling import loop
from hybrid_jax.sampling.prompts import Prompts
from hybrid_jax.sampling.settings import SamplingConfig
from hybrid_jax.sampling.state import Sampler
from hybrid_jax.training import pretrained
from hybrid_jax.training.statistics import mean_and_standard_error

CHAINS = {"letters": (chains.of_letters, "pydocs"), "code": (chains.of_bytes, "pysource")}
WIDTHS = (1, 2, 3, 4, 6, 8)
BOUNDS = (0.5, 1, 2, 4, 8)
BATCH = 64


class Scheme(NamedTuple):
    """Windows of a width, T steps each, and a rule of `SamplingConfig.parse`."""

    width: int
    levels: int
    rule: str

    @property
    def kind(self) -> str:
        if "window_entropy" in self.rule:
            return "adaptive"
        return "fixed" if self.levels == 1 else "any places"


def schemes(most: int) -> list[Scheme]:
    """Fixed and adaptive windows of one call; and fixed ones that reveal the surest anywhere."""
    return [
        *(Scheme(width, 1, "ancestral") for width in WIDTHS if width <= most),
        *(Scheme(most, 1, f"ancestral:window_entropy={bound}") for bound in BOUNDS),
        *(Scheme(most, most, f"entropy:bound={bound}") for bound in BOUNDS),
    ]


def written(sampler_of: Callable[[Spec], Sampler], spec: Spec, params, scheme: Scheme, texts):
    """−log p and calls of each text, [n] each."""
    length = texts.shape[1]
    schedule = hyperschedule.block(length=length, width=scheme.width, levels=scheme.levels)
    rule = SamplingConfig.parse(scheme.rule).build()
    spec = rule.spec(dataclasses.replace(spec, schedule=schedule))
    sampler = sampler_of(spec)
    loop.check(sampler, rule)

    @jax.jit
    def run(part):
        none = np.zeros(part.shape, bool)
        given = Prompts(part, none, np.full(len(part), length, np.int32))
        state = loop.start(sampler, params, jax.random.split(jax.random.key(0), len(part)), given)
        state = dataclasses.replace(state, text=part, nats=jax.numpy.zeros(len(part)))
        state = loop.advance(sampler, rule, params, state)
        return state.nats, state.nfe

    parts = [run(texts[i : i + BATCH]) for i in range(0, len(texts), BATCH)]
    return (np.concatenate(one).astype(float) for one in zip(*jax.device_get(parts), strict=True))


def of_chain(options: argparse.Namespace):
    """Spec, sampler, parameters, texts and what each of them costs at least, in nats."""
    make, source = CHAINS[options.chain]
    chain = make(sources.documents(source))
    length, kernel = options.length, noising.absorbing(vocab_size=len(chain.start))
    spec = Spec(
        schedule=hyperschedule.quenched_ar(length=length), kernel=kernel, layout=Layout(),
        objective=Objective(), chunk=options.most,
    )  # fmt: skip
    texts = np.concatenate(
        [chain.draw(np.random.default_rng(seed), options.texts // 2, length) for seed in (0, 1)]
    ).astype(np.int32)
    steps = np.log(chain.step)[texts[:, :-1], texts[:, 1:]].sum(1)
    least = -np.log(chain.start)[texts[:, 0]] - steps
    about = f"chain of {options.chain} of {source}, entropy rate {chain.entropy_rate:.4f} nats"
    return spec, oracle.sampler_of, oracle.params_of(chain), texts, least, about


def of_run(options: argparse.Namespace):
    """The same of a trained run; its held-out records cost at least 0."""
    model = pretrained.load(options.workdir, step=options.step)
    if not model.spec.kernel.masks or model.spec.kernel.replaces:
        raise UserError("Texts have an exact likelihood under absorbing noise: name such a run.")
    held_out = Records(model.data.folder, "valid")
    count = min(len(held_out), options.texts)
    texts = held_out.read(range(count))["tokens"].astype(np.int32)
    about = (
        f"{model.spec.schedule.name}, {model.spec.kernel.name}, step {model.step}, seed "
        f"{model.experiment.train.seed}"
    )
    sampler_of = functools.partial(Sampler, network=model.network)
    make = lambda spec: sampler_of(spec=spec)  # noqa: E731
    return model.spec, make, model.params, texts, np.zeros(count), about


def table(found: dict[Scheme, tuple[np.ndarray, np.ndarray]], length: int) -> Iterator[str]:
    """Lines in Markdown; what `found` holds are nats and calls of each text."""
    fixed = [(calls.mean(), nats) for one, (nats, calls) in found.items() if one.kind == "fixed"]
    fixed.sort(key=lambda point: point[0])
    yield "| windows | rule | calls a token | nats a token | against fixed |"
    yield "|---|---|---|---|---|"
    for scheme, (nats, calls) in found.items():
        least = f" (to {scheme.width})" if scheme.kind == "adaptive" else f" {scheme.width}"
        row = f"| {scheme.kind}{least} | {scheme.rule} | {calls.mean() / length:.3f} "
        row += "| {:.4f} ± {:.4f} |".format(*mean_and_standard_error(nats / length))
        if scheme.kind != "fixed" and fixed[0][0] <= calls.mean() <= fixed[-1][0]:
            points = [at for at, _ in fixed]
            at = min(int(np.searchsorted(points, calls.mean(), "right")), len(points) - 1)
            (low, few), (high, many) = fixed[at - 1], fixed[at]
            share = (calls.mean() - low) / (high - low)
            beside = (1 - share) * few + share * many
            row += " {:+.4f} ± {:.4f} |".format(*mean_and_standard_error((nats - beside) / length))
        else:
            row += " |"
        yield row


def _run(options: argparse.Namespace) -> None:
    # Most programs run once, and take longer to compile than to run.
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_backend_optimization_level=1".strip()
    if bool(options.chain) == bool(options.workdir):
        raise UserError("Name either --chain or --workdir.")
    make = of_chain if options.chain else of_run
    spec, sampler_of, params, texts, least, about = make(options)
    found = {}
    for scheme in schemes(options.most):
        nats, calls = written(sampler_of, spec, params, scheme, texts)
        found[scheme] = nats - least, calls
        print(scheme, nats.mean() / texts.shape[1], calls.mean(), file=sys.stderr, flush=True)
    lines = [f"{about}; {len(texts)} texts of {texts.shape[1]} tokens, on {device.origin()}", ""]
    lines += table(found, texts.shape[1])
    write_atomic(options.out, "\n".join(lines) + "\n")


def main() -> int:
    parser = Parser(description="Adaptive windows against fixed ones, by exact likelihoods.")
    add = parser.add_argument
    add("--chain", choices=CHAINS, help="texts of a chain, and its exact network")
    add("--workdir", help="run of a model of blocks under absorbing noise")
    add("--step", type=within(0), help="of the run's checkpoint (default: the last)")
    add("--length", type=within(8), default=64, help="tokens of a chain's text (%(default)s)")
    add("--texts", type=within(2), default=256, help="default: %(default)s")
    add("--most", type=within(2), default=8, help="widest window (default: %(default)s)")
    add("--out", required=True, help="Markdown file for the table")
    return command.run(parser, _run)


if __name__ == "__main__":
    sys.exit(main())
