"""Trains an experiment, then evaluates it and shows samples.

    python -m hybrid_jax.main --config=configs/gamma_hybrid.py
    python -m hybrid_jax.main --config=mdlm:small --workdir=runs/mdlm --config.train.steps=20000
    python -m hybrid_jax.main --workdir=runs/mdlm
    python -m hybrid_jax.main --workdir=runs/tuned --init=runs/mdlm \\
        --config.data.source=pairs:questions.jsonl --config.train.steps=2000

Running it again with the same workdir continues from the newest checkpoint, on any devices; the
workdir alone stands for the settings of its run. SIGTERM and Ctrl-C save the current step first;
the exit status is 75 after SIGTERM and 130 after Ctrl-C.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from hybrid_jax.errors import UserError
from hybrid_jax.runtime import command_line
from hybrid_jax.runtime.command_line import path_of
from hybrid_jax.runtime.files import check_writable, expanded

if TYPE_CHECKING:
    from hybrid_jax.config import Experiment


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    interrupted = "the same command continues from the newest checkpoint"
    return command_line.run_command(_parser(), argv, run_experiment, interrupted=interrupted)


def run_experiment(options: argparse.Namespace) -> None:
    """Runs the experiment that the options describe, from text to samples."""
    if options.init_step is not None and not options.init:
        raise UserError("--init_step has no effect without --init: leave it out.")
    experiment = read_experiment(options)
    if options.profile:
        check_writable(options.profile, folder=True)
    # JAX and friends start slowly, so they are imported after the flags have been checked.
    from hybrid_jax.generation import summary
    from hybrid_jax.interop.workdirs import network_of
    from hybrid_jax.runtime import processes as distributed
    from hybrid_jax.runtime.preemption import Signals
    from hybrid_jax.runtime.quiet import quieten_orbax
    from hybrid_jax.training import flops, loop, workdir

    folder = expanded(options.workdir or f"runs/{experiment.name}")
    quieten_orbax()
    distributed.start(options.coordinator, options.processes, options.process)
    distributed.assert_same("configuration", experiment.to_json(), difference=workdir.difference)

    with Signals() as signals, contextlib.ExitStack() as stack:
        distributed.raise_on_all(workdir.check, folder, experiment)
        if options.init:
            given = options.init, options.init_step
            distributed.raise_on_all(workdir.check_origin, folder, *given)
        known = distributed.raise_on_all(workdir.load_data, folder)
        distributed.on_process0(stack.enter_context, workdir.held(folder))
        distributed.check_shared(folder)
        run = loop.open_run(experiment, known=known)
        distributed.say(summary.introduction(run, folder))
        profile = expanded(options.profile) if options.profile else None
        params = origin = None
        if options.init and not (folder / "config.json").exists():
            model, params = network_of(
                options.init, experiment, step=options.init_step, mesh=run.mesh
            )
            if model.tokenizer.fingerprint != run.tokenizer.fingerprint:
                raise UserError(
                    f"The records have another tokenizer than {options.init}: leave out "
                    "data.tokenizer, or choose another data.dir."
                )
            distributed.say(f"starting from step {model.step} of {options.init}")
            origin = {"workdir": options.init, "step": model.step, **flops.budget(model)}
        state = loop.train(
            run, folder, signals, params=params, origin=origin, say=distributed.say, profile=profile
        )
        summary.finish(run, folder, state)


def read_experiment(options: argparse.Namespace) -> "Experiment":
    """The experiment of --config, or else of the workdir, or else of --init, with the settings of
    the command line.

    Raises:
      UserError: if there is none, or something is wrong with it.
    """
    begun = options.workdir and os.path.isfile(expanded(options.workdir) / "config.json")
    if options.init and not options.workdir:
        raise UserError("--init needs a --workdir for the run that it starts.")
    if options.config:
        values = command_line.read_config(options.config)
    elif not (begun or options.init):
        raise UserError("Say what to train, for example --config=configs/gamma_hybrid.py.")
    from hybrid_jax.config import Experiment
    from hybrid_jax.data import manifest as manifests
    from hybrid_jax.training import archive, workdir

    archive.require_folder(expanded(options.init))
    settings = dict(options.settings)
    if not options.config:
        source = options.workdir if begun else options.init
        values = workdir.load(expanded(source)).to_config()
        if not begun and "data.source" in settings:
            settings = {"data.dir": "", "data.valid_source": ""} | settings
    if options.init and (options.config or not begun):
        name = workdir.load(expanded(options.init)).data.tokenizer
        kind, _, place = name.partition(":")
        gone = kind in ("saved", "gpt2") and not os.path.exists(expanded(place))
        # Where the text is another one, a tokenizer that is made for a text would be too.
        other = options.config or "data.source" in settings
        if gone or (other and kind in ("sentencepiece", "char")):
            name = f"saved:{expanded(options.init).absolute()}"
        data = values.get("data") if options.config else None
        records = settings.get("data.dir", data.get("dir") if isinstance(data, Mapping) else "")
        there = records and isinstance(records, str) and manifests.find(expanded(records))
        if not there:  # records have their own
            settings = {"data.tokenizer": name} | settings
    if options.init and options.config:  # of a file, whose network is a fresh one
        settings = workdir.form(expanded(options.init)) | settings
    return Experiment.from_config(values, settings)


def _parser() -> argparse.ArgumentParser:
    parser = command_line.Parser(
        prog="python -m hybrid_jax.main",
        description="Trains an experiment, then evaluates it and shows samples.",
        epilog=command_line.SETTINGS,
        compiles=True,
    )
    add = parser.add_argument
    add("--config", default="", metavar="FILE.py[:SIZE]", help="what to train (see below)")
    add("--workdir", default="", type=path_of, metavar="DIR",
        help="folder of the run (default: runs/NAME); "
        "without --config, the run to continue")  # fmt: skip
    add("--init", default="", type=path_of, metavar="DIR",
        help="workdir of a trained run to start from: its network, its tokenizer and, without "
        "--config, its settings")  # fmt: skip
    add("--init_step", type=command_line.step_of,
        help="its checkpoint, or 'best' on validation (default: newest)")  # fmt: skip
    add("--profile", default="", type=path_of, metavar="DIR",
        help="folder for a trace of a few training steps")  # fmt: skip
    command_line.add_processes(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
