"""Settings, flags, prompts, files and JSON of people are read, or refused in one sentence.

`CASES=2000 pytest tests/test_property.py` tries that many cases of each kind, new ones every time.
"""

import argparse
import contextlib
import dataclasses
import functools
import gzip
import io
import json
import lzma
import os
import re
import string
from pathlib import Path

import hypothesis
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from hybrid_jax import evaluate, generate, main, score
from hybrid_jax.aot import __main__ as aot
from hybrid_jax.config import Experiment
from hybrid_jax.data import files, prepare, sources, tokenizers
from hybrid_jax.data.manifest import MANIFEST, Manifest
from hybrid_jax.data.tokenizers.base import DESCRIPTOR
from hybrid_jax.data.tokenizers.byte import ByteTokenizer
from hybrid_jax.demo import __main__ as demo
from hybrid_jax.errors import UserError
from hybrid_jax.eval import datasets
from hybrid_jax.figures import __main__ as figures
from hybrid_jax.generation import driver, generator, infill, requests
from hybrid_jax.interop import __main__ as interop
from hybrid_jax.interop import released_config
from hybrid_jax.runtime import weights
from hybrid_jax.runtime.command_line import parse, read_config
from hybrid_jax.runtime.decode import listed
from hybrid_jax.runtime.metrics_writer import MetricsWriter
from hybrid_jax.sampling import prompts, rules
from hybrid_jax.sampling.settings import SamplingConfig
from hybrid_jax.training import pretrained, workdir

_ON_DEMAND = "CASES" in os.environ
cases = hypothesis.settings(
    max_examples=int(os.environ.get("CASES", "300")),
    derandomize=not _ON_DEMAND,
    database=None,
    deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)


@contextlib.contextmanager
def one_sentence():
    """A context for what succeeds, or is refused in one line that a terminal can show."""
    try:
        yield
    except UserError as error:
        said = str(error)
        assert said.isprintable(), said
        assert re.search(r"\w.*[.?]$", said), said


# ---------------------------------------------------------------------------------------------
# What people write.

NUMBERS = st.one_of(
    st.integers(-3, 70).map(str),
    st.floats().map(str),
    st.sampled_from(["2147483648", "4294967296", "18446744073709551616", "1e3", "1e400", "-0.0",
                     "1_000", "٣", "²", "0x10", "1.", " 1 ", "9" * 5000]),
)  # fmt: skip
WORDS = st.one_of(
    st.sampled_from(["", "none", "None", "true", "False", "~", "~nobody/x", "a,b", "[", "[[1]]",
                     "-", "--", "=", "{{3}}", "\x00", "a\nb", "\x1b[31m", "\udce9", "\ud800", "γ",
                     ".", "x" * 300, "pydocs", "pydocs:x", "hf:", "tfds:a", "files:", "files:,",
                     "files:[", 'files:["a,b"]', "files:**/*", "gpt2:", "gpt2:~", "run:", "run:."]),
    st.text(max_size=8),
)  # fmt: skip
TEXTS = st.one_of(NUMBERS, WORDS)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.sampled_from([2**31, 2**64, 10**400]),
              st.floats(), WORDS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)  # fmt: skip


def settings_of(section: type, prefix: str = "") -> dict[str, object]:
    """The fields of a dataclass and of those in it: their types, by name."""
    found = {}
    for field in dataclasses.fields(section):
        default = field.default
        if dataclasses.is_dataclass(default):
            found |= settings_of(type(default), f"{prefix}{field.name}.")
        else:
            found[f"{prefix}{field.name}"] = field.type
    return found


SETTINGS = settings_of(Experiment)
CHOICES = sorted(
    set(re.findall(r'"(\w+)"', str(SETTINGS))) | {"absorbing", "gamma", "acs", *rules.NAMED}
)
NAMES = st.one_of(
    st.sampled_from(sorted(SETTINGS)),
    st.sampled_from(["", ".", "noise", "noise.", ".gamma", "a.b.c", "noise.gamma.x", "preset", "=",
                     "nois\ne.gamma", "train.stepz"]),
    st.text(string.ascii_letters + "._", max_size=8),
)  # fmt: skip
VALUES = st.one_of(st.sampled_from(CHOICES), TEXTS)


@functools.cache
def config_of(name: str) -> dict:
    return dict(read_config(name))


@given(
    st.sampled_from(["ar", "bd3lm", "epsilon_hybrid", "gamma_hybrid", "mdlm", "sedd", "slide"]),
    st.dictionaries(NAMES, VALUES, min_size=1, max_size=3),
)
@cases
def test_settings_of_the_command_line(config, settings):
    with one_sentence():
        Experiment.from_config(config_of(config), settings)


@given(st.dictionaries(NAMES, st.one_of(JSON, VALUES), min_size=1, max_size=3), JSON)
@cases
def test_settings_of_config_files(settings, other):
    values = config_of("gamma_hybrid") | {"name": "x"}
    for name, value in settings.items():
        section, _, setting = name.rpartition(".")
        if section and isinstance(values.get(section), dict):
            values[section] = values[section] | {setting: value}
        else:
            values[name] = value
    for tried in (values, {k: v for k, v in values.items() if k != "preset"}, {"preset": other}):
        with one_sentence():
            Experiment.from_config(tried)


# ---------------------------------------------------------------------------------------------
# Damaged files.


@st.composite
def damaged(draw: st.DrawFn, text: bytes) -> bytes:
    """A file, or what is left of it: whole, cut, changed, something else."""
    place = draw(st.integers(0, len(text) - 1))
    return draw(
        st.one_of(
            st.sampled_from([text, text + text, text[:place], b"[" * 100_000]),
            st.integers(0, 255).map(lambda byte: text[:place] + bytes([byte]) + text[place + 1 :]),
            st.binary(max_size=30),
            JSON.map(lambda value: json.dumps(value).encode()),
            other_value(text),
            other_value(text),
        )
    )


@st.composite
def other_value(draw: st.DrawFn, text: bytes) -> bytes:
    """A JSON file, or the first of JSON lines, with a value that is another or missing."""
    first, *rest = [text] if text.startswith(b"{\n") else text.split(b"\n")
    values = place = json.loads(first)
    name = draw(st.sampled_from(sorted(place)))
    while isinstance(place[name], dict) and place[name] and draw(st.booleans()):
        place = place[name]
        name = draw(st.sampled_from(sorted(place)))
    if draw(st.booleans()):
        del place[name]
    else:
        place[name] = draw(JSON)
    return b"\n".join([json.dumps(values).encode(), *rest])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("property")


@pytest.fixture(scope="module")
def samples(gamma, folder) -> bytes:
    """A file that `hybrid_jax.generate` writes."""
    model = pretrained.load(gamma)
    own = generator.build(model)
    asked = [requests.beginning("1", model.tokenizer, stop=4)] * 2
    texts = driver.run(own, asked, seed=0, batch_size=2)
    file = folder / "samples"
    requests.write(file, texts, own.settings(gamma, 0))
    return file.read_bytes()


@given(st.data())
@cases
def test_damaged_files_of_runs_and_data(gamma, samples, folder, data):
    def read_run(file: Path) -> None:
        (folder / "config.json").write_bytes(file.read_bytes())
        workdir.load(folder)

    def read_manifest(file: Path) -> None:
        (folder / MANIFEST).write_bytes(file.read_bytes())
        Manifest.load(folder)

    def read_tokenizer(file: Path) -> None:
        (folder / DESCRIPTOR).write_bytes(file.read_bytes())
        tokenizers.load_tokenizer(folder)

    def read_metrics(file: Path) -> None:
        (folder / "metrics.jsonl").write_bytes(file.read_bytes())
        MetricsWriter(folder, resume_step=2).close()

    def read_weights(file: Path) -> None:
        released_config.read_config(weights.read_json(file), file, name="x")

    read, text = data.draw(
        st.sampled_from(
            [
                (read_run, (gamma / "config.json").read_bytes()),
                (read_manifest, (gamma.parent / "data" / MANIFEST).read_bytes()),
                (read_tokenizer, (gamma / "tokenizer" / DESCRIPTOR).read_bytes()),
                (read_metrics, (gamma / "metrics.jsonl").read_bytes()),
                (lambda file: requests.read(file, ByteTokenizer()), samples),
                (read_weights, b'{"model": {"type": "dit"}, "noise": {"type": "gamma"}}'),
            ]
        )
    )
    file = folder / "file"
    file.write_bytes(data.draw(damaged(text)))
    with one_sentence():
        read(file)


PACKED = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress,
          ".zst": lambda text: zstandard.ZstdCompressor().compress(text)}  # fmt: skip


@given(st.sampled_from([".txt", ".jsonl"]), st.sampled_from(sorted(PACKED)), st.data())
@cases
def test_files_of_text(folder, kind, packed, data):
    text = data.draw(damaged(b'{"text": "one\\u03b3"}\n{"text": "two", "n": 1}\n'))
    content = PACKED[packed](text)
    if packed and data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    file = folder / f"text{kind}{packed}"
    file.write_bytes(content)
    with one_sentence():
        for document in map("".join, files.streams(str(file))):
            assert document.encode("utf-8")


@given(TEXTS)
@cases
def test_names(text):
    for read in (
        lambda: files.streams(text),
        lambda: (
            sources.documents(text) if not text.startswith(("hf:", "tfds:", "pydocs")) else None
        ),
        lambda: SamplingConfig.parse(f"acs:{text}"),
        lambda: SamplingConfig.parse(text),
        lambda: datasets.parse(text, validation=datasets.EvaluationSet(name="valid", source="")),
        lambda: tokenizers.make_tokenizer(f"gpt2:{text}", (), vocab_size=0),
        lambda: pretrained.load(text),
        lambda: read_config(text) if not text.endswith(".py") else None,
        lambda: listed(text),
    ):
        with one_sentence():
            read()


# ---------------------------------------------------------------------------------------------
# Prompts and seeds.


@given(
    st.lists(
        st.one_of(
            st.text(max_size=20), st.from_regex(r"a?\{\{\d*(-\d*)?\}\}b?", fullmatch=True), WORDS
        ),
        max_size=3,
    ),
    st.one_of(st.integers(-1, 20), st.sampled_from([2**31, 2**63, 2**64])),
)
@cases
def test_prompts_and_gaps(texts, stop):
    tokenizer = ByteTokenizer()
    with one_sentence():
        asked = [requests.beginning(text, tokenizer, stop=stop) for text in texts]
        asked += [request for text in texts for request in infill.with_gaps(text, tokenizer, 16)]
        prompts.build(
            [request.ids for request in asked],
            length=16,
            vocab_size=tokenizer.vocab_size,
            stop=[request.stop for request in asked],
        )


# ---------------------------------------------------------------------------------------------
# Commands, up to where work begins.


class WorkBeginsError(Exception):
    pass


def begin(*_: object, **__: object) -> None:
    raise WorkBeginsError


COMMANDS = {
    "main": main, "generate": generate, "evaluate": evaluate, "score": score, "aot": aot,
    "demo": demo, "figures": figures, "interop": interop, "prepare": prepare,
}  # fmt: skip


def flags_of(parser: argparse.ArgumentParser) -> list[str]:
    """The flags of a command and of the commands in it."""
    found = []
    for action in parser._actions:
        found += [flag for flag in action.option_strings if "help" not in flag and flag != "-h"]
        if isinstance(action.choices, dict):
            found += [flag for part in action.choices.values() for flag in flags_of(part)]
    return sorted(set(found))


@pytest.fixture(scope="module")
def models(gamma, epsilon, ar):
    return {str(path): pretrained.load(path) for path in (gamma, epsilon, ar)}


@given(st.data())
@cases
def test_command_lines(models, folder, data):
    """Each command is run until it would read a model, prepare data, listen or compile."""
    name = data.draw(st.sampled_from(sorted(COMMANDS)))
    command = COMMANDS[name]
    runs = st.sampled_from(sorted(models))
    known = st.sampled_from(flags_of(command._parser()))
    flag = st.one_of(
        known,
        known,
        NAMES.map(lambda name: f"--config.{name}"),
        st.text(max_size=5).map(lambda text: f"--{text}"),
    )
    value = st.one_of(VALUES, runs)
    words = [f"{f}={v}" for f, v in data.draw(st.lists(st.tuples(flag, value), max_size=4))]
    words += data.draw(st.lists(st.one_of(flag, value), max_size=1))
    if data.draw(st.booleans()):
        words += {
            "main": ["--config=gamma_hybrid"],
            "generate": [f"--workdir={data.draw(runs)}"],
            "evaluate": [f"--workdir={data.draw(runs)}"],
            "score": [f"--workdir={data.draw(runs)}", "--choice=a", "--choice=b"],
            "demo": [f"--workdir={data.draw(runs)}"],
            "aot": ["--config=gamma_hybrid", "--topology=h100:1"],
            "prepare": ["--source=pydocs", f"--out={folder}/prepared"],
        }.get(name, [])
    if name == "interop":
        words.insert(0, data.draw(st.sampled_from(["import", "export", "start", "x"])))
    words = [word for word in words if word not in ("-h", "--help")]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.stdout", io.StringIO())
        patch.setattr("sys.stdin", io.StringIO("a prompt\n"))
        patch.setattr(generate, "require_terminal", lambda: None)
        patch.setattr(generate, "generate", begin)
        patch.setattr(score.scores, "score", begin)
        patch.setattr(evaluate.perplexity, "records_of", begin)
        patch.setattr(prepare.planning, "plan", begin)
        patch.setattr(pretrained, "load", lambda path, **_: models.get(str(path)) or begin())
        with contextlib.suppress(WorkBeginsError), one_sentence():
            options = parse(command._parser(), words)
            if command is main:
                main.read_experiment(options)
            elif command is aot:
                Experiment.from_config(read_config(options.config), options.settings)
            elif command is generate:
                generate.run(options)
            elif command is evaluate:
                evaluate._run(options)
            elif command is score:
                score.run(options)
            elif command is prepare:
                prepare._run(options)
            elif command is figures:
                figures.names_of(options)
