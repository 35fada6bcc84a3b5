"""Published weights: the folder of a model, here or from the Hugging Face hub, and its tensors."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hybrid_jax.errors import UserError, require
from hybrid_jax.runtime.decode import parse_json
from hybrid_jax.runtime.files import expanded, one_line

CONFIG, WEIGHTS, TORCH_WEIGHTS = "config.json", "model.safetensors", "pytorch_model.bin"
INDEX = f"{WEIGHTS}.index.json"  # of weights in several files


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
