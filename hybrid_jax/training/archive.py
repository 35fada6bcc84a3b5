"""A trained model as one file to pass on: a ZIP archive of a folder that opens as a workdir does.

The folder holds the settings, the tokenizer and the result of a run by the names that they have in
its workdir, a card for people, and the averaged parameters as safetensors, float32. It lacks the
state of a training, which can be started from it.
"""

import contextlib
import functools
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from hybrid_jax.data import prepare
from hybrid_jax.errors import UserError
from hybrid_jax.runtime import weights
from hybrid_jax.runtime.checkpoint import named_leaves
from hybrid_jax.runtime.files import one_line, writing
from hybrid_jax.runtime.json_text import write_json
from hybrid_jax.runtime.scratch import scratch_folder
from hybrid_jax.runtime.weights import CONFIG, WEIGHTS, Tensors, read_json
from hybrid_jax.training import workdir as workdirs

CARD, RESULT = "README.md", "result.json"


def write(file: Path, workdir: Path, params: Any, *, card: str) -> None:
    """Writes the archive of a finished run, whole or not at all. Equal runs give equal bytes.

    Args:
      params: of the step whose result the workdir holds.

    Raises:
      UserError: if something cannot be read or written.
    """
    data, known = workdirs.load(workdir).data, workdirs.load_data(workdir)
    with writing(file), scratch_folder(file) as folder:
        for name in (CONFIG, RESULT, workdirs.ORIGIN):
            if (workdir / name).exists():
                shutil.copyfile(workdir / name, folder / name)
        shutil.copytree(workdir / "tokenizer", folder / "tokenizer")
        if known:  # the place of the records is another elsewhere
            place = data.dir or str(prepare.default_dir(**data.preparation))
            records = workdirs.RunData(identity=known.identity, folder=place)
            write_json(folder / "records.json", records)
        (folder / CARD).write_text(card, encoding="utf-8")
        weights.save(folder, named_leaves(params))
        parts = sorted(path for path in folder.rglob("*") if path.is_file())
        whole = folder / "archive"
        with zipfile.ZipFile(whole, "w") as archive:
            for path in parts:
                entry = zipfile.ZipInfo(str(path.relative_to(folder)))  # of no date
                with archive.open(entry, "w", force_zip64=True) as out, open(path, "rb") as own:
                    shutil.copyfileobj(own, out)
        whole.rename(file)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Path]:
    """The folder of a model: a path that is no file, or what an archive holds, unpacked meanwhile.

    Raises:
      UserError: if a file is no such archive, or damaged.
    """
    if not path.is_file():
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            with zipfile.ZipFile(path) as archive:
                if not {CONFIG, WEIGHTS, RESULT} <= set(archive.namelist()):
                    raise zipfile.BadZipFile("it holds other things")
                archive.extractall(folder)  # checks all checksums
        except Exception as error:  # damaged bytes raise whatever zipfile meets in them
            raise UserError(
                f"{path} is no archive of a model, or damaged ({one_line(error).rstrip('.')}): "
                "fetch it again, or make it with python -m hybrid_jax.interop archive."
            ) from error
        try:
            yield Path(folder)
        except UserError as error:
            raise UserError(str(error).replace(folder, str(path))) from error


def require_folder(path: Path) -> None:
    """Raises UserError for an archive, where a workdir is to be written or read for long."""
    if path.is_file() and zipfile.is_zipfile(path):
        raise UserError(
            f"{path} is an archive, and this needs a folder: unpack it with "
            f"python -m zipfile -e {path} FOLDER, and name that."
        )


def holds(folder: Path) -> bool:
    """True for a folder that came out of an archive."""
    return (folder / WEIGHTS).exists()


def parameters(folder: Path, shapes: Any) -> tuple[int, Any]:
    """The step and the parameters of such a folder.

    Args:
      shapes: of the parameters, with the devices that are to hold them.

    Raises:
      UserError: if they cannot be read, or are others.
    """
    wanted, table = named_leaves(shapes), Tensors(folder)
    table.check({name: x.shape for name, x in wanted.items()}, re.compile("(?!)"))
    leaves = [
        jax.make_array_from_callback(x.shape, x.sharding, functools.partial(table.read, name))
        for name, x in wanted.items()
    ]
    step = read_json(folder / RESULT).get("step")
    if not isinstance(step, int):
        raise UserError(f"{folder / RESULT} is damaged: fetch it again.")
    return step, jax.tree.unflatten(jax.tree.structure(shapes), leaves)
