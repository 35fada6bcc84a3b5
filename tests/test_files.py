"""Small files: whole or not at all."""

import os

import pytest

from hybrid_jax.errors import UserError
from hybrid_jax.runtime.files import write_atomic


def test_write_atomic(tmp_path):
    path = tmp_path / "config.json"
    write_atomic(path, "γ")
    write_atomic(path, "ε")
    assert path.read_text(encoding="utf-8") == "ε"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(UserError, match=r"Cannot write .*absent.config\.json \(No such file"):
        write_atomic(tmp_path / "absent" / "config.json", "")


def test_devices_and_pipes_are_written_to_and_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_atomic(pipe, "γ")
    assert os.read(reader, 10) == "γ".encode()
    os.close(reader)
    assert pipe.is_fifo()
