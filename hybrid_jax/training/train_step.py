"""One update: the state of training, and the pure function that changes it.

Nothing random is kept in the state. The noise of a step is a function of (seed, step, place in the
global batch), so it depends neither on how many devices, processes or accumulation rounds share the
batch nor on whether the run was interrupted.
"""

import dataclasses
import enum
import functools
from collections.abc import Callable, Mapping
from typing import Self, cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float32, Int, Int32, Key, PyTree

from hybrid_jax import optim
from hybrid_jax.config import Experiment
from hybrid_jax.data import mixture
from hybrid_jax.errors import UserError
from hybrid_jax.method import loss as estimator
from hybrid_jax.method.loss import Spec
from hybrid_jax.models.transformer import Transformer
from hybrid_jax.runtime import sharding

Metrics = dict[str, Float32[Array, ""]]


class KeyPurpose(enum.IntEnum):
    """Use of a PRNG key: the second argument of the first `fold_in` after the seed."""

    INIT = 0
    NOISE = 1
    DROPOUT = 2
    EVALUATION = 3


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """Everything that training changes.

    Attributes:
      step: int32 scalar, updates made so far.
      params, ema: parameters and their moving average, float32.
      optimizer: state of the optax transformation.
    """

    step: Int32[Array, ""]
    params: PyTree
    ema: PyTree
    optimizer: PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSetup:
    """An experiment with its parts built for a vocabulary. Needs no data.

    Attributes:
      others: for the other hyperschedules that steps are given to, see `Experiment.each`.
    """

    experiment: Experiment
    spec: Spec
    network: Transformer
    optimizer: optax.GradientTransformation
    others: tuple[Spec, ...] = ()

    @classmethod
    def build(
        cls, experiment: Experiment, vocab_size: int, bos: int, eos: int | None = None
    ) -> Self:
        """The setup for N = `vocab_size` real tokens; for `bos` and `eos` see `Spec`."""
        network = experiment.network(vocab_size)
        spec, *others = (own.spec(vocab_size, bos, eos) for own in experiment.each)
        steps, shapes = experiment.train.steps, network.shapes
        return cls(
            experiment=experiment,
            spec=spec,
            others=tuple(others),
            network=network,
            optimizer=optim.make_optimizer(experiment.optimizer, steps, shapes),
        )

    @property
    def each(self) -> tuple[Self, ...]:
        """A setup for each hyperschedule, the own first; they share the state."""
        every = (self.spec, *self.others)
        return tuple(dataclasses.replace(self, spec=spec, others=()) for spec in every)

    def turn(self, step: int) -> int:
        """The place in `each` of the one whose update a step makes: a function of the step."""
        return mixture.source(self.experiment.shares, 1, step)

    def key(self, purpose: KeyPurpose) -> Key[Array, ""]:
        """The key of one purpose."""
        return jax.random.fold_in(jax.random.key(self.experiment.train.seed), purpose)

    def init(self, params: PyTree = None) -> TrainState:
        """A fresh state, with these parameters if given."""
        if params is None:
            params = self.network.init(self.key(KeyPurpose.INIT))
        return TrainState(
            step=jnp.int32(0),
            params=params,
            # A copy: the step donates both trees, so they may not share buffers.
            ema=jax.tree.map(jnp.copy, params),
            optimizer=self.optimizer.init(params),
        )

    def check(self, mesh: Mesh) -> None:
        """Raises UserError if batch or heads do not divide among the devices."""
        config = self.experiment.train
        shards = sharding.batch_shards(mesh)
        round_ = config.batch_size // config.accumulation
        if round_ % shards:
            rounds = config.accumulation
            part = f" in train.accumulation={rounds} rounds" if rounds > 1 else ""
            raise UserError(
                f"train.batch_size={config.batch_size}{part} does not divide among {shards} "
                f"devices: choose a multiple of {rounds * shards}."
            )
        heads, groups = self.network.heads, self.network.groups
        if groups % mesh.shape["tensor"]:
            name = "heads" if heads == groups else "kv_heads"
            raise UserError(
                f"model.{name}={groups} do not divide among mesh.tensor="
                f"{mesh.shape['tensor']} devices: choose a divisor of the number of heads."
            )

    def abstract_state(self, mesh: Mesh) -> TrainState:
        """Shapes, types and places of the state's leaves on a mesh."""
        shapes = jax.eval_shape(self.init, self.network.shapes)
        places = sharding.like_parameters(mesh, shapes, self.network.axes)
        return cast(TrainState, sharding.with_shardings(shapes, places))

    def compile_init(self, mesh: Mesh) -> Callable[..., TrainState]:
        """`init`, each leaf made where it is to live."""
        places = jax.tree.map(lambda x: x.sharding, self.abstract_state(mesh))
        return jax.jit(self.init, out_shardings=places)

    def compile_step(self, mesh: Mesh) -> jax.stages.Wrapped:
        """`train_step` under jit on a mesh: (state, batch) -> (state, metrics).

        The state is donated; the batch has global arrays, cut along it.
        """
        shapes = self.abstract_state(mesh), self.abstract_batch(mesh)
        places, rows = jax.tree.map(lambda x: x.sharding, shapes)
        return jax.jit(
            functools.partial(train_step, self),
            in_shardings=(places, rows),
            out_shardings=(places, sharding.everywhere(mesh)),
            donate_argnums=0,
        )

    def abstract_batch(self, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes, types and places of a batch of `pipeline.Stream` on a mesh."""
        size, data = self.experiment.train.batch_size, self.experiment.data
        shapes = {"tokens": (size, data.length), "index": (size,)}
        if data.pairs:
            shapes |= {"given": (size,)} | ({} if data.is_padded else {"length": (size,)})
        axes = ("batch", "whole")
        return {
            name: jax.ShapeDtypeStruct(
                shape, jnp.int32, sharding=sharding.on(mesh, shape, *axes[: len(shape)])
            )
            for name, shape in shapes.items()
        }


def train_step(
    setup: TrainSetup, state: TrainState, batch: Mapping[str, Int[Array, "B ..."]]
) -> tuple[TrainState, Metrics]:
    """One update.

    Args:
      batch: the global one, of `pipeline.Stream`.

    Returns:
      the new state, and "loss" (nats per predicted token) and "grad_norm".
    """
    config = setup.experiment.train
    noise_key = jax.random.fold_in(setup.key(KeyPurpose.NOISE), state.step)
    dropout_key = jax.random.fold_in(setup.key(KeyPurpose.DROPOUT), state.step)

    def examples(part: Mapping[str, Array]) -> estimator.Batch:
        given, length = part.get("given"), part.get("length")
        if given is not None:
            given = jnp.arange(part["tokens"].shape[1])[None] < given[:, None]
        return estimator.Batch(
            part["tokens"], part["index"], noise_key, config.batch_size, given, length
        )

    rounds = config.accumulation
    count = examples(batch).predicted_tokens / rounds  # not its own: each weighs what it holds

    def loss(params: PyTree, part: Mapping[str, Array]) -> Array:
        keys = dropout_key if setup.network.dropout else None
        return estimator.batch_loss(
            setup.spec, setup.network, params, examples(part), count=count, dropout_key=keys
        )

    def accumulate(total: PyTree, part: Mapping[str, Array]) -> tuple[PyTree, None]:
        value = jax.value_and_grad(loss)(state.params, part)
        return jax.tree.map(jnp.add, total, value), None

    if rounds == 1:
        value, gradient = jax.value_and_grad(loss)(state.params, batch)
    else:
        # Every round takes a part of what each device holds: no example changes its device.
        parts = jax.tree.map(
            lambda x: jnp.moveaxis(x.reshape(-1, rounds, *x.shape[1:]), 1, 0), dict(batch)
        )
        zero = (jnp.float32(0.0), jax.tree.map(jnp.zeros_like, state.params))
        summed, _ = jax.lax.scan(accumulate, zero, parts)
        value, gradient = jax.tree.map(lambda x: x / rounds, summed)

    updates, optimizer = setup.optimizer.update(gradient, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    new = TrainState(
        step=state.step + 1,
        params=params,
        ema=optim.ema_update(state.ema, params, config.ema_decay, state.step),
        optimizer=optimizer,
    )
    return new, {"loss": value, "grad_norm": optax.tree.norm(gradient)}
