"""The config.json of GPT-2, Llama, Qwen2 and Qwen3, and ours: a translation in both directions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from hybrid_jax.config import Experiment
from hybrid_jax.errors import UserError, resolved
from hybrid_jax.models import rotary
from hybrid_jax.models.settings import FORM, ModelConfig
from hybrid_jax.models.transformer import Transformer
from hybrid_jax.runtime.decode import checked

_NOT_GIVEN: Any = object()
_Fields = dict[str, tuple[Any, ...]]
# Fields that must have one of these values where they are given: others are another network.
_COMMON: _Fields = {"quantization_config": (None,)}
_ROTARY = _COMMON | {"hidden_act": ("silu",), "pretraining_tp": (1,),
                     "partial_rotary_factor": (None, 1.0)}  # fmt: skip
_GPT2: _Fields = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"), "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,), "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
}  # fmt: skip
_KNOWN = {"gpt2": _COMMON | _GPT2, "llama": _ROTARY, "qwen2": _ROTARY, "qwen3": _ROTARY}


def read_config(config: Mapping[str, Any], path: Path) -> tuple[dict[str, Any], int]:
    """The config of a model as settings of `model`, and the rows of its embedding.

    Raises:
      UserError: naming the first field that is missing, of a wrong type, or asks for what is not
        there.
    """

    def read(field: str, kind: Any, default: Any = _NOT_GIVEN) -> Any:
        value = config.get(field)
        if value is None and default is not _NOT_GIVEN:
            return default
        if value is None:
            raise UserError(f"{path} has no {field}, which a {family} has: fetch it again.")
        return checked(value, kind, f"In {path}, {field}")

    def refuse(field: str, value: Any, known: Sequence[Any]) -> NoReturn:
        also = " or ".join(map(str, known))
        raise UserError(f"{path} has {field}={value!r}, and hybrid_jax only {also}.")

    family = config.get("model_type")
    if not isinstance(family, str) or family not in _KNOWN:
        refuse("model_type", family, sorted(_KNOWN))
    for field, known in _KNOWN[str(family)].items():
        if field in config and config[field] not in known:
            refuse(field, config[field], known)
    if family == "gpt2":
        return {
            "layers": read("n_layer", int), "width": read("n_embd", int),
            "heads": read("n_head", int), "mlp_width": read("n_inner", int, None),
            "position": "learned", "positions": read("n_positions", int),
            "norm_epsilon": read("layer_norm_epsilon", float, 1e-5), "norm_bias": True,
            "qkv_bias": True, "out_bias": True, "tied": True, "head_bias": False,
        }, read("vocab_size", int)  # fmt: skip
    layers, heads = read("num_hidden_layers", int), read("num_attention_heads", int)
    if heads < 1:
        refuse("num_attention_heads", heads, ["1 or more"])
    kinds = read("layer_types", tuple[str, ...], ())
    if sliding := [kind for kind in kinds if kind != "full_attention"]:
        refuse("layer_types", sliding[0], ["full_attention"])
    slides = not kinds and read("use_sliding_window", bool, False)
    if slides and config.get("sliding_window") and read("max_window_layers", int, 0) < layers:
        refuse("use_sliding_window", True, [False])
    theta, scaling = _rope(config, path, refuse)
    biased = read("attention_bias", bool, False)
    width, groups = read("hidden_size", int), read("num_key_value_heads", int, heads)
    head = read("head_dim", int, 128 if family == "qwen3" else width // heads)
    return {
        "layers": layers, "width": width, "heads": heads,
        "kv_heads": None if groups == heads else groups,
        "head_width": None if head * heads == width else head,
        "mlp_width": read("intermediate_size", int), "activation": "silu", "gated": True,
        "positions": read("max_position_embeddings", int), "rope_theta": theta,
        "rope_scaling": scaling, "norm": "rms", "norm_epsilon": read("rms_norm_eps", float),
        "qkv_bias": biased or family == "qwen2", "out_bias": biased and family != "qwen2",
        "mlp_bias": family == "llama" and read("mlp_bias", bool, False),
        "tied": read("tie_word_embeddings", bool, False), "head_bias": False,
        "qk_norm": family == "qwen3",
    }, read("vocab_size", int)  # fmt: skip


def _rope(config: Mapping[str, Any], path: Path, refuse: Any) -> tuple[float, str | None]:
    """Base and scaling of rotary wavelengths, in the fields of today or in those before them."""
    field = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    given = config.get(field) or {}
    if not isinstance(given, Mapping):
        raise UserError(f"In {path}, {field}={given!r} should be an object.")
    theta = given.get("rope_theta", config.get("rope_theta", 10_000.0))
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in ("default", "llama3"):
        refuse(f"{field}.rope_type", kind, ["default", "llama3"])
    scaling = None
    if kind == "llama3":
        original = "original_max_position_embeddings"
        names = ("factor", "low_freq_factor", "high_freq_factor", original)
        numbers = [checked(given.get(n), float, f"In {path}, {field}.{n}") for n in names]
        scaling = f"llama3:{','.join(map(str, numbers))}"
    return checked(theta, float, f"In {path}, rope_theta"), scaling


def write_config(experiment: Experiment, network: Transformer) -> dict[str, Any]:
    """A network as the config of the family that has its form.

    Raises:
      UserError: if none has, naming the first setting that differs.
    """
    model = resolved(experiment.model)
    common = {"vocab_size": network.vocab_size, "tie_word_embeddings": model.tied,
              "torch_dtype": "float32"}  # fmt: skip
    if model.position == "learned":
        config = common | {
            "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_layer": model.layers,
            "n_embd": model.width, "n_head": model.heads, "n_inner": network.hidden,
            "n_positions": model.positions, "layer_norm_epsilon": model.norm_epsilon,
            "activation_function": "gelu_new",
        }  # fmt: skip
    else:
        family = "qwen3" if model.qk_norm else "llama"
        if model.qkv_bias and not model.out_bias:
            family = "qwen2"
        name = family.capitalize()
        config = common | {
            "model_type": family, "architectures": [f"{name}ForCausalLM"],
            "num_hidden_layers": model.layers, "hidden_size": model.width,
            "num_attention_heads": model.heads, "num_key_value_heads": network.groups,
            "head_dim": network.head_size, "intermediate_size": network.hidden,
            "hidden_act": "silu", "rms_norm_eps": model.norm_epsilon,
            "max_position_embeddings": model.positions or experiment.data.length,
            "rope_theta": model.rope_theta, "attention_bias": model.qkv_bias,
            "mlp_bias": model.mlp_bias,
        }  # fmt: skip
        if stretch := rotary.scaling(model.rope_scaling):
            config["rope_scaling"] = {
                "rope_type": "llama3", "factor": stretch.factor, "low_freq_factor": stretch.low,
                "high_freq_factor": stretch.high,
                "original_max_position_embeddings": int(stretch.original),
            }  # fmt: skip
    found = resolved(ModelConfig(**read_config(config, Path())[0]))
    for name in FORM:
        here, there = getattr(model, name), getattr(found, name)
        if here != there and name not in ("mlp_ratio", "mlp_width"):
            raise UserError(
                f"No {config['model_type']} has model.{name}={here}, only {there}: this model "
                "cannot be exported."
            )
    return config
