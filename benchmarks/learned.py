"""Learned hyperschedules: which positions are better revealed together, at equal calls?

    python benchmarks/learned.py --chain=letters --out=benchmarks/results/learned-letters.md
    python benchmarks/learned.py --workdir=RUN --out=benchmarks/results/learned-run.md
    python benchmarks/learned.py --workdir=RUN --scorer=AR-RUN --out=learned-texts.md

Under masking noise a table reveals position i at step s with a probability q[i, s]. What a text
costs then depends on what is shown around a position when it is revealed. Here that is

    Σ_i Σ_s q[i, s] E g(a, b),    a, b = distances to the nearest shown tokens on both sides,

where g(a, b) is what the network loses there: of a Markov chain, whose exact network takes the
model's place (`benchmarks/oracle/`), this is exact; of a run, g is its mean over masked positions
of training texts. It can be differentiated in q, so tables are learned by descent and rounded:

- *shares*: all positions together, but more of them at some steps than at others;
- *ramp*: start steps that never fall along the positions, for each of several T;
- *order*: q itself of 2, 4, 8 … L positions, repeated along the text. The cost is linear in the q
  of each position, so in some best table each position has one step, and T = 1.

For a run g is only near: the best order of all, learned or by hand, is *improved on the network*,
by what training texts cost as one position after the other tries each step.

What each table costs is then measured on other texts, with the terms of the package: their exact
−log p where T = 1, else the bound in discrete time. The whole text is one window at every step, as
a flat network was trained, so tables differ in nothing but the order. Beside them stands an order
that looks at the text, the rule `max_probability`, with its exact −log p. With --scorer, texts that
the package's sampler writes under flat and dilated tables are read by an autoregressive run.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import command
import device
import jax
import jax.numpy as jnp
import numpy as np
import optax
import windows
from oracle import chain as chains
from scipy import special

from hybrid_jax.data import sources
from hybrid_jax.data.pipeline import Records
from hybrid_jax.errors import UserError
from hybrid_jax.method import hyperschedule, loss
from hybrid_jax.method.objective import Bound, Draw
from hybrid_jax.runtime.command_line import Parser, within
from hybrid_jax.runtime.files import write_atomic
from hybrid_jax.sampling import loop, prompts
from hybrid_jax.sampling.rules import Ancestral
from hybrid_jax.training import pretrained
from hybrid_jax.training.statistics import mean_and_standard_error

REACH = 16  # distances that are told apart; what is farther counts as not shown
ITERATIONS, RATE, TRIES = 300, 0.1, 8  # of a descent
BATCH, MEASURED = 64, 8192  # texts; those that g is measured on
PERIOD = 8  # of an improved order
PARTS = 1000  # T of a table of learned shares
IMPROVED = "order improved on the network"


def of_ramp(starts: np.ndarray, levels: int, calls: int) -> np.ndarray:
    """The table [calls + 1, L] of a `hyperschedule.Ramp`."""
    return np.clip(levels + starts - np.arange(calls + 1)[:, None], 0, levels)


def of_order(step: np.ndarray, calls: int) -> np.ndarray:
    """The table in which each position is revealed at its step."""
    return (step >= np.arange(calls + 1)[:, None]).astype(int)


# ---------------------------------------------------------------------------------------------
# What a table costs, and its descent.


@jax.jit
def cost(g, q):
    """Nats a token of q [L, S]; the last entries of g [REACH + 1, REACH + 1] are "not shown"."""
    before = q @ np.triu(np.ones((q.shape[1],) * 2, np.float32), 1)  # shown before each step
    both = jnp.einsum("lsa,ab->lsb", _nearest(before), g) * _nearest(before[::-1])[::-1]
    return jnp.sum(q * both.sum(2)) / len(q)


def _nearest(shown):
    """P(the nearest shown on the left is 1 … REACH away, or none is), [L, S, REACH + 1]."""
    length, steps = shown.shape
    away = jnp.arange(length)[:, None] + REACH - 1 - jnp.arange(REACH)
    here = jnp.swapaxes(jnp.concatenate([jnp.zeros((REACH, steps)), shown])[away], 1, 2)
    # Sums as products of matrices: cumulative ones are slow on processors.
    all_nearer = np.triu(np.ones((REACH, REACH + 1), np.float32), 1)
    hidden = jnp.exp(jnp.log1p(-jnp.minimum(here, 1 - 1e-6)) @ all_nearer)
    return hidden * jnp.pad(here, ((0, 0), (0, 0), (0, 1)), constant_values=1)


def predicted(g, table: np.ndarray) -> float:
    return float(cost(g, np.float32(-np.diff(table, axis=0).T / table[0, 0])))


@functools.partial(jax.jit, static_argnums=1)
def descend(g, q_of: Callable, begin):
    """Parameters of q, [TRIES, ...], after descent from `begin`."""
    optimizer = optax.adam(optax.cosine_decay_schedule(RATE, ITERATIONS))
    slope = jax.grad(lambda now: jax.vmap(lambda one: cost(g, q_of(one)))(now).sum())

    def step(carry, _):
        now, state = carry
        change, state = optimizer.update(slope(now), state)
        return (optax.apply_updates(now, change), state), None

    return jax.lax.scan(step, (begin, optimizer.init(begin)), None, ITERATIONS)[0][0]


@dataclasses.dataclass(frozen=True)
class Starts:
    """q [L, calls] of a ramp, from L − 1 logits of the gaps between start steps."""

    levels: int
    calls: int

    def starts(self, logits):
        rising = jnp.cumsum(jax.nn.softmax(logits)) * (self.calls - self.levels)
        return jnp.concatenate([jnp.zeros(1), rising])

    def __call__(self, logits):
        # A start between two steps is either of them with some probability.
        inside = jnp.arange(self.calls) - self.starts(logits)[:, None]
        return jnp.clip(jnp.minimum(inside + 1, self.levels - inside), 0, 1) / self.levels


@dataclasses.dataclass(frozen=True)
class Repeated:
    """q [L, calls] from logits of the first positions, [period, calls]."""

    length: int

    def __call__(self, logits):
        return jax.nn.softmax(logits, axis=1)[jnp.arange(self.length) % len(logits)]


def powers(most: int) -> list[int]:
    return [1 << n for n in range(most.bit_length())]


def learned_shares(g, length: int, calls: int) -> np.ndarray:
    q_of = Repeated(length)
    q = q_of(descend(g, q_of, np.zeros((1, 1, calls), np.float32))[0])[0]
    left = np.rint(PARTS * (1 - np.cumsum(q))).astype(int)
    return np.repeat(np.append(PARTS, left)[:, None], length, axis=1)


def learned_ramp(g, length: int, calls: int) -> np.ndarray:
    found = []
    for levels in powers(calls):
        q_of = Starts(levels, calls)
        begin = 2 * np.random.default_rng(levels).normal(size=(TRIES, length - 1))
        starts = jax.vmap(q_of.starts)(descend(g, q_of, np.float32(begin)))
        found += [of_ramp(one, levels, calls) for one in np.rint(starts).astype(int)]
    return min(found, key=functools.partial(predicted, g))


def learned_order(g, length: int, calls: int) -> np.ndarray:
    found = []
    for period in powers(length)[1:]:
        begin = np.random.default_rng(period).normal(size=(TRIES, period, calls))
        steps = np.asarray(descend(g, Repeated(length), np.float32(begin))).argmax(2)
        found += [of_order(np.resize(one, length), calls) for one in steps]
    return min(found, key=functools.partial(predicted, g))


def tables(g, length: int, calls: int) -> dict[str, np.ndarray]:
    """Tables of `calls` steps, a power of 2, [calls + 1, L]."""
    i = np.arange(length)
    # How often 2 divides a position, and the first as if by all.
    twos = (i[:, None] % (2 << np.arange(calls - 1)) == 0).sum(1)
    return {
        "flat": of_ramp(0 * i, calls, calls),
        "flat, learned shares": learned_shares(g, length, calls),
        "blocks": of_ramp(i * calls // length, 1, calls),
        "learned ramp": learned_ramp(g, length, calls),
        "every S-th, from the left": of_order(i % calls, calls),
        "every S-th, dilated": np.array(hyperschedule.dilated(length=length, levels=calls).rows),
        "bisected": of_order(calls - 1 - twos, calls),
        "learned order": learned_order(g, length, calls),
    }


# ---------------------------------------------------------------------------------------------
# What a network loses at distances, and what its sampler loses under a table.


def g_of_chain(chain: chains.Chain) -> np.ndarray:
    """H(x_i | the nearest shown tokens), as in `oracle.chain.factorising_cost`."""
    c = chains.conditional_entropies(chain, 2 * REACH)
    far = len(c) - 1
    a = np.append(np.arange(1, REACH + 1), far)
    return c[a][:, None] + c[a] - c[np.minimum(a[:, None] + a, far)]


def hidden_nats(spec: loss.Spec, network: loss.Network, params: Any) -> Callable:
    """−log p of hidden positions, 0 elsewhere: a function of texts and what is hidden, [B, L]."""
    once = hyperschedule.flat(length=spec.schedule.length, levels=1)
    bound = Bound(kernel=spec.kernel, time="discrete")
    spec = dataclasses.replace(spec, schedule=once).for_bound(bound)

    @jax.jit
    def nats(texts, hidden):
        level = jnp.broadcast_to(hidden.mean(1, keepdims=True), texts.shape)
        draw = Draw(level, jnp.zeros_like(level), level, hidden)  # revealed in one step
        noisy = jnp.where(hidden, spec.kernel.mask, texts)
        phase = jnp.zeros((len(texts), 1), jnp.int32)
        return loss.drawn_terms(spec, network, params, loss.Noised(texts, noisy, phase, draw))

    return lambda texts, hidden: np.asarray(nats(texts, hidden), np.float64)


def g_of_network(nats: Callable, texts: np.ndarray) -> np.ndarray:
    """Means of −log p(x_i) over hidden positions of texts [n, L] at all levels."""
    draw = np.random.default_rng(0)
    total, count = np.zeros((2, REACH + 1, REACH + 1))
    for part in texts[: len(texts) // BATCH * BATCH].reshape(-1, BATCH, texts.shape[1]):
        level = (np.arange(BATCH) + draw.random()) / BATCH
        hidden = draw.random(part.shape) < level[:, None]
        at = _away(~hidden)[hidden], _away(~hidden[:, ::-1])[:, ::-1][hidden]
        np.add.at(total, at, nats(part, hidden)[hidden])
        np.add.at(count, at, 1)
    return total / np.maximum(count, 1)


def _away(shown: np.ndarray) -> np.ndarray:
    """One less than the distance to the nearest shown position on the left, at most REACH."""
    place = np.arange(shown.shape[1])
    last = np.maximum.accumulate(np.where(shown, place, -REACH - 1), axis=1)
    before = np.pad(last[:, :-1], ((0, 0), (1, 0)), constant_values=-REACH - 1)
    return np.minimum(place - before - 1, REACH)


def measured(nats: Callable, texts: np.ndarray, table: np.ndarray, seed: int = 0) -> np.ndarray:
    """Nats of each text along one draw of the steps at which a table reveals its positions, [n]."""
    draw, found = np.random.default_rng(seed), []
    for part in texts.reshape(-1, BATCH, texts.shape[1]):
        level = table[0, 0] * (1 - draw.random(part.shape))  # in (0, T]
        hidden = table[:, None] >= level
        revealed = hidden[:-1] & ~hidden[1:]
        each = (nats(part, own) for own in hidden[:-1])
        found.append(sum((n * r).sum(1) for n, r in zip(each, revealed, strict=True)))
    return np.concatenate(found)


def improved(nats: Callable, texts: np.ndarray, order: np.ndarray, calls: int) -> np.ndarray:
    """An order after each of its PERIOD positions has tried each step, by what texts then cost."""
    best = measured(nats, texts, of_order(order, calls))
    for i, step in itertools.product(range(PERIOD), range(calls)):
        other = np.where(np.arange(len(order)) % PERIOD == i, step, order)
        found = measured(nats, texts, of_order(other, calls))
        gain, error = mean_and_standard_error(best - found)
        if gain > error:
            order, best = other, found
    return order


def lines(
    g: np.ndarray, entropy: float, measure: Callable, surest: Callable, improve: Callable | None,
    length: int, most: int,
) -> Iterator[str]:  # fmt: skip
    """Rows of tables in Markdown, and behind them what was learned.

    `measure` gives nats of each text under a table, `surest` under `max_probability` in S steps;
    `improve` makes an order of others; `entropy` a token is taken off what is predicted.
    """
    learned = []
    yield "| calls S | table | predicted | nats a token | against flat |"
    yield "|---|---|---|---|---|"
    for calls in powers(most)[2:]:
        found = tables(g, length, calls)
        orders = [table.sum(0) - 1 for table in found.values() if table[0, 0] == 1]
        if improve:
            found[IMPROVED] = of_order(improve(orders, calls), calls)
        flat = measure(found["flat"]) / length
        for name in [*found, "flat, surest first"]:
            nats = (measure(found[name]) if name in found else surest(calls)) / length
            guess = f"{predicted(g, found[name]) - entropy:.4f}" if name in found else ""
            row = f"| {calls} | {name} | {guess} | "
            row += "{:.4f} ± {:.4f} | ".format(*mean_and_standard_error(nats))
            if name != "flat":
                row += "{:+.4f} ± {:.4f} ".format(*mean_and_standard_error(nats - flat))
            print(row, file=sys.stderr, flush=True)
            yield f"{row}|"
        ramp = found["learned ramp"]
        values = {
            "shares": -np.diff(found["flat, learned shares"][:, 0]) / PARTS,
            f"starts of the ramp, T = {ramp[0, 0]}": (ramp == ramp[0, 0]).sum(0) - 1,
            "learned order": found["learned order"].sum(0) - 1,
        }
        learned += [f"S = {calls}, {k}: {' '.join(map(str, v))}" for k, v in values.items()]
    yield "\nWhat was learned:\n"
    yield from (f"    {line}" for line in learned)


def scored(
    scorer: pretrained.Pretrained, spec: loss.Spec, make: Callable, params: Any, texts: np.ndarray,
    most: int,
) -> Iterator[str]:  # fmt: skip
    """Rows of as many generated texts as `texts`, which stand in the first row."""
    judge = scorer.spec.for_bound(Bound(kernel=scorer.spec.kernel, time="discrete"))

    @jax.jit
    def nats(tokens):
        batch = loss.Batch(tokens, jnp.arange(len(tokens)), jax.random.key(0), len(tokens))
        return loss.batch_terms(judge, scorer.network, scorer.params, batch).mean(1)

    def row(name: str, tokens: np.ndarray) -> str:
        entropy = special.entr(np.bincount(tokens.ravel()) / tokens.size).sum()
        mean, error = mean_and_standard_error(np.asarray(nats(tokens), np.float64))
        return f"| {name} | {mean:.4f} ± {error:.4f} | {entropy:.3f} |"

    yield "| texts | nats a token of the scorer | entropy of tokens |\n|---|---|---|"
    yield row("held-out", texts)
    count, length = texts.shape
    for calls in powers(most)[2:]:
        for make_schedule in (hyperschedule.flat, hyperschedule.dilated):
            schedule = make_schedule(length=length, levels=calls)
            sampler = make(dataclasses.replace(spec, schedule=schedule))
            keys = jax.random.split(jax.random.key(0), count)
            given = prompts.nothing(count, length)
            found = loop.generate(sampler, Ancestral(), params, keys, given)
            yield row(schedule.name, np.asarray(found.tokens))


def _run(options: argparse.Namespace) -> None:
    if bool(options.chain) == bool(options.workdir) or (options.chain and options.scorer):
        raise UserError("Name either --chain or --workdir, and --scorer beside the latter only.")
    options.most = options.length  # for `windows`
    of = windows.of_run if options.workdir else windows.of_chain
    spec, make, params, texts, least, about = of(options)
    length, count = texts.shape[1], len(texts) // BATCH * BATCH
    texts, least = texts[:count], least[:count]
    head = f"{about}; {count} texts of {length} tokens, on {device.origin()}\n"
    if options.scorer:
        rows = scored(pretrained.load(options.scorer), spec, make, params, texts, options.calls)
        write_atomic(options.out, "\n".join([head, *rows]) + "\n")
        return
    nats, improve = hidden_nats(spec, make(spec).network, params), None
    if options.workdir:
        train = Records(pretrained.load(options.workdir).data.folder, "train")
        seen = train.read(range(min(len(train), MEASURED)))["tokens"].astype(np.int32)
        g, entropy = g_of_network(nats, seen), 0.0

        def improve(orders: list[np.ndarray], calls: int) -> np.ndarray:
            cost = [measured(nats, seen[:BATCH], of_order(own, calls)).sum() for own in orders]
            return improved(nats, seen[:BATCH], orders[int(np.argmin(cost))], calls)

    else:
        chain_of, source = windows.CHAINS[options.chain]
        g = g_of_chain(chain_of(sources.documents(source)))
        entropy = (g[-1, -1] + (length - 1) * g[0, -1]) / length

    def surest(calls: int) -> np.ndarray:
        scheme = windows.Scheme(length, calls, "max_probability")
        return next(windows.written(make, spec, params, scheme, texts)) - least

    def measure(table: np.ndarray) -> np.ndarray:
        # A chain's texts are drawn from the seeds 0 and 1: steps must not be the same numbers.
        return measured(nats, texts, table, seed=0 if options.workdir else 2) - least

    found = lines(np.float32(g), entropy, measure, surest, improve, length, options.calls)
    write_atomic(options.out, "\n".join([head, *found]) + "\n")


def main() -> int:
    parser = Parser(description="Learned hyperschedules against hand-made ones at equal calls.")
    add = parser.add_argument
    add("--chain", choices=windows.CHAINS, help="texts of a chain, and its exact network")
    add("--workdir", help="run of a flat model under absorbing noise")
    add("--scorer", help="autoregressive run: it reads generated texts, and nothing is learned")
    add("--step", type=within(0), help="of the run's checkpoint (default: the last)")
    add("--length", type=within(8), default=64, help="tokens of a chain's text (%(default)s)")
    add("--texts", type=within(BATCH), default=256, help="default: %(default)s")
    add("--calls", type=within(4), default=8, help="most calls (default: %(default)s)")
    add("--out", required=True, help="Markdown file for the table")
    return command.run(parser, _run)


if __name__ == "__main__":
    sys.exit(main())
