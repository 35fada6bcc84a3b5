"""Boards show what the log of metrics gets: the real packages, without a network."""

import json
import logging
import math
import os
import struct
import sys
import time

import pytest

from hybrid_jax.errors import UserError
from hybrid_jax.runtime import boards
from hybrid_jax.runtime.metrics_writer import MetricsWriter

VALUES = [
    (1, "train", {"loss": 2.5, "rate": 1.0}),
    (2, "train", {"loss": 2.0, "bad": math.nan}),
    (2, "valid", {"nll": 2.25}),
]
SHOWN = {(1, "train/loss", 2.5), (1, "train/rate", 1.0), (2, "train/loss", 2.0),
         (2, "valid/nll", 2.25)}  # fmt: skip


def write(kind, workdir, values, resume_step=0):
    workdir.mkdir(exist_ok=True)
    config = {"train": {"steps": 7}}
    board = boards.open_board(kind, workdir, resume_step=resume_step, config=config)
    with MetricsWriter(workdir, resume_step=resume_step, board=lambda: board) as writer:
        for step, name, numbers in values:
            writer.write(step, name, numbers)


def tensorboard_shows(workdir):
    """Scalars and session starts in TensorBoard's files, by the record format of TFRecord:
    length, its checksum, data, its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    events = []
    for file in sorted((workdir / "tensorboard").iterdir()):
        content, at = file.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            events.append(Event.FromString(content[at + 12 : at + 12 + length]))
            at += 12 + length + 4
    scalars = [(e.step, v.tag, v.simple_value) for e in events for v in e.summary.value]
    return scalars, [e.step for e in events if e.HasField("session_log")]


def test_tensorboard(tmp_path, caplog):
    pytest.importorskip("tensorboardX")
    with caplog.at_level(logging.WARNING):
        write("tensorboard", tmp_path, VALUES)
    assert caplog.text == ""  # it cannot plot what is not finite, and would say so
    scalars, starts = tensorboard_shows(tmp_path)
    assert set(scalars) == SHOWN
    assert starts == []
    write("tensorboard", tmp_path, [(2, "train", {"loss": 2.0})], resume_step=1)
    scalars, starts = tensorboard_shows(tmp_path)
    assert starts == [2]  # TensorBoard drops earlier events of step 2 and later
    assert len(scalars) == len(SHOWN) + 1
    (tmp_path / "file" / "tensorboard").parent.mkdir()
    (tmp_path / "file" / "tensorboard").touch()
    with pytest.raises(UserError, match=r"Cannot write .*tensorboard"):
        write("tensorboard", tmp_path / "file", [])


@pytest.mark.filterwarnings("ignore")
def test_trackio(tmp_path, monkeypatch):
    trackio = pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path / "store")
    write("trackio", tmp_path / "run", VALUES)
    write("trackio", tmp_path / "run", [(3, "train", {"loss": 1.5})], resume_step=2)
    (run,) = trackio.Api().runs("hybrid_jax")  # the resumed run is the same
    assert run.name.startswith("run-")
    rows = SQLiteStorage.get_logs("hybrid_jax", run.name)
    shown = {(row["step"], n, x) for row in rows for n, x in row.items() if n.count("/") == 1}
    assert shown == SHOWN | {(3, "train/loss", 1.5)}


@pytest.mark.filterwarnings("ignore")
def test_wandb_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    write("wandb", tmp_path / "run", VALUES)
    time.sleep(1.1)  # it names folders by the second
    write("wandb", tmp_path / "run", [(3, "train", {"loss": 1.5})], resume_step=2)
    wandb.teardown()  # its service may write a file after the run has finished
    shown, runs = set(), []
    for file in sorted(tmp_path.glob("run/wandb/offline-run-*/*.wandb")):
        content, at = file.read_bytes(), 7  # after the header, checksum, length, type, data
        while at < len(content):
            (length,) = struct.unpack_from("<H", content, at + 4)
            record = Record.FromString(content[at + 7 : at + 7 + length])
            at += 7 + length
            if record.HasField("run"):
                runs.append((record.run.project, record.run.display_name, record.run.run_id))
                settings = {u.key: json.loads(u.value_json) for u in record.run.config.update}
                assert settings["train"] == {"steps": 7}
            row = {(i.key or i.nested_key[0]): json.loads(i.value_json)
                   for i in record.history.item}  # fmt: skip
            shown |= {(row["_step"], n, x) for n, x in row.items() if "/" in n}
    assert shown == SHOWN | {(3, "train/loss", 1.5)}
    assert len(runs) == 2
    assert set(runs) == {("hybrid_jax", "run", (tmp_path / "run" / "board.id").read_text())}


def test_wandb_without_an_account_is_refused(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")

    def init(**_):
        raise wandb.errors.UsageError("no API key configured")

    monkeypatch.setattr(wandb, "init", init)
    with pytest.raises(UserError, match=r"\(no API key configured\): run `wandb login`, or set WA"):
        write("wandb", tmp_path, [])


def test_new_runs_have_new_ids(tmp_path):
    first = boards._run_id(tmp_path, 0)
    (tmp_path / boards._ID).write_text(first, encoding="utf-8")
    assert boards._run_id(tmp_path, 5) == first
    assert boards._run_id(tmp_path, 0) != first


@pytest.mark.parametrize("kind", ["tensorboard", "trackio", "wandb"])
def test_missing_packages_are_named(tmp_path, monkeypatch, kind):
    package = boards._PACKAGES[kind]
    monkeypatch.setitem(sys.modules, package, None)
    said = rf"This needs {package}: install it with pip install 'hybrid_jax\[log\]'"
    for action in (lambda: boards.check(kind), lambda: write(kind, tmp_path, [])):
        with pytest.raises(UserError, match=said):
            action()
    assert os.listdir(tmp_path) == []


def test_none_is_no_board(tmp_path):
    boards.check("none")
    write("none", tmp_path, VALUES)
    assert os.listdir(tmp_path) == ["metrics.jsonl"]
