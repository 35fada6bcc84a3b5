"""Models from elsewhere, and for elsewhere: released HDLM models, and a start from another run.

    python -m hybrid_jax.interop import --from=hdlm-base-gamma-0.01 --workdir=runs/gamma \\
        --tokenizer=gpt2:data/gpt2
    python -m hybrid_jax.interop export --workdir=runs/epsilon_hybrid --out=released
    python -m hybrid_jax.interop start --from=runs/ar --config=configs/slide.py --workdir=runs/slide

`import` and `start` make a workdir with a checkpoint of step 0, from which everything else goes on:
`hybrid_jax.generate`, evaluation, and training with ``--config=WORKDIR/config.py``. Settings that
are to differ are given here, as ``--config.NAME=VALUE``. See docs/interop.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from absl import flags
from ml_collections import config_flags

from hybrid_jax.config import Experiment
from hybrid_jax.data import tokenizers
from hybrid_jax.data.tokenizers.base import DESCRIPTOR, Tokenizer
from hybrid_jax.errors import UserError, exit_status
from hybrid_jax.interop.released import (
    CONFIG,
    Released,
    export_released,
    load_released,
    require_empty,
)
from hybrid_jax.models.transformer import Transformer
from hybrid_jax.runtime.checkpoint import Checkpointer
from hybrid_jax.runtime.command_line import check_config_file, flag_mistakes
from hybrid_jax.runtime.files import unwritable, write_atomic
from hybrid_jax.runtime.quiet import quieten_orbax
from hybrid_jax.training import pretrained
from hybrid_jax.training import workdir as workdirs
from hybrid_jax.training.pretrained import Model
from hybrid_jax.training.train_step import TrainSetup, TrainState

__all__ = [
    "Released",
    "export_released",
    "load_released",
    "start_from",
    "workdir_from_released",
]

# What of `model` is the network itself, and not how it is trained or computed.
_ARCHITECTURE = (
    "layers", "width", "heads", "mlp_ratio", "activation", "condition", "embedding_gamma", "qk_norm"
)  # fmt: skip

_CONFIG_FILE = "config.py"
_CONFIG_TEXT = '''"""The settings of this folder's run, for --config of hybrid_jax.main."""

from pathlib import Path

from hybrid_jax.training import workdir


def get_config():
    return workdir.load(Path(__file__).parent).to_config()
'''


def workdir_from_released(
    source: str | Path | Released,
    workdir: str | Path,
    *,
    tokenizer: str | Tokenizer,
    experiment: Experiment | None = None,
) -> Released:
    """Makes a workdir of a released model: parameters and their average at step 0.

    Args:
      source: as for `load_released`, or what it returned.
      workdir: made; may exist if it is empty.
      tokenizer: that the model was trained with: gpt2:FOLDER, byte, a folder in which a tokenizer
        was saved, or the tokenizer itself.
      experiment: what to train and evaluate it for; None for what it was released as.

    Raises:
      UserError: as `load_released`; if the tokenizer has another number of tokens, the experiment
        asks for another network or reads its output in another way, or `workdir` is not empty.
    """
    workdir = Path(workdir)
    require_empty(workdir)  # before much is read
    spec, found = _tokenizer(tokenizer)
    released = source if isinstance(source, Released) else load_released(source)
    if found.vocab_size != released.network.vocab_size:
        raise UserError(
            f"The tokenizer {spec} has {found.vocab_size} tokens and the released model has "
            f"{released.network.vocab_size}: name the tokenizer that it was trained with."
        )
    own = _with_tokenizer(released.experiment, spec, found)
    if experiment is None:
        experiment = own
    _check_data(experiment, found)
    for name in _ARCHITECTURE:
        _check_same(f"model.{name}", getattr(experiment.model, name), getattr(own.model, name))
    goal, wanted = experiment.objective.parameterisation, own.objective.parameterisation
    _check_same("objective.parameterisation", goal, wanted)
    _check_same("layout.alignment", experiment.layout.alignment, own.layout.alignment)
    _write_workdir(workdir, experiment, found, released.params)
    network = experiment.network(found.vocab_size)
    return dataclasses.replace(released, experiment=experiment, network=network)


def start_from(
    source: str | Path,
    experiment: Experiment,
    workdir: str | Path,
    *,
    step: int | Literal["best"] | None = None,
) -> Model:
    """Makes a workdir whose step 0 is the network of another run: AR to hybrid, for example.

    The averaged parameters of `source` are copied; schedule, noise, objective and training are
    those of `experiment`. The row of MASK is in every embedding and starts as it was initialised,
    where the other run never showed it. A network without conditioning may become one with it: its
    new parameters start so that they change nothing.

    Returns:
      the model of `source`.

    Raises:
      UserError: if `source` has no model, it has another shape, alignment, tokenizer or meaning of
        the output than `experiment` asks for, or `workdir` is not empty.
    """
    workdir = Path(workdir)
    require_empty(workdir)
    model = pretrained.load(source, step=step)
    _check_data(experiment, model.tokenizer)
    grows = bool(experiment.model.condition) and not model.network.condition
    for name in _ARCHITECTURE:
        if not (grows and name in ("condition", "embedding_gamma")):
            old = getattr(model.experiment.model, name)
            _check_same(f"model.{name}", getattr(experiment.model, name), old)
    old_layout, old_goal = model.experiment.layout, model.experiment.objective
    _check_same("layout.alignment", experiment.layout.alignment, old_layout.alignment)
    goal = experiment.objective.parameterisation
    # Mean and context are both logits of the clean token; ratios are something else.
    if (goal == "score") != (old_goal.parameterisation == "score"):
        _check_same("objective.parameterisation", goal, old_goal.parameterisation)
    params = model.params
    if grows:
        network = experiment.network(model.tokenizer.vocab_size)
        params = _with_condition(network, params, jax.random.key(experiment.train.seed))
    _write_workdir(workdir, experiment, model.tokenizer, params)
    return model


def _with_condition(network: Transformer, params: Any, key: jax.Array) -> Any:
    """Parameters of a network without conditioning, in one with it that computes the same."""
    fresh = jax.jit(network.init)(key)
    # Fresh gates are 0, which would make every layer the identity: 1 leaves each as it was.
    open_gates = jnp.zeros((6, network.width)).at[jnp.array([2, 5])].set(1.0).reshape(-1)
    bias = jnp.broadcast_to(open_gates, fresh["layers"]["condition_bias"].shape)
    kernel = jnp.zeros_like(fresh["layers"]["condition"])
    layers = {**params["layers"], "condition": kernel, "condition_bias": bias}
    return {**params, "level": fresh["level"], "layers": layers}


def _with_tokenizer(experiment: Experiment, spec: str, tokenizer: Tokenizer) -> Experiment:
    size = tokenizer.vocab_size
    data = dataclasses.replace(experiment.data, tokenizer=spec, vocab_size=size)
    return dataclasses.replace(experiment, data=data)


def _check_same(name: str, new, old) -> None:
    if new != old:
        raise UserError(
            f"{name} is {new!r} in the settings and {old!r} in the model to start from: give "
            f"--config.{name}={old}."
        )


def _check_data(experiment: Experiment, tokenizer: Tokenizer) -> None:
    """Raises UserError if the experiment's data would have another tokenizer than the model."""
    wanted = experiment.data.tokenizer.partition(":")[0]
    _check_same("data.tokenizer", wanted, tokenizer.name)
    if wanted == "sentencepiece":
        _check_same("data.vocab_size", experiment.data.vocab_size, tokenizer.vocab_size)


def _tokenizer(given: str | Tokenizer) -> tuple[str, Tokenizer]:
    """A tokenizer, and the `data.tokenizer` that prepares data with it."""
    if not isinstance(given, str):
        return given.name, given
    if (Path(given).expanduser() / DESCRIPTOR).exists():
        found = tokenizers.load_tokenizer(Path(given).expanduser())
        return (f"gpt2:{given}" if found.name == "gpt2" else found.name), found
    if given == "sentencepiece":
        raise UserError(
            "A sentencepiece tokenizer is trained on a text, and this model has one already: name "
            "the folder in which it was saved."
        )
    return given, tokenizers.make_tokenizer(given, (), vocab_size=0)


def _write_workdir(workdir: Path, experiment: Experiment, tokenizer: Tokenizer, params) -> None:
    """A workdir with a checkpoint of step 0, whole or not at all."""
    setup = TrainSetup.build(experiment, tokenizer.vocab_size, tokenizer.bos)
    state = TrainState(
        step=jnp.int32(0),
        params=params,
        ema=params,
        optimizer=jax.jit(setup.optimizer.init)(params),
    )
    settings = dataclasses.asdict(experiment)
    try:
        workdir.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=workdir.parent, prefix=f".{workdir.name}-") as part:
            folder = Path(part) / "run"
            workdirs.claim(folder, experiment, tokenizer)
            with Checkpointer(folder / "checkpoints", config=settings) as saver:
                saver.save(0, state)
            write_atomic(folder / _CONFIG_FILE, _CONFIG_TEXT)
            folder.rename(workdir)
    except OSError as error:
        raise unwritable(workdir, error) from error


# ---------------------------------------------------------------------------------------------
# The command line.


def _experiment(options: argparse.Namespace, default: Experiment | None) -> Experiment:
    """The experiment of --config and its overrides, or `default` with them."""
    argv = ["interop", *options.overrides]
    values = flags.FlagValues()
    with flag_mistakes():
        if options.config is None:
            assert default is not None  # the parser asks `start` for a file
            config_flags.DEFINE_config_dict(
                "config", default.to_config(), flag_values=values, sys_argv=argv
            )
        else:
            check_config_file(options.config)
            argv.insert(1, f"--config={options.config}")
            config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
        values(argv)
    return Experiment.from_config(values.config)


def _import(options: argparse.Namespace) -> None:
    require_empty(Path(options.workdir))
    spec, tokenizer = _tokenizer(options.tokenizer)
    released = load_released(options.source)
    experiment = _with_tokenizer(released.experiment, spec, tokenizer)
    if options.config is not None or options.overrides:
        experiment = _experiment(options, experiment)
    workdir_from_released(released, options.workdir, tokenizer=tokenizer, experiment=experiment)
    for note in released.notes:
        print(f"note: {note}")
    print(f"{options.workdir} holds a {_size(released)} at step 0{_next(options.workdir)}")


def _export(options: argparse.Namespace) -> None:
    model = pretrained.load(options.workdir, step=options.step)
    export_released(model, options.out)
    folder = Path(options.out) / "tokenizer"
    try:
        folder.mkdir()
        model.tokenizer.save(folder)
    except OSError as error:
        raise unwritable(folder, error) from error
    print(f"{options.out} holds the averaged parameters of step {model.step}, and the tokenizer")


def _start(options: argparse.Namespace) -> None:
    experiment = _experiment(options, None)
    model = start_from(options.source, experiment, options.workdir, step=options.step)
    print(
        f"{options.workdir} starts from step {model.step} of {options.source}"
        f"{_next(options.workdir)}"
    )


def _size(model: Released) -> str:
    letter = {"epsilon": "ε", "gamma": "γ"}[model.kind]
    size = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    return f"{letter}-hybrid of {size:,} parameters"


def _next(workdir: str) -> str:
    return (
        f"; train it with\n  python -m hybrid_jax.main --config={Path(workdir) / _CONFIG_FILE} "
        f"--workdir={workdir}\nand generate with\n  python -m hybrid_jax.generate "
        f"--workdir={workdir}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m hybrid_jax.interop",
        description="Reads and writes released HDLM models, and starts a run from another.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, run, text: str):
        found = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        found.set_defaults(run=run)
        return found.add_argument

    settings = "its settings are overridden by --config.NAME=VALUE"
    add = command("import", _import, "Makes a workdir of a released model.")
    add("--from", dest="source", required=True, metavar="FOLDER",
        help=f"folder with {CONFIG} and weights, or a name on the Hugging Face hub")  # fmt: skip
    add("--workdir", required=True, metavar="DIR", help="folder to make")
    add("--tokenizer", required=True, help="gpt2:FOLDER, byte, or the folder of a saved one")
    add("--config", metavar="FILE", help=f"config file (default: as released); {settings}")
    add = command("export", _export, "Writes a trained model in the released format.")
    add("--workdir", required=True, metavar="DIR", help="folder of the trained run")
    add("--out", required=True, metavar="FOLDER", help="folder to make")
    add(
        "--step",
        type=pretrained.step_of,
        help="checkpoint to use, or 'best' on validation (default: newest)",
    )
    add = command("start", _start, "Makes a workdir that starts from the network of another.")
    add("--from", dest="source", required=True, metavar="DIR", help="workdir of the other run")
    add("--workdir", required=True, metavar="DIR", help="folder to make")
    add("--config", required=True, metavar="FILE", help=f"config file; {settings}")
    add(
        "--step",
        type=pretrained.step_of,
        help="checkpoint to use, or 'best' on validation (default: newest)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    given = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    overrides = [word for word in given if word.startswith("--config.")]
    options = parser.parse_args([word for word in given if not word.startswith("--config.")])
    options.overrides = overrides
    if overrides and options.command == "export":
        parser.error("export takes no settings")
    quieten_orbax()
    return exit_status(lambda: options.run(options), interrupted="nothing was written")


if __name__ == "__main__":
    sys.exit(main())
