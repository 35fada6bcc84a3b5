"""Runs notebooks from top to bottom, and stores of their outputs what is worth storing.

    python colab/execute.py colab/quickstart.ipynb colab/hyperschedules.ipynb

Each runs in a new folder that is removed afterwards, with the settings of the environment (see the
second cell of each). Stored are printed text and pictures; counters, progress lines, times and
folders are not, so that a run that shows the same changes nothing in the file. Needs the extra
``dev``.
"""

from __future__ import annotations

import argparse
import base64
import itertools
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import nbclient
import nbformat

from hybrid_jax.errors import UserError, exit_status
from hybrid_jax.runtime.files import write_atomic

REPOSITORY = Path(__file__).resolve().parents[1]
LARGEST_PICTURE = 60_000  # bytes


def read(path: Path) -> nbformat.NotebookNode:
    """A notebook. Raises UserError if there is none."""
    try:
        return nbformat.read(path, as_version=4)
    except (OSError, nbformat.reader.NotJSONError) as error:
        raise UserError(f"The notebook {path} cannot be read: {error}.") from error


def execute(
    notebook: nbformat.NotebookNode, folder: Path, settings: Mapping[str, str]
) -> nbformat.NotebookNode:
    """Runs all cells in a kernel of its own, started in `folder` with `settings` as environment.

    Raises:
      nbclient.exceptions.CellExecutionError: at the first cell that fails.
    """
    notebook = clean(notebook, folder)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    client = nbclient.NotebookClient(
        notebook, timeout=3600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    paths = [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), **settings}
    client.execute(env={**os.environ, **environment})
    return clean(notebook, folder)


def clean(notebook: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    """A copy with what is worth storing; `folder` is where it ran.

    Raises:
      UserError: for a picture that is too large.
    """
    cells = []
    for number, old in enumerate(notebook.cells):
        cell = nbformat.v4.new_markdown_cell(old.source, id=old.id)
        if old.cell_type == "code":
            cell = nbformat.v4.new_code_cell(old.source, id=old.id)
            kept = [output for output in old.outputs if _is_worth_storing(output)]
            cell.outputs = [_without_paths(output, folder, number) for output in _joined(kept)]
        cells.append(cell)
    language = {"language_info": {"name": "python"}}
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return nbformat.v4.new_notebook(cells=cells, metadata={**kernel, **language})


def _is_worth_storing(output: nbformat.NotebookNode) -> bool:
    return output.output_type != "stream" or output.name == "stdout"


def _joined(outputs: list[nbformat.NotebookNode]) -> Iterator[nbformat.NotebookNode]:
    """Printed text in one piece: where it is cut is a matter of time."""
    for kind, group in itertools.groupby(outputs, lambda output: output.output_type):
        if kind == "stream":
            text = "".join(output.text for output in group)
            yield nbformat.v4.new_output("stream", name="stdout", text=text)
        else:
            yield from group


def _without_paths(output: nbformat.NotebookNode, folder: Path, cell: int) -> nbformat.NotebookNode:
    if output.output_type == "stream":
        text = output.text.replace(f"{folder}/", "").replace(str(folder), ".")
        text = re.sub(r"\b\d+(\.\d+)? s\b", "… s", text)
        return nbformat.v4.new_output("stream", name="stdout", text=text)
    data = {kind: value for kind, value in output.get("data", {}).items()
            if kind in ("text/plain", "image/png")}  # fmt: skip
    if "image/png" in data:
        size = len(base64.b64decode(data["image/png"]))
        if size > LARGEST_PICTURE:
            raise UserError(
                f"The picture of cell {cell} has {size} bytes, and {LARGEST_PICTURE} are allowed: "
                "draw a smaller one."
            )
        data["text/plain"] = "<Figure>"
    return nbformat.v4.new_output("display_data", data=data)


def _run(paths: list[str]) -> None:
    for name in paths:
        notebook = read(Path(name))
        with tempfile.TemporaryDirectory() as folder:
            done = execute(notebook, Path(folder), {})
        write_atomic(name, nbformat.writes(done, ensure_ascii=False) + "\n")
        print(f"{name}: {len(done.cells)} cells")


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Runs notebooks and stores their outputs.")
    parser.add_argument("notebook", nargs="+", metavar="FILE.ipynb")
    options = parser.parse_args()
    return exit_status(lambda: _run(options.notebook), interrupted="the notebook is as it was")


if __name__ == "__main__":
    sys.exit(main())
