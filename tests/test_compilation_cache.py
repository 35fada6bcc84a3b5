"""Compiled programs on disk: read the second time, bounded, safe for two at once, and optional."""

import functools
import importlib
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from hybrid_jax.runtime import compilation_cache, processes

pytestmark = pytest.mark.slow

# A command that compiles as many programs as its words say, and prints how many it read from disk
# and how many it wrote.
COMMAND = """
import os
import sys
from hybrid_jax.runtime import compilation_cache
from hybrid_jax.runtime.command_line import Parser, run_command

compilation_cache._LEAST_SECONDS = 0.0
compilation_cache.MOST_BYTES = int(os.environ.get("MOST_BYTES", compilation_cache.MOST_BYTES))
if "JAX_FIRST" in os.environ:
    import jax


def work(options):
    import jax

    seen = []
    jax.monitoring.register_event_listener(lambda name, **_: seen.append(name))
    for number in range(options.first, options.programs):
        jax.jit(lambda x: x * number + 1)(2.0).block_until_ready()
    count = lambda end: sum(name.endswith(end) for name in seen)
    print(count("cache_hits"), count("cache_misses"))


parser = Parser(compiles=True)
parser.add_argument("--first", type=int, default=0)
parser.add_argument("--programs", type=int, default=3)
sys.exit(run_command(parser, None, work, interrupted="."))
"""

OWN = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}  # beside a folder of the user


@pytest.fixture
def home(tmp_path) -> Path:
    """The user's cache folder, which is not there yet."""
    return tmp_path / "cache"


def start(home: Path, *flags: str, **variables: str) -> subprocess.Popen:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION")}
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *flags],
        env={**environment, "XDG_CACHE_HOME": str(home), **variables},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process: subprocess.Popen) -> tuple[int, int]:
    """Programs that were read, and programs that were written."""
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert errors == ""
    read, written = out.split()
    return int(read), int(written)


def programs(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*-cache"))


@pytest.mark.parametrize("variables", [{}, {"JAX_FIRST": "1"}], ids=["light", "with JAX"])
def test_the_second_command_reads_what_the_first_compiled(home, variables):
    """A command that has imported JAX, or has not, when it begins."""
    read, written = finish(start(home, **variables))
    assert read == 0
    assert written == len(programs(home)) >= 3
    assert finish(start(home, **variables)) == (written, 0)
    (folder,) = home.glob("hybrid_jax/*")
    assert folder.stat().st_mode & 0o077 == 0  # programs are code: nobody else may write them


def test_it_can_be_turned_off(home):
    """By its flag where the user has a folder, too."""
    own = {**OWN, "JAX_COMPILATION_CACHE_DIR": str(home)}
    assert finish(start(home, "--no_compilation_cache", **own)) == (0, 0)
    assert finish(start(home, JAX_ENABLE_COMPILATION_CACHE="false")) == (0, 0)
    assert programs(home) == []


def test_a_folder_of_the_user_is_taken(home, tmp_path):
    own = tmp_path / "own"
    _, written = finish(start(home, JAX_COMPILATION_CACHE_DIR=str(own), **OWN))
    assert written == len(programs(own)) >= 3
    assert not home.exists()


def test_a_folder_that_cannot_be_written_is_done_without(home):
    home.write_text("a file", encoding="utf-8")
    assert finish(start(home)) == (0, 0)


def test_without_a_home_folder_none_is_made(tmp_path, monkeypatch):
    """Its path would be relative, and another in every folder."""
    monkeypatch.chdir(tmp_path)
    assert finish(start(Path("cache"))) == (0, 0)
    assert list(tmp_path.iterdir()) == []


def test_two_commands_at_once(home):
    """Each reads or writes every program, and what both leave is whole."""
    together = [start(home, "--programs=20") for _ in range(2)]
    counts = [finish(process) for process in together]
    every = len(programs(home))
    assert [read + written for read, written in counts] == [every, every]
    assert finish(start(home, "--programs=20")) == (every, 0)


def test_the_folder_is_bounded(home):
    """The programs that were used last stay."""
    _, written = finish(start(home, "--programs=1"))
    most = 4 * sum(path.stat().st_size for path in programs(home))
    many = finish(start(home, "--programs=30", MOST_BYTES=str(most)))
    left = programs(home)
    assert sum(path.stat().st_size for path in left) <= most
    assert written <= len(left) < sum(many)
    assert finish(start(home, "--first=29", "--programs=30", MOST_BYTES=str(most)))[0] >= 1
    assert finish(start(home, "--first=0", "--programs=1", MOST_BYTES=str(most)))[1] >= 1


def test_a_write_that_was_broken_off_is_removed(home):
    """JAX would neither read nor replace it, and would remove nothing any more."""
    _, written = finish(start(home))
    first, *_ = programs(home)
    first.with_name(first.name.replace("-cache", "-atime")).unlink()
    first.write_bytes(b"")
    assert finish(start(home)) == (written - 1, 1)
    assert finish(start(home)) == (written, 0)


def test_programs_for_other_cores_have_another_folder(monkeypatch):
    """A program that was compiled for one core would run on one for ever."""
    folders = []
    for cores in (1, 2):
        affinity = functools.partial(lambda cores, _: set(range(cores)), cores)
        monkeypatch.setattr(os, "sched_getaffinity", affinity, raising=False)
        folders.append(compilation_cache.folder())
    assert len(set(folders)) == 2


@pytest.mark.parametrize(
    "name", ["main", "generate", "evaluate", "score", "demo.__main__", "figures.__main__"]
)
def test_every_command_that_compiles_keeps_programs(name, monkeypatch, tmp_path):
    called = []
    monkeypatch.setattr(compilation_cache, "use", lambda: called.append("use"))
    monkeypatch.setattr(compilation_cache, "avoid", lambda: called.append("avoid"))
    command = importlib.import_module(f"hybrid_jax.{name}")
    flags = [f"--workdir={tmp_path}/nowhere", *["nothing"] * name.startswith("figures")]
    assert command.main([*flags]) == 2
    assert command.main([*flags, "--no_compilation_cache"]) == 2
    assert called == ["use", "avoid"]


@pytest.mark.parametrize("count", [1, 2])
def test_processes_of_one_run_compile_for_themselves(count, monkeypatch):
    called = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: None)
    monkeypatch.setattr(jax, "process_count", lambda: count)
    monkeypatch.setattr(compilation_cache, "in_use", lambda: True)
    monkeypatch.setattr(compilation_cache, "avoid", lambda: called.append("avoid"))
    processes.start("localhost:1", count, 0)
    assert called == ["avoid"] * (count - 1)


def test_a_library_leaves_jax_as_it_is():
    program = (
        "import jax, hybrid_jax as hj; hj.load, hj.Model\n"
        "assert jax.config.jax_compilation_cache_dir is None"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION")}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
