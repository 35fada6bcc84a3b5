"""Trains an experiment, then evaluates it and shows samples.

    python -m hybrid_jax.main --config=configs/gamma_hybrid.py
    python -m hybrid_jax.main --config=configs/mdlm.py:small --workdir=runs/mdlm \\
        --config.train.steps=20000

Running it again with the same workdir continues from the newest checkpoint, on any devices. SIGTERM
and Ctrl-C save the current step first; the exit status is 75 after SIGTERM and 130 after Ctrl-C.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from hybrid_jax.errors import UserError, exit_status
from hybrid_jax.runtime.command_line import check_config_file, flag_mistakes

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, FILE.py or FILE.py:SIZE.")
_WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the run; runs/NAME if not given.")
# Not needed on one machine, on TPU pods and under SLURM.
_COORDINATOR = flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0.")
_PROCESSES = flags.DEFINE_integer("processes", None, "How many processes share the run.")
_PROCESS = flags.DEFINE_integer("process", None, "Number of this process, from 0.")


def main(argv: list[str]) -> int:
    """Command line; returns the exit status."""

    def command() -> None:
        parse(argv)
        run_experiment()

    return exit_status(command, interrupted="the same command continues from the newest checkpoint")


def run_experiment() -> None:
    """The experiment named by the flags, from text to samples."""
    # JAX and friends start slowly, so they are imported after the flags have been checked.
    from hybrid_jax.config import Experiment
    from hybrid_jax.generation import summary
    from hybrid_jax.runtime import processes as distributed
    from hybrid_jax.runtime.preemption import Signals
    from hybrid_jax.runtime.quiet import quieten_orbax
    from hybrid_jax.training import loop, workdir

    experiment = Experiment.from_config(CONFIG.value)
    folder = Path(_WORKDIR.value or f"runs/{experiment.name}")
    quieten_orbax()
    distributed.start(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    distributed.assert_same("configuration", experiment.to_json(), difference=workdir.difference)
    lead = distributed.is_process0()

    def say(text: str) -> None:
        if lead:
            print(text, flush=True)

    with Signals() as signals:
        distributed.raise_on_all(lambda: workdir.check(folder, experiment))
        run = loop.open_run(experiment)
        claim = functools.partial(workdir.claim, folder, experiment, run.tokenizer)
        distributed.raise_on_all(lambda: claim() if lead else None)
        distributed.check_shared(folder)
        say(summary.introduction(run, folder))
        state = loop.train(run, folder, signals, say=say)
        summary.finish(run, folder, state)


def parse(argv: list[str]) -> None:
    """Parses the flags. Raises UserError for a mistake in them."""
    logging.set_verbosity(logging.WARNING)
    for argument in argv:
        name, _, value = argument.lstrip("-").partition("=")
        if name == "config":
            check_config_file(value)
    app.define_help_flags()
    with flag_mistakes():
        rest = flags.FLAGS(argv)
    if len(rest) > 1:
        raise UserError(f"Unexpected argument {rest[1]!r}: write settings as --config.NAME=VALUE.")
    if CONFIG.value is None:
        raise UserError("Say what to train, for example --config=configs/gamma_hybrid.py.")


if __name__ == "__main__":
    sys.exit(main(sys.argv))
