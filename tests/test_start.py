"""The start of a training: what refuses it comes before what it makes, and it is alone."""

import dataclasses
import errno
import functools
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from hybrid_jax import main
from hybrid_jax.config import Experiment
from hybrid_jax.errors import UserError
from hybrid_jax.runtime.preemption import Signals
from hybrid_jax.training import loop, workdir
from hybrid_jax.training.train_step import TrainSetup


def with_settings(run: Path, **sections) -> Experiment:
    """The experiment of a workdir with other settings."""
    experiment = workdir.load(run)
    parts = {
        name: dataclasses.replace(getattr(experiment, name), **values)
        for name, values in sections.items()
    }
    return dataclasses.replace(experiment, **parts)


def start(experiment: Experiment, folder: Path, **options) -> None:
    run = loop.open_run(experiment, jax.devices()[:1])
    loop.train(run, folder, Signals(), **{"say": lambda _: None, **options})


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, and every folder, by its path."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
    }


def refuse_profile(folder, monkeypatch):
    return {"profile": folder / "profile"}


def refuse_board(folder, monkeypatch):
    wandb = pytest.importorskip("wandb")

    def init(**_):
        raise wandb.errors.UsageError("no API key configured")

    monkeypatch.setattr(wandb, "init", init)
    return {}


def refuse_memory(folder, monkeypatch):
    def compile_step(*_):
        def update(*_):
            raise MemoryError("out of memory")

        return update

    monkeypatch.setattr(TrainSetup, "compile_step", compile_step)
    return {}


REFUSALS = [
    (refuse_profile, {"steps": 9}, "A trace takes the steps"),
    (refuse_board, {"steps": 9, "board": "wandb"}, "wandb cannot start"),
    (refuse_memory, {"steps": 9, "board": "tensorboard"}, "out of memory"),
]


@pytest.mark.parametrize("begun", [False, True], ids=["new", "begun"])
@pytest.mark.parametrize(("refuse", "settings", "message"), REFUSALS)
def test_a_refused_start_leaves_the_workdir_as_it_was(
    gamma, tmp_path, monkeypatch, refuse, settings, message, begun
):
    """Also its config.json, whose settings a start with --workdir alone would take."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    if begun:
        shutil.copytree(gamma, folder, dirs_exist_ok=True)
    before = content(folder)
    options = refuse(tmp_path, monkeypatch)
    with pytest.raises((UserError, MemoryError), match=message):
        start(with_settings(gamma, train=settings), folder, **options)
    assert content(folder) == before


@pytest.mark.parametrize(
    ("section", "settings", "message"),
    [
        ("train", {"seed": -1}, "train.seed must be a whole number in 0 … 4294967295"),
        ("train", {"seed": 2**32}, "train.seed must be a whole number in 0 … 4294967295"),
        ("train", {"batch_size": 3}, "train.batch_size=3 does not divide among 2 devices"),
        (
            "mesh",
            {"data": 3},
            "mesh.data=3 does not fit 2 devices: choose sizes whose product is 2",
        ),
        ("data", {"source": "files:/nowhere/*.txt"}, "No file matches"),
    ],
)
def test_a_start_is_refused_before_anything_is_made(
    gamma, tmp_path, monkeypatch, capsys, section, settings, message
):
    """Neither prepared data nor folders, nor a workdir that then belongs to the wrong settings."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jax, "devices", functools.partial(lambda found: found[:2], jax.devices()))
    (tmp_path / "config.py").write_text(
        "from ml_collections import ConfigDict\n"
        f"def get_config(): return ConfigDict({workdir.load(gamma).to_config().to_dict()})\n",
        encoding="utf-8",
    )
    flags = [f"--config.{section}.{name}={value}" for name, value in settings.items()]
    status = main.main(
        ["--config=config.py", "--workdir=a/run", "--config.data.dir=b/data", *flags]
    )
    assert status == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["config.py"]


def test_a_workdir_has_one_training_at_a_time(tmp_path):
    """The lock goes with its process, and the refused one leaves no trace."""
    program = (
        "import sys; from pathlib import Path; from hybrid_jax.training import workdir\n"
        "with workdir.held(Path(sys.argv[1])):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    folder = tmp_path / "some" / "run"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as other:  # fmt: skip
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(UserError, match=rf"in use by another training \(process {other.pid} on"),
            workdir.held(folder),
        ):
            pass
        other.kill()
    with workdir.held(folder):
        (folder / "file").touch()
    assert [path.name for path in folder.iterdir()] == ["file"]
    with workdir.held(tmp_path / "other" / "run"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["some"]


def test_a_file_system_without_locks_lets_everyone_in(tmp_path, monkeypatch):
    import fcntl

    def flock(*_):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", flock)
    with workdir.held(tmp_path), workdir.held(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []
