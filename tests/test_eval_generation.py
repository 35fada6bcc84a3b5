"""Numbers about generated text: each against a case computed by hand or by brute force."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from published import random_tensors, write

from hybrid_jax.data.tokenizers import make_tokenizer
from hybrid_jax.data.tokenizers.byte import ByteTokenizer
from hybrid_jax.errors import UserError
from hybrid_jax.eval import protocols
from hybrid_jax.eval.protocols import PROTOCOLS
from hybrid_jax.eval.scorers import base as scoring
from hybrid_jax.eval.scorers import load as scorers
from hybrid_jax.eval.statistics import Estimate, distinct, entropy, repetition
from hybrid_jax.eval.text_quality import evaluate
from hybrid_jax.generation import requests
from hybrid_jax.models.transformer import Transformer
from hybrid_jax.runtime.json_text import json_text

BYTES = ByteTokenizer()
END = "<|endoftext|>"


def random_scorer(vocab_size, *, width=24, context=64, scale=0.3):
    """A scorer with random parameters; with scale 0 it finds all tokens alike."""
    network = Transformer(
        vocab_size=vocab_size, layers=2, width=width, heads=2, mlp_ratio=2, position="learned",
        positions=context, tied=True, head_bias=False,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    shapes = network.shapes
    params = jax.tree.map(
        lambda x: jnp.asarray(scale * rng.normal(size=x.shape), jnp.float32), shapes
    )
    return scoring.Scorer(name="random", network=network, params=params, context=context)


@pytest.fixture(scope="module")
def scorer():
    return random_scorer(BYTES.vocab_size)


def ids(*texts):
    return [BYTES.encode(text) for text in texts]


def nats_of(scorer, row):
    """Nats of every token of a text but the first, which is read alone."""
    return scoring.score(scorer, [np.asarray(row, np.int32)], batch_size=1).nats[0]


def estimates(quality):
    """All numbers of a result by name."""
    found = {name: getattr(quality, name).value for name in ("perplexity", "nats", "entropy")}
    found |= {f"{name}_error": getattr(quality, name).error for name in ("perplexity", "nats")}
    for n in quality.distinct:
        found |= {f"distinct{n}": quality.distinct[n].value}
        found |= {f"repetition{n}": quality.repetition[n].value}
    if quality.mauve is not None:
        found |= {"mauve": quality.mauve.value, "spread": quality.mauve.spread}
    return found


# ---------------------------------------------------------------------------------------------
# Generative perplexity.


@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_perplexity_of_a_uniform_scorer_is_its_vocabulary_size(name):
    quality = evaluate(
        random_scorer(BYTES.vocab_size, scale=0.0),
        BYTES,
        ids("some text", "another one, of more tokens", "x" * 150),
        PROTOCOLS[name],
        tokenizer=BYTES,
    )
    assert quality.perplexity.value == pytest.approx(258, rel=1e-5)
    assert quality.perplexity.error == pytest.approx(0, abs=0.01)
    assert quality.nats.value == pytest.approx(math.log(258), rel=1e-6)
    assert quality.perplexity.texts == 3


def test_standard_averages_over_tokens_and_scores_the_first_one(scorer):
    texts = ["short", "a text with more tokens than the other", "third"]
    quality = evaluate(scorer, BYTES, texts, PROTOCOLS["standard"])
    each = [nats_of(scorer, [BYTES.bos, *BYTES.encode(text)]) for text in texts]
    assert quality.tokens == sum(map(len, texts)) == sum(map(len, each))
    total = sum(float(x.sum(dtype=np.float64)) for x in each)
    assert quality.nats.value == pytest.approx(total / quality.tokens, rel=1e-5)
    assert quality.perplexity.value == pytest.approx(math.exp(total / quality.tokens), rel=1e-5)
    # Of a ratio of sums: sqrt(n/(n−1) Σ (nats − mean · tokens)²) / Σ tokens.
    off = [x.sum() - quality.nats.value * len(x) for x in each]
    error = math.sqrt(3 / 2 * sum(x * x for x in off)) / quality.tokens
    assert quality.nats.error == pytest.approx(error, rel=1e-4)
    assert quality.perplexity.error == pytest.approx(error * quality.perplexity.value, rel=1e-4)


def test_hdlm_averages_exponentials_over_texts_of_ids_as_they_are(scorer):
    texts = ids("short", "a text with more tokens than the other", "third")
    texts[2] = np.append(texts[2], [BYTES.eos, BYTES.eos]).astype(np.int32)
    quality = evaluate(scorer, BYTES, texts, PROTOCOLS["hdlm"], tokenizer=BYTES)
    each = [math.exp(nats_of(scorer, text).mean(dtype=np.float64)) for text in texts]
    assert quality.tokens == sum(len(text) - 1 for text in texts)
    assert quality.perplexity.value == pytest.approx(np.mean(each), rel=1e-5)
    assert quality.perplexity.error == pytest.approx(np.std(each, ddof=1) / math.sqrt(3), rel=1e-4)
    assert quality.perplexity.value != pytest.approx(math.exp(quality.nats.value), rel=0.01)


@pytest.mark.parametrize("as_ids", [False, True])
def test_mdlm_scores_the_first_end_mark_of_a_text_and_no_later_one(scorer, as_ids):
    e = BYTES.eos
    rows = [[97, e, 98, 99, e, e, 100], [e, 97, 98, e, 99], [97, 98]]
    counted = [[1, 1, 1, 0, 0, 1], [1, 1, 0, 1], [1]]  # of the tokens but the first
    texts = [f"a{END}bc{END}{END}d", f"{END}ab{END}c", "ab"]
    if as_ids:
        texts = [np.array(row, np.int32) for row in rows]
    quality = evaluate(scorer, BYTES, texts, PROTOCOLS["mdlm"], tokenizer=BYTES)
    total = sum(float(nats_of(scorer, r) @ c) for r, c in zip(rows, counted, strict=True))
    assert quality.tokens == sum(map(sum, counted)) == 8
    assert quality.perplexity.value == pytest.approx(math.exp(total / 8), rel=1e-5)


def test_end_marks_are_read_as_one_token(scorer):
    quality = evaluate(scorer, BYTES, [f"one{END}two", "three"], PROTOCOLS["standard"])
    rows = [*b"one", BYTES.eos, *b"two"], b"three"
    total = sum(nats_of(scorer, [BYTES.bos, *row]).sum() for row in rows)
    assert quality.tokens == 12
    assert quality.nats.value == pytest.approx(total / 12, rel=1e-5)


def test_a_text_is_cut_where_the_protocol_says(scorer):
    protocol = dataclasses.replace(PROTOCOLS["standard"], max_tokens=4)
    long, cut = (
        evaluate(scorer, BYTES, texts, protocol) for texts in (["abcdefg", "xyz"], ["abcd", "xyz"])
    )
    assert estimates(long) == pytest.approx(estimates(cut), nan_ok=True)
    assert long.tokens == 7


def test_no_number_moves_with_the_batch_size(scorer):
    texts = [f"text number {n} of " + "word " * (n % 17) for n in range(40)]
    reference = [f"reference {n * n} of " + "other word " * (n % 13) for n in range(40)]
    one, many = (
        evaluate(scorer, BYTES, texts, PROTOCOLS["standard"], reference=reference, batch_size=size)
        for size in (3, 64)
    )
    assert estimates(one) == pytest.approx(estimates(many), rel=1e-4)


def test_empty_texts_have_no_number_and_are_counted(scorer):
    quality = evaluate(scorer, BYTES, ["", "abab", END], PROTOCOLS["standard"])
    assert quality.texts == 3
    assert quality.perplexity.texts == 2  # the mark alone is scored
    assert quality.entropy == Estimate(value=pytest.approx(math.log(2)), error=pytest.approx(
        math.nan, nan_ok=True), texts=1)  # fmt: skip
    with pytest.raises(UserError, match="could score"):
        evaluate(scorer, BYTES, ["", ""], PROTOCOLS["standard"])


# ---------------------------------------------------------------------------------------------
# Statistics of tokens.


def test_entropy_of_known_frequencies():
    assert entropy(np.array([7, 7, 9, 9])) == pytest.approx(math.log(2))
    assert entropy(np.array([3, 3, 3])) == 0.0
    wanted = 0.5 * math.log(2) + 0.25 * math.log(4) * 2
    assert entropy(np.array([1, 1, 2, 3])) == pytest.approx(wanted)


def test_entropy_is_a_mean_over_texts(scorer):
    found = evaluate(scorer, BYTES, ["abab", "abcd"], PROTOCOLS["standard"]).entropy
    assert found.value == pytest.approx(1.5 * math.log(2))
    assert found.error == pytest.approx(0.5 * math.log(2))
    assert found.texts == 2


def test_repetition_is_the_share_of_ngrams_seen_before():
    rows = [np.array([1, 2, 1, 2]), np.array([1, 3]), np.array([5])]
    found = repetition(rows, 1)
    assert found.value == pytest.approx((0.5 + 0 + 0) / 3)
    assert found.error == pytest.approx(np.std([0.5, 0, 0], ddof=1) / math.sqrt(3))
    assert repetition(rows, 2).value == pytest.approx((1 / 3 + 0) / 2)  # 12 21 12; 13
    assert repetition(rows, 2).texts == 2
    assert repetition(rows, 4) == Estimate(value=0.0, error=pytest.approx(math.nan, nan_ok=True),
                                           texts=1)  # fmt: skip
    assert math.isnan(repetition(rows, 5).value)
    assert repetition(rows, 5).texts == 0


def test_distinct_counts_ngrams_over_all_texts():
    rows = [np.array([1, 2, 1, 2]), np.array([1, 3]), np.array([5])]
    assert distinct(rows, 1).value == pytest.approx(4 / 7)  # 1 2 3 5
    assert distinct(rows, 2).value == pytest.approx(3 / 4)  # 12 21 13
    assert distinct(rows, 2).texts == 2
    assert math.isnan(distinct(rows, 5).value)
    assert math.isnan(distinct(rows[:1], 1).error)


def test_the_error_of_distinct_is_the_jackknife():
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 9, rng.integers(1, 12)) for _ in range(20)]
    for n in (1, 2, 3):
        long = [row for row in rows if len(row) >= n]
        every = [distinct(long[:i] + long[i + 1 :], n).value for i in range(len(long))]
        squares = sum((x - np.mean(every)) ** 2 for x in every)
        wanted = math.sqrt((len(long) - 1) / len(long) * squares)
        assert distinct(rows, n).error == pytest.approx(wanted)


# ---------------------------------------------------------------------------------------------
# MAUVE.


def english(count, seed):
    rng = np.random.default_rng(seed)
    who, what, where = "the cat|a dog|my aunt", "sees|eats|hides", "a mouse.|the cake.|an old hat."
    words = [part.split("|") for part in (who, what, where)]
    return [" ".join(rng.choice(options) for options in words) for _ in range(count)]


def test_mauve_of_texts_and_of_their_shuffled_words(scorer):
    texts, more = english(200, 0), english(200, 1)
    rng = np.random.default_rng(2)
    shuffled = [" ".join(rng.permutation(text.split())) for text in more]

    def value(generated):
        quality = evaluate(scorer, BYTES, generated, PROTOCOLS["mdlm"], reference=texts)
        assert quality.mauve.generated == quality.mauve.reference == 200
        return quality.mauve.value

    assert value(texts) == pytest.approx(1)
    assert value(more) > 0.9
    assert value(shuffled) < 0.3


def test_mauve_reads_as_much_as_the_protocol_says(scorer):
    protocol = dataclasses.replace(PROTOCOLS["standard"], mauve_tokens=7, mauve_texts=20)
    texts, human = english(30, 0), english(50, 1)
    found = evaluate(scorer, BYTES, texts, protocol, reference=human)
    cut = [[text[:7] for text in some[:20]] for some in (texts, human)]
    again = evaluate(scorer, BYTES, cut[0], PROTOCOLS["standard"], reference=cut[1])
    assert found.mauve == again.mauve
    assert found.mauve_tokens == again.mauve_tokens == (7.0, 7.0)
    assert found.mauve.generated == 20


# ---------------------------------------------------------------------------------------------
# GPT-2's own tokens, files, and what is refused.


def test_gpt2_tokens_are_scored_as_ids_and_as_text(shared_data):
    tokenizer = make_tokenizer(f"gpt2:{shared_data}/gpt2", (), vocab_size=0)
    scorer = random_scorer(tokenizer.vocab_size, width=8)
    texts = [f"It was the best of times.{END}It was the worst of times, …", "The end."]
    rows = [
        np.concatenate([tokenizer.encode(texts[0].split(END)[0]), [tokenizer.eos],
                        tokenizer.encode(texts[0].split(END)[1])]).astype(np.int32),
        tokenizer.encode(texts[1]),
    ]  # fmt: skip
    assert (rows[0] == 50256).sum() == 1
    mdlm, again = (
        evaluate(scorer, tokenizer, given, PROTOCOLS["mdlm"], tokenizer=tokenizer)
        for given in (texts, rows)
    )
    assert estimates(mdlm) == pytest.approx(estimates(again), nan_ok=True)
    assert mdlm.tokens == sum(len(row) - 1 for row in rows)
    hdlm = evaluate(scorer, tokenizer, rows, PROTOCOLS["hdlm"], tokenizer=tokenizer)
    assert hdlm.nats.value == pytest.approx(mdlm.nats.value)  # all the same but for the average
    assert hdlm.perplexity.value != pytest.approx(mdlm.perplexity.value, rel=1e-6)
    # Texts of another tokenizer are encoded again.
    other = evaluate(scorer, tokenizer, ids("The end."), PROTOCOLS["mdlm"], tokenizer=BYTES)
    assert other.tokens == len(rows[1]) - 1
    with pytest.raises(UserError, match="scorer's own tokenizer"):
        evaluate(scorer, tokenizer, ids("The end."), PROTOCOLS["hdlm"], tokenizer=BYTES)


def lines(*texts, **settings):
    records = [
        {
            **dataclasses.asdict(
                requests.Text(
                    number=n, prompt="", text=text, tokens=list(text.encode()), nfe=4 + n,
                    corrections=0,
                )
            ),
            "seed": 7,
            "sampling": {"rule": "acs", "eta": 0.5},
            **settings,
        }
        for n, text in enumerate(texts)
    ]  # fmt: skip
    return "".join(json.dumps(record) + "\n" for record in records)


def test_what_generation_wrote_is_read_and_its_settings_carried_along(scorer, tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text(lines("one", "three").replace("\n", "\r\n"), encoding="utf-8-sig", newline="")
    samples = requests.read(path, BYTES)
    assert samples.texts == ("one", "three")
    assert [list(row) for row in samples.tokens] == [list(b"one"), list(b"three")]
    quality = evaluate(
        scorer, BYTES, samples.tokens, PROTOCOLS["hdlm"], tokenizer=BYTES, settings=samples.settings
    )
    written = json.loads(json_text(quality))
    assert written["settings"] == {
        "seed": 7, "sampling": {"rule": "acs", "eta": 0.5}, "nfe": 4.5,
        "corrections": 0.0, "prompted": 0
    }  # fmt: skip
    assert written["protocol"]["name"] == "hdlm"
    assert written["protocol"]["version"] == 1
    assert written["scorer_fingerprint"] == scorer.fingerprint
    assert written["perplexity"] == dataclasses.asdict(quality.perplexity)
    assert written["distinct"]["4"] == {"value": 1.0, "error": None, "texts": 1}
    assert written["mauve"] is None
    assert set(written["versions"]) > {"jax", "numpy", "hybrid_jax"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "no texts in"),
        ("{}\n", "Line 1 of"),
        (lines("one") + "[]\n", "Line 2 of"),
        (lines("one") + lines("two", seed=8), "different settings"),
    ],
)
def test_files_that_generation_did_not_write_are_refused(tmp_path, content, said):
    path = tmp_path / "texts.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=said):
        requests.read(path, BYTES)
    with pytest.raises(UserError, match="cannot be read"):
        requests.read(tmp_path / "nowhere", BYTES)


@pytest.mark.parametrize(
    ("texts", "options", "said"),
    [
        ([], {}, "no generated texts"),
        (["a", BYTES.encode("b")], {"tokenizer": BYTES}, "mixed"),
        (ids("ab"), {}, "need the tokenizer"),
        ([np.array([97, 258])], {"tokenizer": BYTES}, "Text 0 holds MASK"),
        ([np.array([97, 300])], {"tokenizer": BYTES}, "Text 0 holds token 300"),
        (["ab", "cd"], {"reference": []}, "no reference texts"),
        (["ab", "cd"], {"reference": ["ef", ""]}, "at least two texts"),
    ],
)
def test_texts_that_cannot_be_scored_are_refused(scorer, texts, options, said):
    with pytest.raises(UserError, match=said):
        evaluate(scorer, BYTES, texts, PROTOCOLS["standard"], **options)


def test_strings_are_no_generated_ids(scorer):
    with pytest.raises(UserError, match="as they were generated"):
        evaluate(scorer, BYTES, ["ab"], PROTOCOLS["hdlm"], tokenizer=BYTES)


def test_another_tokenizer_than_the_scorers_is_refused(tmp_path):
    scorer = scorers.gpt2(write(tmp_path / "model", random_tensors()))
    with pytest.raises(UserError, match="reads 97 tokens, and its tokenizer has 258"):
        evaluate(scorer, BYTES, ["ab"], PROTOCOLS["standard"])


def test_protocols_are_named_and_checked():
    assert protocols.protocol("hdlm") is PROTOCOLS["hdlm"]
    assert all(known.name == name for name, known in PROTOCOLS.items())
    with pytest.raises(UserError, match="choose standard, hdlm, mdlm"):
        protocols.protocol("best")
    for changed, said in (
        ({"average": "mean"}, "average must be one of tokens, texts"),
        ({"max_tokens": 0}, "max_tokens must be at least 2"),
    ):
        with pytest.raises(UserError, match=said):
            dataclasses.replace(PROTOCOLS["hdlm"], **changed)
