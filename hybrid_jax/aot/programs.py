"""Programs of an experiment, compiled for devices that need not be there, and their numbers.

They are traced on meshes that are sizes without devices: `sharding.use` would send values that are
computed meanwhile to these devices.
"""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from hybrid_jax.aot import collectives
from hybrid_jax.aot.collectives import Collective
from hybrid_jax.config import Experiment
from hybrid_jax.errors import UserError
from hybrid_jax.runtime import sharding
from hybrid_jax.sampling import loop
from hybrid_jax.sampling.state import Sampler, axes_of
from hybrid_jax.training import flops
from hybrid_jax.training.train_step import TrainSetup


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


def lower_training(setup: TrainSetup, mesh: Mesh) -> jax.stages.Lowered:
    """The training step for the mesh. Raises UserError if the batch does not divide."""
    setup.check(mesh)
    shapes = setup.abstract_state(mesh), setup.abstract_batch(mesh)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return setup.compile_step(mesh).lower(*shapes)


def lower_sampling(setup: TrainSetup, mesh: Mesh, batch: int) -> jax.stages.Lowered:
    """The sampling loop for `batch` texts, with parameters cut as in training."""
    sampling = setup.experiment.sampling
    eos = 0 if sampling.eos == "stop" else None
    rule = sampling.build()
    sampler = Sampler(spec=rule.spec(setup.spec), network=setup.network, eos=eos)
    loop.check(sampler, rule)
    params = setup.abstract_state(mesh).ema
    shapes = jax.eval_shape(lambda: loop.idle(sampler, batch))

    def place(leaf: Any) -> NamedSharding:
        return sharding.on(mesh, leaf.shape, *axes_of(leaf))

    state = sharding.with_shardings(shapes, jax.tree.map(place, shapes))
    rounds = jax.ShapeDtypeStruct((), jnp.int32)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return loop.advance.lower(sampler, rule, params, state, rounds)


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


def build(
    experiment: Experiment, mesh: Mesh, step: str, each: int | None = None, texts: int = 8
) -> Program:
    """The program of a step, "train" or "sample", for a batch of `each` examples a device.

    Args:
      each: examples that a device holds at a time, so that accumulation multiplies the batch; with
        a tensor axis its devices hold them together. None for the batch of the experiment, and for
        `texts` when sampling.
    """
    shards = sharding.batch_shards(mesh)
    batch = experiment.train.batch_size if step == "train" else texts * shards
    if each is not None:
        batch = each * shards * (experiment.train.accumulation if step == "train" else 1)
    if step == "train":
        train = dataclasses.replace(experiment.train, batch_size=batch)
        experiment = dataclasses.replace(experiment, train=train)
    setup = TrainSetup.build(experiment, experiment.data.expected_vocab_size, bos=0, eos=0)
    if step == "sample":
        return compile_program(lower_sampling(setup, mesh, batch), batch=batch)
    works = [flops.training_flops(own.network, own.spec) for own in setup.each]
    work = max(works)  # of several hyperschedules, the one that needs the most
    most = setup.each[works.index(work)]
    return compile_program(lower_training(most, mesh), batch=batch, flops=work * batch)
