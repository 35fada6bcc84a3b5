"""The transformer: what may influence what, and what may not change its output."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from enumeration import quick_jit

from hybrid_jax.errors import UserError
from hybrid_jax.models import attention, rotary
from hybrid_jax.models.transformer import Transformer
from hybrid_jax.runtime.checkpoint import named_leaves

pytestmark = [pytest.mark.usefixtures("strict_promotion"), pytest.mark.slow]

SMALL = Transformer(vocab_size=11, layers=2, width=16, heads=2, condition=6)
BATCH, ROWS = 2, 5


# ---------------------------------------------------------------------------------------------
# Values.


@functools.cache
def inputs():
    """Parameters with every path switched on, and tokens, positions, mask and levels."""
    leaves, tree = jax.tree.flatten(jax.jit(SMALL.init)(jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [
        leaf + 0.2 * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)
    ]
    params = jax.tree.unflatten(tree, noisy)
    tokens = jax.random.randint(jax.random.key(2), (BATCH, ROWS), 0, 12, jnp.int32)
    mask = jnp.tril(jnp.ones((BATCH, ROWS, ROWS), bool))
    level = jax.random.uniform(jax.random.key(3), (BATCH, ROWS))
    return params, tokens, jnp.arange(ROWS)[None], mask, level


@functools.partial(quick_jit, static_argnums=0)
def logits(network, params, tokens, position, mask, level):
    return network.logits(params, network.features(params, tokens, position, mask, level))


@functools.partial(quick_jit, static_argnums=0)
def features(network, params, *rest):
    return network.features(params, *rest)


@functools.partial(quick_jit, static_argnums=0)
def loss_gradient(network, params, *rest):
    def loss(params):
        return jnp.sum(jnp.sin(network.logits(params, network.features(params, *rest))))

    return jax.value_and_grad(loss)(params)


@pytest.mark.parametrize("change", [{"unroll": 2}, {"remat": True}])
def test_execution_choices_change_neither_values_nor_gradients(change):
    value, gradient = loss_gradient(SMALL, *inputs())
    other = dataclasses.replace(SMALL, **change)
    other_value, other_gradient = loss_gradient(other, *inputs())
    np.testing.assert_allclose(other_value, value, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(other_gradient), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-4 * float(jnp.abs(a).max()))


def test_hidden_rows_cannot_influence_what_a_row_says():
    """To the last bit, through all layers."""
    params, tokens, position, mask, level = inputs()
    before = logits(SMALL, params, tokens, position, mask, level)
    for row in range(ROWS):
        changed = tokens.at[:, row].set((tokens[:, row] + 1) % 11)
        other_level = level.at[:, row].add(-0.5 * level[:, row])
        after = logits(SMALL, params, changed, position, mask, other_level)
        np.testing.assert_array_equal(after[:, :row], before[:, :row])
        # What may look at the row does change.
        assert np.all(np.any(after[:, row:] != before[:, row:], axis=-1))


def test_a_row_does_not_depend_on_its_neighbours_in_the_batch():
    params, tokens, position, mask, level = inputs()
    whole = logits(SMALL, params, tokens, position, mask, level)
    alone = logits(SMALL, params, tokens[1:], position, mask[1:], level[1:])
    np.testing.assert_allclose(alone, whole[1:], rtol=1e-5, atol=1e-5)


def test_a_row_with_nothing_to_attend_to_stays_finite():
    params, tokens, position, mask, level = inputs()
    blind = mask.at[:, 2].set(False)
    assert np.all(np.isfinite(logits(SMALL, params, tokens, position, blind, level)))
    _, gradient = loss_gradient(SMALL, params, tokens, position, blind, level)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


def test_bfloat16_activations_stay_close_to_float32():
    params, *rest = inputs()
    exact = logits(SMALL, params, *rest)
    rounded = logits(dataclasses.replace(SMALL, dtype="bfloat16"), params, *rest)
    assert rounded.dtype == jnp.float32
    error = jnp.linalg.norm(rounded - exact) / jnp.linalg.norm(exact)
    assert 1e-6 < error < 3e-2


def test_no_product_of_the_head_is_in_32_bits_where_activations_are_in_16():
    """Neither forward nor backward: of a large vocabulary it would take most of a step."""
    params = SMALL.head(inputs()[0])
    features = jax.random.normal(jax.random.key(4), (5, SMALL.width))

    def total(dtype, params, features):
        return jnp.sum(dataclasses.replace(SMALL, dtype=dtype).logits(params, features) ** 2)

    gradient = jax.grad(total, argnums=(1, 2))
    run = quick_jit(functools.partial(gradient, "bfloat16"))
    traced = run.lower(params, features)
    products = re.findall(r"dot_general .*: \((.*)\) ->", traced.as_text())
    assert len(products) == 3
    assert all(re.fullmatch(r"tensor<\w+xbf16>, tensor<\w+xbf16>", types) for types in products)

    def exactly(params, features):
        head = params["head"]
        return jnp.sum((features @ head["kernel"] + head["bias"][None]) ** 2)

    exact = quick_jit(jax.grad(exactly, argnums=(0, 1)))(params, features)
    rounded = run(params, features)
    for a, b in zip(jax.tree.leaves(exact), jax.tree.leaves(rounded), strict=True):
        assert jnp.linalg.norm(a - b) <= 3e-2 * jnp.linalg.norm(a)


def test_positions_matter_only_relative_to_one_another():
    params, tokens, position, mask, level = inputs()
    here = logits(SMALL, params, tokens, position, mask, level)
    there = logits(SMALL, params, tokens, position + 37, mask, level)
    np.testing.assert_allclose(there, here, rtol=1e-3, atol=1e-4)
    stretched = logits(SMALL, params, tokens, 2 * position, mask, level)
    assert jnp.abs(stretched - here).max() > 1e-2


def test_rotation_keeps_lengths_and_turns_by_position():
    x = jax.random.normal(jax.random.key(0), (1, 2, 4, 8))
    frequency = rotary.frequencies(4, 10_000.0)
    turned = rotary.rotate(x, jnp.array([[0, 1, 2, 500]]), frequency)
    np.testing.assert_array_equal(turned[:, :, 0], x[:, :, 0])
    norms = [jnp.linalg.norm(y, axis=-1) for y in (turned, x)]
    np.testing.assert_allclose(*norms, rtol=1e-5)
    # The fastest pair (the first of each half) turns by one radian a position.
    pair = complex(x[0, 0, 1, 0], x[0, 0, 1, 4])
    wanted = pair * np.exp(1j)
    np.testing.assert_allclose(turned[0, 0, 1, 0], wanted.real, rtol=1e-5)
    np.testing.assert_allclose(turned[0, 0, 1, 4], wanted.imag, rtol=1e-5)


def test_dense_attention_is_a_softmax_over_what_is_visible():
    query, key, value = jax.random.normal(jax.random.key(0), (3, 1, 1, 4, 6))
    mask = jnp.tri(4, dtype=bool)[None]
    found = attention.dense(query, key, value, mask)[0, 0]
    for row in range(4):
        scores = np.asarray(key[0, 0, : row + 1] @ query[0, 0, row]) / np.sqrt(6)
        weights = np.exp(scores) / np.exp(scores).sum()
        wanted = weights @ np.asarray(value[0, 0, : row + 1])
        np.testing.assert_allclose(found[row], wanted, rtol=1e-5, atol=1e-6)


def test_a_fresh_conditioned_layer_is_the_identity():
    """Gates start at 0: whatever the other rows hold, the output is the row's own."""
    params = jax.jit(SMALL.init)(jax.random.key(0))
    _, tokens, position, mask, level = inputs()
    among_others = features(SMALL, params, tokens, position, mask, level)
    only_itself = jnp.broadcast_to(jnp.eye(ROWS, dtype=bool), mask.shape)
    alone = features(SMALL, params, tokens, position, only_itself, level)
    np.testing.assert_array_equal(among_others, alone)


def test_levels_matter_only_to_conditioned_networks():
    params, tokens, position, mask, level = inputs()
    here = logits(SMALL, params, tokens, position, mask, level)
    assert np.any(logits(SMALL, params, tokens, position, mask, level / 2) != here)
    plain = dataclasses.replace(SMALL, condition=0)
    plain_params = jax.jit(plain.init)(jax.random.key(0))
    found = [features(plain, plain_params, tokens, position, mask, x) for x in (level, level / 2)]
    np.testing.assert_array_equal(*found)


def test_full_noise_is_a_level_like_any_other():
    """σ = −log(1 − λ) is infinite there; the network must not be."""
    params, tokens, position, mask, level = inputs()
    found = logits(SMALL, params, tokens, position, mask, jnp.ones_like(level))
    assert np.all(np.isfinite(found))


def test_dropout_acts_only_with_a_key():
    network = dataclasses.replace(SMALL, dropout=0.5)
    params, *rest = inputs()
    np.testing.assert_array_equal(features(network, params, *rest), features(SMALL, params, *rest))
    keys = [jax.random.split(jax.random.key(i), BATCH) for i in (0, 0, 1)]
    noisy = [features(network, params, *rest, key) for key in keys]
    np.testing.assert_array_equal(noisy[0], noisy[1])
    assert np.any(noisy[0] != noisy[2])


@pytest.mark.parametrize(("tokens", "rows"), [(11, 128), (127, 128), (128, 256), (50_257, 50_304)])
def test_vocabulary_has_room_for_mask_and_is_padded(tokens, rows):
    assert Transformer(vocab_size=tokens, layers=1, width=4, heads=1).rows == rows


def test_parameters_have_padded_rows_and_stacked_layers():
    shapes = jax.tree.map(jnp.shape, SMALL.shapes)
    assert shapes["embedding"] == (128, 16)
    assert shapes["head"]["kernel"] == (16, 128)
    assert shapes["layers"]["qkv"] == (2, 16, 3, 16)


BIASED = dict(norm_bias=True, qkv_bias=True, out_bias=True, qk_norm=True)


def test_every_parameter_says_what_its_axes_are():
    """And no other has any."""
    found = {}
    for change in (
        {**BIASED, "position": "learned", "positions": 9},
        {**BIASED, "kv_heads": 1, "gated": True, "activation": "silu"},
    ):
        network = dataclasses.replace(SMALL, **change)
        found |= named_leaves(network.shapes)
    assert {name: leaf.ndim for name, leaf in found.items()} == {
        name: len(axes) for name, axes in SMALL.axes.items()
    }


def test_a_tied_head_is_the_embedding_and_learns_with_it():
    network = dataclasses.replace(SMALL, tied=True, head_bias=False)
    params = {name: value for name, value in inputs()[0].items() if name != "head"}
    assert network.head(params).keys() == {"embedding"}
    rows = jax.random.normal(jax.random.key(4), (3, SMALL.width))
    wanted = rows @ params["embedding"].T
    np.testing.assert_allclose(network.logits(params, rows), wanted, rtol=1e-5, atol=1e-5)
    shapes = network.shapes
    assert jax.tree.structure(shapes) == jax.tree.structure(params)


def test_learned_positions_start_before_the_text():
    """Row r of the table is for position r − 1."""
    network = dataclasses.replace(SMALL, position="learned", positions=ROWS + 1, condition=0)
    params = jax.jit(network.init)(jax.random.key(0))
    _, tokens, position, mask, level = inputs()
    before = features(network, params, tokens, position - 1, mask, level)
    table = params["position_embedding"]
    for row in range(ROWS):
        changed = params | {"position_embedding": table.at[row].add(1.0)}
        after = features(network, changed, tokens, position - 1, mask, level)
        np.testing.assert_array_equal(after[:, :row], before[:, :row])
        assert np.all(np.any(after[:, row] != before[:, row], axis=-1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 0}, "model.layers must be at least 1"),
        ({"unroll": 0}, "model.unroll must be at least 1"),
        ({"heads": 16}, "heads of an even width"),
        ({"heads": 3}, "does not split"),
        ({"dropout": 1.0}, "model.dropout must lie in"),
        ({"activation": "tanh"}, "model.activation must be one of gelu, relu2"),
        ({"dtype": "float16"}, "model.dtype must be one of float32, bfloat16"),
        ({"condition": 0, "embedding_gamma": 0.1}, "needs model.condition"),
        ({"heads": 4, "kv_heads": 3}, "do not divide among model.kv_heads=3"),
        ({"head_width": 5}, "model.head_width must be even"),
        ({"position": "learned"}, "needs model.positions"),
        ({"position": "learned", "positions": 4, "rope_theta": 1e6}, "model.rope_theta belongs to"),
        ({"rope_scaling": "yarn:4"}, "model.rope_scaling='yarn:4' is not known"),
        ({"rope_scaling": "llama3:8,4,1,64"}, "give llama3:FACTOR,LOW,HIGH,ORIGINAL"),
        ({"norm": "rms", "norm_bias": True}, "model.norm_bias belongs to model.norm=layer"),
        ({"mlp_width": 32, "mlp_ratio": 2}, "model.mlp_ratio belongs to"),
    ],
)
def test_networks_without_meaning_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(SMALL, **change)
