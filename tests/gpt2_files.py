"""Random GPT-2s in the files of Hugging Face."""

import json

import numpy as np
import safetensors.numpy

SIZES = {"vocab_size": 97, "n_positions": 32, "n_embd": 24, "n_layer": 3, "n_head": 3}
CONFIG = {"model_type": "gpt2", "activation_function": "gelu_new", **SIZES}


def random_tensors(seed=0):
    """Tensors of a random model by their published names, large enough for every part to matter."""
    rng = np.random.default_rng(seed)
    width, hidden = SIZES["n_embd"], 4 * SIZES["n_embd"]
    shapes = {
        "wte.weight": (SIZES["vocab_size"], width),
        "wpe.weight": (SIZES["n_positions"], width),
        "ln_f.weight": (width,),
        "ln_f.bias": (width,),
    }
    for i in range(SIZES["n_layer"]):
        shapes |= {
            f"h.{i}.ln_1.weight": (width,),
            f"h.{i}.ln_1.bias": (width,),
            f"h.{i}.attn.c_attn.weight": (width, 3 * width),
            f"h.{i}.attn.c_attn.bias": (3 * width,),
            f"h.{i}.attn.c_proj.weight": (width, width),
            f"h.{i}.attn.c_proj.bias": (width,),
            f"h.{i}.ln_2.weight": (width,),
            f"h.{i}.ln_2.bias": (width,),
            f"h.{i}.mlp.c_fc.weight": (width, hidden),
            f"h.{i}.mlp.c_fc.bias": (hidden,),
            f"h.{i}.mlp.c_proj.weight": (hidden, width),
            f"h.{i}.mlp.c_proj.bias": (width,),
        }
    draw = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    scales = ("ln_1.weight", "ln_2.weight", "ln_f.weight")
    around = {name: float(name.endswith(scales)) for name in draw}
    return {name: (around[name] + 0.3 * x).astype(np.float32) for name, x in draw.items()}


def write(folder, tensors, *, config=CONFIG, prefix="", shards=1):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {prefix + name: value for name, value in tensors.items()}
    if shards == 1:
        safetensors.numpy.save_file(tensors, folder / "model.safetensors")
        return folder
    places = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = dict(list(tensors.items())[i::shards])
        safetensors.numpy.save_file(part, folder / file)
        places |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder
