"""A run and its records: it goes on with the ones that it began with, wherever they are."""

import argparse
import dataclasses
import shutil

import jax
import numpy as np
import pytest
from tiny import LENGTH

from hybrid_jax import main
from hybrid_jax.data import pipeline, prepare
from hybrid_jax.data.manifest import Manifest
from hybrid_jax.data.settings import DataConfig
from hybrid_jax.errors import UserError
from hybrid_jax.eval import perplexity
from hybrid_jax.generation import summary
from hybrid_jax.training import loop, pretrained
from hybrid_jax.training import workdir as workdirs


def opened(folder, experiment):
    """The run of the workdir `folder`/run, as the training command opens it."""
    known = workdirs.load_data(folder / "run")
    return loop.open_run(experiment, jax.devices()[:1], known)


def claim(folder, experiment, run):
    records = run.data_dir, run.manifest
    workdirs.claim(folder / "run", experiment, run.tokenizer, records)


@pytest.fixture
def begun(ar, tmp_path, monkeypatch):
    """The experiment of a run that has begun in the current folder: run, text.txt and data."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "text.txt", "hare")
    data = DataConfig(source="files:text.txt", tokenizer="byte", length=LENGTH)
    experiment = dataclasses.replace(workdirs.load(ar), data=data)
    claim(tmp_path, experiment, opened(tmp_path, experiment))
    return experiment


def write(path, animal):
    path.write_text("".join(f"{n} of a {animal}\n" for n in range(5000)), encoding="utf-8")


def test_it_does_not_go_on_with_records_of_other_text(begun, tmp_path, capsys):
    before = opened(tmp_path, begun)
    shutil.rmtree(tmp_path / "data")
    write(tmp_path / "text.txt", "fish")
    assert main.main([f"--workdir={tmp_path}/run"]) == 2
    said = capsys.readouterr().err
    assert f"other data ({before.manifest.identity[:12]}, then in {before.data_dir})" in said
    assert not (tmp_path / "data").exists()
    # A run that begins now takes them, and then there are two kinds.
    now = loop.open_run(begun, jax.devices()[:1])
    with pytest.raises(UserError, match=f"of {now.data_dir} .{now.manifest.identity[:12]}.: bring"):
        opened(tmp_path, begun)
    with pytest.raises(UserError, match="The run was trained on other data"):
        claim(tmp_path, begun, now)


def test_it_goes_on_with_equal_records_made_anew(begun, tmp_path):
    before = opened(tmp_path, begun)
    shutil.rmtree(tmp_path / "data")
    assert opened(tmp_path, begun).manifest == before.manifest


def test_it_says_that_the_text_has_changed_and_goes_on_with_its_records(begun, tmp_path):
    before = opened(tmp_path, begun)
    write(tmp_path / "text.txt", "fish")
    run = opened(tmp_path, begun)
    assert run.manifest == before.manifest
    assert run.changes == "text.txt has changed"
    assert "the text has changed since (text.txt has changed)" in summary.introduction(run, ".")
    with pytest.raises(UserError, match="was prepared from other text"):
        loop.open_run(begun, jax.devices()[:1])


@pytest.mark.parametrize("has_other", [False, True])
def test_its_records_are_found_from_another_folder(begun, tmp_path, monkeypatch, has_other):
    before = opened(tmp_path, begun)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    if has_other:  # of the same name
        write(tmp_path / "elsewhere" / "text.txt", "fish")
        loop.open_run(begun, jax.devices()[:1])
    assert opened(tmp_path, begun).data_dir == before.data_dir


def test_its_records_may_move(begun, tmp_path):
    before = opened(tmp_path, begun)
    moved = before.data_dir.rename(tmp_path / "moved")
    named = dataclasses.replace(begun, data=dataclasses.replace(begun.data, dir="moved"))
    run = opened(tmp_path, named)
    assert (run.data_dir, run.manifest) == (moved, before.manifest)
    claim(tmp_path, named, run)
    assert workdirs.load_data(tmp_path / "run").folder == str(moved)


def test_a_workdir_of_an_older_version_takes_what_there_is(begun, tmp_path):
    identity = workdirs.load_data(tmp_path / "run").identity
    (tmp_path / "run" / "records.json").unlink()
    assert workdirs.load_data(tmp_path / "run") is None
    claim(tmp_path, begun, opened(tmp_path, begun))
    assert workdirs.load_data(tmp_path / "run").identity == identity


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"identity": 1, "folder": "x"}', "\xff"])
def test_damaged_notes_are_refused(begun, tmp_path, content):
    (tmp_path / "run" / "records.json").write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=r"records\.json is damaged .*: restore it, or delete it"):
        opened(tmp_path, begun)


# Evaluation ----------------------------------------------------------------------------------


def model(folder, **data):
    """The trained model of a workdir, with other settings of its data."""
    found = pretrained.load(folder)
    data = dataclasses.replace(found.experiment.data, **data)
    return dataclasses.replace(found, experiment=dataclasses.replace(found.experiment, data=data))


def test_validation_records_are_found_from_another_folder(ar, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = perplexity.held_out(pretrained.load(ar), 5).tokens
    found = perplexity.held_out(model(ar, dir="data"), 5)
    np.testing.assert_array_equal(found.tokens, expected)
    unknown = dataclasses.replace(model(ar, dir="data"), data=None)
    with pytest.raises(UserError, match=f"validation records are not in {tmp_path}/data: bring"):
        perplexity.held_out(unknown)


def test_validation_records_of_others_are_refused(ar, text, tmp_path):
    prepare.prepare(
        source=f"files:{text}/a.txt", valid_source=f"files:{text}/b.txt", tokenizer="byte",
        vocab_size=0, length=LENGTH, out=tmp_path / "data",
    )  # fmt: skip
    found = model(ar, dir=str(tmp_path / "data"))
    gone = dataclasses.replace(found.data, folder=str(tmp_path / "gone"))
    with pytest.raises(UserError, match=rf"{found.data.identity[:12]}, then in {tmp_path}/gone"):
        perplexity.held_out(dataclasses.replace(found, data=gone))
    # Of a run whose records are not known, they may be the right ones.
    assert len(perplexity.held_out(dataclasses.replace(found, data=None))) == 30


def test_validation_text_is_that_of_the_records_and_not_of_today(ar, tmp_path):
    file = tmp_path / "valid.txt"
    file.write_text("a hare and a cony\n" * 9, encoding="utf-8")
    settings = {"valid_source": f"files:{file}", "dir": str(tmp_path / "data")}
    found = dataclasses.replace(model(ar, **settings), data=None)
    dataset = perplexity.validation_set(found.experiment)
    packed = perplexity.records_of(found, dataset)  # there are no records yet
    manifest = prepare.prepare(**found.experiment.data.preparation, out=tmp_path / "data")
    assert len(packed) == manifest.valid.records
    file.write_text("a fish and a bird\n" * 9, encoding="utf-8")
    records = perplexity.records_of(found, dataset)
    np.testing.assert_array_equal(records.tokens, packed.tokens)
    stored = pipeline.Records(tmp_path / "data", "valid")
    np.testing.assert_array_equal(records.tokens, stored.read(range(len(stored)))["tokens"])


# Folders that are named by hand ---------------------------------------------------------------


@pytest.fixture
def books(tmp_path):
    """Records that a user prepared, with settings of no preset."""
    write(tmp_path / "text.txt", "hare")
    arguments = [f"--source=files:{tmp_path}/text.txt", "--tokenizer=byte", "--length=32",
                 "--valid_every=2", "--shard_records=900", f"--out={tmp_path}/books"]  # fmt: skip
    assert prepare.main(arguments) == 0
    return tmp_path / "books"


def read(config, **settings):
    settings = {f"data.{name}": value for name, value in settings.items()}
    options = argparse.Namespace(config=config, workdir="", init="", settings=settings)
    return main.read_experiment(options)


def test_a_folder_of_records_brings_its_settings(books):
    experiment = read("gamma_hybrid", dir=str(books))
    manifest = Manifest.load(books)
    assert experiment.data == DataConfig(
        source=manifest.source, tokenizer="byte", length=32, dir=str(books)
    )
    run = loop.open_run(experiment, jax.devices()[:1])
    assert run.manifest == manifest


def test_chosen_settings_are_not_replaced(books, tmp_path):
    assert read("gamma_hybrid", dir=str(books), length="16").data.length == 16
    with pytest.raises(UserError, match="was prepared with length=32, not 16: choose another fold"):
        loop.open_run(read("gamma_hybrid", dir=str(books), length="16"), jax.devices()[:1])
    # A config file's own choices count too, and so does every setting of a run.
    file = tmp_path / "config.py"
    file.write_text(
        "from hybrid_jax.presets import sized\n"
        "def get_config():\n"
        "    config = sized('books', 'tiny')\n"
        f"    config.data.dir = '{books}'\n"
        "    config.data.vocab_size = None\n"
        "    config.data.tokenizer = 'gpt2:x'\n"
        "    return config\n",
        encoding="utf-8",
    )
    data = read(str(file)).data
    assert (data.tokenizer, data.length) == ("gpt2:x", 32)
    stored = dataclasses.replace(read("ar"), data=DataConfig(length=64, dir=str(books)))
    assert type(stored).from_json(stored.to_json()) == stored.resolved()


def test_a_folder_without_records_leaves_the_settings(tmp_path):
    named = read("gamma_hybrid", dir=str(tmp_path / "new")).data
    assert named == dataclasses.replace(read("gamma_hybrid").data, dir=str(tmp_path / "new"))
    (tmp_path / "manifest.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="is damaged"):
        read("gamma_hybrid", dir=str(tmp_path))


def test_a_trained_tokenizer_brings_its_size(books, tmp_path):
    source = Manifest.load(books).source
    prepare.prepare(
        source=source, tokenizer="sentencepiece", vocab_size=280, length=32, out=tmp_path / "sp"
    )
    assert read("gamma_hybrid", dir=str(tmp_path / "sp")).data == DataConfig(
        source=source, tokenizer="sentencepiece", vocab_size=280, length=32, dir=f"{tmp_path}/sp"
    )
