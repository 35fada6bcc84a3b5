"""Losses over a large vocabulary: streamed, as training computes them, beside all logits at once.

    python benchmarks/vocab.py

"Plain" is the same sum written down directly: all logits of the batch, and automatic
differentiation. "Recomputed" streams over chunks and computes logits again in the backward pass.
"Streamed" is `chunked_loss.summed_terms`, which takes gradients while the logits of a chunk exist.
"""

from __future__ import annotations

import argparse
import functools
import sys

import command
import in_turn
import jax
import jax.numpy as jnp

from hybrid_jax.method import chunked_loss, noising
from hybrid_jax.method.objective import Draw, Objective
from hybrid_jax.runtime.command_line import Parser

CASES = {
    "cross-entropy (absorbing)": ("absorbing", Objective(time="continuous")),
    "score entropy (γ-hybrid)": ("gamma", Objective(parameterisation="context", time="continuous")),
}


def measure(name: str, options: argparse.Namespace) -> dict:
    kind, objective = CASES[name]
    kernels = {
        "absorbing": noising.absorbing(vocab_size=options.tokens),
        "gamma": noising.gamma_hybrid(vocab_size=options.tokens, gamma=0.01),
    }
    kernel = kernels[kind]
    columns = -(-(options.tokens + 1) // 128) * 128
    keys = jax.random.split(jax.random.key(0), 5)
    size = (options.batch, options.length)
    features = jax.random.normal(keys[0], (*size, options.width))
    head = {"kernel": jax.random.normal(keys[1], (options.width, columns)) * 0.02}
    tokens = jax.random.randint(keys[2], size, 0, options.tokens, jnp.int32)
    level = jax.random.uniform(keys[3], size, minval=0.05, maxval=0.95)
    noisy = jnp.where(jax.random.uniform(keys[4], size) < level, kernel.mask, tokens)
    draw = Draw(level, level, jnp.ones(size), jnp.ones(size, bool))

    def to_logits(head, features):
        return features @ head["kernel"]

    term = functools.partial(objective.term, kernel)

    def plain(head, features):
        return chunked_loss.position_terms(
            term, to_logits, head, features, tokens, noisy, draw, chunk=options.length
        ).sum()

    def recomputed(head, features):
        @jax.checkpoint
        def of_chunk(inputs):
            return chunked_loss.position_terms(
                term, to_logits, head, *inputs, chunk=options.chunk
            ).sum()

        def cut(x):
            x = x.reshape(options.batch, -1, options.chunk, *x.shape[2:])
            return jnp.moveaxis(x, 1, 0)

        return jax.lax.map(of_chunk, jax.tree.map(cut, (features, tokens, noisy, draw))).sum()

    def streamed(head, features):
        return chunked_loss.summed_terms(
            term, to_logits, head, features, tokens, noisy, draw, chunk=options.chunk
        )

    programs, megabytes = {}, {}
    for variant, function in (
        ("plain", plain), ("recomputed", recomputed), ("streamed", streamed),
    ):  # fmt: skip
        gradient = jax.value_and_grad(function, argnums=(0, 1))
        programs[variant], megabytes[variant] = in_turn.compiled(gradient, head, features)
    times = in_turn.milliseconds(programs, repeats=options.repeats)
    return {
        "case": name,
        "milliseconds": times,
        "megabytes": megabytes,
        "time_of_plain": {v: in_turn.ratios(times[v], times["plain"]) for v in times},
        "memory_below_plain": {v: megabytes["plain"] / megabytes[v] for v in times},
    }


def as_markdown(rows: list[dict]) -> str:
    lines = [
        "| loss | variant | ms (least – most) | time over plain | MB | times less memory |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        for variant, times in row["milliseconds"].items():
            lines.append(
                f"| {row['case']} | {variant} | {in_turn.spread(times, 0)} | "
                f"{in_turn.spread(row['time_of_plain'][variant], 2)} | "
                f"{row['megabytes'][variant]:.0f} | {row['memory_below_plain'][variant]:.1f} |"
            )
    return "\n".join(lines)


def main() -> int:
    parser = Parser(description="Times losses over a large vocabulary.")
    add = parser.add_argument
    add("--tokens", type=int, default=50_257)
    add("--length", type=int, default=1024)
    add("--batch", type=int, default=1)
    add("--width", type=int, default=256, help="of the model")
    add("--chunk", type=int, default=128)
    add("--repeats", type=int, default=5)
    add("--out", default="benchmarks/results", metavar="DIR")
    return command.run(parser, _run, folder=True)


def _run(options: argparse.Namespace) -> None:
    rows: list[dict] = []
    shape = {k: getattr(options, k) for k in ("tokens", "length", "batch", "width", "chunk")}
    for name in CASES:
        rows.append(measure(name, options))
        in_turn.note(f"{name}: done")
        report = in_turn.store("vocab", options.out, as_markdown(rows), **shape)
    print(report)


if __name__ == "__main__":
    sys.exit(main())
