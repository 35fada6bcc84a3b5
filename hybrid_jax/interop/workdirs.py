"""Workdirs of models from elsewhere, and the parameters that a run takes from another.

A workdir has a checkpoint of step 0, from which everything else goes on: generation, evaluation,
and training with ``hybrid_jax.main --workdir=DIR``.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from hybrid_jax.config import EvaluationConfig, Experiment
from hybrid_jax.data import tokenizers
from hybrid_jax.data.settings import DataConfig
from hybrid_jax.data.tokenizers import huggingface
from hybrid_jax.data.tokenizers.base import DESCRIPTOR, Tokenizer
from hybrid_jax.errors import UserError, resolved
from hybrid_jax.interop import families, family_config
from hybrid_jax.interop.released import Released, load_released, require_empty
from hybrid_jax.method.layout import Layout
from hybrid_jax.method.settings import ScheduleConfig
from hybrid_jax.models.settings import FORM, ModelConfig
from hybrid_jax.models.transformer import Transformer
from hybrid_jax.optim import OptimizerConfig
from hybrid_jax.runtime import sharding, weights
from hybrid_jax.runtime.checkpoint import Checkpointer
from hybrid_jax.runtime.files import expanded, writing
from hybrid_jax.runtime.scratch import scratch_folder
from hybrid_jax.training import pretrained
from hybrid_jax.training import workdir as workdirs
from hybrid_jax.training.pretrained import Pretrained
from hybrid_jax.training.train_step import TrainSetup, TrainState

_LENGTH = 1024  # positions of an imported model's texts, where it has more


def workdir_from_released(
    source: str | Path,
    workdir: str | Path,
    *,
    tokenizer: str | Tokenizer,
    config: Mapping[str, Any] | None = None,
    settings: Mapping[str, str] | None = None,
) -> Released:
    """Makes a workdir of a released model: parameters and their average at step 0.

    Args:
      source: as for `load_released`.
      workdir: made; may exist if it is empty.
      tokenizer: that the model was trained with: gpt2:FOLDER, hf:NAME, byte, a folder in which one
        was saved, or the tokenizer itself.
      config: what to train and evaluate it for; None for what it was released as.
      settings: of a command line that replace some of it (see `Experiment.from_config`).

    Raises:
      UserError: as `load_released` and `Experiment.from_config`; if the tokenizer has another
        number of tokens, the experiment asks for another network or reads its output in another
        way, or `workdir` is not empty.
    """
    workdir = expanded(workdir)
    require_empty(workdir)  # before much is read
    spec, found = _named_tokenizer(tokenizer)
    released = load_released(source)
    if found.vocab_size != released.network.vocab_size:
        raise UserError(
            f"The tokenizer {spec} has {found.vocab_size} tokens and the released model has "
            f"{released.network.vocab_size}: name the tokenizer that it was trained with."
        )
    size = found.vocab_size if spec == "sentencepiece" else None
    data = dataclasses.replace(released.experiment.data, tokenizer=spec, vocab_size=size)
    own = dataclasses.replace(released.experiment, data=data)
    experiment = Experiment.from_config(own.to_config() if config is None else config, settings)
    _check_fits(experiment, own, found, FORM)
    meaning, wanted = experiment.objective.parameterisation, own.objective.parameterisation
    _check_same("objective.parameterisation", meaning, wanted)
    _write_workdir(workdir, experiment, found, _state(experiment, found, released.params))
    network = experiment.network(found.vocab_size)
    return dataclasses.replace(released, experiment=experiment, network=network)


def workdir_from_family(
    source: str, workdir: str | Path, *, settings: Mapping[str, str] | None = None
) -> Transformer:
    """Makes a workdir of a pretrained autoregressive model: its parameters as averages at step 0.

    They stay in the type of the files. There is no state of training: one starts from the workdir.

    Args:
      source: a folder, or a name on the Hugging Face hub (see `families` and `weights.find`).
      settings: of a command line.

    Raises:
      UserError: as `families` and `Experiment.from_config`; if the tokenizer has more tokens than
        the model, the settings ask for another network, or `workdir` is not empty.
    """
    workdir = expanded(workdir)
    require_empty(workdir)
    folder = weights.find(source, others=("tokenizer.json", "tokenizer_config.json"))
    path = folder / weights.CONFIG
    form, rows = family_config.read_config(weights.read_json(path), path)
    tokenizer = huggingface.load(folder)
    if tokenizer.vocab_size > rows:
        raise UserError(
            f"{path} has vocab_size={rows}, and the tokenizer beside it {tokenizer.vocab_size} "
            "tokens: fetch the one that belongs to it."
        )
    model = ModelConfig(**form)
    own = Experiment(
        name=folder.resolve().name,
        data=DataConfig(
            tokenizer=f"hf:{source}", length=min(model.positions or _LENGTH, _LENGTH)
        ),
        schedule=ScheduleConfig(family="quenched_ar"),
        layout=Layout(alignment="shifted"),
        model=model,
        optimizer=OptimizerConfig(learning_rate=2e-5, warmup_steps=100, beta2=0.95),
        evaluation=EvaluationConfig(time="discrete", draws=1),
    )  # fmt: skip
    experiment = Experiment.from_config(own.to_config(), settings)
    _check_fits(experiment, own, tokenizer, FORM)
    network = experiment.network(tokenizer.vocab_size)
    mesh = sharding.make_mesh(experiment.mesh)
    params = families.parameters(network, folder, rows, mesh)
    _write_workdir(workdir, experiment, tokenizer, {"ema": params})
    return network


def network_of(
    source: str | Path,
    experiment: Experiment,
    *,
    step: int | Literal["best"] | None = None,
    mesh: Mesh | None = None,
) -> tuple[Pretrained, Any]:
    """The model of another run, and its averaged parameters for an experiment to start from.

    The row of MASK is in every embedding and starts as it was initialised, where the other run
    never showed it. A network without conditioning may become one with it: its new parameters start
    so that they change nothing.

    Args:
      mesh: see `pretrained.load`.

    Raises:
      UserError: if `source` has no model, or it has another shape, alignment, tokenizer or meaning
        of the output than `experiment` asks for.
    """
    model = pretrained.load(source, step=step, mesh=mesh)
    grows = bool(experiment.model.condition) and not model.network.condition
    free = {"condition", "embedding_gamma"} if grows else set()
    shape = tuple(name for name in FORM if name not in free)
    _check_fits(experiment, model.experiment, model.tokenizer, shape)
    meaning, old = (e.objective.parameterisation for e in (experiment, model.experiment))
    # Mean and context are both logits of the clean token; ratios are something else.
    if (meaning == "score") != (old == "score"):
        _check_same("objective.parameterisation", meaning, old)
    params = model.params
    if grows:
        network = experiment.network(model.tokenizer.vocab_size)
        params = _with_condition(network, params, jax.random.key(experiment.train.seed))
    return model, params


def _with_condition(network: Transformer, params: Any, key: jax.Array) -> Any:
    """Parameters of a network without conditioning, in one with it that computes the same."""
    fresh = jax.jit(network.init)(key)
    # Fresh gates are 0, which would make every layer the identity: 1 leaves each as it was.
    open_gates = jnp.zeros((6, network.width)).at[jnp.array([2, 5])].set(1.0).reshape(-1)
    bias = jnp.broadcast_to(open_gates, fresh["layers"]["condition_bias"].shape)
    kernel = jnp.zeros_like(fresh["layers"]["condition"])
    layers = {**params["layers"], "condition": kernel, "condition_bias": bias}
    return {**params, "level": fresh["level"], "layers": layers}


def _check_same(name: str, new: object, old: object) -> None:
    if new != old:
        raise UserError(
            f"{name} is {new!r} in the settings and {old!r} in the model to start from: give "
            f"--config.{name}={old}."
        )


def _check_fits(
    experiment: Experiment, old: Experiment, tokenizer: Tokenizer, shape: tuple[str, ...]
) -> None:
    """Raises UserError if tokenizer, alignment or `shape` of the network are not the model's."""
    wanted, _, folder = experiment.data.tokenizer.partition(":")
    if wanted == "saved":
        found = tokenizers.load_saved(folder)
        if found.fingerprint != tokenizer.fingerprint:
            raise UserError(
                f"The tokenizer in {folder} is not that of the model to start from: name the "
                "workdir of that model, with --config.data.tokenizer=saved:WORKDIR."
            )
        wanted = found.name
    _check_same("data.tokenizer", wanted, tokenizer.name)
    if experiment.data.tokenizer == "sentencepiece":
        vocab_size = experiment.data.expected_vocab_size
        _check_same("data.vocab_size", vocab_size, tokenizer.vocab_size)
    new, model = resolved(experiment.model), resolved(old.model)
    if model.position == "learned":
        shape = (*shape, "positions")
    for name in shape:
        _check_same(f"model.{name}", getattr(new, name), getattr(model, name))
    _check_same("layout.alignment", experiment.layout.alignment, old.layout.alignment)


def _named_tokenizer(given: str | Tokenizer) -> tuple[str, Tokenizer]:
    """A tokenizer, and the `data.tokenizer` that prepares data with it."""
    if not isinstance(given, str):
        return tokenizers.name_of(given), given
    if (expanded(given) / DESCRIPTOR).exists():
        found = tokenizers.load_tokenizer(expanded(given))
        return tokenizers.name_of(found, given), found
    if given in ("sentencepiece", "char"):
        raise UserError(
            f"A {given} tokenizer is made for a text, and this model has one already: name the "
            "folder in which it was saved."
        )
    return given, tokenizers.make_tokenizer(given, (), vocab_size=0)


def _state(experiment: Experiment, tokenizer: Tokenizer, params: Any) -> TrainState:
    """The state of a training that starts from parameters."""
    setup = TrainSetup.build(experiment, tokenizer.vocab_size, tokenizer.bos, tokenizer.eos)
    optimizer = jax.jit(setup.optimizer.init)(params)
    return TrainState(step=jnp.int32(0), params=params, ema=params, optimizer=optimizer)


def _write_workdir(workdir: Path, experiment: Experiment, tokenizer: Tokenizer, state: Any) -> None:
    """A workdir with a checkpoint of step 0, whole or not at all."""
    settings = dataclasses.asdict(experiment)
    with writing(workdir), scratch_folder(workdir) as folder:
        workdirs.claim(folder, experiment, tokenizer)
        place = folder / "checkpoints"
        with Checkpointer(place, config=settings, background=False) as saver:
            saver.save(0, state)
        folder.rename(workdir)
