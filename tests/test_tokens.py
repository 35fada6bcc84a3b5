"""The program of docs/tokens.md, and commands on tokens that are no text."""

import itertools
import json
import os
import re
import runpy
from pathlib import Path

import pytest
import tiny
from conftest import REPOSITORY

import hybrid_jax
from hybrid_jax import evaluate, generate
from hybrid_jax import score as scoring
from hybrid_jax.errors import UserError

pytestmark = pytest.mark.slow

SMALL = [f"--config.{name}" for name in (
    "train.steps=4", "model.layers=1", "model.width=16", "evaluation.final_records=8",
    "sampling.count=0", "schedule.levels=2",
)]  # fmt: skip


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The names that the blocks of the document define, after a few steps of training."""
    text = (REPOSITORY / "docs" / "tokens.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S))
    steps = '"--config.train.steps=500"'
    assert steps in code
    folder = tmp_path_factory.mktemp("tokens")
    small = ", ".join(map(repr, SMALL))
    (folder / "tokens.py").write_text(code.replace(steps, small), encoding="utf-8")
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield runpy.run_path("tokens.py", run_name="tokens")
    finally:
        os.chdir(before)


def test_the_program_trains_on_characters(program):
    model = program["writer"]
    assert model.step == 4
    assert {"a", "Z", "\n"} < set(model.tokenizer.characters)
    (text,) = model.generate(["The function "], length=32)
    assert len(text) in (31, 32)  # an end of text is a token without a character
    with pytest.raises(UserError, match=r"The character '狐' \(U\+72D0\) is not among the"):
        model.generate("a 狐")


def test_the_program_trains_on_melodies(program):
    lines = [line.split() for line in Path("melodies.txt").read_text().splitlines()]
    assert len(lines) == 5000
    assert {len(line) for line in lines} == {16}
    places = [[program["SCALE"].index(int(pitch)) for pitch in line] for line in lines]
    assert max(abs(a - b) for line in places for a, b in itertools.pairwise(line)) == 2
    assert program["composer"].tokenizer.vocab_size == 129
    assert all(tune[:2] == [67, 69] for tune in program["tunes"])
    assert all(0 <= pitch < 128 for tune in program["tunes"] for pitch in tune)


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    """The workdir of an autoregressive run on ids."""
    folder = tmp_path_factory.mktemp("numbers")
    (folder / "text.txt").write_text("".join(f"{n % 9} {n % 7} {n % 5}\n" for n in range(2000)))
    return tiny.run(folder, folder / "text.txt", tokenizer="ids:9", **tiny.RUNS["ar"])


def test_ids_are_generated_and_evaluated_as_texts_are(numbers, tmp_path, capsys):
    file = tmp_path / "texts.jsonl"
    command = [f"--workdir={numbers}", "--prompt=3 4", "--prompt=8", f"--out={file}"]
    assert generate.main(command) == 0
    texts = [json.loads(line) for line in file.read_text().splitlines()]
    for text, start in zip(texts, ([3, 4], [8]), strict=True):
        assert text["tokens"][: len(start)] == start
        assert [int(word) for word in text["text"].split()] == [i for i in text["tokens"] if i < 9]
    assert generate.main([f"--workdir={numbers}", "--prompt=3 9"]) == 2
    assert "The id 9 of the record '3 9' is outside 0 … 8" in capsys.readouterr().err
    command = [f"--workdir={numbers}", f"--texts={file}", f"--scorer=run:{numbers}"]
    assert evaluate.main(command) == 0
    (values,) = tiny.stored(capsys.readouterr().out)
    assert values["texts"] == 2
    assert values["perplexity"]["value"] > 1


def test_bits_of_ids_are_per_token(numbers, capsys):
    assert evaluate.main([f"--workdir={numbers}", "--records=4"]) == 0
    printed = capsys.readouterr().out
    (values,) = tiny.stored(printed)
    assert values["values"]["bits_per_byte"] is None
    assert "bits/token" in printed
    assert f"{values['values']['nll'] / 0.6931472:.3f}" in printed
    model = hybrid_jax.load(numbers)
    assert "bits per token" in str(model.perplexity("valid", records=2))
    (score,) = model.score("1 2 3")
    assert (score.tokens, score.bytes, str(score.bits_per_byte)) == (3, 0, "nan")
    # Ids behind a prompt stay ids of their own.
    command = [f"--workdir={numbers}", "--prompt=3 8", "--choice=8 1", "--choice=7"]
    assert scoring.main(command) == 0
    printed = capsys.readouterr().out.splitlines()[2:]
    assert sorted(line.split()[-1] for line in printed) == ["1", "7"]
    assert all(" – " in line for line in printed)
    with pytest.raises(UserError, match="Text 0 is empty: it has no token to score"):
        model.score(" ")
