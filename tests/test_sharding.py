"""The same training on any mesh: same noise, same curve, and parameters that are really cut."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from hybrid_jax.config import Experiment, ModelConfig, NoiseConfig, ScheduleConfig, TrainConfig
from hybrid_jax.data.settings import DataConfig
from hybrid_jax.errors import UserError
from hybrid_jax.method import loss as estimator
from hybrid_jax.method.objective import Objective
from hybrid_jax.optim import OptimizerConfig
from hybrid_jax.runtime import sharding
from hybrid_jax.runtime.checkpoint import named_leaves
from hybrid_jax.runtime.sharding import MeshConfig
from hybrid_jax.sampling import prompts, rules
from hybrid_jax.sampling.loop import generate
from hybrid_jax.sampling.state import Sampler
from hybrid_jax.training.train_step import TrainSetup

pytestmark = pytest.mark.slow

STEPS, BATCH, LENGTH, TOKENS = 10, 32, 16, 60
MESHES = {
    "2 x 4": MeshConfig(data=2, fsdp=4),
    "8 x 1": MeshConfig(data=8, fsdp=1),
    "with tensor": MeshConfig(data=2, fsdp=2, tensor=2),
}

# Without a bias of keys, whose gradient is nearly rounding alone, and to AdamW as large as any.
LLAMA = dict(heads=4, kv_heads=2, norm="rms", gated=True, activation="silu", out_bias=True,
             tied=True, head_bias=False)  # fmt: skip


def setup(
    accumulation: int = 1, optimizer: str = "muon", condition: int = 0, batch_size: int = BATCH
) -> TrainSetup:
    experiment = Experiment(
        name="test",
        data=DataConfig(length=LENGTH),
        schedule=ScheduleConfig(family="block", width=4, levels=4),
        noise=NoiseConfig(kernel="gamma", gamma=0.05),
        objective=Objective(parameterisation="context", time="continuous"),
        model=ModelConfig(
            layers=2,
            width=32,
            dropout=0.1,
            **(LLAMA | {"condition": condition}) if condition else {"heads": 2},
        ),
        optimizer=OptimizerConfig(name=optimizer, learning_rate=0.01, warmup_steps=2),
        train=TrainConfig(
            steps=STEPS, batch_size=batch_size, accumulation=accumulation, loss_chunk=8
        ),
    )
    return TrainSetup.build(experiment, TOKENS, bos=0)


def data(step: int) -> np.ndarray:
    return np.random.default_rng(step).integers(0, TOKENS, (BATCH, LENGTH), np.int32)


def trained(setup: TrainSetup, mesh) -> tuple[np.ndarray, jax.Array]:
    """Loss and gradient norm of each step, float [STEPS, 2], and the last state."""
    setup.check(mesh)
    rows = sharding.local_rows(mesh, BATCH)
    curve = []
    with sharding.use(mesh):
        state, step = setup.compile_init(mesh)(), setup.compile_step(mesh)
        for number in range(STEPS):
            batch = {"tokens": data(number), "index": np.arange(BATCH, dtype=np.int32)}
            placed = {n: sharding.place_rows(mesh, x[rows], BATCH) for n, x in batch.items()}
            state, metrics = step(state, placed)
            curve.append((float(metrics["loss"]), float(metrics["grad_norm"])))
    return np.array(curve), state


@functools.cache
def alone(**settings):
    return trained(setup(**settings), sharding.one_device())


@pytest.mark.parametrize(("name", "accumulation"), [("2 x 4", 1), ("with tensor", 4)])
def test_same_curve_on_every_mesh(name, accumulation):
    """With dropout, and with accumulation."""
    mesh = sharding.make_mesh(MESHES[name])
    found, state = trained(setup(accumulation=accumulation), mesh)
    expected, same = alone()
    np.testing.assert_allclose(found[:, 0], expected[:, 0], atol=1e-5)
    np.testing.assert_allclose(found[:, 1], expected[:, 1], rtol=1e-4)
    for (path, a), b in zip(
        named_leaves(state.params).items(), named_leaves(same.params).values(), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=2e-4, err_msg=path)


def test_same_curve_with_conditioning_and_adamw():
    """Of a network in the form of Llama."""
    settings = {"optimizer": "adamw", "condition": 16}
    found, _ = trained(setup(**settings), sharding.make_mesh(MESHES["with tensor"]))
    np.testing.assert_allclose(found[:, 0], alone(**settings)[0][:, 0], atol=1e-5)


@pytest.mark.parametrize("name", MESHES)
def test_corruption_is_identical(name):
    """The noisy tokens that the network sees, one by one."""
    spec = setup().spec
    key = jax.random.key(3)

    @jax.jit
    def corrupt(tokens, places):
        return estimator.corrupt_batch(spec, estimator.Batch(tokens, places, key, BATCH))

    mesh = sharding.make_mesh(MESHES[name])
    rows = sharding.local_rows(mesh, BATCH)
    whole = corrupt(data(0), np.arange(BATCH))
    with sharding.use(mesh):
        batch = (data(0)[rows], rows)
        cut = corrupt(*(sharding.place_rows(mesh, x, BATCH) for x in batch))
    assert not cut.noisy.sharding.is_fully_replicated
    assert np.any(whole.noisy != data(0))
    for a, b in zip(jax.tree.leaves(cut), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(a, b)


def test_parameters_averages_and_moments_are_really_cut():
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    state = setup().compile_init(mesh)()
    cut = {
        "embedding": ("tensor", "fsdp"),
        "head/kernel": ("fsdp", "tensor"),
        "layers/qkv": (None, "fsdp", None, "tensor"),
        "layers/out": (None, "tensor", "fsdp"),
        "layers/mlp_in": (None, "fsdp", "tensor"),
        "layers/mlp_out": (None, "tensor", "fsdp"),
    }
    leaves = named_leaves(state)
    for name, axes in cut.items():
        owners = [path for path in leaves if path.endswith("/" + name)]
        # The parameter, its average, and one or two moments of the optimizer.
        assert len(owners) in (3, 4), owners
        for path in owners:
            leaf = leaves[path]
            wanted = jax.sharding.NamedSharding(mesh, PartitionSpec(*(a and (a,) for a in axes)))
            assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim), path
            assert leaf.addressable_shards[0].data.size * 4 == leaf.size
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves.values())
    assert held == sharding.bytes_per_device(setup().abstract_state(mesh))
    assert held < 0.3 * sum(leaf.nbytes for leaf in leaves.values())


def test_activations_stay_cut_along_the_batch():
    """No collective of a compiled step moves an array with all examples of the batch."""
    mesh = sharding.make_mesh(MeshConfig(fsdp=8))
    batch = 40  # no other axis is of this size
    made = setup(batch_size=batch)
    with sharding.use(mesh):
        state = made.abstract_state(mesh)
        shapes = made.abstract_batch(mesh)
        text = made.compile_step(mesh).lower(state, shapes).compile().as_text()
    moved = [
        line for line in text.splitlines() if re.search(r" all-(gather|to-all)(-start)?\(", line)
    ]
    assert moved
    for line in moved:
        shape = re.search(r"= \(?\w+\[([\d,]*)\]", line).group(1)
        sizes = [int(size) for size in shape.split(",") if size]
        assert len(sizes) < 3 or batch not in sizes, line


def test_generation_does_not_depend_on_the_mesh():
    """Texts and cache are cut along batch and heads, and the texts are the same."""
    made = setup(condition=16)
    sampler = Sampler(spec=made.spec, network=made.network)
    given = prompts.nothing(8, LENGTH)
    keys = jax.random.split(jax.random.key(0), 8)
    params = jax.tree.map(
        lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape),
        jax.jit(made.init)().params,
    )
    rule = rules.ACS(eta=0.5)
    alone = generate(sampler, rule, params, keys, given)
    mesh = sharding.make_mesh(MESHES["with tensor"])
    with sharding.use(mesh):
        places = sharding.like_parameters(mesh, params, made.network.axes)
        cut = jax.jit(lambda p: generate(sampler, rule, p, keys, given))(
            jax.device_put(params, places)
        )
        cache = jax.jit(lambda: made.network.empty_cache(8, 16))()
    assert cache.key.addressable_shards[0].data.size * 8 == cache.key.size
    np.testing.assert_array_equal(cut.tokens, alone.tokens)
    np.testing.assert_array_equal(cut.corrections, alone.corrections)


def test_axes_without_meaning_are_errors():
    sizes = {"data": 2, "fsdp": 2, "tensor": 2}
    with pytest.raises(ValueError, match="'heds' is no logical axis; known are batch, embed"):
        sharding.partition_spec(sizes, (4, 4), ("batch", "heds"))
    with pytest.raises(ValueError, match="uses a mesh axis twice"):
        sharding.partition_spec(sizes, (4, 4), ("batch", "embed"))
    with pytest.raises(ValueError, match="does not name the axes of shape"):
        sharding.partition_spec(sizes, (4, 4), ("batch",))
    # Without a mesh as well: a typing error shows on a laptop.
    with pytest.raises(ValueError, match="no logical axis"):
        sharding.constrain(jnp.ones(2), "heds")
    # What does not divide is kept whole.
    assert sharding.partition_spec(sizes, (6, 4), ("batch", "heads")) == PartitionSpec(
        None, ("tensor",)
    )


@pytest.mark.parametrize(
    ("mesh", "settings", "message"),
    [
        (MeshConfig(tensor=8, fsdp=1), {}, "model.heads=2 do not divide among mesh.tensor=8"),
        (MeshConfig(tensor=4, fsdp=1), {"condition": 16}, "model.kv_heads=2 do not divide among"),
        (
            MeshConfig(),
            {"accumulation": 8},
            r"batch_size=\d+ in train\.accumulation=8 rounds does not divide",
        ),
    ],
)
def test_what_does_not_divide_is_refused(mesh, settings, message):
    with pytest.raises(UserError, match=message):
        setup(**settings).check(sharding.make_mesh(mesh))


def test_sizes_of_the_mesh():
    assert [MeshConfig().shape(n) for n in (1, 6, 8, 256)] == [
        (1, 1, 1), (3, 2, 1), (1, 8, 1), (16, 16, 1)
    ]  # fmt: skip
    assert MeshConfig(data=2, tensor=2).shape(8) == (2, 2, 2)
    assert MeshConfig(data=1, fsdp=-1).shape(256) == (1, 256, 1)
    assert MeshConfig(data=-1, fsdp=2, tensor=2).shape(8) == (2, 2, 2)
    for config, devices in (
        (MeshConfig(fsdp=3), 8),
        (MeshConfig(data=3), 8),
        (MeshConfig(data=1, fsdp=4), 8),
    ):
        with pytest.raises(UserError, match=f"(do|does) not fit {devices} devices"):
            config.shape(devices)
    # Sizes that nobody chose are not named.
    for config, said in (
        (MeshConfig(data=16), "mesh.data=16 does not fit 8 devices"),
        (MeshConfig(data=1, fsdp=4), "mesh.data=1 and mesh.fsdp=4 do not fit 8 devices"),
        (MeshConfig(tensor=3), "mesh.tensor=3 does not fit 8 devices"),
    ):
        with pytest.raises(UserError, match=f"^{said}: "):
            config.shape(8)
    with pytest.raises(UserError, match="must be at least 1, or -1"):
        MeshConfig(tensor=0)
    with pytest.raises(UserError, match="Only one of"):
        MeshConfig(data=-1, fsdp=-1)
    experiment = dataclasses.replace(setup().experiment, mesh=MeshConfig(data=4, fsdp=2))
    assert Experiment.from_config(experiment.to_config()).mesh.data == 4
