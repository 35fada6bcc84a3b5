"""Compiles an experiment for accelerators that this machine does not have.

    pip install 'hybrid_jax[tpu]'
    python -m hybrid_jax.aot --config=configs/gamma_hybrid.py:base --topology=v5e:16x16
    python -m hybrid_jax.aot --config=configs/slide.py:base --topology=v4:2x2x4 --step=both --fit
    python -m hybrid_jax.aot --config=configs/mdlm.py:base --topology=h100:8 --config.mesh.tensor=2

The training step and the sampling loop are the real ones, and so is the compiler. Their memory and
their communication are those of a run on such devices, and a program that does not fit is refused
here and not there. Nothing is executed: speed and values are not checked. No data is read; the
vocabulary has the size of ``data.vocab_size``, or that of the byte, ids or GPT-2 tokenizer, which
stands for files too (of characters there are 128).
"""

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from typing import Any

from hybrid_jax.errors import UserError
from hybrid_jax.runtime import command_line
from hybrid_jax.runtime.command_line import SETTINGS, path_of
from hybrid_jax.runtime.files import check_writable
from hybrid_jax.runtime.json_text import write_json

# Read by JAX and libtpu when they are imported.
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",  # leaves the accelerators of this machine alone
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # and beside a program that uses them
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",  # asks no GPU for its version
    # Answers that libtpu would otherwise look for in vain, and warn about.
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_LOG_DIR": "disabled",
}
# What each way to use the command reads besides the flags that all read.
MODES = {
    "--step=train": (),
    "--step=sample": ("sample_batch",),
    "--step=both": ("sample_batch",),
    "--fit": (),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return command_line.run_command(_parser(), argv, run, interrupted="nothing was written")


def run(options: argparse.Namespace) -> None:
    """Compiles what the options ask for, prints what was found and writes it."""
    command_line.check_mode(options, "--fit" if options.fit else f"--step={options.step}", MODES)
    if options.json:
        check_writable(options.json)
    os.environ.update(_ENVIRONMENT)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    values = command_line.read_config(options.config)

    from hybrid_jax.aot import programs, search, topology
    from hybrid_jax.aot.report import report
    from hybrid_jax.config import Experiment
    from hybrid_jax.runtime import sharding
    from hybrid_jax.training import flops

    experiment = Experiment.from_config(values, options.settings)
    devices = topology.devices(options.topology)
    mesh = sharding.make_mesh(experiment.mesh, devices)
    capacity = flops.memory_bytes(devices[0])
    shape = ", ".join(f"{name}={size}" for name, size in mesh.shape.items())
    kind, compiler = devices[0].device_kind, topology.compiler()
    begin = f"{experiment.name} on {options.topology}: {len(devices)} × {kind}, {shape}; {compiler}"
    print(begin, flush=True)
    found: dict[str, Any] = {
        "experiment": experiment.resolved(),
        "topology": options.topology,
        "devices": len(devices),
        "device_kind": kind,
        "mesh": dict(mesh.shape),
        "compiler": compiler,
        "peak_flops": flops.peak_flops(devices[0]),
        "memory": capacity,
    }
    for step in ("train", "sample") if options.step == "both" else (options.step,):
        if options.fit:
            if capacity is None:
                raise UserError(f"It is not known how much memory a {kind} has.")
            program, tried = search.fit(experiment, mesh, step, capacity)
            found[f"{step}_fit"] = tried
        else:
            try:
                program = programs.build(experiment, mesh, step, texts=options.sample_batch)
            except programs.DoesNotFit as error:
                raise UserError(f"{error} --fit looks for the largest batch that does.") from error
        print(report(program, step, devices), flush=True)
        found[step] = {
            **dataclasses.asdict(program),
            "fits": capacity is None or program.memory.peak <= capacity,
        }
    if options.json:
        write_json(options.json, found)


def _parser() -> argparse.ArgumentParser:
    parser = command_line.Parser(
        prog="python -m hybrid_jax.aot",
        description="Compiles an experiment for accelerators that this machine does not have.",
        epilog=SETTINGS,
    )
    add = parser.add_argument
    add("--config", required=True, metavar="FILE.py[:SIZE]", help="what to compile (see below)")
    add("--topology", required=True, metavar="NAME",
        help="devices, such as v5e:16x16, v4:2x2x4 or h100:8")  # fmt: skip
    add("--step", default="train", choices=["train", "sample", "both"],
        help="training, sampling or both (default: train)")  # fmt: skip
    add("--sample_batch", type=command_line.within(1), default=8, metavar="N",
        help="texts that a device samples at a time (default: 8)")  # fmt: skip
    add("--fit", action="store_true", help="look for the largest batch that fits")
    add("--json", default="", type=path_of, metavar="FILE", help="file for the same numbers")
    return parser


if __name__ == "__main__":
    sys.exit(main())
