"""A workdir of the first format, written before config.json had a number: it loads and goes on.

It is that of an autoregressive model on bytes, and holds noise.gamma, schedule.width and others,
which had no effect.
"""

import dataclasses
import json
import tarfile
from pathlib import Path

import jax
import pytest

import hybrid_jax
from hybrid_jax import generate
from hybrid_jax.config import Experiment
from hybrid_jax.data import splits
from hybrid_jax.presets import sized
from hybrid_jax.runtime.preemption import Signals
from hybrid_jax.training import loop, pretrained
from hybrid_jax.training import workdir as workdirs

ARCHIVE = Path(__file__).with_name("workdir-format-1.tar.gz")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The workdir, in a current folder that holds its text."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    lines = [f"{n} and {n} make {2 * n}, says the book.\n" for n in range(4000)]
    (tmp_path / "text.txt").write_text("".join(lines), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


def test_its_settings_are_those_that_have_an_effect(folder):
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert "format" not in values
    assert (values["schedule"]["width"], values["noise"]["gamma"]) == (8, 0.01)
    experiment = workdirs.load(folder)
    assert experiment.spec(258, bos=256).schedule.name == "quenched AR"
    for section, name in (("schedule", "width"), ("schedule", "levels"), ("noise", "gamma"),
                          ("noise", "epsilon"), ("objective", "shown_weight"),
                          ("optimizer", "muon_momentum"), ("data", "vocab_size")):  # fmt: skip
        assert getattr(getattr(experiment, section), name) is None
        del values[section][name]
    for section in dataclasses.fields(experiment):
        if section.name != "name":
            kept = dataclasses.asdict(getattr(experiment, section.name))
            assert values[section.name].items() <= kept.items()


def test_a_config_file_of_today_continues_it(folder):
    config = sized("today", "tiny")
    config.schedule = {"family": "quenched_ar"}
    config.layout.alignment = "shifted"
    config.objective.time = config.evaluation.time = "discrete"
    config.data.update(dict(source="files:text.txt", tokenizer="byte", length=16, vocab_size=None))
    config.model.update(dict(layers=1, width=16, mlp_ratio=1, qk_norm=False, unroll=1))
    config.optimizer.update(dict(name="adamw", warmup_steps=1))
    config.train.batch_size = 4
    workdirs.check(folder, Experiment.from_config(config))


def test_it_is_evaluated_generates_and_trains_on(folder):
    experiment = workdirs.load(folder)
    longer = dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, steps=3))
    run = loop.open_run(longer, jax.devices()[:1])
    model = pretrained.load(folder)
    assert model.step == 2
    # Validation text was the last piece of so small a text.
    text = Path("text.txt").read_text(encoding="utf-8")
    Path("valid.txt").write_text([*splits.cut([text])][-1], encoding="utf-8")
    found = hybrid_jax.load(folder).perplexity("files:valid.txt", records=4)
    then = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert found.perplexity == pytest.approx(then["perplexity"], rel=1e-5)

    out = folder / "texts.jsonl"
    assert generate.main([f"--workdir={folder}", f"--out={out}", "--prompt=7 and"]) == 0
    (text,) = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert text["text"].startswith("7 and")
    assert len(text["tokens"]) == 16

    workdirs.claim(folder, longer, run.tokenizer)
    state = loop.train(run, folder, Signals(), say=lambda _: None)
    assert int(state.step) == 3
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["format"] == 2
    assert pretrained.load(folder).step == 3
