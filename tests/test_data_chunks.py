"""Preparation by several processes and hosts, with interruptions: always the same bytes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hybrid_jax.data import chunks, files, prepare, splits
from hybrid_jax.data.manifest import Manifest
from hybrid_jax.errors import Interrupted, UserError
from hybrid_jax.runtime import workers
from hybrid_jax.runtime.scratch import locked, resumed_folder

pytestmark = pytest.mark.slow

CHARACTERS = 150  # of a chunk here: there are many more than signals below
# Prepares with small chunks, and sends signal NUMBER, after AFTER of them, to TARGET: "all" for
# itself, or "worker". Prints the numbers of its workers before.
PROGRAM = f"""
import os, sys
from hybrid_jax.data import chunks, prepare
from hybrid_jax.runtime import workers
chunks.CHARACTERS = {CHARACTERS}
target, number, left, *arguments = sys.argv[1:]
left, start, run, pids = int(left), workers._start, chunks.run, []

def started():
    connection, process = start()
    pids.append(process.pid)
    return connection, process

def stopping(count, jobs, answer):
    def counted(question):
        global left
        answered = answer(question)
        left -= isinstance(question, int)
        if not left:
            print(*pids, flush=True)
            os.kill(pids[0] if target == "worker" else os.getpid(), int(number))
        return answered
    return run(count, jobs, counted)

workers._start, chunks.run = started, stopping
sys.exit(prepare.main(arguments))
"""


@pytest.fixture(scope="module")
def story(tmp_path_factory) -> dict:
    """Settings for three files, of which each has several chunks."""
    folder = tmp_path_factory.mktemp("story")
    texts = [
        f"Tale {n} of {n * n} hares, naïve 狐 and\n\na river.\n" * (n % 5 + 1) for n in range(90)
    ]
    lines = [json.dumps({"text": text}) + "\n" for text in texts]
    (folder / "a.jsonl").write_text("".join(lines[:40]), encoding="utf-8")
    (folder / "b.txt").write_text("".join(texts[40:60]), encoding="utf-8")
    (folder / "c.jsonl").write_text("".join(lines[60:]), encoding="utf-8")
    return {"source": f"files:{folder}/*", "tokenizer": "sentencepiece", "vocab_size": 330,
            "length": 32, "shard_records": 40}  # fmt: skip


@pytest.fixture(scope="module")
def whole(story, tmp_path_factory) -> Path:
    """The records that one process makes of it in one go."""
    out = tmp_path_factory.mktemp("whole") / "out"
    prepare.prepare(**story, out=out)
    return out


def options(settings, out) -> list[str]:
    return [f"--{name}={value}" for name, value in {**settings, "out": out}.items()]


def run(*arguments, target="all", number=0, after=-1) -> subprocess.CompletedProcess:
    words = [sys.executable, "-c", PROGRAM, target, str(int(number)), str(after), *arguments]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def assert_same(out: Path, whole: Path) -> None:
    assert Manifest.load(out) == Manifest.load(whole)
    names = [path.name for path in sorted(whole.iterdir())]
    assert [path.name for path in sorted(out.iterdir())] == names
    for name in names:
        if name != "manifest.json":  # which has the times of files
            assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def encodes_nothing(monkeypatch) -> None:
    def fail(*_):
        raise AssertionError("a chunk is written again")

    monkeypatch.setattr(chunks, "CHARACTERS", CHARACTERS)
    monkeypatch.setattr(chunks, "_write", fail)


def has_ended(pid: str) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"


def test_a_run_that_is_killed_goes_on_where_it_was(story, whole, tmp_path):
    out = tmp_path / "out"
    ends = [
        ("all", signal.SIGKILL, 2, 3, ""),
        ("all", signal.SIGTERM, 4, 2, "terminated; what is encoded is kept: the same command goes"),
        ("worker", signal.SIGKILL, 3, 2, "a process that shares the work was killed by signal 9"),
        ("all", signal.SIGKILL, 5, 1, ""),
    ]
    before: dict[Path, int] = {}
    for target, number, after, count, message in ends:
        ended = run(*options(story, out), f"--workers={count}", target=target, number=number,
                    after=after)  # fmt: skip
        expected = {signal.SIGKILL: -9, signal.SIGTERM: 143}[number] if target == "all" else 2
        assert ended.returncode == expected
        assert message in ended.stderr
        assert "Traceback" not in ended.stderr
        assert not out.exists()
        deadline = time.monotonic() + 60
        while not all(map(has_ended, ended.stdout.split())):
            assert time.monotonic() < deadline, "a worker outlives its command"
            time.sleep(0.05)
        now = {path: path.stat().st_mtime_ns for path in tmp_path.glob(".out-*/work/*.npz")}
        assert len(now) >= len(before) + after
        assert before.items() <= now.items()
        before = now
    done = run(*options(story, out), "--workers=2")
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)
    assert_same(out, whole)


def test_a_run_that_is_killed_while_it_packs_packs_anew(story, whole, tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(chunks, "CHARACTERS", CHARACTERS)
    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare.prepare(**story, out=tmp_path / "out")
    encodes_nothing(monkeypatch)
    prepare.prepare(**story, out=tmp_path / "out")
    assert_same(tmp_path / "out", whole)


def test_a_full_disk_costs_nothing_that_is_done(story, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, "CHARACTERS", CHARACTERS)
    write, written = chunks._write, []

    def full(path, *rest):
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        written.append(path.name)
        return write(path, *rest)

    for _ in range(2):
        monkeypatch.setattr(chunks, "_write", full)
        with pytest.raises(UserError, match="out cannot be written: No space left on device"):
            prepare.prepare(**story, out=tmp_path / "out", workers=1)
    monkeypatch.setattr(
        chunks, "_write", lambda path, *rest: written.append(path.name) or write(path, *rest)
    )
    prepare.prepare(**story, out=tmp_path / "out", workers=1)
    assert len(written) == len(set(written)) > 6
    assert_same(tmp_path / "out", whole)


@pytest.mark.parametrize("name", ["*", "[ac]*", "a.jsonl"])
def test_hosts_take_shares_that_one_of_them_joins(story, tmp_path, name, monkeypatch):
    """More files than hosts, as many, and one for both."""
    wanted = {**story, "source": story["source"].replace("*", name)}
    prepare.prepare(**wanted, out=tmp_path / "whole" / "out")
    out = tmp_path / "shared" / "out"
    words = [sys.executable, "-c", PROGRAM, "all", "0", "-1", *options(wanted, out), "--workers=1"]
    hosts = [subprocess.Popen([*words, f"--shard={n}/2"], stdout=subprocess.PIPE) for n in (0, 1)]
    said = [host.communicate()[0].decode() for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0]
    assert [line.startswith(f"share {n} of 2 is encoded") for n, line in enumerate(said)] == [1, 1]
    assert not out.exists()
    encodes_nothing(monkeypatch)
    prepare.prepare(**wanted, out=out)
    assert_same(out, tmp_path / "whole" / "out")
    prepare.encode_shard((0, 2), **wanted, out=out)  # which has nothing to do any more
    assert_same(out, tmp_path / "whole" / "out")


def test_shares_are_disjoint_and_a_lost_one_is_made_up_for(story, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, "CHARACTERS", CHARACTERS)
    write, written = chunks._write, []
    monkeypatch.setattr(
        chunks, "_write", lambda path, *rest: written.append(path.name) or write(path, *rest)
    )
    for number in (0, 3):
        before = len(written)
        prepare.encode_shard((number, 4), **story, out=tmp_path / "out", workers=1)
        assert len(written) > before
    prepare.prepare(**story, out=tmp_path / "out", workers=1)
    assert len(written) == len(set(written))
    assert_same(tmp_path / "out", whole)


def test_other_text_is_not_mixed_with_what_is_encoded(story, tmp_path, monkeypatch):
    source = tmp_path / "text"
    source.mkdir()
    for path in Path(story["source"].removeprefix("files:")).parent.iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    wanted = {**story, "source": f"files:{source}/*"}
    monkeypatch.setattr(chunks, "CHARACTERS", CHARACTERS)
    prepare.encode_shard((0, 2), **wanted, out=tmp_path / "a" / "out")
    text = (source / "b.txt").read_text(encoding="utf-8").replace("hares", "conies")
    (source / "b.txt").write_text(text, encoding="utf-8")
    prepare.prepare(**wanted, out=tmp_path / "b" / "out")
    prepare.prepare(**wanted, out=tmp_path / "a" / "out")
    assert_same(tmp_path / "a" / "out", tmp_path / "b" / "out")


@pytest.mark.parametrize("text", ["2/2", "-1/2", "1", "a/b", "1/", "0/0"])
def test_bad_shards(text, tmp_path, capsys):
    assert prepare.main(["--source=pydocs", f"--out={tmp_path}/out", f"--shard={text}"]) == 2
    error = capsys.readouterr().err
    assert (
        error == f"error: Argument --shard: {text!r} is not I/N with I in 0 … N-1 (see --help).\n"
    )


def test_a_folder_that_is_worked_in_is_locked(tmp_path):
    target = tmp_path / "out"
    for shared in (False, True):
        with resumed_folder(target, "name", shared=shared) as folder:
            lock = folder.parent / "scratch.lock"
            (folder / "made").touch()
            with pytest.raises(BlockingIOError), locked(lock, wait=False):
                pass
            with resumed_folder(target, "other", shared=False):  # which does not remove it
                assert (folder / "made").exists()
            if shared:
                with locked(lock, wait=False, shared=True):
                    pass
        assert folder.exists() == shared
    with resumed_folder(tmp_path / "out-2", "name", shared=True) as neighbour:
        (neighbour / "made").touch()
    with resumed_folder(target, "other", shared=False):
        assert not folder.exists()
        assert (neighbour / "made").exists()


# Text that is not held as a whole ------------------------------------------------------------


def test_pieces_do_not_depend_on_how_a_document_is_read(story):
    text = Path(story["source"].removeprefix("files:").replace("*", "b.txt")).read_text("utf-8")
    for limit in (16, 100, 10**6):
        for size in (1, 7, 99, 10**5):
            blocks = [text[start : start + size] for start in range(0, len(text), size)]
            assert list(splits.cut(blocks, limit)) == list(splits.cut([text], limit))


def test_a_text_is_read_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_BLOCK", 8)
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf one\r\n\n" + b"two \xc3\xa9\n" * 9 + b"last")
    (blocks,) = files.streams(str(path))
    found = list(blocks)
    assert len(found) > 5
    assert "".join(found) == " one\r\n\n" + "two é\n" * 9 + "last"
    path.write_bytes(b"one\ntwo\nthree\nfo\xffr")
    with pytest.raises(UserError, match=r"is not UTF-8 at byte 16 \(line 4\)"):
        list(map("".join, files.streams(str(path))))


# Processes -----------------------------------------------------------------------------------


def square(number: int, ask: workers.Ask) -> int:
    return ask(number) ** 2


def refuse(path: str, ask: workers.Ask) -> None:
    raise UserError(f"not {path}")


def read(path: str, ask: workers.Ask) -> str:
    return Path(path).read_text(encoding="utf-8")


def end(status: int, ask: workers.Ask) -> None:
    os._exit(status)


@pytest.mark.parametrize("count", [1, 2])
def test_jobs_questions_and_answers(count):
    jobs = ((square, number) for number in range(7))
    found = list(workers.run(count, jobs, lambda number: number + 1))
    assert sorted(found) == [number**2 for number in range(1, 8)]
    assert list(workers.run(count, iter([]))) == []


@pytest.mark.parametrize("count", [1, 2])
def test_errors_of_a_job_are_raised(count, tmp_path):
    with pytest.raises(UserError, match="not that"):
        list(workers.run(count, iter([(square, 3), (refuse, "that")]), abs))
    with pytest.raises(FileNotFoundError):
        list(workers.run(count, iter([(read, str(tmp_path / "none"))])))


def test_a_worker_that_ends_is_missed():
    with pytest.raises(Interrupted, match="a process that shares the work failed"):
        list(workers.run(2, iter([(end, 3)])))
