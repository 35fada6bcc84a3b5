"""Published weights: the folder of a model, here or from the Hugging Face hub, and its tensors."""

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from hybrid_jax.errors import UserError, require
from hybrid_jax.runtime.decode import parse_json
from hybrid_jax.runtime.files import expanded, one_line

CONFIG, WEIGHTS, TORCH_WEIGHTS = "config.json", "model.safetensors", "pytorch_model.bin"
INDEX = f"{WEIGHTS}.index.json"  # of weights in several files

_TYPES = {"F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}


def find(source: str | Path, *, others: Sequence[str] = ()) -> Path:
    """The folder of a model.

    Args:
      source: the folder, or a name on the hub such as "gpt2-large", which `huggingface_hub` looks
        up among its own downloads, and fetches.
      others: names of files to fetch besides the config and the weights.

    Raises:
      UserError: if there is no such folder and no such model can be fetched.
    """
    folder = expanded(source)
    if folder.is_dir():
        return folder
    name = str(source)
    wanted = f"name a folder with {CONFIG} and {WEIGHTS}"
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        raise UserError(f"There is no folder {name}: {wanted}.")
    try:
        fetch = require("huggingface_hub", "eval").snapshot_download
        files = [CONFIG, WEIGHTS, INDEX, "model-*.safetensors", *others]
        found = Path(fetch(name, allow_patterns=files))
        if not any(found.glob("*.safetensors")):
            found = Path(fetch(name, allow_patterns=[CONFIG, TORCH_WEIGHTS, *others]))
    except Exception as error:  # of several packages, and not all are OSError
        reason = str(error).rstrip(".") if isinstance(error, UserError) else one_line(error)
        raise UserError(
            f"There is no folder {name}, and no model of that name can be fetched ({reason}): "
            f"{wanted}, such as `hf download {name} --local-dir=FOLDER` makes where there is a "
            "network."
        ) from error
    return found


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a model. Raises UserError if it is missing or damaged."""
    try:
        values = parse_json(path.read_bytes())
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({one_line(error)}): name a folder with {CONFIG} and {WEIGHTS}."
        ) from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({one_line(error)}): fetch it again.") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no JSON object: fetch it again.")
    return values


def tensors(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of a folder with their names, one at a time, on the host.

    Those of safetensors have the type that they were stored in, others are float32.

    Raises:
      UserError: if there are no weights, they cannot be read, or a package is missing.
    """
    for path in _files(folder):
        read = _torch_tensors if path.name == TORCH_WEIGHTS else _safetensors
        try:
            yield from read(path)
        except UserError:
            raise
        except Exception as error:  # a cut file raises whatever its format does
            raise UserError(
                f"{path} cannot be read ({one_line(error)}): fetch it again, or convert it to "
                "float32."
            ) from error


def fill(
    places: Mapping[str, np.ndarray], folder: Path, unneeded: re.Pattern[str], *, prefix: str = ""
) -> dict[str, np.ndarray]:
    """Copies the tensors of a folder, one at a time.

    Args:
      places: where each goes, by name: arrays, or views of larger ones.
      unneeded: names of tensors that may be there besides.
      prefix: of names, which is left out where they have it.

    Returns:
      the tensors that are there besides.

    Raises:
      UserError: naming the first that is unexpected, missing, or of another shape or type than its
        place; and as `tensors`.
    """
    missing, besides = dict(places), {}
    for full_name, value in tensors(folder):
        name = full_name.removeprefix(prefix)
        place = missing.pop(name, None)
        if place is not None:
            if value.shape != place.shape:
                raise UserError(
                    f"In {folder} the tensor {full_name} has the shape {list(value.shape)}, and "
                    f"its config asks for {list(place.shape)}."
                )
            if value.dtype not in (np.float32, np.float16):
                raise UserError(
                    f"In {folder} the tensor {full_name} is {value.dtype}: convert it to float32."
                )
            place[...] = value
        elif unneeded.fullmatch(name):
            besides[name] = value
        else:
            raise UserError(
                f"{folder} has a tensor {full_name}, which its config does not ask for."
            )
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"{folder} has no tensor {next(iter(missing))}{more}, which its config asks for."
        )
    return besides


class Tensors:
    """The tensors of a folder's safetensors, of which parts are read when they are needed.

    Files are opened for each read: what was read of a mapped file stays in memory until then.
    """

    def __init__(self, folder: Path, *, prefix: str = ""):
        """Reads the names, shapes and types.

        Args:
          prefix: of names, which is left out where they have it.

        Raises:
          UserError: if there are no such files, or one of them is damaged or missing.
        """
        self._folder = folder
        self._found: dict[str, tuple[Path, str, list[int], str]] = {}
        for path in _files(folder):
            if path.suffix != ".safetensors":
                raise UserError(f"{path} is no safetensors: convert it to {WEIGHTS}.")
            with _opened(path) as file:
                for full in file.keys():  # noqa: SIM118 - it is no mapping
                    part = file.get_slice(full)
                    known = path, full, part.get_shape(), part.get_dtype()
                    self._found[full.removeprefix(prefix)] = known

    def check(self, shapes: Mapping[str, Sequence[int]], unneeded: re.Pattern[str]) -> None:
        """Raises UserError for the first tensor that is missing, unexpected or of another shape."""
        for name, shape in shapes.items():
            if name not in self._found:
                raise UserError(f"{self._folder} has no tensor {name}, which its config asks for.")
            path, full, have, _ = self._found[name]
            if have != list(shape):
                raise UserError(
                    f"In {path} the tensor {full} has the shape {have}, and its config asks for "
                    f"{list(shape)}."
                )
        for name, (path, full, *_) in self._found.items():
            if name not in shapes and not unneeded.fullmatch(name):
                raise UserError(f"{path} has a tensor {full}, which its config does not ask for.")

    def dtype(self, names: Sequence[str]) -> np.dtype[Any]:
        """The type that some tensors have, and float32 where they differ. Raises UserError if one
        is no float of 16 or 32 bits."""
        for name in names:
            path, full, _, kind = self._found[name]
            if kind not in _TYPES:
                raise UserError(f"In {path} the tensor {full} is {kind}: convert it to float32.")
        kinds = {self._found[name][3] for name in names}
        return np.dtype(_TYPES[kinds.pop()] if len(kinds) == 1 else np.float32)

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """A part of a tensor. Raises UserError if its file has changed or cannot be read."""
        path, full, *_ = self._found[name]
        with _opened(path) as file:
            found: np.ndarray = file.get_slice(full)[index]
        return found


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    library = require("safetensors", "eval")
    try:
        with library.safe_open(path, framework="numpy") as file:
            yield file
    except (OSError, library.SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({one_line(error)}): fetch it again.") from error


def _files(folder: Path) -> list[Path]:
    if (folder / INDEX).exists() and not (folder / WEIGHTS).exists():
        places = read_json(folder / INDEX).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(p, str) for p in places.values()):
            raise UserError(f"{folder / INDEX} has no weight_map: fetch it again.")
        return [folder / name for name in sorted(set(places.values()))]
    for name in (WEIGHTS, TORCH_WEIGHTS):
        if (folder / name).exists():
            return [folder / name]
    raise UserError(f"{folder} has neither {WEIGHTS} nor {TORCH_WEIGHTS}: fetch it again.")


def _safetensors(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    with require("safetensors", "eval").safe_open(path, framework="numpy") as file:
        for name in file.keys():  # noqa: SIM118 - it is no mapping
            yield name, file.get_tensor(name)


def _torch_tensors(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path} can only be read with torch: install that, or convert the file to {WEIGHTS} "
            "elsewhere."
        ) from error
    # weights_only: a pickle may run any code, and this file comes from elsewhere.
    for name, value in torch.load(path, map_location="cpu", weights_only=True).items():
        yield name, value.float().numpy()
