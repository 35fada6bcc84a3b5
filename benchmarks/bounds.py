"""Numbers reported as likelihoods, beside the exact −log p(x) of samplers (docs/bounds.md).

    python benchmarks/bounds.py --out=bounds.md --picture=docs/figures/bounds.png

The model is that of `enumerable.py`: the exact posterior of texts of a Markov chain, or that with
random errors. Its bounds are those of the package; what is no bound is written out here.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import sys

import command
import device
import jax
import jax.numpy as jnp
import numpy as np
from enumerable import (
    Params,
    Table,
    enumerate_steps,
    integrate,
    markov_texts,
    masked_logits,
    sequences,
)

from hybrid_jax.figures import canvas
from hybrid_jax.figures.palette import INK
from hybrid_jax.method import hyperschedule, noising
from hybrid_jax.method.hyperschedule import Hyperschedule
from hybrid_jax.method.layout import Layout
from hybrid_jax.method.loss import Batch, Spec, batch_terms
from hybrid_jax.method.objective import Objective, Time
from hybrid_jax.runtime.command_line import Parser
from hybrid_jax.runtime.files import check_writable, write_atomic
from hybrid_jax.training.statistics import mean_and_standard_error

VOCAB, LENGTH = 3, 4
STEPS = (1, 2, 4, 8, 16, 64, 256, 512, 1024)
FEW = 4
GAMMAS = (0.01, 0.05, 0.1)
DRAWS = 16384
ERRORS = 0.5
BLOCK = {"width": 2, "levels": 2}
ONE_TOKEN = np.random.default_rng(0).dirichlet(np.ones(5))

# ---------------------------------------------------------------------------------------------
# Numbers that are no bounds; each for every text.


def pseudo_likelihood(log_p: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Σ_i −log p(x_i | all other tokens)."""
    tokens, length = log_p.shape[2], texts.shape[1]
    base = (tokens + 1) ** np.arange(length)[::-1]
    without = texts @ base[:, None] + (tokens - texts) * base
    return -log_p[without, np.arange(length), texts].sum(1)


def joint_of_pairs(log_p: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """∫ dλ/λ E_z Σ over pairs of −log p(masked tokens of the pair together | z)."""
    tokens, length = log_p.shape[2], texts.shape[1]
    base = (tokens + 1) ** np.arange(length)[::-1]
    number, total = np.arange(len(texts)), np.zeros(len(texts))
    for masks in itertools.product([False, True], repeat=length):
        hidden = sum(masks)
        if not hidden:
            continue
        # ∫ λ^(m−1) (1−λ)^(L−m) dλ
        weight = np.prod(np.arange(1, hidden)) / np.prod(np.arange(length - hidden + 1, length + 1))
        z = np.where(masks, tokens, texts)
        for i in range(length):
            if masks[i]:
                shown = z.copy()
                if i % 2 and masks[i - 1]:  # the second of a masked pair is told the first
                    shown[:, i - 1] = texts[:, i - 1]
                total -= weight * log_p[shown @ base, i, texts[number, i]]
    return total


# ---------------------------------------------------------------------------------------------
# The audit.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A number of the audit: means over the data, nats per text.

    Attributes:
      kind: "bound", "estimate" (of a bound), "above" (no bound, but above), or "no bound".
      value, exact: the number, and −log p(x) of the sampler that it is reported for.
      error: standard error of an estimate.
      worst: least difference from the exact value over all texts; nan for an estimate.
    """

    name: str
    kind: str
    value: float
    exact: float
    error: float = 0.0
    worst: float = float("nan")

    @property
    def excess(self) -> float:
        return self.value - self.exact


def monte_carlo(
    schedule: Hyperschedule, network: Table, params: Params, data: np.ndarray, time: Time,
    draws: int,
) -> tuple[float, float]:  # fmt: skip
    """The package's estimate from texts drawn from the data, and its standard error."""
    texts = sequences(network.kernel.vocab_size, network.length)
    drawn = texts[np.random.default_rng(1).choice(len(texts), draws, p=data)]
    spec = Spec(
        schedule=schedule, kernel=network.kernel, layout=Layout(), objective=Objective(time=time)
    )
    batch = Batch(jnp.asarray(drawn), jnp.arange(draws), jax.random.key(0), draws)
    terms = jax.jit(lambda p: batch_terms(spec, network, p, batch).sum(1))(params)
    return mean_and_standard_error(np.asarray(terms, np.float64))


def audit(
    data: np.ndarray,
    vocab: int,
    length: int,
    *,
    errors: float,
    steps: tuple[int, ...] = STEPS,
    gammas: tuple[float, ...] = GAMMAS,
    draws: int = DRAWS,
) -> list[Row]:
    """Every number for one network: the exact posterior of `data` with errors of this size.

    Args:
      steps: T of the discrete bounds. The last three are T, 2T and 4T, from which −log p of
        infinitely many steps is extrapolated.
    """
    rows: list[Row] = []
    texts = sequences(vocab, length)

    def add(name: str, kind: str, values: np.ndarray, exact: np.ndarray) -> None:
        value, worst = float(data @ values), float(np.min(values - exact))
        row = Row(name=name, kind=kind, value=value, exact=float(data @ exact), worst=worst)
        rows.append(row)

    def estimate(schedule: Hyperschedule, time: Time, exact: np.ndarray) -> None:
        value, error = monte_carlo(schedule, network, params, data, time, draws)
        name = f"{rows[-1].name}, mean of {draws:,} draws"
        row = Row(name=name, kind="estimate", value=value, exact=float(data @ exact), error=error)
        rows.append(row)

    flat = functools.partial(hyperschedule.flat, length=length)
    masking = noising.absorbing(vocab_size=vocab)
    network = Table(kernel=masking, length=length)
    params = network.params(data, errors)
    exact, bound = enumerate_steps(hyperschedule.quenched_ar(length=length), network, params)
    add("autoregression", "bound", bound, exact)
    found = {}
    for count in steps:
        exact, bound = found[count] = enumerate_steps(flat(levels=count), network, params)
        add(f"masking, T = {count:,}", "bound", bound, exact)
        if count == FEW:
            estimate(flat(levels=count), "discrete", exact)
    ideal = extrapolated(found)
    continuous = integrate(network, params, "continuous")
    add("masking, continuous time", "bound", continuous, ideal)
    estimate(flat(levels=1), "continuous", ideal)
    blocks, bound = enumerate_steps(hyperschedule.block(length=length, **BLOCK), network, params)
    add("blocks of 2, T = 2", "bound", bound, blocks)

    log_p = masked_logits(network, params)
    unweighted = integrate(network, params, "continuous", power=1)
    add("cross-entropy at a random level", "no bound", unweighted, ideal)
    add("the same per masked token", "above", 2 * unweighted, ideal)
    add("each token given all others", "no bound", pseudo_likelihood(log_p, texts), ideal)
    add("masked pairs taken jointly", "no bound", joint_of_pairs(log_p, texts), ideal)
    add("continuous bound on T = 4", "no bound", continuous, found[FEW][0])
    add("flat bound on blocks of 2, T = 2", "no bound", continuous, blocks)

    for gamma in gammas:
        kernel = noising.gamma_hybrid(vocab_size=vocab, gamma=gamma)
        network = Table(kernel=kernel, length=length)
        params = network.params(data, errors)
        last = {count: enumerate_steps(flat(levels=count), network, params) for count in steps[-3:]}
        exact, bound = last[steps[-1]]
        ideal = extrapolated(last)
        add(f"γ = {gamma}, T = {steps[-1]:,}", "bound", bound, exact)
        continuous = integrate(network, params, "continuous")
        add(f"γ = {gamma}, continuous time", "bound", continuous, ideal)
        released = integrate(network, params, "released")
        add(f"γ = {gamma}, released loss", "no bound", released, ideal)
    return rows


def extrapolated(found: dict[int, tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """−log p(x) of infinitely many steps from that of T, 2T and 4T, without its 1/T and 1/T²."""
    few, more, most = sorted(found)[-3:]
    assert most == 2 * more == 4 * few
    result: np.ndarray = (8 * found[most][0] - 6 * found[more][0] + found[few][0]) / 3
    return result


def one_token(data: np.ndarray, gammas: tuple[float, ...] = GAMMAS) -> list[tuple[float, ...]]:
    """(γ, bound, released loss) in continuous time of the perfect network for one token."""
    rows = []
    for gamma in gammas:
        kernel = noising.gamma_hybrid(vocab_size=len(data), gamma=gamma)
        network = Table(kernel=kernel, length=1)
        params = network.params(data, 0.0)
        terms = [data @ integrate(network, params, name) for name in ("continuous", "released")]
        rows.append((gamma, *map(float, terms)))
    return rows


def entropy(data: np.ndarray) -> float:
    return float(-data @ np.log(data))


# ---------------------------------------------------------------------------------------------
# The table and the picture.

NETWORKS = {"perfect network": 0.0, "network with errors": ERRORS}


def as_markdown(audits: list[list[Row]], data: np.ndarray) -> str:
    """Rows of the networks side by side, kind after kind, and those of one token."""

    def cell(row: Row) -> str:
        error = f" ± {row.error:.3f}" if row.error else ""
        return f"{row.value:.4f}{error} | {row.exact:.4f} | {round(row.excess, 4) + 0.0:+.4f}"

    lines = [
        "| number | " + " | ".join(f"{name} | exact | difference" for name in NETWORKS) + " |",
        "|---|" + "---|" * 3 * len(NETWORKS),
    ]
    titles = {"bound": "bounds", "estimate": "estimates of bounds", "above": "no bound, above here",
              "no bound": "no bounds"}  # fmt: skip
    for kind, title in titles.items():
        lines.append(f"| *{title}* |" + " |" * 3 * len(NETWORKS))
        for both in zip(*audits, strict=True):
            if both[0].kind == kind:
                lines.append(f"| {both[0].name} | {' | '.join(map(cell, both))} |")
    lines += ["", f"Entropy of the texts: {entropy(data):.4f} nats per text.", ""]
    lines += [
        f"One token of {len(ONE_TOKEN)}, entropy {entropy(ONE_TOKEN):.4f} nats, perfect network:",
        "",
        "| γ | continuous bound | released loss | difference from the entropy |",
        "|---|---|---|---|",
    ]
    for gamma, bound, released in one_token(ONE_TOKEN):
        difference = released - entropy(ONE_TOKEN)
        lines.append(f"| {gamma} | {bound:.4f} | {released:.4f} | {difference:+.4f} |")
    return "\n".join(lines)


def draw(audits: list[list[Row]], data: np.ndarray) -> bytes:
    """A PNG: a panel for each network, −log p and bounds against T, and what is no bound."""
    figure = canvas.figure(11, 5.2, "")
    for axes, name, rows in zip(figure.subplots(1, 2, sharey=True), NETWORKS, audits, strict=True):
        by_name = {row.name: row for row in rows}
        discrete = [by_name[f"masking, T = {count:,}"] for count in STEPS]
        axes.plot(STEPS, [row.value for row in discrete], "s-", color="#0072b2", ms=4,
                  label="discrete bound with T steps")  # fmt: skip
        axes.plot(STEPS, [row.exact for row in discrete], "o-", color=INK, ms=4,
                  label="exact −log p(x) of the sampler with T steps")  # fmt: skip
        axes.axhline(by_name["masking, continuous time"].value, color="#0072b2", ls="--", lw=1.2,
                     label="continuous bound")  # fmt: skip
        axes.axhline(entropy(data), color="#767676", ls=":", lw=1.2, label="entropy of the data")
        drawn = [row for row in rows if row.kind == "estimate"]
        axes.errorbar([FEW * 1.15, STEPS[-1] * 1.15], [row.value for row in drawn],
                      [row.error for row in drawn], fmt="D", color="#56b4e9", ms=4, capsize=3,
                      label=f"mean of {DRAWS:,} draws ± standard error")  # fmt: skip
        wanted = {
            "cross-entropy at a random level": "^", "each token given all others": "v",
            "masked pairs taken jointly": "X", "γ = 0.1, released loss": "P",
        }  # fmt: skip
        for row_name, marker in wanted.items():
            axes.plot(3 * STEPS[-1], by_name[row_name].value, marker, color="#d55e00", ms=7,
                      ls="none", label=f"no bound: {row_name}")  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set_xticks(STEPS, [f"{count:,}" for count in STEPS], fontsize=8)
        axes.set_title(name, fontsize=10, color=INK)
        axes.set_xlabel("steps T")
        axes.grid(visible=True, alpha=0.25)
    figure.axes[0].set_ylabel("nats per text")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return canvas.png(figure)


def main() -> int:
    parser = Parser(description="Compares reported numbers with exact likelihoods.")
    parser.add_argument("--out", help="Markdown file for the table")
    parser.add_argument("--picture", help="PNG file")
    return command.run(parser, _run)


def _run(options: argparse.Namespace) -> None:
    if options.picture:
        check_writable(options.picture)
    data = markov_texts(VOCAB, LENGTH)
    audits = [audit(data, VOCAB, LENGTH, errors=errors) for errors in NETWORKS.values()]
    table = as_markdown(audits, data)
    print(table)
    if options.out:
        size = f"Texts of {LENGTH} tokens of {VOCAB}, nats per text"
        write_atomic(options.out, f"{size}, on {device.origin()}\n{table}\n")
    if options.picture:
        write_atomic(options.picture, draw(audits, data))


if __name__ == "__main__":
    sys.exit(main())
