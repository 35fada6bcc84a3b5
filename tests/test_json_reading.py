"""JSON files that are not what they should be: always one sentence, never anything else."""

import copy
import json
import shutil

import pytest

from hybrid_jax.data import tokenizers
from hybrid_jax.data.manifest import Manifest
from hybrid_jax.data.tokenizers.byte import ByteTokenizer
from hybrid_jax.errors import UserError
from hybrid_jax.generation import requests
from hybrid_jax.runtime import weights
from hybrid_jax.runtime.decode import parse_json
from hybrid_jax.runtime.metrics_writer import MetricsWriter
from hybrid_jax.training import pretrained, workdir

OTHERS = (None, [], {}, [[]], "x", True, -1, 0.5, 1e300, 2**31 - 1, 10**30)
BROKEN = (
    b"", b"[]", b"{}", b"3", b"null", b'"x"', b"{", b"\xff\xfe", b"[" * 50_000, b"NaN", b"1" * 5000,
    b'{"format": 3}', b'{"format": [1]}', b'{"preset": {}}', b'{"name": "\\ud800"}',
    b'{"format": 2, "train": {"steps": 1e400}}',
)  # fmt: skip


def variants(text):
    """The file broken in many ways: other contents, cut, and each value replaced by others."""
    yield from BROKEN
    yield text[: len(text) // 2]
    values = json.loads(text)

    def places(value, path=()):
        yield path
        names = {dict: list, list: lambda x: range(len(x))}.get(type(value), lambda _: ())(value)
        for name in names:
            yield from places(value[name], (*path, name))

    for path in places(values) if isinstance(values, dict) else ():
        for other in OTHERS:
            changed = copy.deepcopy([values])
            place, last = changed, 0
            for name in path:
                place, last = place[last], name
            place[last] = other
            yield json.dumps(changed[0]).encode()


@pytest.fixture
def run(ar, tmp_path):
    shutil.copytree(ar, tmp_path / "run")
    shutil.copy(ar.parent / "data" / "manifest.json", tmp_path / "run" / "manifest.json")
    texts = {"number": 0, "prompt": "", "text": "a", "tokens": [1], "nfe": 1, "corrections": 0}
    (tmp_path / "run" / "texts.jsonl").write_text(json.dumps(texts) + "\n", encoding="utf-8")
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1, "kind": "train"}\n')
    return tmp_path / "run"


def sentence(function, *arguments, **settings):
    """The sentence of a refusal; empty where there is none."""
    try:
        function(*arguments, **settings)
    except UserError as error:
        return str(error)
    return ""


READERS = {
    "config.json": workdir.load,
    "manifest.json": Manifest.load,
    "tokenizer/tokenizer.json": lambda run: tokenizers.load_tokenizer(run / "tokenizer"),
    "metrics.jsonl": lambda run: MetricsWriter(run, resume_step=5).close(),
    "texts.jsonl": lambda run: requests.read(run / "texts.jsonl", ByteTokenizer()),
    "model.json": lambda run: weights.read_json(run / "model.json"),
}


@pytest.mark.parametrize("name", READERS)
def test_a_file_that_was_changed_is_one_sentence_or_read(run, name):
    file = run / name
    refused = 0
    for content in variants(file.read_bytes() if file.exists() else b"{}"):
        file.write_bytes(content if name != "metrics.jsonl" else content + b"\n")
        said = sentence(READERS[name], run)
        assert not said or (file.name in said and "\n" not in said)
        refused += bool(said)
    assert refused >= len(BROKEN) - 2


@pytest.mark.parametrize("file", ["_CHECKPOINT_METADATA", "metrics/metrics", "meta/metadata"])
@pytest.mark.parametrize("step", ["best", None])
def test_a_damaged_checkpoint_is_one_sentence_or_read(run, file, step):
    (place,) = run.glob(f"checkpoints/*/{file}")
    for content in ("[]", "3", "{", "{}", '{"score": "x"}', '{"init_timestamp_nsecs": "x"}'):
        place.write_text(content, encoding="utf-8")
        said = sentence(pretrained.load, run, step=step)
        assert not said or "checkpoint" in said


@pytest.mark.parametrize(
    "text", ["NaN", "[Infinity]", '{"a": "\\ud800"}', b'"\xed\xa0\x80"', "{'a': 1}"]
)
def test_json_is_strict(text):
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)


def test_json_of_texts_is_read_as_it_is():
    value = {"γ": ["\u2028\N{GRINNING FACE}", 1e-3, 2**63, True, None]}
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False).encode()):
        assert parse_json(text) == json.loads(text)
