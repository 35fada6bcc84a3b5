"""Attention backends against the dense one, and the ranges they look at against the predicate."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from enumeration import quick_jit

from hybrid_jax.errors import UserError
from hybrid_jax.method import hyperschedule
from hybrid_jax.method import layout as layouts
from hybrid_jax.method.layout import Layout
from hybrid_jax.method.mask_blocks import Pattern, spans
from hybrid_jax.models import attention, splash
from hybrid_jax.models.cache import Cache
from hybrid_jax.models.transformer import Transformer
from hybrid_jax.runtime import sharding
from hybrid_jax.runtime.sharding import MeshConfig

pytestmark = pytest.mark.usefixtures("strict_promotion")

LENGTH = 24
SCHEDULES = {
    "quenched AR": hyperschedule.quenched_ar(length=LENGTH),
    "flat": hyperschedule.flat(length=LENGTH, levels=5),
    "block": hyperschedule.block(length=LENGTH, width=6, levels=3),
    "ragged block": hyperschedule.block(length=LENGTH, width=5, levels=4),
    "slide": hyperschedule.slide(length=LENGTH, width=7, levels=4),
    "fast slide": hyperschedule.slide(length=LENGTH, width=8, levels=2),
    "custom": hyperschedule.custom(
        [[2] * 24, [1] * 9 + [2] * 15, [0] * 9 + [1] * 2 + [2] * 13, [0] * 11 + [1] * 13, [0] * 24]
    ),
}
LAYOUTS = {
    "aligned": Layout(),
    "shifted": Layout(alignment="shifted"),
    "aligned, block-causal": Layout(context="block_causal"),
    "shifted, block-causal": Layout(alignment="shifted", context="block_causal"),
    "causal window": Layout(alignment="shifted", causal_window=True),
}
PAIRS = [
    (schedule, how)
    for schedule in SCHEDULES
    for how in LAYOUTS
    if "block-causal" not in how or SCHEDULES[schedule].settles_whole
]


@functools.cache
def pattern_of(schedule, how, batch=12):
    """The pattern of rows in several phases, and its mask."""
    schedule, layout = SCHEDULES[schedule], LAYOUTS[how]
    rng = np.random.default_rng(0)
    phases = jnp.asarray(rng.integers(0, schedule.phases, (batch, schedule.phase_groups)))

    def made(phases):
        rows = jax.vmap(lambda p: layouts.training_rows(layout, schedule, p))(phases)
        return rows, layouts.attention_mask(layout, rows)

    rows, mask = quick_jit(made)(phases)
    return Pattern(layout, schedule, rows), np.asarray(mask)


def first_phase(schedule):
    """The pattern of one example in phase 0."""
    phase = jnp.zeros(schedule.phase_groups, jnp.int32)
    rows = quick_jit(functools.partial(layouts.training_rows, Layout(), schedule))(phase)
    return Pattern(Layout(), schedule, jax.tree.map(lambda x: x[None], rows))


def inputs(rows, batch=12, heads=2, head=4, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(1), 4)
    return [jax.random.normal(k, (batch, heads, rows, head), dtype) for k in keys]


@pytest.mark.parametrize(("schedule", "how"), PAIRS)
def test_spans_hold_every_allowed_pair_once(schedule, how):
    pattern, mask = pattern_of(schedule, how)
    rows = pattern.regions.rows
    assert rows == pattern.rows.position.shape[-1]
    for block in (4, 7, 128):
        found = spans(pattern.layout, pattern.regions, block)
        held = np.zeros((rows, rows), int)
        for span in found:
            for keys in span.keys:
                held[span.queries, keys] += 1
        assert held.max() == 1
        assert not mask[:, held == 0].any()
        # Every row is a query once.
        queries = np.concatenate([np.arange(rows)[span.queries] for span in found])
        np.testing.assert_array_equal(queries, np.arange(rows))


def test_spans_of_blocks_are_as_small_as_they_can_be():
    """Half of the prefixes, and nothing of other windows."""
    pattern = first_phase(hyperschedule.block(length=256, width=16, levels=4))
    pairs = sum(
        (s.queries.stop - s.queries.start) * sum(k.stop - k.start for k in s.keys)
        for s in spans(pattern.layout, pattern.regions, 16)
    )
    noisy = 16 * 16 * sum(range(16)) + 256 * 16
    clean = 16 * 16 * sum(range(1, 16))
    assert pairs == noisy + clean
    assert int(quick_jit(Pattern.mask)(pattern).sum()) == noisy + clean - 15 * (16 * 15) // 2


SOME = PAIRS[::3]  # every schedule and every layout


@pytest.mark.parametrize("backend", ["dense", "blockwise", "fused", "splash"])
def test_heads_of_keys_are_shared_by_consecutive_heads_of_queries(backend):
    """Without and with cached keys: as if they were repeated."""
    pattern = first_phase(SCHEDULES["block"])
    mask = quick_jit(Pattern.mask)(pattern)
    query, key, value, _ = map(np.asarray, inputs(pattern.regions.rows, 1, heads=4, head=8))
    key, value = key[:, :2], value[:, :2]
    dense = quick_jit(attention.dense)
    wanted = dense(query, *(np.repeat(x, 2, axis=1) for x in (key, value)), mask)
    seen = np.asarray(mask).any(-1)[:, None, :, None]
    if backend == "dense":
        found = dense(query, key, value, mask)
        held = Cache(*(np.stack([x[:, :, :20]] * 2) for x in (key, value)))
        again = dense(query, key[:, :, 20:], value[:, :, 20:], mask, held, 1)
        np.testing.assert_allclose(again, wanted, rtol=1e-5, atol=1e-5)
    else:
        attend = functools.partial(attention.attend, backend=backend)
        found = quick_jit(attend)(query, key, value, pattern)
    found, wanted = (np.where(seen, x, 0.0) for x in (found, wanted))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("schedule", "how"), SOME)
def test_blockwise_is_dense_in_values_and_gradients(schedule, how):
    pattern, mask = pattern_of(schedule, how)
    *arguments, weight = inputs(pattern.regions.rows)
    seen = mask.any(-1)[:, None, :, None]  # rows that see nothing mean nothing

    def total(attend, arguments):
        return jnp.sum(weight * jnp.where(seen, attend(*arguments), 0.0))

    dense = functools.partial(attention.dense, mask=jnp.asarray(mask))
    blockwise = functools.partial(attention.blockwise, pattern=pattern, block=11)
    value, gradients = quick_jit(jax.value_and_grad(functools.partial(total, dense)))(arguments)
    other, others = quick_jit(jax.value_and_grad(functools.partial(total, blockwise)))(arguments)
    np.testing.assert_allclose(other, value, rtol=1e-5)
    for a, b in zip(gradients, others, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5)


# On a GPU, where the kernel knows 16 bits alone, its rounding is allowed for.
ON_GPU = jax.default_backend() == "gpu"
KERNEL = {"dtype": jnp.bfloat16 if ON_GPU else jnp.float32, "head": 8}


@pytest.mark.parametrize(("schedule", "how"), SOME)
def test_fused_is_dense_in_values_and_gradients(schedule, how):
    pattern, mask = pattern_of(schedule, how)
    *arguments, weight = inputs(pattern.regions.rows, **KERNEL)
    seen = mask.any(-1)[:, None, :, None]

    def total(attend, arguments):
        found = attend(*arguments)
        return jnp.sum(weight * jnp.where(seen, found, 0), dtype=jnp.float32), found

    dense = functools.partial(attention.dense, mask=jnp.asarray(mask))
    fused = functools.partial(attention.fused, pattern=pattern)
    (_, wanted), gradients = quick_jit(
        jax.value_and_grad(functools.partial(total, dense), has_aux=True)
    )(arguments)
    (_, found), others = quick_jit(
        jax.value_and_grad(functools.partial(total, fused), has_aux=True)
    )(arguments)
    assert np.isfinite(found).all()
    near = {"rtol": 3e-2, "atol": 3e-2} if ON_GPU else {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(
        np.where(seen, found, 0).astype(np.float32), np.where(seen, wanted, 0).astype(np.float32),
        **near,
    )  # fmt: skip
    for a, b in zip(gradients, others, strict=True):
        np.testing.assert_allclose(b.astype(jnp.float32), a.astype(jnp.float32), **near)


SPLASHED = [("block", "aligned"), ("ragged block", "causal window"), ("quenched AR", "shifted")]


@pytest.mark.parametrize(("schedule", "how"), SPLASHED)
def test_splash_is_dense_in_values_and_gradients(schedule, how):
    pattern, mask = pattern_of(schedule, how, batch=1)
    *arguments, weight = inputs(pattern.regions.rows, batch=2, head=8)
    seen = mask.any(-1)[:, None, :, None]

    def total(backend, arguments):
        found = attention.attend(*arguments, pattern, backend=backend)
        return jnp.sum(weight * jnp.where(seen, found, 0.0))

    value, gradients = quick_jit(jax.value_and_grad(functools.partial(total, "dense")))(arguments)
    other, others = quick_jit(jax.value_and_grad(functools.partial(total, "splash")))(arguments)
    np.testing.assert_allclose(other, value, rtol=1e-5)
    for a, b in zip(gradients, others, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5)


def test_splash_takes_several_blocks_of_the_kernel(monkeypatch):
    monkeypatch.setattr(splash, "_LARGEST_BLOCK", 128)
    pattern = first_phase(hyperschedule.block(length=150, width=10, levels=2))
    query, key, value, _ = inputs(pattern.regions.rows, batch=1, heads=1, head=8)
    assert pattern.regions.rows == 290
    splashed = functools.partial(attention.attend, backend="splash")
    found = quick_jit(splashed)(query, key, value, pattern)
    wanted = quick_jit(attention.attend)(query, key, value, pattern.mask())
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("schedule", "how"), SOME)
def test_constant_masks_are_those_of_every_phase(schedule, how):
    pattern, mask = pattern_of(schedule, how)
    if not pattern.constant:
        with pytest.raises(ValueError, match="not the same in all examples"):
            pattern.constant_mask()
        return
    constant = np.asarray(jax.jit(pattern.constant_mask)())  # also while a program is made
    assert (mask == constant).all()


@pytest.mark.skipif(jax.device_count() < 8, reason="fewer than eight devices")
def test_splash_runs_on_each_part_of_a_mesh():
    pattern, mask = pattern_of("block", "aligned", batch=1)
    query, key, value, _ = inputs(pattern.regions.rows, batch=8, heads=2)
    wanted = quick_jit(attention.dense)(query, key, value, mask)
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with sharding.use(mesh):
        found = quick_jit(lambda *x: attention.attend(*x, pattern, backend="splash"))(
            query, key, value
        )
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert len({str(shard.index) for shard in found.addressable_shards}) == 8


@pytest.mark.parametrize(("schedule", "how"), PAIRS)
def test_only_full_and_causal_patterns_are_taken_for_such(schedule, how):
    pattern, mask = pattern_of(schedule, how)
    assert pattern.full == mask.all()
    assert not pattern.plain_causal or (mask == np.tril(np.ones(mask.shape[1:], bool))).all()


@pytest.mark.parametrize("hidden", ["lengths", "documents"])
@pytest.mark.parametrize(
    ("schedule", "how"),
    [("flat", "aligned"), ("block", "shifted"), ("quenched AR", "shifted"), ("slide", "aligned")],
)
def test_rows_that_some_examples_hide_are_hidden_by_every_backend(schedule, how, hidden):
    """No kernel may take such a pattern for the one of the schedule."""
    pattern, _ = pattern_of(schedule, how)
    rows = pattern.rows
    if hidden == "lengths":
        rows = rows._replace(valid=rows.valid & (rows.position < jnp.arange(2, 14)[:, None]))
    else:
        texts = jax.random.randint(jax.random.key(4), (12, LENGTH), 0, 4, jnp.int32)
        separated = functools.partial(layouts.separated, pattern.layout, eos=0)
        rows = jax.vmap(separated)(rows, texts)
    partial = dataclasses.replace(pattern, rows=rows, whole=False)
    mask = quick_jit(Pattern.mask)(partial)
    seen = np.asarray(mask.any(-1))[:, None, :, None]
    for backend in ("blockwise", "fused", "splash", "auto"):
        rounded = ON_GPU and backend == "fused"
        query, key, value, _ = inputs(pattern.regions.rows, **(KERNEL if rounded else {}))
        wanted = quick_jit(attention.dense)(query, key, value, mask).astype(jnp.float32)
        attend = functools.partial(attention.attend, backend=backend)
        found = quick_jit(attend)(query, key, value, partial).astype(jnp.float32)
        near = 3e-2 if rounded else 1e-5
        np.testing.assert_allclose(
            np.where(seen, found, 0), np.where(seen, wanted, 0), rtol=near, atol=near
        )


@pytest.mark.parametrize(
    ("filled", "read"), [(0, 256), (3, 256), (256, 256), (257, 512), (600, 600)]
)
def test_only_the_filled_part_of_a_cache_is_read(filled, read):
    """The layer's own part, and of it no slot behind the smallest number that holds the mask."""
    query, key, value, _ = inputs(5, batch=2)
    past = jax.random.normal(jax.random.key(2), (2, 3, 2, 2, 600, 4))
    cache = Cache(*past.at[:, :, :, :, read:].set(jnp.nan))
    shown = np.zeros((2, 5, 600), bool)
    shown[0, :, :filled] = shown[1, :, : filled // 2] = True
    causal = np.tile(np.tri(5, dtype=bool), (2, 1, 1))
    mask = jnp.asarray(np.concatenate([shown, causal], axis=2))
    whole = [
        jnp.concatenate([old[1], new], axis=2) for old, new in zip(past, (key, value), strict=True)
    ]
    wanted = quick_jit(attention.dense)(query, *whole, mask)
    found = quick_jit(attention.dense)(query, key, value, mask, cache, 1)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


def test_no_score_matrix_of_all_rows():
    """The compiled program holds no array of 2L × 2L, forward or backward."""
    pattern = first_phase(hyperschedule.block(length=512, width=16, levels=4))
    shapes = [jax.ShapeDtypeStruct((1, 1, pattern.regions.rows, 8), jnp.float32)] * 3

    def loss(query, key, value):
        return jnp.sum(attention.blockwise(query, key, value, pattern) ** 2)

    largest = max(
        variable.aval.size
        for equation in jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2)))(*shapes).eqns
        for variable in equation.outvars
    )
    assert largest < pattern.regions.rows**2 / 4


@functools.partial(quick_jit, static_argnums=0)
def features(network, *arguments):
    return network.features(*arguments)


@pytest.mark.parametrize("backend", ["blockwise", "splash"])
def test_the_backend_of_a_network_changes_nothing(backend):
    pattern, mask = pattern_of("block", "shifted")
    network = Transformer(vocab_size=11, layers=2, width=16, heads=2)
    params = jax.jit(network.init)(jax.random.key(0))
    rows = pattern.regions.rows
    tokens = jax.random.randint(jax.random.key(2), (12, rows), 0, 12, jnp.int32)
    level = jnp.zeros((12, rows))
    shown = params, tokens, pattern.rows.position
    wanted = features(network, *shown, jnp.asarray(mask), level)
    found = features(dataclasses.replace(network, attention=backend), *shown, pattern, level)
    seen = mask.any(-1)
    np.testing.assert_allclose(found[seen], wanted[seen], rtol=1e-4, atol=1e-5)


def test_choices():
    assert attention.choose(pattern_of("flat", "aligned")[0], jnp.float32) == "dense"
    long = first_phase(hyperschedule.slide(length=200, width=7, levels=4))
    assert attention.choose(long, jnp.float32) == "blockwise"
    assert attention.choose(pattern_of("slide", "shifted")[0], jnp.float32) == "dense"  # one block
    assert (attention.choose(long, jnp.bfloat16) == "fused") == ON_GPU
    with pytest.raises(UserError, match=r"model\.attention must be one of auto, dense, blockwise"):
        Transformer(vocab_size=3, layers=1, width=8, heads=1, attention="flash")


@pytest.mark.parametrize(
    ("capability", "kernel"), [("9.0", True), ("8.0", True), ("7.5", False), ("gfx90a", False)]
)
def test_only_gpus_with_a_kernel_use_it(monkeypatch, capability, kernel):
    """A T4 (7.5) has none in cuDNN, and AMD's have another library."""
    device = types.SimpleNamespace(compute_capability=capability)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    monkeypatch.setattr(sharding, "platform", lambda: "gpu")
    pattern = first_phase(hyperschedule.slide(length=200, width=7, levels=4))
    for dtype, known in ((jnp.bfloat16, kernel), (jnp.float32, False)):
        assert (attention.choose(pattern, dtype) == "fused") == known
