"""Gaps of unknown length: which lengths are tried, and which one is chosen."""

import dataclasses
import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import LENGTH

from hybrid_jax import generate
from hybrid_jax.data.tokenizers.byte import ByteTokenizer
from hybrid_jax.data.tokenizers.char import CharTokenizer
from hybrid_jax.errors import UserError
from hybrid_jax.generation import generator, infill, requests
from hybrid_jax.generation.infill import with_gaps
from hybrid_jax.method import hyperschedule, noising
from hybrid_jax.method.layout import Layout
from hybrid_jax.method.loss import Spec
from hybrid_jax.method.mask_blocks import Pattern
from hybrid_jax.method.objective import Objective
from hybrid_jax.runtime.decode import from_values
from hybrid_jax.sampling.prompts import GAP
from hybrid_jax.training import pretrained

pytestmark = pytest.mark.slow

# ---------------------------------------------------------------------------------------------
# A language in which a digit says how many letters come before the full stop: "3abc.", and what
# comes behind that cannot be predicted.

TOKENIZER = CharTokenizer(characters=".12345abcd")
VOCABULARY, SIZE, MOST = TOKENIZER.vocab_size, 8, 5
ERROR = 0.1  # of tokens are any other


@functools.cache
def sentences():
    """Chance of every token in all sentences, [sentences, SIZE, VOCABULARY], and their logs."""
    every = [
        f"{k}{''.join(letters)}."
        for k in range(1, MOST + 1)
        for letters in itertools.product("abcd", repeat=k)
    ]
    chance = np.full((len(every), SIZE, VOCABULARY), 1 / VOCABULARY)
    for row, sentence in enumerate(every):
        ids = TOKENIZER.encode(sentence)
        chance[row, : len(ids)] *= ERROR
        chance[row, np.arange(len(ids)), ids] += 1 - ERROR
    prior = np.array([4.0 ** (MOST - int(sentence[0])) for sentence in every])
    return np.float32(chance), np.float32(np.log(prior / prior.sum()))


@dataclasses.dataclass(frozen=True)
class Knowing:
    """A network that knows the language: Bayes' rule from all that a row may see."""

    shift: int

    def features(self, params, tokens, position, mask, level, dropout_keys=None):
        chance, prior = map(jnp.asarray, sentences())
        seen = mask.mask() if isinstance(mask, Pattern) else mask
        place = jnp.broadcast_to(jnp.maximum(position, 0), tokens.shape)
        nothing = (tokens == VOCABULARY) | (position < 0)
        told = jnp.log(chance)[:, place, jnp.minimum(tokens, VOCABULARY - 1)]
        told = jnp.where(nothing, 0.0, told)  # [sentences, B, R]
        weight = jax.nn.softmax(
            prior + jnp.einsum("brm,sbm->brs", seen.astype(jnp.float32), told), axis=-1
        )
        target = jnp.minimum(place + jnp.where(position < 0, 0, self.shift), SIZE - 1)
        log_p = jnp.log(jnp.einsum("brs,sbrv->brv", weight, chance[:, target]))
        return jnp.pad(log_p, ((0, 0), (0, 0), (0, 1)), constant_values=-30.0)

    def head(self, params):
        return {}

    def logits(self, params, features):
        return features


SCHEDULES = {
    "autoregression": (hyperschedule.quenched_ar(length=SIZE), "shifted", "ar"),
    "flat": (hyperschedule.flat(length=SIZE, levels=SIZE), "aligned", "epsilon"),
    "block": (hyperschedule.block(length=SIZE, width=2, levels=2), "aligned", "epsilon"),
}


def knowing(run, name):
    """A generator of the network that knows, in the place of that of a run."""
    schedule, alignment, _ = SCHEDULES[name]
    layout = Layout(alignment=alignment)
    spec = Spec(
        schedule=schedule,
        kernel=noising.absorbing(vocab_size=VOCABULARY),
        layout=layout,
        objective=Objective(),
        bos=TOKENIZER.bos,
    )
    model = dataclasses.replace(
        pretrained.load(run), network=Knowing(layout.shift), spec=spec, params={},
        tokenizer=TOKENIZER,
    )  # fmt: skip
    own = generator.build(model)
    return dataclasses.replace(own, sampler=dataclasses.replace(own.sampler, cached=False))


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_true_length_is_found(name, request):
    """The sum of nats would prefer a single wrong letter to five right ones, and the nats of what
    is filled in alone a full stop behind the right ones."""
    own = knowing(request.getfixturevalue(SCHEDULES[name][2]), name)
    samples = 4
    asked = [with_gaps(f"{k}{{{{}}}}.", TOKENIZER, SIZE) for k in range(1, MOST + 1)]
    assert [candidates[-1].lengths for candidates in asked] == [(SIZE - 2,)] * MOST
    every = [candidates for candidates in asked for _ in range(samples)]
    texts = infill.run(own, every, seed=0, batch_size=64)
    found = np.array([text.lengths[0] for text in texts]).reshape(MOST, samples)
    true = found == np.arange(1, MOST + 1)[:, None]
    assert np.all(true.mean(axis=1) >= 0.5)
    assert true.mean() >= 0.85


# ---------------------------------------------------------------------------------------------
# Requests.


def candidates(text, length=LENGTH):
    found = with_gaps(text, ByteTokenizer(), length)
    assert all(request.prompt == text for request in found)
    assert all(request.stop == len(request.ids) <= length for request in found)
    return [request.lengths for request in found]


def test_lengths_to_try():
    assert candidates("a{{3}}b") == [()]
    assert candidates("a{{2-4}}b{{1}}") == [(2,), (3,), (4,)]
    assert candidates("a{{}}", 40) == [(n,) for n in range(1, 17)]
    assert candidates("a{{}}bc", 6) == [(1,), (2,), (3,)]  # what fits
    assert candidates("{{}}{{7-9}}b{{2}}", 12) == [(1, 7), (1, 8), (2, 7)]
    (given,) = with_gaps("a{{2}}b", ByteTokenizer(), LENGTH)
    assert given.ids == [97, GAP, GAP, 98]
    assert [r.ids for r in with_gaps("{{1-2}}b", ByteTokenizer(), LENGTH)] == [
        [GAP, 98],
        [GAP, GAP, 98],
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no gap", r"has no gap: write \{\{5\}\} where .* or \{\{\}\} where"),
        ("a{{0-2}}", r"The gap \{\{0-2\}\} has no lengths"),
        ("a{{5-3}}", r"The gap \{\{5-3\}\} has no lengths"),
        ("a{{-}}", r"The gap \{\{-\}\} has no lengths"),
        ("{{0}}", r"The gap \{\{0\}\} has no lengths: write one, at least 1"),
        ("a{{3-}}", r"The gap \{\{3-\}\} has no lengths"),
        ("a{{-3}}", r"The gap \{\{-3\}\} has no lengths"),
        ("a{{1-2-3}}", r"The gap \{\{1-2-3\}\} has no lengths"),
        ("a{{3-17}}", r"The gap \{\{3-17\}\} is longer than the 16 tokens that the model writes"),
        ("a{{3-99999999999}}", r"The gap \{\{3-9999999999\}\} is longer than the 16"),
        (
            "{{}}a{{}}b{{1-2}}",
            r"have 512 choices of lengths, of which at most 256 are tried: narrow",
        ),
    ],
)
def test_gaps_that_make_no_sense(text, message):
    with pytest.raises(UserError, match=message):
        with_gaps(text, ByteTokenizer(), LENGTH)


def test_texts_too_long_are_refused(epsilon, capsys):
    assert generate.main([f"--workdir={epsilon}", "--infill={{8-9}}{{8-9}}b"]) == 2
    message = "asks for a text of 17 tokens, but the model writes 1 to 16"
    assert message in capsys.readouterr().err


def test_the_text_is_that_of_the_chosen_lengths_and_stands_alone(epsilon, tmp_path, capsys):
    """Whatever is written beside it, and however many at a time."""
    flags = ["--prompt=7", "--num_samples=2", "--seed=3"]

    def written(*more):
        out = tmp_path / "out.jsonl"
        assert generate.main([f"--workdir={epsilon}", f"--out={out}", *flags, *more]) == 0
        tokenizer = pretrained.load(epsilon).tokenizer
        read = requests.read(out, tokenizer)
        rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        texts = [
            {field.name: row[field.name] for field in dataclasses.fields(requests.Text)}
            for row in rows
        ]
        assert read.texts == tuple(text["text"] for text in texts)
        return [from_values(requests.Text, text, "text") for text in texts]

    opened = written("--infill=1{{1-4}} m{{}}9{{1}}")
    shown = capsys.readouterr().out
    assert [text.number for text in opened] == [0, 1, 2, 3]
    assert [len(text.lengths) for text in opened] == [0, 0, 2, 2]
    for text in opened[2:]:
        one, two = text.lengths
        assert f"--- text {text.number + 1} of 4, gaps of {one} and {two} ---" in shown
        assert text.prompt == "1{{1-4}} m{{}}9{{1}}"
        fixed = written(f"--infill=1{{{{{one}}}}} m{{{{{two}}}}}9{{{{1}}}}")
        assert fixed[:2] == opened[:2]
        assert fixed[text.number].tokens == text.tokens
        assert len(text.tokens) == one + two + 5
    assert written("--infill=1{{1-4}} m{{}}9{{1}}", "--batch_size=3") == opened
