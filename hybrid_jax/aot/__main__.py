"""Compiles an experiment for accelerators that this machine does not have.

    pip install 'hybrid_jax[tpu]'
    python -m hybrid_jax.aot --config=configs/gamma_hybrid.py:base --topology=v5e:16x16
    python -m hybrid_jax.aot --config=configs/slide.py:base --topology=v4:2x2x4 --step=both --fit
    python -m hybrid_jax.aot --config=configs/mdlm.py:base --topology=h100:8 --config.mesh.tensor=2

The training step and the sampling loop are the real ones, and so is the compiler. Their memory and
their communication are those of a run on such devices, and a program that does not fit is refused
here and not there. Nothing is executed: speed and values are not checked. No data is read; the
vocabulary has the size of ``data.vocab_size``.
"""

from __future__ import annotations

import os

if __name__ == "__main__":  # before JAX is imported
    os.environ.update(
        JAX_PLATFORMS="cpu",  # leaves the accelerators of this machine alone
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",  # and beside a program that uses them
        JAX_SKIP_CUDA_CONSTRAINTS_CHECK="1",  # asks no GPU for its version
        # What libtpu would otherwise look for in vain, and warn about.
        TPU_SKIP_MDS_QUERY="1",
        TPU_WORKER_HOSTNAMES="localhost",
        TPU_ACCELERATOR_TYPE="v5litepod-1",
        TPU_LOG_DIR="disabled",
    )
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")

import dataclasses
import functools
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from jax.sharding import Mesh

from hybrid_jax import main as training
from hybrid_jax.aot import collectives, topology
from hybrid_jax.aot.collectives import Collective
from hybrid_jax.config import Experiment
from hybrid_jax.errors import UserError, exit_status
from hybrid_jax.models.cache import AXES as CACHE_AXES
from hybrid_jax.runtime import sharding
from hybrid_jax.runtime.files import write_atomic
from hybrid_jax.sampling import loop, prompts
from hybrid_jax.sampling.state import Sampler
from hybrid_jax.training import flops
from hybrid_jax.training.train_step import TrainSetup

_TOPOLOGY = flags.DEFINE_string("topology", None, "Devices, such as v5e:16x16 or h100:8.")
_STEP = flags.DEFINE_enum("step", "train", ["train", "sample", "both"], "What is compiled.")
_SAMPLE_BATCH = flags.DEFINE_integer("sample_batch", 8, "Texts that a device samples at a time.")
_FIT = flags.DEFINE_bool("fit", False, "Look for the largest batch that fits.")
_JSON = flags.DEFINE_string("json", "", "File for the same numbers.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes that a program needs on a device.

    Attributes:
      temporaries: set aside for them, on TPUs more than are ever in use together.
      output: of outputs that do not reuse the place of arguments.
      peak: the most that is in use at a time, arguments and outputs included.
    """

    arguments: int
    temporaries: int
    output: int
    peak: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """A compiled program.

    Attributes:
      batch: examples or texts, all devices together.
      seconds: that compiling took.
      flops: of the model in a run of the program, all devices together; None if not counted.
    """

    batch: int
    seconds: float
    memory: Memory
    collectives: tuple[Collective, ...]
    flops: float | None


class DoesNotFit(UserError):
    """A program that the compiler refuses, because it needs too much memory."""


# ---------------------------------------------------------------------------------------------
# Programs.


def lower_training(experiment: Experiment, mesh: Mesh) -> jax.stages.Lowered:
    """The training step for the mesh. Raises UserError if the batch does not divide."""
    setup = TrainSetup.build(experiment, experiment.data.vocab_size, bos=0)
    setup.check(mesh)
    state = setup.abstract_state(mesh)
    shape = experiment.train.batch_size, experiment.data.length
    whole = sharding.on(mesh, shape, "batch", "whole")
    tokens = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=whole)
    rows = sharding.on(mesh, shape[:1], "batch")
    index = jax.ShapeDtypeStruct(shape[:1], jnp.int32, sharding=rows)
    with _described(mesh):
        return setup.compile_step(mesh).lower(state, tokens, index)


def lower_sampling(experiment: Experiment, mesh: Mesh, batch: int) -> jax.stages.Lowered:
    """The sampling loop for `batch` texts, with parameters cut as in training."""
    setup = TrainSetup.build(experiment, experiment.data.vocab_size, bos=0)
    sampler = Sampler(
        spec=setup.spec,
        network=setup.network,
        eos=0 if experiment.sampling.eos == "stop" else None,
    )
    rule = experiment.sampling.build()
    loop.check(sampler, rule)
    params = setup.abstract_state(mesh).ema
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch))
    given = prompts.nothing(batch, experiment.data.length)
    shapes = jax.eval_shape(functools.partial(loop.start, sampler), params, keys, given)

    def place(leaf):
        axes = ("batch", *("whole",) * (leaf.ndim - 1)) if leaf.ndim < 5 else CACHE_AXES
        return sharding.on(mesh, leaf.shape, *axes)

    state = sharding.with_shardings(shapes, jax.tree.map(place, shapes))
    rounds = jax.ShapeDtypeStruct((), jnp.int32)
    with _described(mesh):
        return loop.advance.lower(sampler, rule, params, state, rounds)


def _described(mesh: Mesh):
    """The mesh as sizes without devices.

    `sharding.use` would send what is computed while a program is traced to these devices.
    """
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def compile_program(
    lowered: jax.stages.Lowered, *, batch: int, flops: float | None = None
) -> Program:
    """Compiles. Raises DoesNotFit if the compiler says so (that for TPUs does)."""
    begun = time.monotonic()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = " ".join(str(error).partition("RESOURCE_EXHAUSTED:")[2].splitlines()[0].split())
        raise DoesNotFit(f"The program does not fit: {reason.rstrip('.')}.") from error
    used: Any = compiled.memory_analysis()
    return Program(
        batch=batch,
        seconds=time.monotonic() - begun,
        memory=Memory(
            arguments=used.argument_size_in_bytes,
            temporaries=used.temp_size_in_bytes,
            output=used.output_size_in_bytes - used.alias_size_in_bytes,
            peak=used.peak_memory_in_bytes,
        ),
        collectives=collectives.count(compiled.as_text() or ""),
        flops=flops,
    )


def build(experiment: Experiment, mesh: Mesh, step: str, each: int | None) -> Program:
    """The program of a step, "train" or "sample", for a batch of `each` examples a device.

    `each` counts what a device holds at a time, so that accumulation multiplies the batch; with a
    tensor axis its devices hold them together. None for the batch of the experiment.
    """
    shards = sharding.batch_shards(mesh)
    if step == "sample":
        batch = (each or _SAMPLE_BATCH.value) * shards
        return compile_program(lower_sampling(experiment, mesh, batch), batch=batch)
    if each is not None:
        size = each * shards * experiment.train.accumulation
        train = dataclasses.replace(experiment.train, batch_size=size)
        experiment = dataclasses.replace(experiment, train=train)
    batch, tokens = experiment.train.batch_size, experiment.data.vocab_size
    work = flops.training_flops(experiment.network(tokens), experiment.spec(tokens, bos=0))
    return compile_program(lower_training(experiment, mesh), batch=batch, flops=work * batch)


# ---------------------------------------------------------------------------------------------
# The largest batch.


def largest_batch(
    needs: Callable[[int], int | None], capacity: int, most: int = 4096
) -> tuple[int, dict[int, int | None]]:
    """The largest batch that fits, of 1, 2, … 8 and then four to an octave (10, 12, 14, 16, 20 …).

    Args:
      needs: bytes for a batch, None where that is refused. Slow, so it is called for few batches:
        they grow as the memory found so far promises, and then close in.

    Returns:
      that batch, 0 if none fits; and what was found for each that was tried.
    """
    found: dict[int, int | None] = {}

    def fits(batch: int) -> bool:
        found[batch] = needs(batch)
        return (found[batch] or capacity + 1) <= capacity

    good, batch = 0, 1
    while batch > good and fits(batch):
        good, batch = batch, min(_promised(found, capacity), most)
    while _after(good) < batch:
        middle = _sensible((good + batch) // 2)
        middle = middle if middle > good else _after(good)
        good, batch = (middle, batch) if fits(middle) else (good, middle)
    return good, found


def _promised(found: dict[int, int | None], capacity: int) -> int:
    """The largest batch that fits if memory goes on to grow as it did last."""
    (low, less), (high, more) = [(0, None), *found.items()][-2:]
    assert more is not None
    if less is None:
        return 2 * high
    slope = (more - less) / (high - low)
    promised = high + (capacity - more) / slope if slope > 0 else 8 * high
    return max(_sensible(int(min(promised, 8 * high))), _after(high))


def _sensible(batch: int) -> int:
    """Rounds down to three binary digits."""
    digits = max(0, batch.bit_length() - 3)
    return batch >> digits << digits


def _after(batch: int) -> int:
    return batch + (1 << max(0, batch.bit_length() - 3))


# ---------------------------------------------------------------------------------------------
# The report.

_SHOWN = 16  # collectives


def report(program: Program, step: str, devices: Sequence[Any]) -> str:
    """What was found of a program, for people."""
    peak, capacity = flops.peak_flops(devices[0]), flops.memory_bytes(devices[0])
    memory, each = program.memory, program.batch / len(devices)
    lines = [
        f"{'training step' if step == 'train' else 'sampling loop'}: batch {program.batch:,} "
        f"({each:g} a device), compiled in {program.seconds:.1f} s",
        "  memory of a device",
        f"    arguments            {_size(memory.arguments)}",
        f"    temporaries          {_size(memory.temporaries)}",
        f"    output, not aliased  {_size(memory.output)}",
        f"    at the peak          {_size(memory.peak)}" + _share(memory.peak, capacity),
    ]
    if program.flops:
        mine = program.flops / len(devices)
        lines += [f"  model FLOPs            {program.flops:.3g} a step, {mine:.3g} a device"]
        if peak:
            fastest = 1e3 * mine / peak
            times = [f"{fastest / share:.3g} ms at {share:.0%}" for share in (1, 0.5, 0.4)]
            lines += [f"    step time            {', '.join(times)} of {peak / 1e12:g} TFLOP/s"]
    lines += ["  communication of a device, by size of result (what is in loops runs more often)"]
    for item in program.collectives[:_SHOWN]:
        result = item.result if len(item.result) <= 60 else item.result[:59] + "…"
        where = "in a loop" if item.in_loop else ""
        lines += [f"    {_size(item.bytes)} × {item.count:<2} {item.kind:19}{where:10} {result}"]
    hidden = program.collectives[_SHOWN:]
    if hidden:
        number, most = sum(item.count for item in hidden), _size(hidden[0].bytes).strip()
        lines += [f"    and {number} of at most {most}"]
    elif not program.collectives:
        lines += ["    none"]
    return "\n".join(lines)


def _size(count: int) -> str:
    for unit in ("B  ", "KiB", "MiB"):
        if count < 1000:
            return f"{count:7.3g} {unit}"
        count /= 1024  # type: ignore[assignment]
    return f"{count:7.2f} GiB"


def _share(total: int, capacity: int | None) -> str:
    if not capacity:
        return ""
    share = total / capacity
    bar = "█" * min(20, round(20 * share))
    verdict = "" if share <= 1 else ": does not fit"
    return f" of {_size(capacity).strip()}  {bar:░<20} {share:.0%}{verdict}"


# ---------------------------------------------------------------------------------------------
# The command.


def main(argv: list[str]) -> int:
    """Command line; returns the exit status."""

    def command() -> None:
        training.parse(argv)
        run()

    return exit_status(command, interrupted="nothing was written")


def run() -> None:
    """Compiles what the flags ask for, prints what was found and writes it."""
    if not _TOPOLOGY.value:
        raise UserError(f"Say for which devices, with --topology=NAME: {topology.EXAMPLES}.")
    if _SAMPLE_BATCH.value < 1:
        raise UserError(f"--sample_batch must be at least 1, but is {_SAMPLE_BATCH.value}.")
    experiment = Experiment.from_config(training.CONFIG.value)
    devices = topology.devices(_TOPOLOGY.value)
    mesh = sharding.make_mesh(experiment.mesh, devices)
    capacity = flops.memory_bytes(devices[0])
    shape = ", ".join(f"{name}={size}" for name, size in mesh.shape.items())
    kind, compiler = devices[0].device_kind, topology.compiler()
    begin = f"{experiment.name} on {_TOPOLOGY.value}: {len(devices)} × {kind}, {shape}; {compiler}"
    print(begin, flush=True)
    values: dict[str, Any] = {
        "experiment": dataclasses.asdict(experiment),
        "topology": _TOPOLOGY.value,
        "devices": len(devices),
        "device_kind": kind,
        "mesh": dict(mesh.shape),
        "compiler": compiler,
        "peak_flops": flops.peak_flops(devices[0]),
        "memory": capacity,
    }
    for step in ("train", "sample") if _STEP.value == "both" else (_STEP.value,):
        if _FIT.value:
            if capacity is None:
                raise UserError(f"It is not known how much memory a {kind} has.")
            program, tried = fit(experiment, mesh, step, capacity)
            values[f"{step}_fit"] = tried
        else:
            try:
                program = build(experiment, mesh, step, None)
            except DoesNotFit as error:
                raise UserError(f"{error} --fit looks for the largest batch that does.") from error
        print(report(program, step, devices), flush=True)
        values[step] = {
            **dataclasses.asdict(program),
            "fits": capacity is None or program.memory.peak <= capacity,
        }
    if _JSON.value:
        write_atomic(_JSON.value, json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def fit(
    experiment: Experiment, mesh: Mesh, step: str, capacity: int
) -> tuple[Program, dict[int, int | None]]:
    """The program of the largest batch that fits, and the bytes of all that were tried.

    Tells every trial on standard error. Raises UserError if not even one example fits.
    """
    begun = time.monotonic()
    programs: dict[int, Program] = {}
    tensor = mesh.shape["tensor"]
    where = "a device" if tensor == 1 else f"on every {tensor} devices"

    def needs(each: int) -> int | None:
        try:
            programs[each] = build(experiment, mesh, step, each)
        except DoesNotFit as error:
            peak, said = None, str(error)
        else:
            peak = programs[each].memory.peak
            said = f"{_size(peak).strip()} of {_size(capacity).strip()}"
        spent = time.monotonic() - begun
        print(f"[{spent:6.0f} s] {each} {where}: {said}", file=sys.stderr, flush=True)
        return peak

    best, tried = largest_batch(needs, capacity)
    if not best:
        raise UserError(
            "Not even one example a device fits: use more devices with mesh.fsdp or mesh.tensor, "
            "or model.remat=true."
        )
    print(f"largest that fits: {best} {where} at a time", file=sys.stderr)
    return programs[best], tried


if __name__ == "__main__":
    sys.exit(main(sys.argv))
