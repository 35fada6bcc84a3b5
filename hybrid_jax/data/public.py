"""Documents from public data sets: TensorFlow Datasets and the Hugging Face hub.

TFDS is read through `tfds.data_source`, which needs no TensorFlow. The data set must have been
prepared before, in the ArrayRecord format: a download may take hours and fails late where there is
no network, so none starts here.
"""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hybrid_jax.data import content
from hybrid_jax.data.content import Content
from hybrid_jax.errors import UserError, require
from hybrid_jax.runtime.files import one_line

# Fields that may hold the text, in order of preference, unless the source names one.
_FIELDS = ("text", "article", "passage", "content", "sentence", "description")


def tfds_documents(argument: str) -> Iterator[str]:
    """The texts of one split of a data set of TFDS that is prepared on this machine.

    Args:
      argument: "NAME[/CONFIG]:SPLIT[:FIELD]", such as "scientific_papers/arxiv:test:article".

    Raises:
      UserError: if the argument is malformed, or the data set is not prepared; the message
        has the command that prepares it.
    """
    name, split, field = _parts("tfds", argument)
    builder, command = _tfds_builder(name, split)
    try:
        rows = builder.as_data_source(split=split)
    except NotImplementedError as error:
        raise UserError(
            f"{name} is prepared in {builder.data_dir} in a format that cannot be read without "
            f"TensorFlow: run  {command} --overwrite  where there is a network."
        ) from error
    return _texts(f"tfds:{name}", field, (rows[number] for number in range(len(rows))))


def tfds_contents(argument: str) -> dict[str, Content]:
    """The content of the files of the same split. Raises UserError as `tfds_documents`."""
    name, split, _ = _parts("tfds", argument)
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
    except tfds.core.registered.DatasetNotFoundError as error:
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


def hub_documents(argument: str) -> Iterator[str]:
    """The texts of one split of a data set of the Hugging Face hub, or of its cache.

    Args:
      argument: "NAME[/CONFIG]:SPLIT[:FIELD]", where NAME may have an owner: "Salesforce/wikitext/
        wikitext-103-raw-v1:test". A NAME with one slash is an owner's data set without a config.

    Raises:
      UserError: if the package `datasets` is missing, or the data set cannot be read.
    """
    name, split, field = _parts("hf", argument)
    rows = _hub("load_dataset", argument, split=split)
    return _texts(f"hf:{name}", field, iter(rows))


def hub_contents(argument: str) -> dict[str, Content]:
    """The content of the same texts, stamped with the data set's version. Raises UserError."""
    builder = _hub("load_dataset_builder", argument)
    # The folder has the commit of the hub in its name.
    stamp = Path(builder.cache_dir).name
    return {f"hf:{argument}": content.of_texts(stamp, lambda: hub_documents(argument))}


def _hub(function: str, argument: str, **settings: str) -> Any:
    """The result of a function of the package `datasets` for a data set."""
    name, _, _ = _parts("hf", argument)
    datasets = require("datasets", "eval")
    words = name.split("/")
    path, config = ("/".join(words[:2]), words[2] if len(words) > 2 else None)
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
    first = next(rows, None)
    if first is None:
        raise UserError(f"{where} has no rows in this split: choose another.")
    wanted = [field] if field else _FIELDS
    chosen = next((name for name in wanted if name in first), None)
    if chosen is None:
        raise UserError(
            f"{where} has no field {' or '.join(wanted)}: add one of {', '.join(first)} after "
            "the split."
        )
    empty = True
    for number, row in enumerate(itertools.chain([first], rows), start=1):
        value = row[chosen]
        try:
            text = value.decode("utf-8") if isinstance(value, bytes) else value
        except UnicodeDecodeError as error:
            raise UserError(
                f"Row {number} of {where} is not UTF-8 in its field {chosen}: name another field."
            ) from error
        if not isinstance(text, str | None):
            raise UserError(
                f"Row {number} of {where} has no string in its field {chosen}: name another field."
            )
        if text and text.strip():
            empty = False
            yield text
    if empty:
        raise UserError(f"{where} has no text in its field {chosen}: name another field.")
