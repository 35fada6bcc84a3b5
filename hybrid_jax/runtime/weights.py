"""Published weights: the folder of a model, here or from the Hugging Face hub, and its tensors."""

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from hybrid_jax.errors import UserError, require
from hybrid_jax.runtime.decode import parse_json
from hybrid_jax.runtime.files import expanded, one_line, writing

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
    name, wanted = str(source), f"name a folder with {CONFIG} and {WEIGHTS}"
    if not of_hub(name):
        raise UserError(f"There is no folder {name}: {wanted}.")
    found = fetch(name, [CONFIG, WEIGHTS, INDEX, "model-*.safetensors", *others], wanted)
    if any(found.glob("*.safetensors")):
        return found
    return fetch(name, [CONFIG, TORCH_WEIGHTS, *others], wanted)


def of_hub(name: str) -> bool:
    """True if a model of the Hugging Face hub may have this name."""
    return re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name) is not None


def fetch(name: str, files: Sequence[str], wanted: str) -> Path:
    """A folder with those of some files that a model of the hub has.

    Args:
      wanted: what to do where it cannot be fetched.

    Raises:
      UserError: if it cannot.
    """
    try:
        hub = require("huggingface_hub", "eval")
        return Path(hub.snapshot_download(name, allow_patterns=files))
    except Exception as error:  # of several packages, and not all are OSError
        reason = str(error).rstrip(".") if isinstance(error, UserError) else one_line(error)
        raise UserError(
            f"There is no folder {name}, and no model of that name can be fetched ({reason}): "
            f"{wanted}, such as `hf download {name} --local-dir=FOLDER` makes where there is a "
            "network."
        ) from error


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


def save(folder: Path, arrays: Mapping[str, Any]) -> None:
    """Writes arrays by name as float32 to `WEIGHTS` in a folder, which is made where it is missing.

    Raises:
      UserError: if that is not possible.
    """
    found = {name: np.asarray(value, np.float32, order="C") for name, value in arrays.items()}
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            # The metadata that Hugging Face's loaders ask for.
            safetensors.numpy.save_file(found, folder / WEIGHTS, metadata={"format": "pt"})
        except safetensors.SafetensorError as error:  # also of a full disk
            raise OSError(str(error)) from error


class Tensors:
    """The tensors of a folder, of which parts are read when they are needed.

    Files of safetensors are opened for each read: what was read of a mapped file stays in memory
    until then. Files of PyTorch are read at once.
    """

    def __init__(self, folder: Path, *, prefix: str = ""):
        """Reads the names, shapes and types.

        Args:
          prefix: of names, which is left out where they have it.

        Raises:
          UserError: if there are no such files, one of them is damaged or missing, or torch is.
        """
        self._folder = folder
        self._found: dict[str, tuple[Path, str, list[int], str]] = {}
        self._loaded: dict[str, np.ndarray] = {}
        for path in _files(folder):
            if path.name == TORCH_WEIGHTS:
                loaded = _torch_tensors(path)
                known = {full: (list(x.shape), "F32") for full, x in loaded.items()}
                self._loaded |= loaded
            else:
                with _opened(path) as file:
                    parts = {full: file.get_slice(full) for full in file.keys()}  # noqa: SIM118
                    known = {full: (p.get_shape(), p.get_dtype()) for full, p in parts.items()}
            self._found |= {
                full.removeprefix(prefix): (path, full, *known) for full, known in known.items()
            }

    def __contains__(self, name: str) -> bool:
        return name in self._found

    def check(self, shapes: Mapping[str, Sequence[int]], unneeded: re.Pattern[str]) -> None:
        """Raises UserError for the first tensor that is missing or unexpected, or has another shape
        or no type of floats of 16 or 32 bits."""
        missing = [name for name in shapes if name not in self._found]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise UserError(
                f"{self._folder} has no tensor {missing[0]}{more}, which its config asks for."
            )
        for name, (path, full, have, kind) in self._found.items():
            if name not in shapes:
                if not unneeded.fullmatch(name):
                    raise UserError(
                        f"{path} has a tensor {full}, which its config does not ask for."
                    )
            elif have != list(shapes[name]):
                raise UserError(
                    f"In {path} the tensor {full} has the shape {have}, and its config asks for "
                    f"{list(shapes[name])}."
                )
            elif kind not in _TYPES:
                raise UserError(f"In {path} the tensor {full} is {kind}: convert it to float32.")

    def dtype(self, names: Sequence[str]) -> np.dtype[Any]:
        """The type that some tensors have, and float32 where they differ."""
        kinds = {self._found[name][3] for name in names}
        return np.dtype(_TYPES[kinds.pop()] if len(kinds) == 1 else np.float32)

    def read(self, name: str, index: tuple[slice, ...] | None = None) -> np.ndarray:
        """A part of a tensor, or all of it. Raises UserError if its file has changed or cannot be
        read."""
        path, full, shape, _ = self._found[name]
        index = index or tuple(slice(size) for size in shape)
        if full in self._loaded:
            return self._loaded[full][index]
        with _opened(path) as file:
            found: np.ndarray = file.get_slice(full)[index]
        return found


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            yield file
    except (OSError, safetensors.SafetensorError) as error:
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


def _torch_tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file of PyTorch, as float32."""
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path} can only be read with torch: install that, or convert the file to {WEIGHTS} "
            "elsewhere."
        ) from error
    try:
        # weights_only: a pickle may run any code, and this file comes from elsewhere.
        values = torch.load(path, map_location="cpu", weights_only=True)
        return {name: value.float().numpy() for name, value in values.items()}
    except Exception as error:  # a cut file raises whatever its format does
        raise UserError(f"{path} cannot be read ({one_line(error)}): fetch it again.") from error
