"""Small files: whole or not at all, checked before work, and what was made is kept."""

import contextlib
import os
import resource

import pytest

from hybrid_jax.errors import UserError
from hybrid_jax.runtime.files import GrowingFile, check_writable, write_atomic


@contextlib.contextmanager
def full_disk(size):
    """No file may grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_write_atomic(tmp_path):
    path = tmp_path / "config.json"
    write_atomic(path, "γ")
    write_atomic(path, "ε")
    assert path.read_text(encoding="utf-8") == "ε"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(UserError, match=r"Cannot write .*config\.json.x \(Not a directory"):
        write_atomic(path / "x", "")
    for name in ("absent/config.json", "γ" * 120):  # 240 bytes of at most 255
        write_atomic(tmp_path / name, "γ")
        assert (tmp_path / name).read_text(encoding="utf-8") == "γ"
    with full_disk(10), pytest.raises(UserError, match="File too large"):
        write_atomic(path, "x" * 20)
    assert path.read_text(encoding="utf-8") == "ε"


def test_devices_and_pipes_are_written_to_and_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_atomic(pipe, "γ")
    assert os.read(reader, 10) == "γ".encode()
    with GrowingFile(pipe) as file:
        file.append("ε")
    assert os.read(reader, 10) == "ε".encode()
    os.close(reader)
    assert pipe.is_fifo()
    with GrowingFile("/dev/full") as file, pytest.raises(UserError, match=r"full \(No space"):
        file.append("x")


@pytest.mark.parametrize(
    ("path", "folder", "reason"),
    [
        ("new.json", False, None),
        ("not/there/new.json", False, None),
        ("old.json", False, None),
        ("not/there", True, None),
        (".", True, None),
        ("/dev/null", False, None),
        ("folder", False, "it is a folder"),
        ("old.json/new.json", False, "Not a directory"),
        ("old.json/new", True, "Not a directory"),
        ("old.json", True, "it is no folder"),
        ("/dev/null", True, "it is no folder"),
        ("/proc/new.json", False, "No such file"),
        ("/proc", True, "No such file"),
        ("x" * 300, False, "File name too long"),
    ],
)
def test_outputs_are_checked_and_nothing_is_left_behind(tmp_path, path, folder, reason):
    (tmp_path / "folder").mkdir()
    (tmp_path / "old.json").write_text("old", encoding="utf-8")
    said = pytest.raises(UserError, match=reason) if reason else contextlib.nullcontext()
    with said:
        check_writable(tmp_path / path, folder=folder)
    assert sorted(place.name for place in tmp_path.iterdir()) == ["folder", "old.json"]
    assert (tmp_path / "old.json").read_text(encoding="utf-8") == "old"


def test_a_growing_file_has_its_name_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "texts.jsonl"
    with GrowingFile(path) as file:
        assert not path.parent.exists()
        for piece in ("one\n", "γ\n"):
            file.append(piece)
            assert not path.exists()
    assert path.read_text(encoding="utf-8") == "one\nγ\n"
    assert list(path.parent.iterdir()) == [path]


def test_what_a_growing_file_has_is_kept(tmp_path, capsys):
    path = tmp_path / "texts.jsonl"
    path.write_text("old", encoding="utf-8")

    def write(*pieces, then=None):
        with GrowingFile(path) as file:
            for piece in pieces:
                file.append(piece)
            if then:
                raise then

    with full_disk(40), pytest.raises(UserError) as caught:
        write("a" * 29 + "\n", "b" * 29 + "\n")
    (part,) = tmp_path.glob("*.part")
    assert str(caught.value) == (
        f"Cannot write {path} (File too large): what was made before is kept in {part}."
    )
    assert part.read_text(encoding="utf-8") == "a" * 29 + "\n"  # and no half of the next
    part.unlink()
    with pytest.raises(KeyboardInterrupt):
        write("a", then=KeyboardInterrupt)
    (part,) = tmp_path.glob("*.part")
    assert part.read_text(encoding="utf-8") == "a"
    assert capsys.readouterr().err == f"what was made so far is kept in {part}\n"
    part.unlink()
    with pytest.raises(KeyboardInterrupt):
        write(then=KeyboardInterrupt)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text(encoding="utf-8") == "old"
