"""The settings of released HDLM models, and ours: a translation in both directions.

The released ``config.json`` holds the settings of the PyTorch code of arXiv 2504.06416. Settings of
the network are translated exactly or refused, those of the schedule as nearly as possible, with a
note.
"""

import dataclasses
import operator
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn

from hybrid_jax import presets
from hybrid_jax.config import Experiment, effective_layout
from hybrid_jax.data.settings import DataConfig
from hybrid_jax.errors import UserError, resolved
from hybrid_jax.method.layout import Layout
from hybrid_jax.method.settings import ScheduleConfig
from hybrid_jax.models.settings import FORM, ModelConfig
from hybrid_jax.models.transformer import Transformer
from hybrid_jax.runtime.decode import checked

Kind = Literal["epsilon", "gamma"]

_FAMILIES: Mapping[str, Literal["block", "slide"]] = {"block": "block", "simple": "slide"}
_MISSING: Any = object()
# Equal settings: ours, theirs. Where a config lacks one of training, the preset's holds.
_SAME = {
    "model.layers": "model.n_blocks",
    "model.width": "model.hidden_size",
    "model.heads": "model.n_heads",
    "optimizer.learning_rate": "optim.lr",
    "optimizer.beta1": "optim.beta1",
    "optimizer.beta2": "optim.beta2",
    "optimizer.epsilon": "optim.eps",
    "optimizer.weight_decay": "optim.weight_decay",
    "optimizer.warmup_steps": "optim.warmup",
    "optimizer.clip_norm": "optim.grad_clip",
    "train.steps": "training.n_iters",
    "train.batch_size": "training.batch_size",
    "train.ema_decay": "training.ema",
}


def read_config(
    config: Mapping[str, Any], path: Path, *, name: str
) -> tuple[Kind, Experiment, int, list[str]]:
    """A released config as an experiment.

    Returns:
      kind, experiment, N, and notes as in `Released`.

    Raises:
      UserError: for a setting that is missing, of a wrong type, or of an architecture that we do
        not have.
    """

    def read(setting: str, kind: type, default: Any = _MISSING) -> Any:
        value: Any = config
        for key in setting.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is None:
            if default is _MISSING:
                raise UserError(
                    f"{path} has no {setting}: it is not the config of a released model."
                )
            return default
        return checked(value, kind, f"In {path}, {setting}")

    def refuse(setting: str, value: Any, known: str) -> NoReturn:
        raise UserError(f"{path} has {setting}={value!r}, but hybrid_jax supports only {known}.")

    # As the released loader does, the kind of graph decides where nothing else is said.
    graph = read("graph.type", str, "absorb")
    default = "gamma_hybrid" if graph == "QGamma" else "epsilon_hybrid"
    model_type = read("model_type", str, default)
    if model_type not in ("epsilon_hybrid", "gamma_hybrid"):
        refuse("model_type", model_type, "epsilon_hybrid and gamma_hybrid")
    kind: Kind = "gamma" if model_type == "gamma_hybrid" else "epsilon"
    if kind == "gamma" and graph not in ("QGamma", "absorb"):
        refuse("graph.type", graph, "QGamma and absorb")
    conditioned = read("model.transformer_sigma_conditioning", bool, kind == "gamma")
    scaled = read("model.scale_by_sigma", bool, kind == "gamma")
    if conditioned != (kind == "gamma"):
        known = "true for a γ-hybrid and false for an ε-hybrid"
        refuse("model.transformer_sigma_conditioning", conditioned, known)
    if kind == "gamma" and not scaled:
        refuse("model.scale_by_sigma", scaled, "true for a γ-hybrid")
    method = read("annealing.sampling_method", str, "SAR")
    if read("model.post_process_logits", bool, False) and method.startswith("AR"):
        refuse("annealing.sampling_method", method, "SAR where logits are post-processed")

    length = DataConfig(length=read("model.length", int)).length  # refuses one that is too long
    schedule, layout, notes = _read_schedule(read, refuse, length)
    base = Experiment.from_config(presets.sized(f"{kind}_hybrid", "base"))
    values = dataclasses.asdict(base) | {"name": name, "schedule": schedule, "layout": layout}
    if kind == "gamma":
        values["optimizer"] |= {"beta2": 0.999, "weight_decay": 0.0}
        values["train"] |= {"batch_size": 256}
    size = read("tokenizer.tokens", int, read("tokens", int, 0)) or read("tokenizer.tokens", int)
    values["data"] |= {"length": length}
    values["model"] |= {"dropout": read("model.dropout", float, 0.0), "dtype": "float32"}
    for ours, theirs in _SAME.items():
        section, setting = ours.split(".")
        preset = values[section][setting]
        default = _MISSING if section == "model" else preset
        values[section][setting] = read(theirs, type(preset), default)
    if kind == "gamma":
        gamma = read("graph.gamma", float) if graph == "QGamma" else 0.0
        values["noise"] = _noise("gamma", gamma)
        values["objective"] = {"parameterisation": "score", "time": "continuous"}
        mixed = graph == "QGamma" and read("model.hybrid_sigma_embedding", bool, True)
        values["model"]["condition"] = read("model.cond_dim", int)
        values["model"]["embedding_gamma"] = gamma if mixed else 0.0
    else:
        epsilon = read("training.epsilon", float)
        values["noise"] = _noise("epsilon", epsilon)
        time = "discrete" if schedule["family"] == "quenched_ar" else "continuous"
        values["objective"] = {"time": time}
        values["evaluation"] |= {"kernel": "absorbing", "time": time}
        if epsilon:
            values["objective"]["loss"] = "weighted_cross_entropy"
            values["objective"]["shown_weight"] = read("training.lambda", float, 1.0)
            values["sampling"] |= {"rule": "acs", "eta": 0.25, "guidance": "confidence"}
    return kind, Experiment.from_config(values), size, notes


def _noise(kernel: str, share: float) -> dict[str, Any]:
    return {"kernel": kernel, kernel: share} if share else {"kernel": "absorbing"}


def _read_schedule(
    read: Callable[..., Any], refuse: Callable[[str, Any, str], NoReturn], length: int
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Schedule, layout, and notes on what is not exact in them."""
    notes: list[str] = []
    family = read("annealing.type", str, "none")
    if family not in ("none", *_FAMILIES):
        refuse("annealing.type", family, f"none, {' and '.join(_FAMILIES)}")
    width = read("annealing.width", int, length)
    levels = read("annealing.tau", int, width)
    shifted = "shifted" in read("type", str, "aligned")
    alignment: Literal["aligned", "shifted"] = "shifted" if shifted else "aligned"
    if family == "none" or (family == "block" and width >= length):
        schedule = ScheduleConfig(family="flat", levels=levels)
    elif (family, width, levels) == ("block", 1, 1):
        schedule = ScheduleConfig(family="quenched_ar")
    else:
        schedule = ScheduleConfig(family=_FAMILIES[family], width=width, levels=levels)
        if family == "simple" and width != levels:
            notes.append(
                f"The released schedule 'simple' rounds the levels of width {width} and tau "
                f"{levels} in another way than slide."
            )
    context = read("annealing.attention.context_type", str, "causal")
    if context not in ("causal", "block_causal", "full"):
        refuse("annealing.attention.context_type", context, "causal, block_causal and full")
    whole = context != "causal" and schedule.family != "slide"
    ours: Literal["causal", "block_causal"] = "block_causal" if whole else "causal"
    if ours != context and schedule.family != "flat":
        notes.append(f"Settled tokens see each other '{context}' in the released code, and '{ours}'"
                     " here: it is what a cache allows.")  # fmt: skip
    if shifted and schedule.family != "quenched_ar":
        notes.append("Shifted windows see one row differently in the released code.")
    causal = read("annealing.attention.block_type", str, "full") == "causal"
    layout = Layout(alignment=alignment, causal_window=causal, context=ours)
    layout = effective_layout(layout, schedule.build(length))
    return dataclasses.asdict(schedule), dataclasses.asdict(layout), notes


def write_config(experiment: Experiment, network: Transformer) -> dict[str, Any]:
    """An experiment as a released config; `read_config` gives it back as far as it goes.

    Raises:
      UserError: if the released code has no such model, naming the setting.
    """
    experiment = experiment.resolved()
    noise, objective, data = experiment.noise, experiment.objective, experiment.data
    model, usual = experiment.model, resolved(ModelConfig())
    read = ("layers", "width", "heads", "condition", "embedding_gamma")
    score = objective.parameterisation == "score"
    embedding = noise.gamma if noise.kernel == "gamma" else 0.0
    for setting, value, wanted in (
        *((f"model.{n}", getattr(model, n), (getattr(usual, n),)) for n in FORM if n not in read),
        # Context and mean are one thing where shown tokens are right.
        ("objective.parameterisation", objective.parameterisation,
         ("mean", "score", "context") if noise.kernel == "absorbing" else ("mean", "score")),
        ("noise.kernel", noise.kernel, ("absorbing", "gamma" if score else "epsilon")),
        ("layout.documents", experiment.layout.documents, ("joined",)),
        ("schedule.family", experiment.schedule.family, ("block", "flat", "quenched_ar", "slide")),
        ("model.embedding_gamma", network.embedding_gamma, (0.0, embedding) if score else (0.0,)),
    ):  # fmt: skip
        if value not in wanted:
            known = " or ".join(dict.fromkeys(str(w) for w in wanted))
            raise UserError(
                f"The released format has no {setting}={value}, only {known}: this model cannot be "
                "exported."
            )
    if bool(network.condition) != score:
        raise UserError(
            f"The released format has model.condition for scores only, and this model has "
            f"{network.condition} with parameterisation {objective.parameterisation}: it cannot be "
            "exported."
        )
    schedule, layout = experiment.schedule, experiment.layout
    levels = schedule.build(data.length).levels
    width = {"flat": data.length, "quenched_ar": 1}.get(schedule.family, schedule.width)
    same = {theirs: operator.attrgetter(ours)(experiment) for ours, theirs in _SAME.items()}
    return _nested({
        **same,
        "model_type": "gamma_hybrid" if score else "epsilon_hybrid",
        "type": layout.alignment,
        "tokenizer.tokens": network.vocab_size,
        "tokenizer.model": data.tokenizer.partition(":")[0],
        "training.loss_type": "hybrid",
        "training.epsilon": noise.epsilon if noise.kernel == "epsilon" else 0.0,
        "training.lambda": 1.0 if objective.shown_weight is None else objective.shown_weight,
        "graph.type": "QGamma" if score else "absorb",
        "graph.gamma": embedding,
        "graph.report_all": False,
        "graph.expanded_sigma": True,
        "noise.type": "loglinear",
        "noise.ar_diffusion": False,
        "noise.expanded_sigma": True,
        "annealing.type": "simple" if schedule.family == "slide" else "block",
        "annealing.efficient": False,
        "annealing.width": width,
        "annealing.tau": levels,
        "annealing.eval_tau": levels,
        "annealing.sampling_method": "SAR",
        "annealing.sampling_eps": 1e-4,
        "annealing.attention.context_type": layout.context,
        "annealing.attention.block_type": "causal" if layout.causal_window else "full",
        "annealing.match_inference": True,
        "optim.optimizer": "AdamW",
        "optim.grad_clip": experiment.optimizer.clip_norm or 0.0,
        "optim.scheduler": "lambda" if score else "cosine",
        "model.type": "ddit",
        "model.cond_dim": network.condition or 128,
        "model.length": data.length,
        "model.dropout": network.dropout,
        "model.scale_by_sigma": score,
        "model.transformer_sigma_conditioning": score,
        "model.hybrid_sigma_embedding": bool(network.embedding_gamma),
        "model.post_process_logits": score,
        "model.use_timestep_embedding": score,
    })  # fmt: skip


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by dotted name, each section as a dict of its own."""
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *sections, last = name.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    return nested
