"""Networks in the files of Hugging Face: random GPT-2s, and what any of them computes."""

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
    rewritten(folder, {prefix + name: value for name, value in tensors.items()}, shards=shards)
    return folder


def rewritten(folder, tensors, *, shards=1):
    """The weights of a folder anew, in one file or several."""
    (folder / "model.safetensors").unlink(missing_ok=True)
    if shards == 1:
        safetensors.numpy.save_file(tensors, folder / "model.safetensors")
        return
    places = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = dict(list(tensors.items())[i::shards])
        safetensors.numpy.save_file(part, folder / file)
        places |= dict.fromkeys(part, file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))


def reference(c, tensors, tokens):
    """Logits [R, rows] and features [R, D] of one text, float64, of the published formulas.

    Args:
      c: a config.json of GPT-2, Llama, Qwen2 or Qwen3.
      tensors: by their published names.
    """
    gpt2 = c["model_type"] == "gpt2"
    t = {n.removeprefix("transformer.").removeprefix("model."): x.astype(float)
         for n, x in tensors.items()}  # fmt: skip
    layers, heads = (c["n_layer"], c["n_head"]) if gpt2 else (2, c["num_attention_heads"])

    def product(x, name):
        weight = t[f"{name}.weight"]
        return x @ (weight if gpt2 else weight.T) + t.get(f"{name}.bias", 0.0)

    def norm(x, name):
        if gpt2:
            x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
            return x * t[f"{name}.weight"] + t[f"{name}.bias"]
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * t[f"{name}.weight"]

    def turned(x, place):
        half = x.shape[-1] // 2
        speed = c["rope_theta"] ** (-np.arange(half) / half)
        if scaled := c.get("rope_scaling"):
            length = 2 * np.pi / speed  # of a wave
            low, high = (scaled["original_max_position_embeddings"] / scaled[f"{x}_freq_factor"]
                         for x in ("low", "high"))  # fmt: skip
            mixed = (12 / length - 1.0) / (4.0 - 1.0)
            slow = speed / scaled["factor"]
            between = (1 - mixed) * slow + mixed * speed
            speed = np.where(length > low, slow, np.where(length < high, speed, between))
        angle = place * speed
        a, b = x[..., :half], x[..., half:]
        return np.concatenate([a * np.cos(angle) - b * np.sin(angle),
                               a * np.sin(angle) + b * np.cos(angle)], -1)  # fmt: skip

    past, rows = [([], []) for _ in range(layers)], []
    for place, token in enumerate(tokens):
        x = (
            t["wte.weight"][token] + t["wpe.weight"][place]
            if gpt2
            else t["embed_tokens.weight"][token]
        )
        for i, (keys, values) in enumerate(past):
            at = f"h.{i}" if gpt2 else f"layers.{i}"
            y = norm(x, f"{at}.ln_1" if gpt2 else f"{at}.input_layernorm")
            if gpt2:
                q, k, v = np.split(product(y, f"{at}.attn.c_attn"), 3)
            else:
                q, k, v = (product(y, f"{at}.self_attn.{n}_proj") for n in "qkv")
            head = len(q) // heads
            q, k, v = (z.reshape(-1, head) for z in (q, k, v))
            if c["model_type"] == "qwen3":
                q, k = (norm(z, f"{at}.self_attn.{n}_norm") for n, z in (("q", q), ("k", k)))
            if not gpt2:
                q, k = turned(q, place), turned(k, place)
            keys.append(np.repeat(k, heads // len(k), axis=0))
            values.append(np.repeat(v, heads // len(v), axis=0))
            scores = np.einsum("hk,mhk->hm", q, np.stack(keys)) / np.sqrt(head)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            mixed = np.einsum("hm,mhk->hk", weights, np.stack(values)).reshape(-1)
            x = x + product(mixed, f"{at}.attn.c_proj" if gpt2 else f"{at}.self_attn.o_proj")
            if gpt2:
                y = product(norm(x, f"{at}.ln_2"), f"{at}.mlp.c_fc")
                y = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
                x = x + product(y, f"{at}.mlp.c_proj")
            else:
                y = norm(x, f"{at}.post_attention_layernorm")
                gate = product(y, f"{at}.mlp.gate_proj")
                y = gate / (1 + np.exp(-gate)) * product(y, f"{at}.mlp.up_proj")
                x = x + product(y, f"{at}.mlp.down_proj")
        rows.append(norm(x, "ln_f" if gpt2 else "norm"))
    table = t["wte.weight"] if gpt2 else t["embed_tokens.weight"]
    features = np.stack(rows)
    return features @ t.get("lm_head.weight", table).T, features
