"""GPT-2 as a scorer: against an independent implementation, and what it refuses to load."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from published import CONFIG, SIZES, random_tensors, reference, write

from hybrid_jax.errors import UserError
from hybrid_jax.eval.scorers import base as scoring
from hybrid_jax.eval.scorers import load as scorers


def nats(tensors, tokens):
    """−log p of every token but the first, float64."""
    logits, _ = reference(CONFIG, tensors, tokens)
    peak = logits.max(-1)
    total = np.log(np.exp(logits - peak[:, None]).sum(-1)) + peak
    return (total[:-1] - logits[np.arange(len(tokens) - 1), tokens[1:]]).astype(np.float64)


def random_texts(*lengths, seed=1):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, SIZES["vocab_size"], length, np.int32) for length in lengths]


@pytest.fixture(scope="module")
def tensors():
    return random_tensors()


@pytest.fixture(scope="module")
def scorer(tensors, tmp_path_factory):
    return scorers.gpt2(write(tmp_path_factory.mktemp("scorer") / "model", tensors))


def scorer_logits(scorer, tokens):
    found = scoring.features(scorer.network, scorer.params, jnp.asarray(tokens))
    logits = scorer.network.logits(scorer.params, found)
    return np.asarray(logits)[..., : scorer.vocab_size], np.asarray(found)


@pytest.mark.parametrize(
    ("prefix", "shards", "extra"),
    [
        ("", 1, {}),
        ("transformer.", 1, {"lm_head.weight": random_tensors()["wte.weight"]}),
        ("transformer.", 3, {"transformer.h.0.attn.bias": np.ones((1, 1, 2, 2), np.float32)}),
    ],
)
def test_logits_and_features_are_those_of_an_independent_gpt2(
    tensors, tmp_path, prefix, shards, extra
):
    folder = write(tmp_path / "model", tensors, prefix=prefix, shards=shards)
    first = sorted(folder.glob("*.safetensors"))[0]
    safetensors.numpy.save_file({**safetensors.numpy.load_file(first), **extra}, first)
    scorer = scorers.gpt2(folder)
    tokens = np.array(random_texts(20, 20))
    logits, features = scorer_logits(scorer, tokens)
    for row, text in enumerate(tokens):
        wanted_logits, wanted_features = reference(CONFIG, tensors, text)
        assert np.ptp(wanted_logits) > 10  # so that the tolerance means something
        np.testing.assert_allclose(logits[row], wanted_logits, atol=1e-4)
        np.testing.assert_allclose(features[row], wanted_features, atol=1e-4)


def test_scores_are_nats_of_each_token_but_the_first(scorer, tensors):
    texts = random_texts(20, 1, 2, 13)
    found = scoring.score(scorer, texts)
    assert found.features.shape == (4, SIZES["n_embd"])
    for row, text in enumerate(texts):
        np.testing.assert_allclose(found.nats[row], nats(tensors, text), atol=1e-4)
        _, features = reference(CONFIG, tensors, text)
        np.testing.assert_allclose(found.features[row], features[-1], atol=1e-4)
    alone = scoring.score(scorer, texts, nats=False)
    np.testing.assert_allclose(alone.features, found.features, atol=1e-6)


def test_scores_do_not_depend_on_the_batch_size(scorer):
    """Nor so on padding: texts of all lengths share rows of one width."""
    texts = random_texts(20, 3, 70, 1, 32, 33, 9)
    found = scoring.score(scorer, texts, batch_size=2)
    for batch_size in (1, 3, 64):
        other = scoring.score(scorer, texts, batch_size=batch_size)
        for one, again in zip(found.nats, other.nats, strict=True):
            np.testing.assert_allclose(again, one, atol=2e-5)
        np.testing.assert_allclose(other.features, found.features, atol=2e-5)


@pytest.mark.parametrize("length", [32, 33, 48, 49, 90])
def test_long_texts_are_scored_in_windows_that_overlap_by_half(scorer, tensors, length):
    (text,) = random_texts(length)
    found = scoring.score(scorer, [text])
    # Each token from the first window that holds it; windows start at 0, 16, 32, …, length − 32.
    starts = [*range(0, length - 32, 16), length - 32]
    windows = {start: nats(tensors, text[start : start + 32]) for start in starts}
    wanted = []
    for place in range(1, length):
        start = next(start for start in starts if place < start + 32)
        assert start == 0 or place - start >= 16
        wanted.append(windows[start][place - start - 1])
    np.testing.assert_allclose(found.nats[0], wanted, atol=1e-4)
    _, features = reference(CONFIG, tensors, text[-32:])
    np.testing.assert_allclose(found.features[0], features[-1], atol=1e-4)


def test_a_scorer_of_zeros_is_uniform(scorer):
    params = jax.tree.map(lambda x: 0 * x, scorer.params)
    found = scoring.score(dataclasses.replace(scorer, params=params), random_texts(11, 5))
    np.testing.assert_allclose(found.nats[0], np.full(10, math.log(97)), rtol=1e-6)


def test_logits_of_a_batch_never_exist_together(scorer):
    tokens, lengths = np.zeros((64, 32), np.int32), np.full(64, 32, np.int32)
    program = scoring._read.lower(scorer.network, scorer.params, tokens, lengths, nats=True)
    shapes = re.findall(r"tensor<((?:\d+x)*)(?:97|128)xf32>", program.as_text())
    sizes = [math.prod(int(n) for n in shape.split("x")[:-1]) for shape in shapes]
    assert sizes  # they are there at all
    assert max(sizes) <= 256 < 64 * 31


def test_the_fingerprint_is_of_values_and_not_of_files(scorer, tensors, tmp_path):
    packed = scorers.gpt2(write(tmp_path / "a", tensors, prefix="transformer.", shards=2))
    assert packed.fingerprint == scorer.fingerprint
    changed = {**tensors, "h.2.ln_2.bias": tensors["h.2.ln_2.bias"] + 1}
    assert scorers.gpt2(write(tmp_path / "b", changed)).fingerprint != scorer.fingerprint


def tensor(name, value):
    return lambda folder, tensors: write(folder, {**tensors, name: value(tensors)})


def settings(**values):
    return lambda folder, tensors: write(folder, tensors, config={**CONFIG, **values})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (tensor("h.3.ln_1.weight", lambda t: t["ln_f.weight"]), "a tensor h.3.ln_1.weight, which"),
        (tensor("lm_head.weight", lambda t: t["wte.weight"] + 1), "not tied to the"),
        (tensor("ln_f.bias", lambda t: t["ln_f.bias"] * np.nan), "not finite"),
        (settings(activation_function="relu"), "activation_function='relu', and hybrid_jax only"),
        (settings(model_type="mamba"), "model_type='mamba', and hybrid_jax only gpt2"),
        (settings(n_head=5), "does not split into model.heads=5 heads"),
        (settings(n_layer=0), "model.layers must be at least 1, but is 0"),
        (settings(n_layer=None), "has no n_layer"),
        (lambda folder, tensors: write(folder, tensors, config=[]), "holds no JSON object"),
        (lambda folder, tensors: (folder / "config.json").write_bytes(b"{\0"), "is not JSON"),
        (lambda folder, tensors: (folder / "model.safetensors").unlink(), "has neither"),
    ],
)  # fmt: skip
def test_what_is_no_gpt2_is_refused_in_a_sentence(tensors, tmp_path, change, said):
    folder = write(tmp_path / "model", tensors)
    change(folder, tensors)
    with pytest.raises(UserError) as refusal:
        scorers.gpt2(folder)
    text = str(refusal.value)
    assert said in text
    assert "\n" not in text
    assert text.endswith(".")


@pytest.mark.parametrize(
    ("texts", "batch_size", "said"),
    [
        ([[1, 97]], 1, "Token 97 is outside the scorer's 0 … 96"),
        ([[1, -1]], 1, "Token -1"),
        ([[1, 2], []], 1, "Text 1 has no token"),
        ([[1, 2]], 0, "batch_size"),
        ([], 1, "no texts"),
    ],
)
def test_texts_that_cannot_be_scored_are_refused(scorer, texts, batch_size, said):
    with pytest.raises(UserError, match=said):
        scoring.score(scorer, [np.array(text, int) for text in texts], batch_size=batch_size)
