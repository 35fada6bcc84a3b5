"""Pretrained autoregressive models in the files of Hugging Face: GPT-2, Llama, Qwen2 and Qwen3.

A folder holds ``config.json``, ``model.safetensors`` (or several such files and their index) and
``tokenizer.json``. Networks are the same up to names and layout: theirs have one tensor a layer and
are [out, in] but in GPT-2; ours are stacked and [in, out]. SmolLM2 and Qwen2.5 have the forms of
Llama and Qwen2.

Their vocabulary may have more rows than the tokenizer has tokens. Ours has the N tokens and MASK,
whose row starts as the mean of theirs: a point among the embeddings that the layers know, which
says that some token is there, and not which (a row of its own, drawn at random, would lie outside).
"""

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hybrid_jax.config import Experiment
from hybrid_jax.errors import UserError
from hybrid_jax.interop.family_config import write_config
from hybrid_jax.models.transformer import Transformer
from hybrid_jax.runtime import sharding, weights
from hybrid_jax.runtime.checkpoint import named_leaves
from hybrid_jax.runtime.json_text import write_json
from hybrid_jax.runtime.weights import CONFIG, Tensors

_ATTENTION, _MLP = "layers.{}.self_attn.", "layers.{}.mlp."
_Q, _K, _V = (f"{_ATTENTION}{x}_proj" for x in "qkv")
# Modules of theirs by our parameters: one for each part where several are joined here.
_LLAMA: Mapping[str, str | tuple[str, ...]] = {
    "embedding": "embed_tokens",
    "norm": "norm",
    "head/kernel": "lm_head",
    "layers/norm_attention": "layers.{}.input_layernorm",
    "layers/qkv": (_Q, _K, _V),
    "layers/query": (_Q,),
    "layers/key_value": (_K, _V),
    "layers/norm_q": f"{_ATTENTION}q_norm",
    "layers/norm_k": f"{_ATTENTION}k_norm",
    "layers/out": f"{_ATTENTION}o_proj",
    "layers/norm_mlp": "layers.{}.post_attention_layernorm",
    "layers/mlp_gate": f"{_MLP}gate_proj",
    "layers/mlp_in": f"{_MLP}up_proj",
    "layers/mlp_out": f"{_MLP}down_proj",
}
_GPT2: Mapping[str, str | tuple[str, ...]] = {
    "embedding": "wte",
    "position_embedding": "wpe",
    "norm": "ln_f",
    "layers/norm_attention": "h.{}.ln_1",
    "layers/qkv": "h.{}.attn.c_attn",
    "layers/out": "h.{}.attn.c_proj",
    "layers/norm_mlp": "h.{}.ln_2",
    "layers/mlp_in": "h.{}.mlp.c_fc",
    "layers/mlp_out": "h.{}.mlp.c_proj",
}
_PARTED = ("layers/qkv", "layers/query", "layers/key_value")
_TURNED = (*_PARTED, "head/kernel", "layers/out", "layers/mlp_gate", "layers/mlp_in",
           "layers/mlp_out")  # fmt: skip
_HEAD = "lm_head.weight"
# A tied head, which is the embedding, and buffers of older files.
_UNNEEDED = re.compile(r"lm_head\.weight|h\.\d+\.attn\.(bias|masked_bias)|.*rotary_emb\.inv_freq")
_CHUNK = 8192  # rows of the embedding that are added up at a time


def _sources(network: Transformer, leaf: str) -> tuple[tuple[str, ...], bool, bool]:
    """Names of the tensors of a parameter, whether they are turned, and whether it has parts."""
    table = _GPT2 if network.position == "learned" else _LLAMA
    base = leaf.removesuffix("_bias")
    found = table[base]
    kind = "bias" if leaf.endswith("_bias") else "weight"
    names = tuple(f"{m}.{kind}" for m in ((found,) if isinstance(found, str) else found))
    turned = kind == "weight" and base in _TURNED and table is _LLAMA
    return names, turned, base in _PARTED


def _shapes(network: Transformer, rows: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the tensors of a folder whose embedding has so many rows."""
    for leaf, x in named_leaves(network.shapes).items():
        names, turned, parted = _sources(network, leaf)
        stacked = leaf.startswith("layers/")
        shape = list(x.shape[1:] if stacked else x.shape)
        if parted:
            parts = shape.pop(-2)
            shape[-1] *= parts // len(names)
        if leaf in ("embedding", "head/kernel"):
            shape[int(leaf != "embedding")] = rows
        for name in names:
            for layer in range(network.layers if stacked else 1):
                yield name.format(layer), tuple(shape[::-1] if turned else shape)


def parameters(network: Transformer, folder: Path, rows: int, mesh: jax.sharding.Mesh) -> Any:
    """The tensors of a folder as our parameters, in the type of the files.

    Each device reads what it holds, a parameter at a time.

    Args:
      rows: of their embedding, at least N.

    Raises:
      UserError: as `Tensors` and `Tensors.check`, for values that are not finite, and for a head
        that should be the embedding and is not.
    """
    table = Tensors(folder, prefix="transformer." if network.position == "learned" else "model.")
    table.check(dict(_shapes(network, rows)), _UNNEEDED)
    if network.tied and _HEAD in table:
        (embedding,), *_ = _sources(network, "embedding")
        for start in range(0, rows, _CHUNK):
            some = (slice(start, min(start + _CHUNK, rows)), slice(network.width))
            if not np.array_equal(table.read(_HEAD, some), table.read(embedding, some)):
                raise UserError(
                    f"In {folder} the head is not tied to the embedding, as its config says: fetch "
                    "it again."
                )

    def read(name: str, shape: Sequence[int], index: Sequence[slice]) -> np.ndarray:
        found = _read(network, table, name, shape, index)
        if not np.isfinite(found).all():
            raise UserError(f"The weights in {folder} are not finite: fetch them again.")
        return found

    shapes = network.shapes
    places = jax.tree.leaves(sharding.like_parameters(mesh, shapes, network.axes))
    leaves = []
    for (name, x), place in zip(named_leaves(shapes).items(), places, strict=True):
        part = functools.partial(read, name, x.shape)
        leaves.append(jax.make_array_from_callback(x.shape, place, part))
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def _read(
    network: Transformer, table: Tensors, leaf: str, shape: Sequence[int], index: Sequence[slice]
) -> np.ndarray:
    """A part of a parameter."""
    ranges = [range(*part.indices(size)) for part, size in zip(index, shape, strict=True)]
    names, turned, parted = _sources(network, leaf)
    stacked = leaf.startswith("layers/")
    every = [n.format(i) for n in names for i in range(network.layers if stacked else 1)]
    out = np.zeros([len(r) for r in ranges], table.dtype(every))

    def read(name: str, wanted: Sequence[range]) -> np.ndarray:
        parts = tuple(slice(r.start, r.stop) for r in wanted)
        return table.read(name, parts[::-1]).T if turned else table.read(name, parts)

    if not stacked and leaf in ("embedding", "head/kernel"):
        # Behind the real rows is that of MASK, and then nothing.
        axis, size = int(leaf != "embedding"), network.vocab_size
        real = list(ranges)
        real[axis] = range(ranges[axis].start, min(ranges[axis].stop, size))
        if len(real[axis]):
            out[tuple(slice(0, len(r)) for r in real)] = read(names[0], real)
        if leaf == "embedding" and size in ranges[0]:
            total = np.zeros(len(ranges[1]))
            for start in range(0, size, _CHUNK):
                chunk = read(names[0], [range(start, min(start + _CHUNK, size)), ranges[1]])
                total += chunk.astype(np.float32).sum(0, dtype=np.float64)
            out[size - ranges[0].start] = (total / size).astype(out.dtype)
        return out
    for layer in ranges[0] if stacked else (0,):
        place = out[layer - ranges[0].start] if stacked else out
        inner = ranges[1:] if stacked else ranges
        if not parted:
            place[...] = read(names[0].format(layer), inner)
            continue
        *before, parts, last = inner
        for part in parts:
            start, name = (0, names[part]) if len(names) > 1 else (part * shape[-1], names[0])
            columns = range(last.start + start, last.stop + start)
            place[..., part - parts.start, :] = read(name.format(layer), [*before, columns])
    return out


def export(experiment: Experiment, network: Transformer, params: Any, folder: Path) -> None:
    """Writes ``config.json`` and ``model.safetensors``, float32 and without MASK.

    Raises:
      UserError: if no family has such a model, or the folder cannot be written.
    """
    config = write_config(experiment, network)
    prefix = "transformer." if network.position == "learned" else "model."
    arrays: dict[str, np.ndarray] = {}
    for leaf, value in named_leaves(params).items():
        names, turned, parted = _sources(network, leaf)
        x = np.asarray(value, np.float32)
        if leaf in ("embedding", "head/kernel"):
            x = x[: network.vocab_size] if leaf == "embedding" else x[:, : network.vocab_size]
        for layer, one in enumerate(x if leaf.startswith("layers/") else [x]):
            parts = [one]
            if parted and len(names) > 1:
                parts = list(np.moveaxis(one, -2, 0))
            elif parted:
                parts = [one.reshape(*one.shape[:-2], -1)]
            for name, part in zip(names, parts, strict=True):
                full = name.format(layer)
                full = full if full.startswith("lm_head") else prefix + full
                arrays[full] = part.T if turned else part
    weights.save(folder, arrays)
    write_json(folder / CONFIG, config)
