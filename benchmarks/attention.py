"""Attention alone, forward and backward: the dense backend beside the others.

    python benchmarks/attention.py
    python benchmarks/attention.py --length=1024 --batch=8 --heads=12 --dtype=bfloat16   # on a GPU

Rows are those of training, ``[noisy | clean]``. "Useful" is the share of the dense score matrix
that the mask allows; what a backend computes lies between that and all of it. "Error" is the
largest difference of the outputs to the dense backend in float32.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import command
import in_turn
import jax
import jax.numpy as jnp

from hybrid_jax.method import hyperschedule
from hybrid_jax.method import layout as layouts
from hybrid_jax.method.layout import Layout
from hybrid_jax.method.mask_blocks import Pattern
from hybrid_jax.models import attention
from hybrid_jax.runtime.command_line import Parser


def cases(length: int) -> dict[str, tuple[hyperschedule.Hyperschedule, Layout]]:
    """The cases to compare: name -> schedule and layout."""
    block = hyperschedule.block
    return {
        "AR": (hyperschedule.quenched_ar(length=length), Layout(alignment="shifted")),
        "flat": (hyperschedule.flat(length=length, levels=length), Layout()),
        "block ω=64": (block(length=length, width=64, levels=64), Layout()),
        "block ω=16": (block(length=length, width=16, levels=16), Layout()),
        "block ω=64, shifted": (
            block(length=length, width=64, levels=64), Layout(alignment="shifted"),
        ),
        "slide ω=64": (hyperschedule.slide(length=length, width=64, levels=64), Layout()),
    }  # fmt: skip


def pattern_of(schedule: hyperschedule.Hyperschedule, layout: Layout) -> Pattern:
    phase = jnp.zeros(schedule.phase_groups, jnp.int32)
    rows = layouts.training_rows(layout, schedule, phase)
    return Pattern(layout, schedule, jax.tree.map(lambda x: x[None], rows))


def measure(name: str, pattern: Pattern, options: argparse.Namespace) -> dict:
    rows = pattern.regions.rows
    shape = (options.batch, options.heads, rows, options.head)
    inputs = [
        jax.random.normal(k, shape, options.dtype) for k in jax.random.split(jax.random.key(0), 4)
    ]
    mask = jax.jit(pattern.mask)()
    backends = {"dense": lambda q, k, v: attention.dense(q, k, v, mask)}
    if not pattern.full:
        backends["blockwise"] = lambda q, k, v: attention.blockwise(q, k, v, pattern)
    backends["fused"] = lambda q, k, v: attention.fused(q, k, v, pattern)
    exact = attention.dense(*(x.astype(jnp.float32) for x in inputs[:3]), mask)
    programs = {}
    row = {"case": name, "rows": rows, "useful": float(mask.mean())}
    row |= {"megabytes": {}, "error": {}, "compiling": {}}
    for backend, function in backends.items():
        if backend not in options.backends.split(","):
            continue

        def loss(q, k, v, weight, function=function):
            return jnp.sum((function(q, k, v) * weight).astype(jnp.float32))

        found = jax.jit(function)(*inputs[:3]).astype(jnp.float32)
        row["error"][backend] = float(jnp.abs(found - exact).max())
        gradient = jax.grad(loss, argnums=(0, 1, 2))
        begun = time.perf_counter()
        programs[backend], row["megabytes"][backend] = in_turn.compiled(gradient, *inputs)
        row["compiling"][backend] = time.perf_counter() - begun
    row["milliseconds"] = in_turn.milliseconds(programs, repeats=options.repeats)
    row["ratios"] = {
        backend: in_turn.ratios(row["milliseconds"]["dense"], times)
        for backend, times in row["milliseconds"].items()
        if backend != "dense"
    }
    return row


def as_markdown(rows: list[dict]) -> str:
    lines = [
        "| rows of | R | useful | backend | ms (least – most) | times faster than dense | MB | "
        "error | s to compile |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        for backend, times in row["milliseconds"].items():
            ratio = row["ratios"].get(backend)
            lines.append(
                f"| {row['case']} | {row['rows']} | {row['useful']:.2f} | {backend} | "
                f"{in_turn.spread(times)} | {in_turn.spread(ratio, 2) if ratio else '–'} | "
                f"{row['megabytes'][backend]:.0f} | {row['error'][backend]:.0e} | "
                f"{row['compiling'][backend]:.1f} |"
            )
    return "\n".join(lines)


def main() -> int:
    parser = Parser(description="Times attention, forward and backward.")
    add = parser.add_argument
    add("--length", type=int, default=1024)
    add("--batch", type=int, default=1)
    add("--heads", type=int, default=4)
    add("--head", type=int, default=64, help="dimension of a head")
    add("--dtype", default="float32", choices=["float32", "bfloat16"])
    add("--backends", default="dense,blockwise,fused", help="dense among them")
    add("--cases", type=int, default=100, help="only the first ones (default: all)")
    add("--repeats", type=int, default=7)
    add("--out", default="benchmarks/results", metavar="DIR")
    return command.run(parser, _run, folder=True)


def _run(options: argparse.Namespace) -> None:
    rows: list[dict] = []
    shape = {k: getattr(options, k) for k in ("length", "batch", "heads", "head", "dtype")}
    for name, (schedule, layout) in list(cases(options.length).items())[: options.cases]:
        rows.append(measure(name, pattern_of(schedule, layout), options))
        for backend, ratio in rows[-1]["ratios"].items():
            in_turn.note(f"{name}: {backend} {statistics.median(ratio):.2f} times faster")
        report = in_turn.store("attention", options.out, as_markdown(rows), **shape)
    print(report)


if __name__ == "__main__":
    sys.exit(main())
