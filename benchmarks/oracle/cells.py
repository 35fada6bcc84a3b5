"""Cells of the table: a kernel, a schedule and a rule at some calls, and what they sample."""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from oracle import chain as chains
from oracle.joint import jointly
from oracle.network import params_of, sampler_of

from hybrid_jax.errors import UserError
from hybrid_jax.method import hyperschedule, noising
from hybrid_jax.method.hyperschedule import Hyperschedule
from hybrid_jax.method.layout import Layout
from hybrid_jax.method.loss import Spec
from hybrid_jax.method.noising import NoiseKernel
from hybrid_jax.method.objective import Objective
from hybrid_jax.runtime.json_text import json_text
from hybrid_jax.sampling import loop, prompts, rules
from hybrid_jax.sampling.settings import SamplingConfig

KERNELS = ("absorbing", "uniform", "gamma", "epsilon")
SCHEDULES = ("ar", "flat", "block", "slide")
VARIANTS = {
    "acs": (
        "acs:eta=0", "acs:eta=0.5", "acs:eta=0.5:guidance=confidence", "acs:eta=0.5:sweeps=2",
        "acs:eta=0.5:correction=remask",
    )
}  # fmt: skip
RULES = tuple(one for name in rules.NAMED for one in VARIANTS.get(name, (name,)))
"""Every rule of the package with its defaults, or in the variants above."""

CURVES = {
    "absorbing": ("ancestral", "psi", "remdm", "entropy", "threshold", "greedy"),
    "epsilon": ("ancestral", "psi", "remdm", *VARIANTS["acs"]),
}
"""Rules that are followed from few calls to many."""

WIDTH = 16


class Cell(NamedTuple):
    """A point of the table: sampler and calls.

    Attributes:
      kernel: a name of `KERNELS`; a number behind it is its γ or ε, 0.1 without.
      width: of windows; 1 for AR, all positions for flat.
      calls: of the network, at most; closing sweeps come on top.
      jointly: whether the tokens of a call are drawn together (see `oracle.joint`).
    """

    kernel: str
    schedule: str
    width: int
    rule: str
    calls: int
    jointly: bool = False


def cell(
    kernel: str, schedule: str, rule: str, calls: int, *, length: int, width: int = WIDTH,
    jointly: bool = False,
) -> Cell:  # fmt: skip
    width = {"ar": 1, "flat": length}.get(schedule, width)
    return Cell(kernel, schedule, width, rule, calls, jointly)


def sets(length: int) -> dict[str, list[Cell]]:
    """The parts of the table, by name."""
    every = itertools.product((32, length, 8), KERNELS, SCHEDULES, RULES)
    halves = [length >> n for n in range(length.bit_length()) if (length >> n) >= 4]
    noises = ("epsilon", "epsilon 0.01", "gamma")
    return {
        "grid": [
            cell(*one, calls, length=length)
            for calls, *one in every
            if (calls == length) == (one[1] == "ar")
        ],
        "calls": [
            cell(kernel, "flat", rule, calls, length=length)
            for kernel, followed in CURVES.items()
            for rule, calls in itertools.product(followed, (4, 8, 16, 32, 64, 128))
        ],
        "limit": [
            cell(kernel, "flat", rule, calls, length=length)
            for kernel, rule, calls in (
                ("absorbing", "entropy:bound=0", length),
                ("absorbing", "margin", length),
                ("absorbing", "max_probability", length),
                ("absorbing", "ancestral", 4 * length),
                ("absorbing", "threshold:threshold=1", length),
                ("epsilon", "ancestral", 4 * length),
                ("uniform", "ancestral", 4 * length),
                ("epsilon", "acs:eta=0.5", 4 * length),
            )
        ],
        "split": [
            cell(kernel, "flat", rule, calls, length=length, jointly=together)
            for kernel, rule, calls, together in itertools.product(
                ("absorbing", "uniform", "epsilon"), RULES, (8, 32), (False, True)
            )
        ],
        "width": [
            cell(kernel, schedule, "ancestral", calls, length=length, width=width)
            for kernel, schedule, calls in (
                ("absorbing", "block", 32),
                ("absorbing", "block", 64),
                ("absorbing", "slide", 32),
                ("absorbing", "slide", 64),
                ("gamma", "block", 32),
            )
            for width in halves
        ],
        "eta": [
            cell(kernel, "block", f"acs:eta={eta}{guidance}", 64, length=length)
            for kernel, guidance, eta in itertools.product(
                noises, ("", ":guidance=confidence"), (0, 0.1, 0.25, 0.5, 1)
            )
            if eta or not guidance
        ],
        "horizon": [
            cell("epsilon", "block", rule, calls, length=length, width=8)
            for levels in (1, 2)
            for calls in [length // 8 * levels]
            for rule in (
                "acs:eta=0.5",
                "acs:eta=0.5:sweeps=1",
                "acs:eta=0.5:sweeps=1:horizon=1",
                "acs:eta=0.5:sweeps=1:horizon=2",
            )
        ],
    }


def kernel_of(name: str, size: int) -> NoiseKernel:
    kind, _, number = name.partition(" ")
    value = float(number or 0.1)
    return {
        "absorbing": lambda: noising.absorbing(vocab_size=size),
        "uniform": lambda: noising.uniform(vocab_size=size),
        "gamma": lambda: noising.gamma_hybrid(vocab_size=size, gamma=value),
        "epsilon": lambda: noising.epsilon_hybrid(vocab_size=size, epsilon=value),
    }[kind]()


def schedule_of(family: str, length: int, width: int, calls: int) -> Hyperschedule:
    """The schedule of a family with as many steps as fit into `calls`."""
    if family == "ar":
        if calls < length:
            raise UserError(f"AR makes one call a position: give {length} calls.")
        return hyperschedule.quenched_ar(length=length)
    if family == "flat":
        return hyperschedule.flat(length=length, levels=calls)
    make = {"block": hyperschedule.block, "slide": hyperschedule.slide}[family]
    fits = [
        levels
        for levels in range(1, calls + 1)
        if make(length=length, width=width, levels=levels).steps <= calls
    ]
    if not fits:
        raise UserError(
            f"{calls} calls are fewer than windows of {width} tokens take: give more calls or a "
            "larger width."
        )
    return make(length=length, width=width, levels=fits[-1])


Found = dict[str, tuple[float, float]]
"""Values and their standard errors, by name."""

Record = dict[str, Any]
"""A measured cell: "found", or the reason as "refused"; and "seconds"."""


def measure(options: argparse.Namespace, chain: chains.Chain, cell: Cell) -> Found:
    """Distances of generated texts from the chain, and the calls that they took.

    Raises UserError for what does not go together.
    """
    rule = SamplingConfig.parse(cell.rule).build()
    kernel, params = kernel_of(cell.kernel, len(chain.start)), params_of(chain)
    if cell.jointly:
        rule = jointly(rule, params["step"])
    # What a rule cannot do with a kernel matters more than calls that are too few.
    rule.check(kernel, Objective())
    schedule = schedule_of(cell.schedule, options.length, cell.width, cell.calls)
    spec = Spec(
        schedule=schedule, kernel=kernel, layout=Layout(), objective=Objective(),
        chunk=options.length,
    )  # fmt: skip
    keys = jax.vmap(lambda seed: jax.random.split(jax.random.key(seed), options.texts))(
        np.arange(options.seeds)
    ).ravel()
    given = prompts.nothing(len(keys), options.length)
    found = loop.generate(sampler_of(spec, ahead=cell.jointly), rule, params, keys, given)
    tokens = np.asarray(found.tokens).reshape(options.seeds, options.texts, options.length)
    calls = np.asarray(found.nfe).reshape(options.seeds, -1).mean(1)
    error = calls.std(ddof=1) / np.sqrt(options.seeds)
    return {"calls": (float(calls.mean()), float(error)), **chains.jackknife(chain, tokens)}


def floor(options: argparse.Namespace, chain: chains.Chain) -> Found:
    """Distances of as many texts of the chain itself."""
    draws = [
        chain.draw(np.random.default_rng(seed), options.texts, options.length)
        for seed in range(options.seeds)
    ]
    return chains.jackknife(chain, np.stack(draws))


class Store:
    """Finished cells in a file, one a line, each as soon as it is known.

    Raises UserError for a file that was made with other settings.
    """

    def __init__(self, path: Path, head: dict[str, Any]) -> None:
        self.path = path
        if not path.exists():
            self._append(head)
        self.head = json.loads(path.read_text("utf-8").partition("\n")[0])
        if self.head["settings"] != head["settings"]:
            raise UserError(f"{path} was made with other settings: name another file as --out.")

    @property
    def cells(self) -> dict[Cell, Record]:
        """All that is stored by now, also by others."""
        whole = self.path.read_text("utf-8").rpartition("\n")[0]  # the last line may be cut
        records = map(json.loads, whole.split("\n")[1:])
        return {Cell(*record.pop("cell")): record for record in records}

    def add(self, cell: Cell, record: Record) -> None:
        if not self.path.read_text("utf-8").endswith("\n"):
            self.path.write_text(self.path.read_text("utf-8").rpartition("\n")[0] + "\n", "utf-8")
        self._append({"cell": cell, **record})

    def _append(self, record: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json_text(record) + "\n")


def measured(
    options: argparse.Namespace, chain: chains.Chain, store: Store, wanted: Iterable[Cell]
) -> Iterator[tuple[Cell, Record]]:
    """Measures the cells that are not stored yet, and gives each as soon as it is."""
    for one in dict.fromkeys(wanted):
        if one in store.cells:
            continue
        begun = time.monotonic()
        try:
            record: Record = {"found": measure(options, chain, one)}
        except UserError as error:
            record = {"refused": str(error)}
        record["seconds"] = round(time.monotonic() - begun, 2)
        store.add(one, record)
        yield one, record
