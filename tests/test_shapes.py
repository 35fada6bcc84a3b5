"""Shapes and dtypes of calls: signatures are checked in tests, and batches and prompts always."""

import jax
import jax.numpy as jnp
import jaxtyping
import pytest
from enumeration import Reader

from hybrid_jax.method import hyperschedule, noising
from hybrid_jax.method.layout import Layout
from hybrid_jax.method.loss import Batch, Spec, batch_loss
from hybrid_jax.method.objective import Objective
from hybrid_jax.models.attention import dense
from hybrid_jax.sampling import prompts
from hybrid_jax.sampling.draw import sample_categorical
from hybrid_jax.sampling.loop import generate
from hybrid_jax.sampling.rules import Ancestral
from hybrid_jax.sampling.state import Sampler

pytestmark = pytest.mark.usefixtures("strict_promotion")

N, LENGTH = 5, 4
KEY = jax.random.key(0)
SPEC = Spec(
    schedule=hyperschedule.block(length=LENGTH, width=2, levels=2),
    kernel=noising.absorbing(vocab_size=N),
    layout=Layout(),
    objective=Objective(),
)
NETWORK = Reader(vocab_size=N, length=LENGTH)


@pytest.fixture
def unchecked():
    """As in production: nobody checks signatures."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize(
    "call",
    [
        lambda: noising.corrupt(SPEC.kernel, KEY, jnp.zeros(4, jnp.int32), jnp.zeros(5)),
        lambda: noising.corrupt(SPEC.kernel, KEY, jnp.zeros(4), jnp.zeros(4)),
        lambda: noising.reverse_mean(SPEC.kernel, jnp.zeros((N, 1)), 0, 0.1, 0.2),
        lambda: dense(*jnp.zeros((3, 2, 1, 4, 8)), jnp.ones((2, 4, 4))),
        lambda: dense(jnp.zeros((2, 1, 4, 8)), *jnp.zeros((2, 3, 1, 4, 8)), jnp.ones(1, bool)),
        lambda: sample_categorical(jax.random.split(KEY), jnp.zeros(3)),
    ],
    ids=["length", "dtype", "rank", "mask dtype", "batch", "one key"],
)
def test_calls_with_a_wrong_shape_or_dtype_fail(call):
    with pytest.raises(jaxtyping.TypeCheckError):
        call()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("tokens", "index", "message"),
    [
        ((LENGTH,), (LENGTH,), r"tokens must be int \[batch, 4\]"),
        ((3, LENGTH + 1), (3,), r"tokens must be int \[batch, 4\]"),
        ((3, LENGTH), (2,), "one place for each record"),
    ],
)
def test_batches_of_a_wrong_shape_are_named(tokens, index, message):
    batch = Batch(jnp.zeros(tokens, jnp.int32), jnp.zeros(index, jnp.int32), KEY, size=3)
    with pytest.raises(AssertionError, match=message):
        batch_loss(SPEC, NETWORK, NETWORK.init(0), batch)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("length", "keys", "message"),
    [(LENGTH + 1, 2, "must have the schedule's 4 positions"), (LENGTH, 3, "one typed key")],
)
def test_prompts_of_a_wrong_shape_are_named(length, keys, message):
    sampler = Sampler(spec=SPEC, network=NETWORK)
    given = prompts.nothing(2, length)
    with pytest.raises(AssertionError, match=message):
        generate(sampler, Ancestral(), NETWORK.init(0), jax.random.split(KEY, keys), given)
