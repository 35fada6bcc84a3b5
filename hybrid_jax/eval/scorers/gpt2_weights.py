"""GPT-2 weights from files in the layout of Hugging Face, or from its hub."""

from __future__ import annotations

import importlib
import json
import math
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from hybrid_jax.data.tokenizers import gpt2 as tokenizers
from hybrid_jax.data.tokenizers.base import Tokenizer
from hybrid_jax.errors import UserError
from hybrid_jax.eval.scorers.gpt2 import GPT2, Config
from hybrid_jax.runtime.files import one_line

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
# With the files of the tokenizer.
_WANTED = [CONFIG, WEIGHTS, INDEX, "model-*", "vocab.json", "merges.txt"]
_INSTALL = "install it with: pip install 'hybrid_jax[eval]'"

# Tensors of a layer: our name, theirs (after "h.<number>."), axes. Theirs are [in, out].
_LAYER: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("norm_attention", "ln_1.weight", ("width",)),
    ("norm_attention_bias", "ln_1.bias", ("width",)),
    ("qkv", "attn.c_attn.weight", ("width", "qkv")),
    ("qkv_bias", "attn.c_attn.bias", ("qkv",)),
    ("out", "attn.c_proj.weight", ("width", "width")),
    ("out_bias", "attn.c_proj.bias", ("width",)),
    ("norm_mlp", "ln_2.weight", ("width",)),
    ("norm_mlp_bias", "ln_2.bias", ("width",)),
    ("mlp_in", "mlp.c_fc.weight", ("width", "hidden")),
    ("mlp_in_bias", "mlp.c_fc.bias", ("hidden",)),
    ("mlp_out", "mlp.c_proj.weight", ("hidden", "width")),
    ("mlp_out_bias", "mlp.c_proj.bias", ("width",)),
)
_WHOLE: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("embedding", "wte.weight", ("tokens", "width")),
    ("positions", "wpe.weight", ("context", "width")),
    ("norm", "ln_f.weight", ("width",)),
    ("norm_bias", "ln_f.bias", ("width",)),
)
# Buffers that older files carry: the causal mask, and what it is filled with.
_BUFFER = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")


def load(source: str | Path) -> GPT2:
    """A scorer from a folder, or from the Hugging Face hub by name.

    Args:
      source: folder with `config.json` and `model.safetensors`, or with several files and
        `model.safetensors.index.json`; or a name such as "gpt2-large", which `huggingface_hub`
        looks up among its own downloads, and fetches.

    Raises:
      UserError: if files or packages are missing, or hold no GPT-2 with a tied head.
    """
    return _read(_folder(source), source)


def load_with_tokenizer(source: str | Path) -> tuple[GPT2, Tokenizer]:
    """`load`, and the tokenizer whose two files lie beside the weights. Raises as `load`."""
    folder = _folder(source)
    return _read(folder, source), tokenizers.load(folder)


def _read(folder: Path, source: str | Path) -> GPT2:
    config = _config(folder / CONFIG)
    return GPT2(name=str(source), config=config, params=_parameters(folder, config))


def _folder(source: str | Path) -> Path:
    folder = Path(source).expanduser()
    return folder if folder.is_dir() else _download(str(source))


def _download(name: str) -> Path:
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        raise UserError(f"There is no folder {name}: name one with {CONFIG} and {WEIGHTS}.")
    try:
        hub = importlib.import_module("huggingface_hub")
        errors = importlib.import_module("huggingface_hub.errors")
    except ImportError as error:
        raise UserError(
            f"There is no folder {name}, and huggingface_hub, which would fetch a model of that "
            "name, is not installed: name a folder, or pip install huggingface_hub."
        ) from error
    try:
        return Path(hub.snapshot_download(name, allow_patterns=_WANTED))
    except (OSError, ValueError, errors.HfHubHTTPError) as error:
        raise UserError(
            f"There is no folder {name}, and no model of that name could be fetched "
            f"({one_line(error)}): name a folder with {CONFIG} and {WEIGHTS}."
        ) from error


def _config(path: Path) -> Config:
    values = _json(path)
    # What would make it another network, with the value that GPT-2 has.
    expected = {
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "tie_word_embeddings": True,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    }
    for name, value in expected.items():
        if (found := values.get(name, value)) != value:
            raise UserError(
                f"{path} describes another network than GPT-2: {name} is {found!r} and not "
                f"{value!r}."
            )
    try:
        return Config(
            vocab_size=values["vocab_size"],
            context=values["n_positions"],
            width=values["n_embd"],
            layers=values["n_layer"],
            heads=values["n_head"],
            hidden=values.get("n_inner") or 4 * values["n_embd"],
            epsilon=float(values.get("layer_norm_epsilon", 1e-5)),
        )
    except KeyError as error:
        raise UserError(f"{path} does not give {error.args[0]} of a GPT-2.") from error
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} gives sizes that are no numbers: {one_line(error)}.") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"A scorer needs the file {path}: {one_line(error)}.") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged ({one_line(error)}): fetch it again.") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} is damaged: it holds no JSON object.")
    return values


def _files(folder: Path) -> list[Path]:
    """The weight files of a folder."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        raise UserError(f"{folder} holds neither {WEIGHTS} nor {INDEX}.")
    places = _json(folder / INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(p, str) for p in places.values()):
        raise UserError(f"{folder / INDEX} is damaged: it has no weight_map.")
    return [folder / name for name in sorted(set(places.values()))]


def _parameters(folder: Path, config: Config) -> dict[str, Any]:
    try:
        safetensors = importlib.import_module("safetensors")
    except ImportError as error:
        raise UserError(f"Reading a scorer's weights needs safetensors: {_INSTALL}.") from error

    # Destination of each tensor: its name here, the layer it fills, its shape.
    wanted: dict[str, tuple[str, int | None, tuple[int, ...]]] = {
        theirs: (ours, None, config.shape(axes)) for ours, theirs, axes in _WHOLE
    }
    stacked: dict[str, np.ndarray] = {}
    for ours, theirs, axes in _LAYER:
        shape = config.shape(axes)
        stacked[ours] = np.empty((config.layers, *shape), np.float32)
        for layer in range(config.layers):
            wanted[f"h.{layer}.{theirs}"] = (ours, layer, shape)

    whole: dict[str, np.ndarray] = {}
    head = None
    for path in _files(folder):
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                for full_name in file.keys():  # noqa: SIM118 - it is no mapping
                    name = full_name.removeprefix("transformer.")
                    if _BUFFER.fullmatch(name):
                        continue
                    if name != "lm_head.weight" and name not in wanted:
                        raise UserError(
                            f"{path} holds {full_name}, which a GPT-2 with {config.layers} layers "
                            "does not have."
                        )
                    value = np.asarray(file.get_tensor(full_name), np.float32)
                    if name == "lm_head.weight":
                        head = value
                        continue
                    ours, number, shape = wanted.pop(name)
                    if value.shape != shape:
                        raise UserError(
                            f"{full_name} in {path} has shape {value.shape} and not {shape}, as "
                            f"{CONFIG} says."
                        )
                    if number is None:
                        whole[ours] = value
                    else:
                        stacked[ours][number] = value
        except (OSError, safetensors.SafetensorError) as error:
            raise UserError(f"The weights {path} cannot be read: {one_line(error)}.") from error
    if wanted:
        more = f" and {len(wanted) - 1} more tensors" if len(wanted) > 1 else ""
        raise UserError(f"The weights in {folder} lack {next(iter(wanted))}{more}.")
    if head is not None and not np.array_equal(head, whole["embedding"]):
        raise UserError(f"The weights in {folder} have a head that is not tied to the embedding.")
    if not all(math.isfinite(float(x.sum())) for x in (*whole.values(), *stacked.values())):
        raise UserError(f"The weights in {folder} hold values that are not finite.")
    return {
        **{name: jnp.asarray(value) for name, value in whole.items()},
        "layers": {name: jnp.asarray(value) for name, value in stacked.items()},
    }
