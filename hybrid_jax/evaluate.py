"""Evaluation of trained models: perplexity on named texts, quality of generated text, and code.

Perplexities are true bounds, given with their errors and their protocol::

    python -m hybrid_jax.evaluate --workdir=runs/gamma_hybrid
    python -m hybrid_jax.evaluate --workdir=runs/mdlm --datasets=wikitext,lambada,pubmed,arxiv
    python -m hybrid_jax.evaluate --workdir=runs/mdlm --datasets=lambada=files:lambada/test.jsonl
    python -m hybrid_jax.evaluate --workdir=runs/mdlm --likelihood=order:margin

A scorer reads texts that `hybrid_jax.generate --out` wrote, one file for each seed::

    python -m hybrid_jax.evaluate --workdir=runs/mdlm --texts=a.jsonl,b.jsonl \\
        --scorer=gpt2:gpt2-large --reference=wikitext

or texts of many update rules at several numbers of tokens per NFE, for a table and a picture::

    python -m hybrid_jax.evaluate --workdir=runs/epsilon_hybrid --pareto --scorer=run:runs/ar

Code is written on and filled in, by one run or several side by side::

    python -m hybrid_jax.evaluate --workdir=runs/code --code --beside=runs/code-ar

Each number is stored in the workdir, under evaluation/, with everything that it depends on, in a
file of its own: its name ends in a digest of its content. Numbers that are not finite, such as the
standard error of one record, are null there.
"""

import argparse
import functools
import sys
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from hybrid_jax.errors import UserError, check_seed
from hybrid_jax.eval import code, datasets, pareto, perplexity, protocols, text_quality
from hybrid_jax.eval.quality_table import Row, as_markdown
from hybrid_jax.eval.scorers import load as scorers
from hybrid_jax.eval.scorers.base import fingerprint
from hybrid_jax.figures import canvas
from hybrid_jax.figures import pareto as pareto_plot
from hybrid_jax.generation import requests
from hybrid_jax.generation.generator import build, choose_sampling
from hybrid_jax.runtime import command_line
from hybrid_jax.runtime.command_line import check_mode, distinct, seed_of, within
from hybrid_jax.runtime.decode import listed
from hybrid_jax.runtime.files import check_writable, expanded, labels, write_atomic
from hybrid_jax.runtime.json_text import file_name, write_json
from hybrid_jax.runtime.processes import assert_same, join, on_process0, raise_on_all, say
from hybrid_jax.runtime.progress import Progress
from hybrid_jax.training import archive, flops, pretrained
from hybrid_jax.training import workdir as workdirs
from hybrid_jax.training.pretrained import Pretrained

# What each way to use the command reads besides the flags that all read.
_GENERATED = ("scorer", "protocol", "reference")
_CHOSEN = ("schedule", "strict")
MODES = {
    "--datasets": ("datasets", "likelihood", "records", "draws", "seed", "step", *_CHOSEN),
    "--texts": ("texts", *_GENERATED),
    "--pareto": ("pareto", "rules", "rho", "temperatures", "count", "seeds", "seed", "step",
                 *_CHOSEN, *_GENERATED),
    "--code": ("code", "beside", "temperature", "count", "reference", "seed", "step"),
}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return command_line.run_command(
        _parser(), argv, _run, interrupted="what was measured is stored"
    )


def _run(options: argparse.Namespace) -> None:
    archive.require_folder(expanded(options.workdir))  # measurements are stored in it
    work = {"--pareto": _sweep, "--code": _measure_code, "--texts": _score_files}
    mode = next((flag for flag in work if flag.strip("-") in options.given), "--datasets")
    check_mode(options, mode, MODES)
    check_seed(options.seed + options.seeds - 1, "The last of the seeds from --seed on")
    if "scorer" in MODES[mode] and options.scorer is None:
        raise UserError(
            "Generated texts need a scorer: --scorer=run:DIR, the workdir of an autoregressive "
            "run, or --scorer=gpt2:gpt2-large."
        )
    work.get(mode, _measure_sets)(options, join(options))


# ---------------------------------------------------------------------------------------------
# Perplexity.


def _measure_sets(options: argparse.Namespace, mesh: Mesh) -> None:
    model = pretrained.asked(options, mesh)
    valid = datasets.validation_set(model.experiment)
    names = _named(options, "datasets", "data set", "wikitext,lambada")
    wanted = [datasets.parse(name, validation=valid) for name in names]
    distinct("--datasets", [dataset.name for dataset in wanted])
    bound = perplexity.bound_of(model, options.likelihood)
    folder = _folder(options)
    # All, before anything slow.
    texts = [
        raise_on_all(perplexity.records_of, model, dataset, options.records) for dataset in wanted
    ]
    for packed in texts:
        assert_same("text", packed.sha256)
    files = []

    schedule = model.spec.schedule.name
    say(f"{model.experiment.name}, step {model.step}, {schedule}: {bound.label}")
    unit = "bits/byte" if model.tokenizer.token_bytes.any() else "bits/token"
    say(f"{'data set':24}{'perplexity':>22}{unit:>11}{'records':>9}{'draws':>7}")
    for dataset, packed in zip(wanted, texts, strict=True):
        with Progress(total=-(-len(packed) // options.batch_size), interval=10.0) as bar:
            found = perplexity.measure(
                model, dataset, packed, bound, draws=options.draws, batch_size=options.batch_size,
                seed=options.seed, progress=functools.partial(bar.update, values={}),
            )  # fmt: skip
        say(_row(found))  # first: the disk may be full
        files.append(_store(folder, dataset.name, found.to_dict()))
    say(f"protocol {found.protocol.name}, stored in {folder}: {', '.join(files)}")


def _row(found: perplexity.Measurement) -> str:
    estimate = found.estimate
    return (
        f"{found.dataset.name:24}{estimate.shown:>22}{estimate.bits[0]:>11.3f}"
        f"{estimate.records:>9,}{estimate.draws:>7}"
    )


# ---------------------------------------------------------------------------------------------
# Generated text.


def _score_files(options: argparse.Namespace, mesh: Mesh) -> None:
    protocol = protocols.protocol(options.protocol)
    names = _named(options, "texts", "file", "seed0.jsonl,seed1.jsonl")
    files = [expanded(name) for name in names]
    distinct("--texts", [file.resolve() for file in files])
    tokenizer = raise_on_all(workdirs.load_tokenizer, Path(options.workdir))
    # All, before anything slow.
    made = raise_on_all(lambda: [requests.read(file, tokenizer) for file in files])
    most = max(len(texts.texts) for texts in made)
    if most == 1 and options.reference is not None:
        raise UserError("--reference is for MAUVE, which one text does not have: leave it out.")
    scorer, scorer_tokenizer = raise_on_all(scorers.load, options.scorer, mesh)
    model = pretrained.load(options.workdir, mesh=mesh)
    reference = _human_texts(model, options, most, least=2) if most > 1 else None
    scored = functools.partial(
        text_quality.evaluate, scorer, scorer_tokenizer, protocol=protocol,
        tokenizer=model.tokenizer, reference=reference, batch_size=options.batch_size,
    )  # fmt: skip
    folder = _folder(options)
    rows: list[Row] = []
    stored = []
    try:
        for label, texts in zip(labels(files), made, strict=True):
            quality = scored(texts.tokens, settings=texts.settings)
            rows.append(Row(label=label, qualities=(quality,)))
            stored.append(_store(folder, f"quality-{label.removesuffix('.jsonl')}", quality))
        every = tuple(quality for row in rows for quality in row.qualities)
        if requests.of_one_sampler([texts.settings for texts in made]):
            rows.append(Row(label="all", qualities=every))
        elif len(rows) > 1:
            reason = "the files are not of one sampler and different seeds"
            say(f"no line for all: {reason}", file=sys.stderr)
    finally:  # also when the disk is full
        if rows:
            say(as_markdown(rows))
    say(
        f"scorer {scorer.name}, protocol {protocol.name}-{protocol.version}, stored in {folder}: "
        f"{', '.join(stored)}"
    )


def _sweep(options: argparse.Namespace, mesh: Mesh) -> None:
    canvas.module("matplotlib")  # before any work
    protocol = protocols.protocol(options.protocol)
    scorer, scorer_tokenizer = raise_on_all(scorers.load, options.scorer, mesh)
    model = pretrained.asked(options, mesh)
    if options.rules is not None:
        rules = _named(options, "rules", "rule", "acs:eta=0.5,ancestral")
    else:
        rules, reasons = pareto.fitting(model, pareto.RULES)
        for reason in reasons:
            say(f"left out: {reason}", file=sys.stderr)
    rhos = pareto.tokens_per_nfe(model) if options.rho is None else _numbers(options, "rho")
    if options.temperatures is not None:
        temperatures = _numbers(options, "temperatures")
        distinct("--temperatures", temperatures)
        if len(temperatures) < 2:
            raise UserError("--temperatures compares two or more: for example 0.8,0.9,1,1.1.")
        rules = [f"{rule}:temperature={value:g}" for rule in rules for value in temperatures]
    distinct("--rules", rules)
    distinct("--rho", rhos)
    points = pareto.grid(model, rules, rhos)
    human = _human_texts(model, options, 2 * options.count, least=4)
    reference, held_out = human[: len(human) // 2], human[len(human) // 2 :]
    folder = _folder(options)
    network = fingerprint(model.network, model.params)
    seeds = range(options.seed, options.seed + options.seeds)

    scored = functools.partial(
        text_quality.evaluate, scorer, scorer_tokenizer, protocol=protocol,
        tokenizer=model.tokenizer, reference=reference, batch_size=options.batch_size,
    )  # fmt: skip
    rows = [Row(label="held-out text", qualities=(scored(held_out),))]
    total, before = len(points) * len(seeds) * options.count, 0
    with Progress(total=total, interval=10.0) as bar:
        for point in points:
            made = []
            for seed in seeds:
                made.append(pareto.texts_of(
                    point, folder / "pareto", workdir=options.workdir, fingerprint=network,
                    seed=seed, count=options.count, batch_size=options.batch_size,
                    progress=functools.partial(_from, bar, before),
                ))  # fmt: skip
                before += options.count
            qualities = tuple(scored(one.tokens, settings=one.settings) for one in made)
            rows.append(Row(label=point.label, rho=point.rho, qualities=qualities))
    rows = pareto.matched(rows)
    table = as_markdown(rows)
    title = (
        f"{model.experiment.name}, step {model.step}: {options.count} texts for each point, "
        f"read by {scorer.name}"
    )
    say(table)  # first: the disk may be full
    file = folder / _store(folder, "pareto", rows)

    def publish() -> None:
        write_atomic(file.with_suffix(".md"), table + "\n")
        write_atomic(file.with_suffix(".png"), pareto_plot.draw(rows, title=title))

    on_process0(publish)
    say(f"stored in {folder}: {', '.join(f'{file.stem}.{kind}' for kind in ('json', 'md', 'png'))}")


def _measure_code(options: argparse.Namespace, mesh: Mesh) -> None:
    beside = [] if options.beside is None else _named(options, "beside", "run", "runs/other")
    paths = [expanded(path) for path in (options.workdir, *beside)]
    distinct("--workdir with --beside", [path.resolve() for path in paths])
    models = [pretrained.load(path, step=options.step, mesh=mesh) for path in paths]
    length, tokenizer = models[0].spec.schedule.length, models[0].tokenizer
    records = [_human_texts(model, options, 0, least=1) for model in models]
    for path, model, other in zip(paths, models, records, strict=True):
        same = model.tokenizer.fingerprint == tokenizer.fingerprint
        if not (same and np.array_equal(other, records[0])):
            raise UserError(
                f"{path} has other validation records than {paths[0]}: compare runs that were "
                "trained on the same data."
            )
    settings = {"eos": "continue", "temperature": options.temperature}
    generators = [
        build(model, choose_sampling(model.experiment.sampling, None, settings)) for model in models
    ]
    given = raise_on_all(
        code.tasks, records[0], tokenizer, length, count=options.count, seed=options.seed
    )
    folder = _folder(options)
    rows = []
    for path, label, own in zip(paths, labels(paths), generators, strict=True):
        written = code.write(own, given, seed=options.seed, batch_size=options.batch_size)
        rows.append(code.row(label, given, written, **own.settings(path, options.seed),
                             **flops.budget(own.model)))  # fmt: skip
    rows += code.limits(given, tokenizer, length)
    say(code.as_markdown(rows))  # first: the disk may be full
    found = {"rows": rows, "functions": given.functions, "lines": given.lines}
    say(f"stored in {folder}: {_store(folder, 'code', found)}")


def _from(bar: Progress, before: int, done: int) -> None:
    bar.update(before + done, {})


def _human_texts(
    model: Pretrained, options: argparse.Namespace, count: int, *, least: int
) -> list[np.ndarray]:
    """Human texts for MAUVE and to score beside the generated ones, each of a record."""

    def read() -> list[np.ndarray]:
        valid, named = datasets.validation_set(model.experiment), options.reference
        dataset = valid if named is None else datasets.parse(named, validation=valid)
        records = list(perplexity.records_of(model, dataset, count).tokens)
        if len(records) < least:
            raise UserError(
                f"{dataset.name} has {len(records)} records of text, too few to compare with: name "
                "more with --reference."
            )
        return records

    return raise_on_all(read)


def _named(options: argparse.Namespace, flag: str, what: str, example: str) -> list[str]:
    """The parts of a flag's list. Raises UserError if there are none."""
    found = listed(getattr(options, flag))
    if not found:
        raise UserError(f"--{flag} names no {what}: for example --{flag}={example}.")
    return found


def _numbers(options: argparse.Namespace, flag: str) -> list[float]:
    """The numbers of a flag's list. Raises UserError for anything else, and for none."""
    parts = _named(options, flag, "number", "4,2,1")
    try:
        return [float(part) for part in parts]
    except ValueError as error:
        raise UserError(
            f"--{flag}={','.join(parts)} is no list of numbers, such as 4,2,1."
        ) from error


def _folder(options: argparse.Namespace) -> Path:
    folder = Path(options.workdir) / "evaluation"
    raise_on_all(check_writable, folder, folder=True)
    return folder


def _store(folder: Path, label: str, found: Any) -> str:
    """Writes a measurement to a file that no other has, and returns its name."""
    name = f"{file_name(label, found)}.json"
    on_process0(write_json, folder / name, found)
    return name


def _parser() -> argparse.ArgumentParser:
    parser = command_line.Parser(
        prog="python -m hybrid_jax.evaluate",
        description="Perplexity of a trained model on texts, or quality of its own texts and code.",
        compiles=True,
    )
    # Lists: see `runtime.decode.listed`.
    add = parser.add_argument
    command_line.add_model(add)
    add("--datasets", default="valid", metavar="A,B,...", help="valid, "
        f"{', '.join(datasets.NAMES)}, or NAME=SOURCE (default: %(default)s)")  # fmt: skip
    add("--likelihood", metavar="order:RULE", help="of texts as a rule writes them, such as "
        "order:margin or order:entropy:bound=0; of order:ancestral a bound, the mean over --draws "
        "orders (default: the model's own bound)")  # fmt: skip
    add("--records", type=within(0), default=0, metavar="N", help="most records (default: all)")
    add("--draws", type=within(1), default=4, metavar="K", help="of noise for each (default: 4)")
    add("--batch_size", type=within(1), default=64, metavar="B",
        help="records at a time (default: 64)")  # fmt: skip
    add("--seed", type=seed_of, default=0, help="of the draws (default: 0)")
    add = parser.add_argument_group("generated text").add_argument
    add("--scorer", metavar="SCORER", help="run:DIR, an autoregressive run, or gpt2:FOLDER_OR_NAME")
    add("--texts", metavar="A,B,...", help="files that hybrid_jax.generate --out wrote, of one "
        "sampler with several seeds")  # fmt: skip
    add("--pareto", action="store_true", help="generate with many rules, tokens per NFE, and draw "
        "quality against NFE and diversity")  # fmt: skip
    add("--protocol", default="standard", help=f"{', '.join(protocols.PROTOCOLS)} (default: "
        "%(default)s)")  # fmt: skip
    add("--reference", metavar="SET", help="human text for MAUVE, code for --code (default: valid)")
    add("--rules", metavar="A,B,...", help="of --pareto, such as acs:eta=0.5,ancestral "
        "(default: ten, as far as they go with the model's noise)")  # fmt: skip
    add("--rho", metavar="A,B,...", help="of --pareto: tokens per NFE "
        "(default: those of 8,4,2,1 that divide the model's window)")  # fmt: skip
    add("--temperatures", metavar="A,B,...", help="of --pareto: each rule at each, and its "
        "perplexity interpolated at the entropy of held-out text")  # fmt: skip
    add("--count", type=within(2), default=128, metavar="N",
        help="texts for each point of --pareto, and functions and lines of --code "
        "(default: %(default)s)")  # fmt: skip
    add("--seeds", type=within(1), default=1, metavar="K",
        help="of texts of --pareto, from --seed on (default: %(default)s)")  # fmt: skip
    add = parser.add_argument_group("code").add_argument
    add("--code", action="store_true", help="write functions of held-out code, and hidden lines")
    add("--beside", metavar="A,B,...", help="other runs on the same data, for the same table")
    add("--temperature", type=float, help="of what is drawn (default: that of each run)")
    command_line.add_devices(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
