"""Optimisers, schedules and the moving average."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from hybrid_jax.errors import UserError
from hybrid_jax.optim import (
    OptimizerConfig,
    ema_update,
    is_decayed,
    is_hidden_matrix,
    learning_rate_at,
    make_optimizer,
)

pytestmark = pytest.mark.slow

LAYERS, WIDTH, VOCABULARY = 3, 8, 20
SHAPES = {
    "embedding": (VOCABULARY, WIDTH),
    "head": {"kernel": (WIDTH, VOCABULARY), "bias": (VOCABULARY,)},
    "layers": {
        "attention": {"qkv": (LAYERS, WIDTH, 3 * WIDTH), "out": (LAYERS, WIDTH, WIDTH)},
        "mlp": {"in": (LAYERS, WIDTH, 4 * WIDTH), "in_bias": (LAYERS, 4 * WIDTH)},
        "norm1": {"scale": (LAYERS, WIDTH)},
    },
    "norm": {"scale": (WIDTH,)},
}
HIDDEN = {"layers/attention/qkv", "layers/attention/out", "layers/mlp/in"}


def make_params(seed=0):
    leaves, structure = jax.tree.flatten(SHAPES, is_leaf=lambda x: isinstance(x, tuple))
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    values = [jax.random.normal(key, shape) for key, shape in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, values)


def names_where(predicate):
    leaves = jax.tree_util.tree_leaves_with_path(jax.eval_shape(make_params))
    named = [(jax.tree_util.keystr(p, simple=True, separator="/"), leaf) for p, leaf in leaves]
    return {name for name, leaf in named if predicate(name, leaf)}


def updates_of(config, params, grads, total_steps=10):
    optimizer = make_optimizer(config, total_steps, jax.eval_shape(lambda: params))
    return jax.jit(optimizer.update)(grads, optimizer.init(params), params)[0]


def test_which_leaves():
    assert names_where(is_hidden_matrix) == HIDDEN
    assert names_where(is_decayed) == HIDDEN | {"head/kernel"}


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_decay_reaches_only_matrices(name):
    params = make_params()
    config = OptimizerConfig(name=name, learning_rate=0.5, weight_decay=0.1, schedule="constant")
    updates = updates_of(config, params, jax.tree.map(jnp.zeros_like, params))
    changed = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, update in jax.tree_util.tree_leaves_with_path(updates)
        if float(jnp.abs(update).max()) > 0
    }
    assert changed == HIDDEN | {"head/kernel"}
    np.testing.assert_allclose(
        updates["head"]["kernel"], -0.05 * params["head"]["kernel"], rtol=1e-6
    )
    np.testing.assert_allclose(
        updates["layers"]["mlp"]["in"], -0.05 * params["layers"]["mlp"]["in"], rtol=1e-6
    )


@pytest.mark.parametrize(
    ("schedule", "middle", "end"),
    [("constant", 2.0, 2.0), ("linear", 1.1, 0.2), ("cosine", 1.1, 0.2)],
)
def test_schedule(schedule, middle, end):
    config = OptimizerConfig(learning_rate=2.0, warmup_steps=10, schedule=schedule)
    rate = learning_rate_at(config, 110)
    steps = [0, 5, 10, 60, 110, 500]
    np.testing.assert_allclose([rate(s) for s in steps], [0, 1, 2, middle, end, end], rtol=1e-6)
    assert float(jax.jit(rate)(jnp.int32(5))) == 1.0


def test_schedule_without_warmup_and_of_warmup_alone():
    assert float(learning_rate_at(OptimizerConfig(learning_rate=2.0), 5)(0)) == 2.0
    only = learning_rate_at(OptimizerConfig(learning_rate=2.0, warmup_steps=5), 5)
    assert float(only(5)) == 2.0


def test_clipping():
    params = make_params()
    config = OptimizerConfig(learning_rate=1e-3, schedule="constant", clip_norm=1.0)
    large, larger = (jax.tree.map(lambda p, s=s: s * p, make_params(1)) for s in (1e3, 1e4))
    reference = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(1e-3, b2=0.999, weight_decay=0.0)
    )
    state, ours = reference.init(params), make_optimizer(config, 10, params)
    ours_state = ours.init(params)
    for grads in (large, larger, params):  # Adam forgets one gradient's scale, but not three
        expected, state = reference.update(grads, state, params)
        updates, ours_state = ours.update(grads, ours_state, params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), updates, expected)

    unclipped = OptimizerConfig(learning_rate=1e-3, schedule="constant", clip_norm=None)
    other, other_state = make_optimizer(unclipped, 10, params), None
    other_state = other.init(params)
    for grads in (large, larger, params):
        free, other_state = other.update(grads, other_state, params)
    assert float(jnp.abs(free["embedding"] - updates["embedding"]).max()) > 1e-4


def test_muon_orthogonalises_each_layer_by_itself():
    params, grads = make_params(), make_params(1)
    config = OptimizerConfig(name="muon", learning_rate=0.1, schedule="constant", clip_norm=None)
    stacked = updates_of(config, params, grads)["layers"]
    single = optax.contrib.muon(0.1, beta=0.95, consistent_rms=0.2)
    for group, name in (("attention", "qkv"), ("attention", "out"), ("mlp", "in")):
        for layer in range(LAYERS):
            one, grad = params["layers"][group][name][layer], grads["layers"][group][name][layer]
            expected, _ = single.update({"w": grad}, single.init({"w": one}), {"w": one})
            np.testing.assert_allclose(
                stacked[group][name][layer], expected["w"], rtol=1e-3, atol=1e-6
            )
    # An orthogonalised update has like singular values, unlike its gradient, and AdamW's size.
    update, grad = stacked["attention"]["qkv"][0], grads["layers"]["attention"]["qkv"][0]
    spread = [float(np.ptp(np.log(np.linalg.svd(x, compute_uv=False)))) for x in (update, grad)]
    assert spread[0] < 0.6 < spread[1]
    assert 0.01 < float(jnp.sqrt(jnp.mean(update**2))) < 0.03


def test_muon_leaves_the_rest_to_adamw():
    params, grads = make_params(), make_params(1)
    common = {"learning_rate": 0.1, "schedule": "constant", "clip_norm": None}
    muon = updates_of(OptimizerConfig(name="muon", **common), params, grads)
    adamw = updates_of(OptimizerConfig(name="adamw", **common), params, grads)
    for part in ("embedding", "head", "norm"):
        jax.tree.map(np.testing.assert_array_equal, muon[part], adamw[part])
    np.testing.assert_array_equal(
        muon["layers"]["mlp"]["in_bias"], adamw["layers"]["mlp"]["in_bias"]
    )
    doubled = OptimizerConfig(name="muon", muon_learning_rate=0.2, **common)
    twice = updates_of(doubled, params, grads)
    np.testing.assert_array_equal(twice["embedding"], muon["embedding"])
    np.testing.assert_allclose(
        twice["layers"]["mlp"]["in"], 2 * muon["layers"]["mlp"]["in"], rtol=1e-5
    )


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_reduces_a_regression_loss(name):
    keys = jax.random.split(jax.random.key(0), 3)
    inputs = jax.random.normal(keys[0], (64, WIDTH))
    target = inputs @ jax.random.normal(keys[1], (WIDTH, WIDTH))
    params = {
        "layers": {"w": 0.3 * jax.random.normal(keys[2], (2, WIDTH, WIDTH))},
        "head": {"bias": jnp.zeros(WIDTH)},
    }
    config = OptimizerConfig(name=name, learning_rate=0.1, warmup_steps=5, final_fraction=0.0)
    abstract = jax.eval_shape(lambda: params)
    optimizer = make_optimizer(config, 150, abstract)
    assert jax.tree.structure(jax.eval_shape(optimizer.init, abstract)) == jax.tree.structure(
        optimizer.init(params)
    )

    def loss(params):
        hidden = inputs
        for weight in params["layers"]["w"]:
            hidden = hidden @ weight
        return jnp.mean((hidden + params["head"]["bias"] - target) ** 2)

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state, before = optimizer.init(params), float(loss(params))
    for _ in range(150):
        params, state = step(params, state)
    assert float(loss(params)) < 0.05 * before


def test_ema():
    ema, params = {"w": jnp.zeros(2)}, {"w": jnp.array([1.0, 2.0], jnp.bfloat16)}
    first = ema_update(ema, params, 0.9, 0)  # decay 1/10
    np.testing.assert_allclose(first["w"], [0.9, 1.8], rtol=1e-6)
    assert first["w"].dtype == jnp.float32
    later = jax.jit(ema_update)(first, params, 0.9, jnp.int32(10))  # decay 11/20
    np.testing.assert_allclose(later["w"], [0.945, 1.89], rtol=1e-6)
    late = ema_update(ema, params, 0.9, 1_000_000)
    np.testing.assert_allclose(late["w"], [0.1, 0.2], rtol=1e-5)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "sgd"),
        ("schedule", "step"),
        ("learning_rate", 0.0),
        ("warmup_steps", -1),
        ("final_fraction", 1.5),
        ("beta1", 1.0),
        ("beta2", -0.1),
        ("epsilon", 0.0),
        ("weight_decay", -1.0),
        ("clip_norm", -1.0),
        ("muon_learning_rate", 0.0),
        ("muon_momentum", 1.0),
    ],
)
def test_mistakes_are_named(field, value):
    name = "muon" if field.startswith("muon") else "adamw"
    with pytest.raises(UserError, match=rf"optimizer\.{field} must be .*, but is "):
        OptimizerConfig(**{"name": name, field: value})


def test_a_training_shorter_than_its_warm_up_warms_up_until_its_end():
    config = OptimizerConfig(learning_rate=2.0, warmup_steps=20)
    short = learning_rate_at(config, 10)
    assert [float(short(step)) for step in (0, 5, 10)] == [0.0, 1.0, 2.0]
    assert float(learning_rate_at(config, 20)(10)) == 1.0  # one that is as long is as it was


def test_mistakes_in_the_number_of_steps_and_the_parameters():
    with pytest.raises(UserError, match=r"train\.steps must be at least 1"):
        make_optimizer(OptimizerConfig(), 0, make_params())
    with pytest.raises(UserError, match="muon found no weight matrix"):
        make_optimizer(OptimizerConfig(name="muon"), 10, {"embedding": jnp.ones((2, 2))})
