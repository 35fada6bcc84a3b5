"""The plan of a preparation: what is read, what is held out, and the tokenizer of it all."""

import dataclasses
import itertools
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hybrid_jax.data import chunks, inputs, remote, sources, splits
from hybrid_jax.data.chunks import Plan
from hybrid_jax.data.mixture import mixed
from hybrid_jax.data.pairs import is_pairs, texts
from hybrid_jax.data.splits import HeldOut
from hybrid_jax.data.tokenizers import check_records, make_tokenizer, reads_all


def parts(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The sources, the validation source and the tokenizer of records."""
    return *mixed(settings["source"]), settings["valid_source"], settings["tokenizer"]


def plan(folder: Path, settings: Mapping[str, Any], workers: int) -> Plan:
    """The plan in the folder, or a new one, and with it the tokenizer."""
    if there := Plan.load(folder):
        return there
    *mixture, valid_source, name = parts(settings)
    found = tuple(one for part in dict.fromkeys(parts(settings)) for one in inputs.read(part))
    paths = (Path(one.name) for one in found)
    is_local = not any(remote.is_remote(one.name) for one in found)
    size = sum(path.stat().st_size for path in paths if path.is_file())
    if is_local and size < chunks.CHARACTERS:
        workers = 1
    for part in (*mixture, valid_source):
        check_records(name, part)
    if valid_source:
        apart = splits.digests(valid_source)
        size = apart.size + sum(splits.size(source, workers=workers) for source in mixture)
        held_out = [apart] * len(mixture)
    else:
        # Enough for a record: a byte token has a byte, others several.
        least = settings["length"] * (2 if name == "byte" else 8)
        share = settings["valid_every"]
        held_out = [
            splits.held_out(source, every=share, least=least, workers=workers) for source in mixture
        ]
        size = sum(chosen.size for chosen in held_out)
    # A text of one source is not trained on where it is held out of another.
    digests = frozenset().union(*(chosen.digests for chosen in held_out))
    held_out = [dataclasses.replace(chosen, digests=digests) for chosen in held_out]
    read = list(zip(mixture, held_out, strict=True))
    every = reads_all(name)
    if every and valid_source:
        read.append((valid_source, HeldOut()))
    written = (
        text
        for part, chosen in read
        for is_held_out, pieces in splits.passages(part, held_out=chosen)
        if every or not is_held_out
        for piece in pieces
        for text in texts(piece)
    )
    tokenizer = make_tokenizer(name, written, vocab_size=settings.get("vocab_size", 0))
    made = Path(tempfile.mkdtemp(dir=folder))
    tokenizer.save(made)
    try:
        made.rename(folder / chunks.TOKENIZER)
    except OSError:  # it is there: another host was faster
        shutil.rmtree(made)
    valid_parts = sources.parts(valid_source) if valid_source else []
    of_source = [sources.parts(source) for source in mixture]
    made_plan = Plan(
        inputs=found,
        parts=(*itertools.chain(*of_source), *valid_parts),
        sources=tuple(map(len, of_source)),
        valid_parts=len(valid_parts),
        size=size,
        characters=chunks.CHARACTERS,
        limits=tuple(
            chosen.limit for chosen, own in zip(held_out, of_source, strict=True) for _ in own
        ),
        pair_length=settings["length"] if is_pairs(settings["source"]) else 0,
        held_out=tuple(sorted(digest.hex() for digest in digests)),
    )
    made_plan.save(folder)
    return made_plan
