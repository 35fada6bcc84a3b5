"""Documents from public data sets: TensorFlow Datasets and the Hugging Face hub.

TFDS is read through `tfds.data_source`, which needs no TensorFlow. The data set must have been
prepared before, in the ArrayRecord format: a download may take hours and fails late where there is
no network, so none starts here.
"""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hybrid_jax.data import content
from hybrid_jax.data.content import Content
from hybrid_jax.data.pairs import FIELDS, checked
from hybrid_jax.errors import UserError, require
from hybrid_jax.runtime.files import one_line

# Fields that may hold the text, in order of preference, unless the source names one.
_FIELDS = ("text", "article", "passage", "content", "sentence", "description")


def documents(kind: str, argument: str) -> Iterator[str]:
    """The texts of one split of a data set.

    Args:
      kind: "tfds", for a data set that is prepared on this machine, or "hf", for one of the hub or
        of its cache.
      argument: "NAME[/CONFIG]:SPLIT[:FIELD]", such as "scientific_papers/arxiv:test:article". NAME
        may have an owner: "Salesforce/wikitext/wikitext-103-raw-v1:test". One with a single slash
        is an owner's data set without a config on the hub.

    Raises:
      UserError: if the argument is malformed, the data set cannot be read or is not prepared, which
        the message says how to do, or the package `datasets` is missing.
    """
    name, _, field = _parts(kind, argument)
    return _texts(f"{kind}:{name}", field, _rows(kind, argument))


def _rows(kind: str, argument: str) -> Iterator[dict[str, Any]]:
    name, split, _ = _parts(kind, argument)
    if kind == "hf":
        return iter(_hub("load_dataset", argument, split=split))
    builder, command = _tfds_builder(name, split)
    try:
        rows = builder.as_data_source(split=split)
    except NotImplementedError as error:
        raise UserError(
            f"{name} is prepared in {builder.data_dir} in a format that cannot be read without "
            f"TensorFlow: run  {command} --overwrite  where there is a network."
        ) from error
    return (rows[number] for number in range(len(rows)))


def pairs(kind: str, argument: str) -> Iterator[tuple[str, str]]:
    """Prompt and answer of each row of the same data sets.

    Args:
      kind: "tfds" or "hf".
      argument: "NAME[/CONFIG]:SPLIT[:PROMPT+ANSWER]", with the names of the fields.

    Raises:
      UserError: as `documents`, or if an answer is missing.
    """
    name, _, field = _parts(kind, argument)
    fields = tuple(field.split("+")) if field else FIELDS
    if len(fields) != len(FIELDS):
        raise UserError(f"{kind}:{argument} names no two fields: write PROMPT+ANSWER.")
    _, found = _fields(f"{kind}:{name}", [fields], _rows(kind, argument))
    return (checked(*values) for values in found)


def contents(kind: str, argument: str, texts: Callable[[], Iterator[str]]) -> dict[str, Content]:
    """The content of the same split: of its files, or of `texts` of the hub with their version."""
    name, split, _ = _parts(kind, argument)
    if kind == "hf":
        builder = _hub("load_dataset_builder", argument)
        # The folder has the commit of the hub in its name.
        return {f"hf:{argument}": content.of_texts(Path(builder.cache_dir).name, texts)}
    builder, _ = _tfds_builder(name, split)
    paths = (Path(path) for path in builder.info.splits[split].filepaths)
    return {path.name: content.of_file(path) for path in paths if path.is_file()}


def _tfds_builder(name: str, split: str) -> tuple[Any, str]:
    """The builder of a data set that is prepared here, and the command that prepares it anew."""
    import tensorflow_datasets as tfds  # slow to import, and needed by few

    folder = os.environ.get("TFDS_DATA_DIR") or tfds.core.constants.DATA_DIR
    command = f"tfds build {name} --file_format=array_record --data_dir={folder}"
    try:
        builder = tfds.builder(name, data_dir=folder, file_format="array_record")
    # A ValueError for a name of another form, or a config that is none.
    except (tfds.core.registered.DatasetNotFoundError, ValueError) as error:
        raise UserError(
            f"TFDS knows no data set {name!r} and none is prepared in {folder}: see "
            "tensorflow.org/datasets/catalog for the names."
        ) from error
    except ImportError as error:
        raise UserError(
            f"TFDS needs the package {error.name} to read {name}: pip install {error.name}."
        ) from error
    if not builder.data_path.exists():
        raise UserError(
            f"{name} is not prepared in {folder}: run  {command}  where there is a network."
        )
    if split not in builder.info.splits:
        known = ", ".join(builder.info.splits)
        raise UserError(f"{name} has no split {split!r}: choose one of {known}.")
    return builder, command


def _hub(function: str, argument: str, **settings: str) -> Any:
    """The result of a function of the package `datasets` for a data set."""
    name, _, _ = _parts("hf", argument)
    datasets = require("datasets", "eval")
    words = name.split("/")
    path, config = "/".join(words[:2]), "/".join(words[2:]) or None
    try:
        return getattr(datasets, function)(path, config, **settings)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"hf:{argument} cannot be read ({one_line(error)}): check name, config, split and "
            "network."
        ) from error


def _parts(kind: str, argument: str) -> tuple[str, str, str]:
    name, split, field = (*argument.split(":"), "", "")[:3]
    if not name or not split or argument.count(":") > 2:
        raise UserError(f"{kind}:{argument} is not {kind}:NAME[/CONFIG]:SPLIT[:FIELD].")
    return name, split, field


def _texts(where: str, field: str, rows: Iterator[dict[str, Any]]) -> Iterator[str]:
    empty = True
    wanted = [(field,)] if field else [(name,) for name in _FIELDS]
    (chosen,), found = _fields(where, wanted, rows)
    for _, text in found:
        if text and text.strip():
            empty = False
            yield text
    if empty:
        raise UserError(f"{where} has no text in its field {chosen}: name another field.")


def _fields(
    where: str, wanted: Sequence[tuple[str, ...]], rows: Iterator[dict[str, Any]]
) -> tuple[tuple[str, ...], Iterator[tuple[Any, ...]]]:
    """The first of the wanted fields that there are; and of each row, its place and their texts."""
    first = next(rows, None)
    if first is None:
        raise UserError(f"{where} has no rows in this split: choose another.")
    chosen = next((names for names in wanted if set(names) <= set(first)), None)
    if chosen is None:
        known = " or ".join("+".join(names) for names in wanted)
        raise UserError(
            f"{where} has no field {known}: add one of {', '.join(first)} after the split."
        )

    def found() -> Iterator[tuple[Any, ...]]:
        for number, row in enumerate(itertools.chain([first], rows), start=1):
            place = f"Row {number} of {where}"
            yield place, *(_text(place, name, row[name]) for name in chosen)

    return chosen, found()


def _text(place: str, field: str, value: Any) -> str | None:
    """The value of a field. Raises UserError unless it is a text or None."""
    try:
        text = value.decode("utf-8") if isinstance(value, bytes) else value
    except UnicodeDecodeError as error:
        raise UserError(
            f"{place} is not UTF-8 in its field {field}: name another field."
        ) from error
    if not isinstance(text, str | None):
        raise UserError(f"{place} has no string in its field {field}: name another field.")
    return text
