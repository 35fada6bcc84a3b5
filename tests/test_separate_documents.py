"""Documents of a record that do not see one another: terms, training, and what is refused."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from enumeration import Reader, kernels, quick_jit

from hybrid_jax.data.tokenizers.byte import ByteTokenizer
from hybrid_jax.errors import UserError
from hybrid_jax.generation import generator
from hybrid_jax.method import hyperschedule
from hybrid_jax.method import loss as estimator
from hybrid_jax.method.layout import Layout
from hybrid_jax.method.objective import Objective
from hybrid_jax.models.transformer import Transformer
from hybrid_jax.sampling.settings import SamplingConfig
from hybrid_jax.training import pretrained

LENGTH, WORDS, BOS, EOS = 12, 3, 3, 4  # words are 0, 1 and 2
KERNELS = kernels(5)
SHIFTED = Layout(alignment="shifted")
AHEAD = Layout(alignment="shifted", causal_window=True)
WHOLE = Layout(context="block_causal")


def schedule_of(family, length=LENGTH):
    if family == "quenched AR":
        return hyperschedule.quenched_ar(length=length)
    if family == "flat":
        return hyperschedule.flat(length=length, levels=4)
    return getattr(hyperschedule, family)(length=length, width=4, levels=4)


def spec_of(family, layout, kernel, *, length=LENGTH, documents="separate"):
    return estimator.Spec(
        schedule=schedule_of(family, length),
        kernel=KERNELS[kernel],
        layout=dataclasses.replace(layout, documents=documents),
        objective=Objective(),
        bos=BOS,
        eos=EOS,
        chunk=5,
    )


# Documents begin and end inside of windows, and the last one does not end.
NUMBER = np.array([0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2])
TEXT = np.array([2, 0, EOS, 1, 1, 2, 0, EOS, 0, 1, 2, 0], np.int32)


@pytest.mark.parametrize(
    ("family", "layout", "kernel", "partial"),
    [
        ("quenched AR", SHIFTED, "absorbing", False),
        ("quenched AR", SHIFTED, "absorbing", True),
        ("quenched AR", Layout(), "gamma .1", False),
        ("flat", Layout(), "absorbing", False),
        ("flat", SHIFTED, "epsilon", True),
        ("block", Layout(), "absorbing", False),
        ("block", SHIFTED, "gamma .1", True),
        ("block", AHEAD, "absorbing", False),
        ("block", WHOLE, "epsilon", False),
        ("slide", Layout(), "absorbing", True),
        ("slide", SHIFTED, "gamma .1", False),
    ],
)
def test_terms_of_a_document_do_not_depend_on_its_neighbours(family, layout, kernel, partial):
    """Records in which all documents but one say something else, over phases and noise."""
    others = np.where(TEXT == EOS, EOS, (TEXT + 1) % WORDS).astype(np.int32)
    records = jnp.asarray([TEXT, *(np.where(kept == NUMBER, TEXT, others) for kept in range(3))])
    network = Reader(vocab_size=5, length=LENGTH)
    params = network.init(seed=3)
    given = jnp.broadcast_to(jnp.isin(jnp.arange(LENGTH), jnp.array([1, 5])), records.shape)
    known = (given, jnp.full(4, LENGTH - 1)) if partial else ()

    @functools.partial(quick_jit, static_argnums=0)
    def terms(spec, keys):
        def drawn(key):  # the same for all records
            batch = estimator.Batch(records, jnp.zeros(4, jnp.int32), key, 1, *known)
            return estimator.batch_terms(spec, network, params, batch)

        return jax.vmap(drawn)(keys)

    keys = jax.random.split(jax.random.key(0), 16)
    found = np.asarray(terms(spec_of(family, layout, kernel), keys))
    joined = np.asarray(terms(spec_of(family, layout, kernel, documents="joined"), keys))
    for kept in range(3):
        own = found[..., kept == NUMBER]
        assert np.abs(own[:, 0]).max() > 0.1
        np.testing.assert_array_equal(own[:, 1 + kept], own[:, 0])
    last = joined[..., NUMBER == 2]
    assert np.abs(last[:, 3] - last[:, 0]).max() > 1e-3


def test_the_row_in_front_of_a_document_holds_bos_without_noise():
    """Also inside of a window, in noisy and in clean rows."""
    fed = []

    class Spy(Reader):
        def features(self, params, *rows):
            fed.extend(rows)
            return super().features(params, *rows)

    network = Spy(vocab_size=5, length=LENGTH)

    def rows(key):
        batch = estimator.Batch(jnp.asarray(TEXT)[None], jnp.arange(1), key, 1)
        spec = spec_of("block", SHIFTED, "absorbing")
        estimator.batch_terms(spec, network, network.init(seed=3), batch)
        tokens, position, _, level, *_ = fed
        return tokens[0], position[0], level[0]

    tokens, position, level = map(np.asarray, quick_jit(rows)(jax.random.key(0)))
    begins = (position < 0) | (TEXT[position] == EOS)
    # Leading rows, noisy rows, clean rows.
    np.testing.assert_array_equal(position[begins], [-1, 7, 2, 7, -1, 2, 7])
    np.testing.assert_array_equal(tokens == BOS, begins)
    assert (level[begins] == 0).all()
    assert (level[~begins] > 0).any()


@pytest.mark.parametrize(
    ("family", "layout"),
    [
        ("quenched AR", SHIFTED),
        ("block", Layout()),
        ("block", SHIFTED),
        ("block", dataclasses.replace(SHIFTED, context="block_causal")),
    ],
)
def test_terms_of_a_document_are_those_of_the_document_alone(family, layout):
    """Of a document that begins with a window, with the same levels and noise."""
    network = Transformer(vocab_size=5, layers=2, width=16, heads=2, condition=8)
    params = jax.jit(network.init)(jax.random.key(0))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    params = jax.tree.unflatten(
        tree, [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    )
    spec, short = (spec_of(family, layout, "gamma .1", length=size) for size in (LENGTH, 8))
    texts = jnp.tile(jnp.array([2, 0, 1, EOS, 1, 1, 2, 0, 1, 2, 0, EOS], jnp.int32), (8, 1))
    texts = texts.at[0].set(2)  # another record, of one document

    @functools.partial(quick_jit, static_argnums=0)
    def terms(spec, key):
        batch = estimator.Batch(texts, jnp.arange(8), key, 8)
        packed = estimator.corrupt_batch(spec, batch)
        alone = jax.tree.map(lambda x: x[:, 4:], packed)
        alone = alone._replace(phase=packed.phase[:, -short.schedule.phase_groups :])
        return (
            estimator.drawn_terms(spec, network, params, packed)[1:, 4:],
            estimator.drawn_terms(short, network, params, alone)[1:],
        )

    found, wanted = terms(spec, jax.random.key(2))
    assert np.abs(wanted).max() > 0.1
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_run_on_separate_documents(tmp_path):
    """It trains, evaluates and samples with the eos of its tokenizer."""
    lines = [json.dumps({"text": line}) for line in tiny.TEXT[:20_000].splitlines()]
    (tmp_path / "lines.jsonl").write_text("\n".join(lines), encoding="utf-8")
    settings = tiny.RUNS["gamma"] | {
        "layout": Layout(alignment="shifted", documents="separate"),
        "train": tiny.TrainConfig(steps=2, batch_size=8, eval_every=2, checkpoint_every=100),
        "sampling": SamplingConfig(count=1, eos="stop"),
    }
    folder = tiny.run(tmp_path, tmp_path / "lines.jsonl", **settings)
    *_, last = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert 0 < json.loads(last)["nll"] < np.inf
    model = pretrained.load(folder)
    assert model.spec.eos == ByteTokenizer().eos
    with pytest.raises(UserError, match="knows nothing behind the end of one: choose eos=stop"):
        generator.build(model, SamplingConfig())


def test_separate_documents_need_the_token_that_ends_them():
    with pytest.raises(UserError, match="told by the token that ends them"):
        dataclasses.replace(spec_of("flat", Layout(), "absorbing"), eos=None)
