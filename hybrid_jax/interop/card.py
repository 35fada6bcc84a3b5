"""The card of a model that is passed on: what it is, made from what its workdir holds."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

import hybrid_jax
from hybrid_jax.data.manifest import Manifest
from hybrid_jax.errors import UserError
from hybrid_jax.runtime.weights import read_json
from hybrid_jax.training import archive, flops
from hybrid_jax.training import workdir as workdirs
from hybrid_jax.training.likelihood import BoundEstimate
from hybrid_jax.training.pretrained import Pretrained

# Terms of the texts that every Python has.
_TERMS = dict.fromkeys(
    ("pydocs", "pysource"), "those of Python (Python Software Foundation, PSF licence version 2)"
)
_TEXT = """\
---
license: {licence}
library_name: hybrid_jax
pipeline_tag: text-generation
---
# {name}

A language model between GPT and diffusion, trained with hybrid_jax {version}.

| | |
|---|---|
{table}

## Use

    python -m hybrid_jax.demo --workdir={file.name}
    python -m hybrid_jax.generate --workdir={file.name} --prompt="..."

or in Python `hybrid_jax.load("{file.name}")`. Unpacked, it is a workdir to evaluate, and to start
a training from:

    python -m zipfile -e {file.name} {file.stem}
    python -m hybrid_jax.main --init={file.stem} --workdir=DIR
    python -m hybrid_jax.evaluate --workdir={file.stem} {asked}

The last command measures the bound of the table again, with draws of its own, where the text is
prepared in the folder that it is started in. The table has the one that the training ended with, ±
its standard error over records and draws.

## Intended use and limits

It is for looking at how hyperschedules, noise and update rules write, and for comparing them. It
has learnt from one text, whose words, errors and opinions it repeats. Nothing was filtered, nothing
tuned to instructions, and nothing that it says is to be relied on. It writes at most {length}
tokens, and its bound of {bits} is the measure of how well.
"""


def card(model: Pretrained, workdir: Path, file: Path, *, licence: str, text_terms: str) -> str:
    """The card, Markdown behind the fields that the Hugging Face hub reads.

    Args:
      model: of `workdir`.
      file: its archive, for the commands.
      licence: of the weights, such as "MIT".
      text_terms: of the training text; "" where it is one that every Python has.

    Raises:
      UserError: if the workdir has no result of the model's step, or terms are not known.
    """
    bound = _bound(workdir, model.step)
    experiment, spec, data = model.experiment, model.spec, model.experiment.data
    terms = text_terms or _TERMS.get(data.source, "")
    if not terms:
        raise UserError(f"Say on which terms {data.source} may be used, with --text_terms=TEXT.")
    size = sum(x.size for x in jax.tree.leaves(model.params))
    schedules = " and ".join(own.schedule.build(data.length).name for own in experiment.each)
    rows = {
        "network": f"{size:,} parameters, {model.network.layers} layers of {model.network.width}",
        "method": f"{spec.kernel.name} noise on {schedules}, {spec.layout.alignment} rows",
        "text": f"`{data.source}`; terms: {terms}",
        "records": _records(model),
        "tokens": f"{model.tokenizer.name}, {model.tokenizer.vocab_size:,} kinds",
        "training": f"{model.step:,} steps, {_spent(flops.budget(model))}",
        "before": _origin(workdir),
        "validation": f"**{bound}**",
        "unigram": f"perplexity {bound.unigram_perplexity:.2f} of the same tokens",
        "licence of the weights": licence,
    }
    return _TEXT.format(
        table="\n".join(f"| {name} | {value} |" for name, value in rows.items() if value),
        licence=licence.lower(), name=experiment.name, version=hybrid_jax.__version__, file=file,
        length=spec.schedule.length, bits=f"{bound.bits[0]:.2f} bits per {bound.bits[1]}",
        asked=f"--records={bound.records} --draws={bound.draws}",
    )  # fmt: skip


def _bound(workdir: Path, step: int) -> BoundEstimate:
    """The result of a finished training."""
    path = workdir / archive.RESULT
    found = read_json(path) if path.exists() else {}
    names = [field.name for field in dataclasses.fields(BoundEstimate)]
    if found.get("step") != step or not found.keys() >= set(names):
        raise UserError(
            f"{workdir} has no measured bound of its step {step}: finish the training with "
            f"python -m hybrid_jax.main --workdir={workdir}."
        )
    values: dict[str, Any] = {n: math.nan if found[n] is None else found[n] for n in names}
    return BoundEstimate(**values)


def _records(model: Pretrained) -> str:
    """Sizes of the text, where its records are still there."""
    for folder in workdirs.data_folders(model.experiment.data, model.data):
        if workdirs.holds(folder, model.data):
            found = Manifest.load(folder)
            train, valid = (
                f"{x.documents:,} documents, {x.text_bytes:,} bytes, {x.tokens:,} tokens"
                for x in (found.train, found.valid)
            )
            return f"{train}; held out: {valid}; SHA-256 `{found.identity}`"
    return ""


def _origin(workdir: Path) -> str:
    """The run that the training started from."""
    path = workdir / workdirs.ORIGIN
    found = read_json(path) if path.exists() else {}
    return f"{_spent(found)}, to step {found['step']:,} of `{found['workdir']}`" if found else ""


def _spent(budget: Mapping[str, Any]) -> str:
    return f"{budget['tokens']:,} tokens, {budget['flops']:.3g} FLOPs"
