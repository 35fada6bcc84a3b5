"""The files of the released HDLM models: `hdlm-group/hdlm-base-{epsilon,gamma}-*` on Hugging Face.

A folder holds ``config.json`` (nested settings of the PyTorch code of arXiv 2504.06416) and
``model.safetensors`` (or ``pytorch_model.bin``). Networks are the same up to names and layout:

- their linear weights are [out, in] and one tensor a layer, ours [in, out] and stacked;
- their vocabulary has N + 1 rows, MASK last; ours has the same rows, padded to a multiple of 128
  with zeros that nothing reads;
- an ε-hybrid gives logits of the clean token (parameterisation "mean"); a γ-hybrid gives the
  log-ratios of SEDD, which σ and log N scale outside of the network (parameterisation "score").

Every tensor is either used or one of `_UNNEEDED`; anything else is refused.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hybrid_jax.config import Experiment
from hybrid_jax.errors import UserError
from hybrid_jax.interop.released_config import Kind, read_config, write_config
from hybrid_jax.models.transformer import Transformer
from hybrid_jax.runtime import weights
from hybrid_jax.runtime.checkpoint import named_leaves
from hybrid_jax.runtime.files import check_writable, expanded
from hybrid_jax.runtime.json_text import write_json
from hybrid_jax.runtime.weights import CONFIG, Tensors
from hybrid_jax.training.pretrained import Pretrained

_SHARED = {
    "embedding": "vocab_embed.embedding",
    "norm": "output_layer.norm_final.weight",
    "head/kernel": "output_layer.linear.weight",
    "head/bias": "output_layer.linear.bias",
    "layers/norm_attention": "blocks.{}.norm1.weight",
    "layers/qkv": "blocks.{}.attn_qkv.weight",
    "layers/out": "blocks.{}.attn_out.weight",
    "layers/norm_mlp": "blocks.{}.norm2.weight",
    "layers/mlp_in": "blocks.{}.mlp.0.weight",
    "layers/mlp_in_bias": "blocks.{}.mlp.0.bias",
    "layers/mlp_out": "blocks.{}.mlp.2.weight",
    "layers/mlp_out_bias": "blocks.{}.mlp.2.bias",
}
_CONDITIONAL = {
    "level/in/kernel": "sigma_map.mlp.0.weight",
    "level/in/bias": "sigma_map.mlp.0.bias",
    "level/out/kernel": "sigma_map.mlp.2.weight",
    "level/out/bias": "sigma_map.mlp.2.bias",
    "layers/condition": "blocks.{}.adaLN_modulation.weight",
    "layers/condition_bias": "blocks.{}.adaLN_modulation.bias",
}
_FREQUENCIES = "rotary_emb.inv_freq"
# A buffer, which is a function of the width of a head; and what is made, and not read, without
# conditioning.
_UNNEEDED = re.compile(rf"{re.escape(_FREQUENCIES)}|sigma_map\.mlp\.[02]\.(weight|bias)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Released:
    """A released model under our names.

    Attributes:
      kind: "epsilon" or "gamma".
      experiment: schedule, noise, layout, objective, size and training that its config describes;
        the network computes in float32.
      params: float32, as `Transformer.init` would make them.
      notes: a sentence on each setting of its config that the experiment cannot express exactly.
    """

    kind: Kind
    experiment: Experiment
    network: Transformer
    params: Any
    notes: tuple[str, ...] = ()


def load_released(source: str | Path) -> Released:
    """Reads a released model.

    Args:
      source: a folder, or a name on the Hugging Face hub such as hdlm-group/hdlm-base-gamma-0.01
        (see `weights.find`).

    Raises:
      UserError: if files are missing or damaged, the config describes another architecture, or a
        tensor is missing, unexpected or of another shape or type.
    """
    folder = weights.find(source)
    path = folder / CONFIG
    kind, experiment, vocab_size, notes = read_config(
        weights.read_json(path), path, name=folder.resolve().name
    )
    network = experiment.network(vocab_size)
    return Released(
        kind=kind, experiment=experiment, network=network, params=parameters(network, folder),
        notes=tuple(notes),
    )  # fmt: skip


def export_released(model: Released | Pretrained, folder: str | Path) -> None:
    """Writes a model as a released one: ``config.json`` and ``model.safetensors``, float32.

    Padding rows of the vocabulary are left out. `load_released` of the folder gives everything
    else back bit for bit.

    Raises:
      UserError: if the released code has no such model, the folder is not empty, or it cannot be
        written.
    """
    folder = expanded(folder)
    require_empty(folder)
    config = write_config(model.experiment, model.network)
    leaves = {name: np.asarray(x) for name, x in named_leaves(model.params).items()}
    buffer = {_FREQUENCIES: _frequencies(model.network.head_size)}
    weights.save(folder, tensors(model.network, leaves) | buffer)
    write_json(folder / CONFIG, config)


def require_empty(folder: Path) -> None:
    """Raises UserError if `folder` exists and is not an empty folder, or could not be written."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not an empty folder: choose another.")
    check_writable(folder, folder=True)


# ---------------------------------------------------------------------------------------------
# Tensors.


def tensors(network: Transformer, leaves: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Released tensors by name, without buffers: views of our parameters by path.

    Rows of the vocabulary that are padding are in none of them.
    """

    def view(ours: str, x: np.ndarray) -> np.ndarray:
        if ours == "layers/qkv":  # [D, 3, D]
            x = x.reshape(network.width, -1)
        if ours != "embedding":
            x = x.T
        padded = ours == "embedding" or ours.startswith("head/")
        return x[: network.vocab_size + 1] if padded else x

    out: dict[str, np.ndarray] = {}
    for ours, theirs in (_SHARED | (_CONDITIONAL if network.condition else {})).items():
        if ours.startswith("layers/"):
            layers = enumerate(leaves[ours])
            out |= {theirs.format(layer): view(ours, x) for layer, x in layers}
        else:
            out[theirs] = view(ours, leaves[ours])
    return out


def parameters(network: Transformer, folder: Path) -> Any:
    """The tensors of a folder as our parameters, float32 in the structure of `Transformer.init`.

    Raises:
      UserError: as `Tensors.check`, or for other rotary frequencies than ours.
    """
    shapes = network.shapes
    leaves = {name: np.zeros(x.shape, np.float32) for name, x in named_leaves(shapes).items()}
    places, table = tensors(network, leaves), Tensors(folder)
    table.check({name: place.shape for name, place in places.items()}, _UNNEEDED)
    for name, place in places.items():
        place[...] = table.read(name)
    wanted = _frequencies(network.head_size)
    have = table.read(_FREQUENCIES) if _FREQUENCIES in table else wanted
    # Nothing else would show others than ours.
    if have.shape != wanted.shape or not np.allclose(have, wanted, rtol=2e-3, atol=0.0):
        raise UserError(
            f"In {folder} the tensor {_FREQUENCIES} is not that of a rotary base 10000."
        )
    return jax.tree.unflatten(jax.tree.structure(shapes), map(jnp.asarray, leaves.values()))


def _frequencies(head: int) -> np.ndarray:
    """The rotary buffer: in float32 throughout, which gives the released bits."""
    exponent = np.arange(0, head, 2, dtype=np.float32) / np.float32(head)
    return np.float32(1.0) / np.float32(10_000.0) ** exponent
