"""Checkpoints: exact on any mesh, atomic, and never silently wrong."""

import dataclasses
import gc
import logging
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from runs import latest_step

from hybrid_jax.errors import UserError
from hybrid_jax.runtime.checkpoint import Checkpointer, DamagedCheckpointError, checksum


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class State:
    step: jax.Array
    params: dict
    ema: dict
    optimizer: optax.OptState
    key: jax.Array


# When one read fails, Orbax abandons the coroutines of the others, which complain when they are
# collected. They are collected here, so that no test of another module is blamed for them.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def collect_abandoned_reads():
    gc.freeze()  # what was there before is not looked through
    yield
    gc.collect()


OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))


def make_state(step: int) -> State:
    keys = jax.random.split(jax.random.key(step), 3)
    params = {
        "embedding": jax.random.normal(keys[0], (64, 64)),
        "layers": {
            "mlp": {"in": jax.random.normal(keys[1], (2, 8, 32)).astype(jnp.bfloat16)},
            "norm": {"scale": jnp.ones((2, 8))},
        },
    }
    _, optimizer = OPTIMIZER.update(params, OPTIMIZER.init(params), params)
    return State(
        step=jnp.int32(step),
        params=params,
        ema=jax.tree.map(lambda x: x.astype(jnp.float32) * 0.9, params),
        optimizer=optimizer,
        key=keys[2],
    )


def abstract(state, mesh=None):
    """Shapes of `state`, its matrices sharded over a 4×2 mesh."""

    def one(leaf):
        if mesh is None:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
        spec = {2: ("tensor", "fsdp"), 3: (None, "fsdp", "tensor")}.get(leaf.ndim, ())
        return jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, PartitionSpec(*spec))
        )

    return jax.tree.map(one, state)


def assert_equal(left, right):
    def bits(leaf):
        key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if key else leaf)

    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(bits(a), bits(b))


@pytest.fixture
def mesh():
    return jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)


@pytest.fixture
def saved(tmp_path):
    """A folder with the steps 10, 20 and 30."""
    directory = tmp_path / "checkpoints"
    with Checkpointer(directory, config={"width": 8, "levels": (1, 2)}) as checkpointer:
        for step in (10, 20, 30):
            checkpointer.save(step, make_state(step))
    return directory


def largest_data_file(step_directory):
    files = [path for path in step_directory.glob("state/**/d/*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def flip_byte(step_directory):
    """Amid the second of four equal matrices: what is between them may be read by nobody."""
    file = largest_data_file(step_directory)
    content = bytearray(file.read_bytes())
    content[len(content) * 3 // 8] ^= 0x10
    file.write_bytes(content)


def truncate(step_directory):
    file = largest_data_file(step_directory)
    os.truncate(file, file.stat().st_size // 2)


def hollow(step_directory):
    """The remains of an old step whose deletion was killed."""
    for path in sorted(step_directory.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def break_meta(step_directory):
    file = step_directory / "meta" / "metadata"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace('"shape": [64, 64]', '"shape": [64, 65]', 1), encoding="utf-8")
    assert file.read_text(encoding="utf-8") != text


DAMAGES = [flip_byte, truncate, hollow, break_meta]


def test_restores_exactly_on_one_device_and_on_a_mesh(saved, mesh):
    state = make_state(30)
    with Checkpointer(saved) as checkpointer:
        assert checkpointer.steps() == [10, 20, 30]
        step, same = checkpointer.restore(abstract(state))
        assert step == 30
        assert_equal(same, state)

        wanted = abstract(state, mesh)
        _, sharded = checkpointer.restore(wanted)
        assert_equal(sharded, state)
        for leaf, want in zip(jax.tree.leaves(sharded), jax.tree.leaves(wanted), strict=True):
            assert leaf.sharding.is_equivalent_to(want.sharding, leaf.ndim)

        assert_equal(checkpointer.restore(abstract(state), step=10)[1], make_state(10))
        assert checkpointer._read_meta(30)["config"] == {"width": 8, "levels": [1, 2]}

        # and from the mesh back to one device
        checkpointer.save(40, sharded)
        checkpointer.wait()
        assert_equal(checkpointer.restore(abstract(state), step=40)[1], state)


def test_nothing_to_restore(tmp_path):
    wanted = abstract(make_state(0))
    with Checkpointer(tmp_path / "new") as checkpointer:
        assert checkpointer.restore(wanted) is None
        with pytest.raises(UserError, match="There is no checkpoint"):
            checkpointer.restore(wanted, step=5)
    missing = tmp_path / "missing"
    with Checkpointer(missing, read_only=True) as checkpointer:
        assert checkpointer.restore(wanted) is None
    assert not missing.exists()
    assert latest_step(missing) is None


def test_keeps_the_newest(tmp_path):
    with Checkpointer(tmp_path, keep=2) as checkpointer:
        for step in (1, 2, 3, 4):
            checkpointer.save(step, make_state(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "4"]
    assert latest_step(tmp_path) == 4


def test_keeps_the_best_besides(tmp_path):
    """Across restarts too, and although it is damaged later."""
    scores = {1: 3.0, 2: 1.5, 3: None, 4: 2.0, 5: None}
    with Checkpointer(tmp_path, keep=2) as checkpointer:
        for step, score in scores.items():
            checkpointer.save(step, make_state(step), score=score)
    with Checkpointer(tmp_path, keep=2) as checkpointer:
        assert checkpointer.steps() == [2, 4, 5]
        assert checkpointer.best_step() == 2
        checkpointer.save(6, make_state(6), score=2.5)
        checkpointer.save(7, make_state(7))
        checkpointer.wait()
        assert checkpointer.steps() == [2, 6, 7]
    hollow(tmp_path / "2")
    with Checkpointer(tmp_path, keep=2) as checkpointer:
        assert checkpointer.best_step() == 6
        checkpointer.save(8, make_state(8))
        checkpointer.wait()
        assert checkpointer.steps() == [6, 7, 8]
    with Checkpointer(tmp_path, read_only=True) as checkpointer:
        assert checkpointer.best_step() == 6
    with Checkpointer(tmp_path / "none") as checkpointer:
        checkpointer.save(1, make_state(1))
        assert checkpointer.best_step() is None


def test_a_skipped_save_is_an_error(saved):
    with (
        Checkpointer(saved) as checkpointer,
        pytest.raises(RuntimeError, match=r"skipped the checkpoint of step 30; newest is 30"),
    ):
        checkpointer.save(30, make_state(30))


@pytest.mark.parametrize("damage", DAMAGES)
def test_falls_back_and_quarantines(saved, damage, mesh, caplog):
    damage(saved / "30")
    wanted = abstract(make_state(0), mesh)
    with Checkpointer(saved) as checkpointer:
        with caplog.at_level(logging.WARNING, logger="hybrid_jax.runtime.checkpoint"):
            step, state = checkpointer.restore(wanted)
        assert step == 20
        assert_equal(state, make_state(20))
        assert f"The checkpoint {saved / '30'} is damaged" in caplog.text
        assert (saved / "quarantine" / "30").is_dir()
        assert not (saved / "30").exists()

        # The step can be saved again, and damaged again.
        checkpointer.save(30, make_state(30))
        checkpointer.wait()
        assert_equal(checkpointer.restore(wanted, step=30)[1], make_state(30))
    damage(saved / "30")
    with Checkpointer(saved) as checkpointer:
        assert checkpointer.restore(wanted)[0] == 20
    assert len(list((saved / "quarantine").iterdir())) == 2


def test_a_damaged_step_asked_for_by_number(saved):
    flip_byte(saved / "20")
    with Checkpointer(saved) as checkpointer:
        with pytest.raises(DamagedCheckpointError, match="20"):
            checkpointer.restore(abstract(make_state(0)), step=20)
        assert checkpointer.steps() == [10, 20, 30]


@pytest.mark.parametrize("damage", [flip_byte, hollow])
def test_all_damaged_moves_nothing(saved, damage):
    for step in (10, 20, 30):
        damage(saved / str(step))
    error = pytest.raises(UserError, match="No checkpoint in")
    with Checkpointer(saved) as checkpointer, error as caught:
        checkpointer.restore(abstract(make_state(0)))
    assert all(str(saved / str(step)) in str(caught.value) for step in (10, 20, 30))
    assert sorted(path.name for path in saved.iterdir()) == ["10", "20", "30"]


def test_a_reader_moves_and_removes_nothing(saved):
    flip_byte(saved / "30")
    running = saved / "40.orbax-checkpoint-tmp"  # a training that is saving at this moment
    running.mkdir()
    with Checkpointer(saved, read_only=True) as checkpointer:
        assert checkpointer.restore(abstract(make_state(0)))[0] == 20
        with pytest.raises(RuntimeError, match="read-only"):
            checkpointer.save(50, make_state(50))
    assert (saved / "30").is_dir()
    assert running.is_dir()


def test_a_reader_sees_later_saves(tmp_path):
    wanted = abstract(make_state(0))
    with Checkpointer(tmp_path) as writer, Checkpointer(tmp_path, read_only=True) as reader:
        assert reader.restore(wanted) is None
        writer.save(1, make_state(1))
        writer.wait()
        assert reader.restore(wanted)[0] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: dataclasses.replace(s, params={**s.params, "head": s.key}),
            "no leaf params/head;",
        ),
        (
            lambda s: dataclasses.replace(s, ema={"embedding": s.ema["embedding"]}),
            "leaf ema/layers/mlp/in unknown",
        ),
        (
            lambda s: dataclasses.replace(s, step=jax.ShapeDtypeStruct((2,), jnp.int32)),
            r"leaf step is int32\[\] and this run needs int32\[2\]",
        ),
        (
            lambda s: dataclasses.replace(s, step=jax.ShapeDtypeStruct((), jnp.float32)),
            r"leaf step is int32\[\] and this run needs float32\[\]",
        ),
    ],
)
def test_another_structure_is_the_users_mistake(saved, change, message):
    with Checkpointer(saved) as checkpointer, pytest.raises(UserError, match=message) as caught:
        checkpointer.restore(change(abstract(make_state(0))))
    assert not isinstance(caught.value, DamagedCheckpointError)
    assert sorted(path.name for path in saved.iterdir()) == ["10", "20", "30"]


def test_a_part_of_the_state(saved, mesh):
    wanted = {"ema": abstract(make_state(0), mesh).ema}
    with Checkpointer(saved, read_only=True) as checkpointer:
        step, part = checkpointer.restore(wanted, partial=True)
        assert step == 30
        assert_equal(part["ema"], make_state(30).ema)
        assert part["ema"]["embedding"].sharding == wanted["ema"]["embedding"].sharding
        _, part = checkpointer.restore(wanted, step=10, partial=True)
        assert_equal(part["ema"], make_state(10).ema)
        with pytest.raises(UserError, match="no leaf average/embedding"):
            checkpointer.restore({"average": wanted["ema"]}, partial=True)
    hollow(saved / "30")
    with Checkpointer(saved, read_only=True) as checkpointer:
        step, part = checkpointer.restore(wanted, partial=True)
    assert step == 20
    assert_equal(part["ema"], make_state(20).ema)


def test_damage_to_a_part(saved):
    """Leaves share a data file; only the part that the flip has hit is refused."""
    flip_byte(saved / "30")
    intact = []
    for name in ("params", "ema", "optimizer"):
        with Checkpointer(saved, read_only=True) as checkpointer:
            wanted = {name: getattr(abstract(make_state(0)), name)}
            step, restored = checkpointer.restore(wanted, partial=True)
        assert_equal(restored[name], getattr(make_state(step), name))
        intact.append(step == 30)
    assert sorted(intact) == [False, True, True]


def test_values_are_those_at_the_save_although_buffers_are_donated(tmp_path):
    @jax.jit
    def fill(seed):
        return {"w": jax.random.normal(jax.random.key(seed), (512, 1024)), "n": jnp.int32(0)}

    advance = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    state = fill(0)
    expected = jax.tree.map(np.asarray, jax.tree.map(jnp.copy, state))
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(0, state)
        wanted = abstract(state)
        for _ in range(20):
            state = advance(state)
        checkpointer.wait()
        _, restored = checkpointer.restore(wanted, step=0)
    assert_equal(restored, expected)
    # The runtime may copy rather than donate while Orbax holds a view, but no longer than that.
    last, state = state, advance(state)
    assert last["w"].is_deleted()
    assert int(state["n"]) == 21


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int32", "float16", "bfloat16", "float32"])
def test_checksum_is_the_same_for_every_sharding(dtype, mesh):
    array = (jax.random.normal(jax.random.key(0), (3, 8, 4)) * 50).astype(dtype)
    sharded = jax.device_put(array, NamedSharding(mesh, PartitionSpec(None, "fsdp", "tensor")))
    np.testing.assert_array_equal(checksum(array), checksum(sharded))


def test_checksum_sees_what_a_weighted_sum_does_not():
    ones = jnp.ones(8192)
    zeroed_page = ones.at[1024:2048].set(0)
    halves = jnp.repeat(jnp.array([1.0, 2.0]), 4096)
    assert len({int(checksum(x)) for x in (ones, zeroed_page, halves, halves[::-1])}) == 4
    one_bit = jax.random.bits(jax.random.key(0), (64,))
    flipped = (one_bit.at[i].set(one_bit[i] ^ np.uint32(1 << (i % 32))) for i in range(64))
    assert int(checksum(one_bit)) not in {int(checksum(x)) for x in flipped}


def test_only_arrays_are_saved(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        with pytest.raises(TypeError, match=r"leaf b/c is a int"):
            checkpointer.save(0, {"a": jnp.ones(2), "b": {"c": 3}})
        with pytest.raises(ValueError, match="two leaves of the state have the path a/b"):
            checkpointer.save(0, {"a": {"b": jnp.ones(2)}, "a/b": jnp.ones(2)})


def test_an_unusable_folder_is_named(tmp_path):
    file = tmp_path / "file"
    file.write_text("not a folder")
    with pytest.raises(UserError, match=r"Cannot write .*file.checkpoints \(Not a "):
        Checkpointer(file / "checkpoints")
    with pytest.raises(UserError, match="keep = 0"):
        Checkpointer(tmp_path / "checkpoints", keep=0)
