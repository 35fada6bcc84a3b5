"""A trained model as one file: what comes out of it writes the same; what is none is refused."""

import argparse
import json
import re
import shutil
import subprocess
import zipfile

import jax
import numpy as np
import pytest
import safetensors.numpy
from conftest import REPOSITORY

import hybrid_jax
from hybrid_jax import evaluate, generate, main
from hybrid_jax.demo.writer import Writer
from hybrid_jax.errors import UserError
from hybrid_jax.interop import card as cards
from hybrid_jax.interop.__main__ import main as interop
from hybrid_jax.training import pretrained

pytestmark = pytest.mark.slow

RESULT = {
    "step": 8, "bound": "gamma, continuous time", "records": 16, "draws": 2, "nll": 1.5,
    "nll_se": 0.25, "bits_per_byte": None, "unigram_perplexity": 21.5,
}  # fmt: skip
TERMS = ["--licence=MIT", "--text_terms=free sums"]


@pytest.fixture(scope="module")
def run(gamma, tmp_path_factory):
    """A finished run that began with another."""
    folder = tmp_path_factory.mktemp("archive") / "run"
    shutil.copytree(gamma, folder)
    (folder / "result.json").write_text(json.dumps(RESULT), encoding="utf-8")
    origin = {"workdir": "runs/ar", "step": 300, "tokens": 614_400, "flops": 3.2e12}
    (folder / "init.json").write_text(json.dumps(origin), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def file(run):
    made = run.parent / "sums.zip"
    assert interop(["archive", f"--workdir={run}", f"--out={made}", *TERMS]) == 0
    return made


@pytest.fixture(scope="module")
def unpacked(file):
    with zipfile.ZipFile(file) as archive:
        archive.extractall(file.parent / "sums")
    return file.parent / "sums"


def refused(capsys, command, *arguments):
    """The one sentence of a refusal."""
    assert command(list(arguments)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def test_texts_are_those_of_the_run_bit_for_bit(run, file, unpacked, tmp_path):
    def texts(place):
        out = tmp_path / place.name
        asked = [f"--workdir={place}", f"--out={out}", "--num_samples=2", "--prompt=7 plus"]
        assert generate.main(asked) == 0
        return [json.loads(line)["tokens"] for line in out.read_text().splitlines()]

    assert texts(run) == texts(file) == texts(unpacked)
    before = pretrained.load(run)
    for place in (file, unpacked):
        after = hybrid_jax.load(place)
        jax.tree.map(np.testing.assert_array_equal, after.params, before.params)
        assert (after.step, after.experiment) == (before.step, before.experiment)
        assert after.tokenizer.fingerprint == before.tokenizer.fingerprint
        assert after.data.identity == before.data.identity
    # The page writes with it too, and its command names the file.
    page = Writer(hybrid_jax.load(file), str(file))
    assert f"--workdir={file} " in page.job({"text": "7 plus"}).command


def test_equal_runs_give_equal_files(run, file, tmp_path, capsys):
    """Also one that came out of a file."""
    again = tmp_path / "sums.zip"
    assert interop(["archive", f"--workdir={run}", f"--out={again}", *TERMS]) == 0
    assert again.read_bytes() == file.read_bytes()
    assert list(tmp_path.iterdir()) == [again]


def test_the_card_tells_the_facts_of_the_run(run, unpacked):
    card = (unpacked / "README.md").read_text(encoding="utf-8")
    model = pretrained.load(run)
    size = sum(x.size for x in jax.tree.leaves(model.params))
    tokens = 8 * 8 * model.spec.schedule.length
    for fact in (
        "license: mit\n", f"| {size:,} parameters, 1 layers of 16 |", "γ=0.01) noise on ",
        "terms: free sums |", "| byte, 258 kinds |", f"| 8 steps, {tokens:,} tokens, ",
        "| 614,400 tokens, 3.2e+12 FLOPs, to step 300 of `runs/ar` |",
        "perplexity ≤ 4.48 ± 1.12 (2.164 bits per token; gamma, continuous time; 16 records, 2 dr",
        "perplexity 21.50 of the same tokens", "--workdir=sums --records=16 --draws=2\n",
        "3 documents, 73,271 bytes, 73,274 tokens; held out: 2 doc", f"`{model.data.identity}` |",
    ):  # fmt: skip
        assert fact in card, fact
    assert str(run.parent) not in (unpacked / "records.json").read_text(encoding="utf-8")


def cut(file):
    file.write_bytes(file.read_bytes()[:-100])


def elsewhere(file):
    """Its table of contents is said to be where nothing is."""
    content = bytearray(file.read_bytes())
    content[-3] = 255
    file.write_bytes(content)


def flipped(file):
    content = bytearray(file.read_bytes())
    content[content.index(b"__metadata__") + 400] ^= 1
    file.write_bytes(content)


def other(**parts):
    """Parts in place of those of the archive, or besides; None leaves one out."""

    def change(file):
        with zipfile.ZipFile(file) as archive:
            found = {name: archive.read(name) for name in archive.namelist()}
        found |= {name.replace("_", "."): content for name, content in parts.items()}
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in found.items():
                if content is not None:
                    archive.writestr(name, content)

    return change


NORM = safetensors.numpy.save({"norm": np.ones(16, np.float32)})
DAMAGED = [
    (cut, "is no archive of a model, or damaged"),
    (elsewhere, "is no archive of a model, or damaged"),
    (flipped, "is no archive of a model, or damaged (Bad CRC-32 for file 'model.safetensors')"),
    (lambda file: file.write_text("{}"), "is no archive of a model, or damaged"),
    (lambda file: file.write_bytes(b""), "is no archive of a model, or damaged"),
    (other(config_json=None), "(it holds other things)"),
    (other(config_json=b'{"model_type": "gpt2"}'), "sums.zip/config.json describes no run"),
    (other(model_safetensors=b"weights"), "sums.zip/model.safetensors cannot be read"),
    (other(model_safetensors=NORM), "sums.zip has no tensor embedding and"),
    (other(result_json=b"{}"), "sums.zip/result.json is damaged"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "said"), DAMAGED)
def test_what_is_no_archive_is_refused_in_one_sentence(file, tmp_path, capsys, damage, said):
    copy = tmp_path / "sums.zip"
    shutil.copyfile(file, copy)
    damage(copy)
    error = refused(capsys, generate.main, f"--workdir={copy}", f"--out={tmp_path}/out")
    assert str(copy) in error
    assert said in error
    assert list(tmp_path.iterdir()) == [copy]


def test_what_an_archive_cannot_be_asked_for(file, unpacked, tmp_path, capsys):
    assert "holds step 8 alone" in refused(capsys, generate.main, f"--workdir={file}", "--step=4")
    said = f"{file} is an archive, and this needs a folder: unpack it with python -m zipfile -e"
    assert said in refused(capsys, evaluate.main, f"--workdir={file}")
    other = file.parent / "notes.txt"
    other.write_text("no archive", encoding="utf-8")
    assert "is no archive of a model" in refused(capsys, evaluate.main, f"--workdir={other}")
    start = [f"--init={file}", f"--workdir={tmp_path}/new", "--config.train.steps=1"]
    assert said in refused(capsys, main.main, *start)
    error = refused(capsys, main.main, f"--workdir={unpacked}")
    assert f"start one from it, with --init={unpacked} and another --workdir." in error
    assert list(tmp_path.iterdir()) == []


def test_a_result_without_a_bound_is_none(tmp_path):
    (tmp_path / "result.json").write_text('{"step": 8, "nll": 2.5}', encoding="utf-8")
    with pytest.raises(UserError, match="has no measured bound of its step 8"):
        cards._bound(tmp_path, 8)


def test_what_is_not_archived(run, gamma, file, tmp_path, capsys):
    out = f"--out={tmp_path}/sums.zip"
    for arguments, said in (
        ([f"--workdir={gamma}", out, *TERMS], "has no measured bound of its step 8: finish the"),
        ([f"--workdir={run}", out, "--licence=MIT"], "may be used, with --text_terms=TEXT."),
        ([f"--workdir={run}", out], "--licence"),
        ([f"--workdir={file}", out, *TERMS], "is an archive, and this needs a folder"),
        ([f"--workdir={run}", f"--out={tmp_path}", *TERMS], "it is a folder"),
    ):
        assert said in refused(capsys, interop, "archive", *arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("named", ["saved:/gone/runs/demo-ar", "gpt2:/gone/gpt2"])
def test_a_start_elsewhere_finds_the_tokenizer_in_the_model(unpacked, tmp_path, named):
    """The folder that the run took it from is not there."""
    copy = shutil.copytree(unpacked, tmp_path / "sums")
    settings = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    settings["data"]["tokenizer"] = named
    (copy / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    start = argparse.Namespace(config="", init=str(copy), workdir=f"{tmp_path}/new", settings={})
    assert main.read_experiment(start).data.tokenizer == f"saved:{copy}"


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_demo_trains_where_it_is_given_no_model(tmp_path):
    def commands(*arguments):
        make = ["make", "-n", "-f", REPOSITORY / "Makefile", "demo", *arguments]
        found = subprocess.run(make, cwd=tmp_path, capture_output=True, text=True, check=True)
        return re.findall(r"-m (hybrid_jax\.\w+.*?)(?: \\)?$", found.stdout, re.MULTILINE)

    (tmp_path / "pyproject.toml").touch()
    ar, adapt, page = commands()
    assert ar.startswith("hybrid_jax.main --config=ar --workdir=runs/demo-ar")
    assert adapt == "hybrid_jax.main --config=adapt --init=runs/demo-ar --workdir=runs/demo"
    assert page == "hybrid_jax.demo --workdir=runs/demo"
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    (tmp_path / "runs" / "demo" / "result.json").touch()
    assert commands() == [page]
    assert commands("MODEL=demo.zip") == ["hybrid_jax.demo --workdir=demo.zip"]
