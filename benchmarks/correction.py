"""Errors planted in texts, by place and depth: which are repaired, what breaks, and what cascades.

    python benchmarks/correction.py --workdirs='runs/hybrid-0;runs/hybrid-1' \\
        --scorers='run:runs/ar-1;run:runs/ar-0' --data=data/FOLDER --out=correction.md

Held-out records are given up to a window. At depth 0, half of this window is shown, and some of
the shown tokens are replaced by random others; at depth h the window is empty, and the wrong
tokens are in the window h before it, which has settled. Each rule finishes the window. A rule with
closing sweeps has fewer levels instead, so that none makes more calls of the network than another.

Counted are wrong tokens that end as the true ones ("repaired") and those that do not stay
("moved"); right tokens that the rule could change and that do not end as they were ("lost"); the
difference of repaired and lost, in tokens a text ("net"); places that were empty and end as the
true token ("written right"); and the nats of a token under an AR run, from the window with the
errors to the end of the finished one. That run should have taken no part in the training. ± is the
standard error over the texts of all workdirs.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator

import command
import device
import jax.numpy as jnp
import numpy as np

from hybrid_jax.data.pipeline import Records
from hybrid_jax.errors import UserError
from hybrid_jax.eval.scorers import base as scorers
from hybrid_jax.eval.scorers import load as load_scorer
from hybrid_jax.figures import canvas
from hybrid_jax.figures.palette import INK
from hybrid_jax.generation import driver
from hybrid_jax.method import hyperschedule
from hybrid_jax.runtime.command_line import Parser, within
from hybrid_jax.runtime.files import check_writable, write_atomic
from hybrid_jax.runtime.json_text import json_text
from hybrid_jax.sampling import loop, prompts
from hybrid_jax.sampling.rules import ACS, Ancestral, Psi, ReMDM
from hybrid_jax.sampling.state import Sampler
from hybrid_jax.sampling.update_rule import Rule
from hybrid_jax.training import pretrained
from hybrid_jax.training.pretrained import Pretrained
from hybrid_jax.training.statistics import mean_and_standard_error

NONE = "no correction (ACS η=0)"
RULES: dict[str, Rule] = {
    NONE: ACS(eta=0.0),
    "ACS η=0.25": ACS(eta=0.25),
    "ACS η=0.5": ACS(eta=0.5),
    "ACS η=1": ACS(eta=1.0),
    "ACS η=0.25, confidence": ACS(eta=0.25, guidance="confidence"),
    "ACS η=0.5, confidence": ACS(eta=0.5, guidance="confidence"),
    "ACS η=0.5, confidence, 2 sweeps": ACS(eta=0.5, guidance="confidence", sweeps=2),
    "ReMDM rescale η=0.1": ReMDM(eta=0.1, strategy="rescale"),
    "ReMDM rescale η=0.5": ReMDM(eta=0.5, strategy="rescale"),
    "ψ": Psi(),
    "ancestral": Ancestral(),
}
# Settled tokens stay under all others.
SETTLED: dict[str, Rule] = {
    name: RULES[name] for name in (NONE, "ACS η=0.5, confidence", "ancestral")
} | {
    f"ACS η=0.5, confidence, 2 sweeps, horizon {h}": ACS(
        eta=0.5, guidance="confidence", sweeps=2, horizon=h
    )
    for h in (1, 2)
}
DEPTHS = {0: RULES, 1: SETTLED, 2: SETTLED}  # and the rules that are asked there
TITLES = ("in the window, half shown", "in the window before it", "two windows before it")
WRONG = (0, 1, 2, 4)
COUNTS = {"repaired": "wrong repaired", "moved": "wrong moved", "lost": "right lost",
          "net": "net, tokens a text", "written": "written right",
          "nats": "nats a token"}  # fmt: skip
Counts = dict[str, np.ndarray]  # by name of COUNTS, and "nfe": float [texts]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Texts:
    """Texts with errors.

    Attributes:
      true: int32 [n, L], as they are in the records.
      tokens: the same with errors, and with MASK where nothing is shown.
      bad, right: bool, places with errors, and others that some rule could spoil.
      window: the positions to finish.
      begins: the first position of what may be wrong.
    """

    true: np.ndarray
    tokens: np.ndarray
    bad: np.ndarray
    right: np.ndarray
    window: slice
    begins: int


def plant(records: np.ndarray, width: int, depth: int, wrong: int, mask: int) -> Texts:
    """Errors in the middle of records; the places are the same however many are wrong."""
    draw = np.random.default_rng(0)
    first = records.shape[1] // 2 // width * width
    window = slice(first, first + width)
    place = np.arange(records.shape[1])
    order = draw.permuted(np.tile(np.arange(width), (len(records), 1)), axis=1)
    offsets = draw.integers(1, mask, records.shape)
    begins = first - depth * width
    bad = np.zeros(records.shape, bool)
    np.put_along_axis(bad, begins + order[:, :wrong], True, axis=1)
    known = np.tile(place < first, (len(records), 1))
    if not depth:
        np.put_along_axis(known, first + order[:, : width // 2], True, axis=1)
    tokens = np.where(bad, (records + offsets) % mask, records)
    could = known & ~bad & (place >= begins) & (place < window.stop)
    return Texts(true=records, tokens=np.where(known, tokens, mask), bad=bad, right=could,
                 window=window, begins=begins)  # fmt: skip


def finished(
    model: Pretrained, rule: Rule, texts: Texts, depth: int, batch: int
) -> tuple[np.ndarray, np.ndarray]:
    """The texts with the window written, int32 [n, L], and their calls [n]."""
    width = texts.window.stop - texts.window.start
    schedule = model.spec.schedule
    levels = width - rule.sweeps if depth else width - 2 * rule.sweeps
    spec = dataclasses.replace(
        model.spec, schedule=hyperschedule.block(length=schedule.length, width=width, levels=levels)
    )
    sampler = Sampler(spec=spec, network=model.network)
    step = texts.window.start // width * levels + (0 if depth else levels // 2)
    after, calls = [], []
    for start in range(0, len(texts.true), batch):
        tokens = texts.tokens[start : start + batch]
        given = prompts.build(
            tokens[:, : texts.window.start].tolist(), length=schedule.length,
            vocab_size=spec.kernel.vocab_size, stop=texts.window.stop,
        )  # fmt: skip
        keys = driver.keys_of(1, np.arange(start, start + len(tokens)))
        state = loop.start(sampler, model.params, keys, given)
        begun = np.asarray(state.nfe)
        # What is given has settled like all else: a horizon may change it.
        state = dataclasses.replace(
            state,
            tokens=jnp.asarray(tokens, jnp.int32),
            frozen=jnp.zeros_like(state.frozen),
            step=jnp.full_like(state.step, step),
        )
        found = loop.finish(sampler, loop.advance(sampler, rule, model.params, state))
        after.append(np.asarray(found.tokens))
        calls.append(np.asarray(found.nfe) - begun)
    return np.concatenate(after), np.concatenate(calls)


def counted(texts: Texts, after: np.ndarray, nats: np.ndarray) -> Counts:
    """Counts of each text; NaN where there was nothing of the kind."""

    def share(of: np.ndarray, hits: np.ndarray) -> np.ndarray:
        among = of.sum(1)
        return np.where(among, (of & hits).sum(1) / np.maximum(among, 1), np.nan)

    same = after == texts.true
    empty = np.zeros_like(texts.bad)
    empty[:, texts.window] = True
    net = (texts.bad & same).sum(1) - (texts.right & ~same).sum(1)
    return {
        "repaired": share(texts.bad, same), "moved": share(texts.bad, after != texts.tokens),
        "lost": share(texts.right, ~same), "net": net.astype(float),
        "written": share(empty & ~texts.bad & ~texts.right, same), "nats": nats,
    }  # fmt: skip


def measure(
    model: Pretrained, scorer: scorers.Scorer, records: np.ndarray, batch: int
) -> dict[tuple[int, str, int], Counts]:
    """Counts of every depth, rule and number of wrong tokens."""
    spec, found = model.spec, {}
    width = spec.schedule.width
    for depth, rules in DEPTHS.items():
        for name, rule in rules.items():
            loop.check(Sampler(spec=spec, network=model.network), rule)
            for wrong in WRONG:
                texts = plant(records, width, depth, wrong, spec.kernel.mask)
                after, calls = finished(model, rule, texts, depth, batch)
                bos = np.full((len(after), 1), spec.bos, np.int32)
                rows = np.concatenate([bos, after[:, : texts.window.stop]], axis=1)
                each = np.stack(scorers.score(scorer, list(rows), batch_size=batch).nats)
                counts = counted(texts, after, each[:, texts.begins :].mean(1))
                found[depth, name, wrong] = counts | {"nfe": calls.astype(float)}
                shown = {key: float(np.mean(value)) for key, value in counts.items()}
                line = {"depth": depth, "rule": name, "wrong": wrong, **shown}
                print(json_text(line), file=sys.stderr, flush=True)
    return found


Table = dict[tuple[int, str, int], list[Counts]]  # by depth, rule and wrong tokens: of each workdir


def as_markdown(table: Table) -> Iterator[str]:
    yield f"| depth | wrong | rule | calls | {' | '.join(COUNTS.values())} |"
    yield "|---" * (4 + len(COUNTS)) + "|"
    for (depth, name, wrong), parts in table.items():
        cells = [f"{np.mean([part['nfe'].mean() for part in parts]):.1f}"]
        for key in COUNTS:
            values = np.concatenate([part[key] for part in parts])
            known = not np.isnan(values).any()
            cells.append(
                "{:.3f} ± {:.3f}".format(*mean_and_standard_error(values)) if known else "–"
            )
        yield f"| {depth} | {wrong} | {name} | {' | '.join(cells)} |"


def draw(table: Table) -> bytes:
    """A PNG: a panel a depth; nats a token against the number of wrong tokens, a line a rule."""
    figure = canvas.figure(11, 4.2, "Planted errors: what is left of them when the window is done")
    for axes, (depth, rules) in zip(figure.subplots(1, len(DEPTHS)), DEPTHS.items(), strict=True):
        for number, name in enumerate(rules):
            parts = [
                np.concatenate([part["nats"] for part in table[depth, name, wrong]])
                for wrong in WRONG
            ]
            values, errors = zip(*map(mean_and_standard_error, parts), strict=True)
            axes.errorbar(
                WRONG, values, errors, color=f"C{number % 10}", ms=4, lw=1,
                marker="osD^v<>PX*p"[number], ls="--" if name == NONE else "-", label=name,
            )  # fmt: skip
        axes.set_title(TITLES[depth], size=9)
        axes.set_xlabel("wrong tokens", color=INK)
        axes.set_xticks(WRONG)
        axes.grid(visible=True, alpha=0.25)
        axes.legend(fontsize=6)
    figure.axes[0].set_ylabel("nats a token under an AR run", color=INK)
    return canvas.png(figure)


def _run(options: argparse.Namespace) -> None:
    if options.picture:
        check_writable(options.picture)
    workdirs, names = options.workdirs.split(";"), options.scorers.split(";")
    if len(workdirs) != len(names):
        raise UserError("--scorers names a run for each of --workdirs, separated by ';'.")
    held_out = Records(options.data, "valid")
    count = min(len(held_out), options.windows) // options.batch_size * options.batch_size
    records = held_out.read(range(count))["tokens"]
    table: Table = {}
    about = []
    for workdir, name in zip(workdirs, names, strict=True):
        model, (scorer, _) = pretrained.load(workdir), load_scorer.load(name)
        for key, counts in measure(model, scorer, records, options.batch_size).items():
            table.setdefault(key, []).append(counts)
        about.append(f"step {model.step}, {model.spec.schedule.name}, {model.spec.kernel.name}")
    lines = "\n".join(as_markdown(table))
    print(lines)
    what = f"{'; '.join(about)}; {count} texts each, on {device.origin()}"
    write_atomic(options.out, f"{what}\n{lines}\n")
    if options.picture:
        write_atomic(options.picture, draw(table))


def main() -> int:
    parser = Parser(description="Measures what becomes of planted errors.")
    add = parser.add_argument
    add("--workdirs", required=True, help="runs of hybrid models in blocks, separated by ';'")
    add("--scorers", required=True, help="of evaluate, one for each, separated by ';'")
    add("--data", required=True, help="prepared folder whose validation records are used")
    add("--windows", type=within(2), default=512, help="texts (default: %(default)s)")
    add("--batch_size", type=within(1), default=64, help="default: %(default)s")
    add("--out", required=True, help="Markdown file for the table")
    add("--picture", help="PNG file")
    return command.run(parser, _run)


if __name__ == "__main__":
    sys.exit(main())
