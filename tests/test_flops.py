"""FLOPs against a count of the traced program, and of the mask's entries one by one."""

import dataclasses
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_jax.method import hyperschedule, noising
from hybrid_jax.method import layout as layouts
from hybrid_jax.method.layout import Layout
from hybrid_jax.method.loss import Spec
from hybrid_jax.method.objective import Objective
from hybrid_jax.models.transformer import Transformer
from hybrid_jax.training import flops

LENGTH = 12
# 127 tokens and MASK fill the head's 128 columns, so that none is padding.
NETWORK = Transformer(vocab_size=127, layers=3, width=16, heads=2, mlp_ratio=3, qk_norm=True)
SCHEDULES = {
    "flat": hyperschedule.flat(length=LENGTH, levels=5),
    "block": hyperschedule.block(length=LENGTH, width=5, levels=3),
    "slide": hyperschedule.slide(length=LENGTH, width=4, levels=4),
    "quenched_ar": hyperschedule.quenched_ar(length=LENGTH),
}
# Noisy rows, clean rows. Shifted, slide's extra rows are one for each window of a tiling.
ROWS = {
    ("flat", "aligned"): (12, 0),
    ("flat", "shifted"): (1 + 12, 1),
    ("block", "aligned"): (12, 10),
    ("block", "shifted"): (3 + 12, 1 + 10),
    ("slide", "aligned"): (12, 11),
    ("slide", "shifted"): (4 + 12, 1 + 11),
    ("quenched_ar", "aligned"): (12, 11),
    ("quenched_ar", "shifted"): (0, 1 + 11),
}


def spec(family: str, alignment: str, context: str = "causal") -> Spec:
    return Spec(
        schedule=SCHEDULES[family],
        kernel=noising.absorbing(vocab_size=NETWORK.vocab_size),
        layout=Layout(alignment=alignment, context=context),
        objective=Objective(),
    )


def products(jaxpr) -> int:
    """FLOPs of all matrix products in a jaxpr; a scan's body counts as often as it runs."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval
            inner = math.prod(left.shape[axis] for axis in contracted)
            total += 2 * inner * equation.outvars[0].aval.size
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                total += times * products(inner)
    return total


def traced(network: Transformer, rows: int, batch: int = 1) -> int:
    """FLOPs of the products in the network and its head, whatever they are for."""
    shape = (batch, rows)

    def forward(params, tokens, position, mask, level):
        features = network.features(params, tokens, position, mask, level)
        return network.logits(params, features[:, :LENGTH])

    jaxpr = jax.make_jaxpr(forward)(
        network.shapes,
        jnp.zeros(shape, jnp.int32),
        jnp.zeros(shape, jnp.int32),
        jnp.ones((batch, rows, rows), bool),
        jnp.zeros(shape),
    )
    return products(jaxpr.jaxpr)


LLAMA = {"kv_heads": 1, "head_width": 6, "mlp_ratio": None, "mlp_width": 40, "gated": True,
         "qkv_bias": True, "out_bias": True, "tied": True, "norm": "rms"}  # fmt: skip


@pytest.mark.parametrize("change", [{}, {"condition": 24}, LLAMA])
@pytest.mark.parametrize(("family", "alignment"), ROWS)
def test_dense_count_is_that_of_the_traced_program(family, alignment, change):
    network = dataclasses.replace(NETWORK, **change)
    found = flops.forward_flops(network, spec(family, alignment))
    assert found.rows == sum(ROWS[family, alignment])
    attention = found.attention * found.rows**2 / found.pairs
    assert found.matmul + attention + found.head == traced(network, found.rows)


def test_remat_unroll_and_types_do_not_change_the_count():
    changed = dataclasses.replace(NETWORK, remat=True, unroll=3, dtype="bfloat16", dropout=0.1)
    assert traced(changed, 20) == traced(NETWORK, 20)
    assert flops.forward_flops(changed, spec("block", "aligned")) == flops.forward_flops(
        NETWORK, spec("block", "aligned")
    )


@pytest.mark.parametrize(("family", "alignment"), ROWS)
def test_attention_counts_the_true_entries_of_the_mask(family, alignment):
    part = spec(family, alignment)
    schedule = part.schedule
    found = []
    for phase in range(schedule.phases):
        groups = jnp.full(schedule.phase_groups, phase)
        rows = layouts.training_rows(part.layout, schedule, groups)
        rows = [
            dict(zip(rows._fields, values, strict=False))  # documents are joined and have no field
            for values in zip(*map(np.asarray, rows[:-1]), strict=True)
        ]
        found.append(
            sum(bool(layouts.may_attend(part.layout, row(q), row(k))) for q in rows for k in rows)
        )
    count = flops.forward_flops(NETWORK, part)
    assert count.pairs == np.mean(found)
    assert count.attention == 4 * NETWORK.width * NETWORK.layers * np.mean(found)


def row(fields: dict) -> layouts.Rows:
    return layouts.Rows(**fields)


def test_pairs_of_small_cases_by_hand():
    def pairs(*case):
        return flops.forward_flops(NETWORK, spec(*case)).pairs

    triangle = LENGTH * (LENGTH + 1) / 2
    assert pairs("flat", "aligned") == LENGTH**2
    assert pairs("quenched_ar", "shifted") == triangle
    # Each noisy row sees itself and the clean rows before it; the last position has no clean row.
    assert pairs("quenched_ar", "aligned") == triangle + (LENGTH - 1) * LENGTH / 2
    # Windows of 5, 5 and 2 see themselves and 0, 5 and 10 clean rows.
    assert pairs("block", "aligned") == 25 + 50 + 24 + 10 * 11 / 2
    assert pairs("block", "aligned", "block_causal") == 25 + 50 + 24 + 25 + 50


def test_many_phases_are_represented_by_some():
    schedule = hyperschedule.slide(length=180, width=90, levels=90)
    found = dataclasses.replace(spec("flat", "aligned"), schedule=schedule)
    some = flops.forward_flops(NETWORK, found).pairs
    every = np.mean([_pairs(found, phase) for phase in range(0, 90, 7)])
    assert some == pytest.approx(every, rel=0.01)


def _pairs(found: Spec, phase: int) -> int:
    rows = layouts.training_rows(found.layout, found.schedule, jnp.array([phase]))
    return int(layouts.attention_mask(found.layout, rows).sum())


def test_custom_tables_have_a_count_too():
    table = hyperschedule.custom([[2, 2, 2], [1, 2, 2], [0, 1, 2], [0, 0, 1], [0, 0, 0]])
    found = dataclasses.replace(spec("flat", "aligned"), schedule=table)
    count = flops.forward_flops(NETWORK, found)
    assert count.rows == 3 + 2
    assert count.head == 2 * 3 * 16 * 128


def test_training_is_three_times_forward():
    found = spec("block", "shifted")
    forward = flops.forward_flops(NETWORK, found)
    assert flops.training_flops(NETWORK, found) == 3 * forward.total
    assert forward.total == forward.matmul + forward.attention + forward.head


def test_released_size_is_about_six_flops_a_parameter_and_token():
    """The rule of thumb 6·parameters·tokens, with attention apart (arXiv 2001.08361 table 1)."""
    network = Transformer(vocab_size=50_257, layers=12, width=768, heads=12)
    schedule = hyperschedule.flat(length=1024, levels=1024)
    found = dataclasses.replace(
        spec("flat", "aligned"), schedule=schedule, kernel=noising.absorbing(vocab_size=50_257)
    )
    shapes = network.shapes
    shapes.pop("embedding")
    parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    forward = flops.forward_flops(network, found)
    assert 3 * (forward.matmul + forward.head) == pytest.approx(6 * parameters * 1024, rel=0.003)
    assert forward.attention == 12 * 4 * 768 * 1024**2


@pytest.mark.parametrize(
    ("kind", "peak", "memory"),
    [
        ("TPU v3", 61.5e12, 15.48),
        ("TPU v4", 275e12, 30.75),
        ("TPU v5 lite", 197e12, 15.75),
        ("TPU v5", 459e12, 95.74),
        ("TPU v6 lite", 918e12, 31.25),
        ("TPU7x", 1153.5e12, 94.75),
        ("NVIDIA H100 80GB HBM3", 989e12, 80e9 / 2**30),
        ("NVIDIA H100 PCIe", 756e12, 80e9 / 2**30),
        ("NVIDIA H200", 989e12, 141e9 / 2**30),
        ("NVIDIA A100-SXM4-40GB", 312e12, 40e9 / 2**30),
        ("NVIDIA L4", 121e12, 24e9 / 2**30),
        ("NVIDIA L40S", 362e12, 48e9 / 2**30),
        ("cpu", None, None),
        ("TPU v9", None, None),
    ],
)
def test_devices_are_known_by_their_kind(kind, peak, memory):
    device = types.SimpleNamespace(device_kind=kind)
    assert flops.peak_flops(device) == peak
    found = flops.memory_bytes(device)
    assert found == (None if memory is None else pytest.approx(memory * 2**30))
