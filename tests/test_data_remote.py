"""Text behind URLs: read as files are, told apart when it changes, and never read in part."""

import gzip
import hashlib
import http.server
import lzma
import os
import sys
import threading

import fsspec
import pytest
import zstandard

from hybrid_jax.data import files, prepare, sources
from hybrid_jax.data.prepare import main
from hybrid_jax.errors import UserError

TEXTS = {
    "a.txt": b"plain",
    "b.jsonl": b'{"text": "one"}\n{"text": "two"}\n',
    "c[1].txt.gz": gzip.compress(b"packed"),
    "sub/d.txt.xz": lzma.compress(b"below"),
    "sub/e.txt.zst": zstandard.compress(b"lowest"),
}
DOCUMENTS = ["plain", "one", "two", "packed", "below", "lowest"]


@pytest.fixture
def memory(monkeypatch):
    """The file system of memory://, empty, and the function that writes a file there."""
    system = fsspec.filesystem("memory")
    monkeypatch.setattr(type(system), "store", {})
    monkeypatch.setattr(type(system), "pseudo_dirs", [""])
    return system


class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        name = self.path.rpartition("/")[2].partition("?")[0]
        if name.startswith("denied"):
            self.send_error(403)
        elif name.startswith("cut"):
            self.send_response(200)
            if self.path.endswith("?versioned"):
                self.send_header("ETag", "1")
            if name == "cut-told.txt" or self.command == "HEAD":
                self.send_header("Content-Length", "2000000")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(b"line\n" * 100_000)
        elif self.command == "HEAD":
            super().do_HEAD()
        else:
            super().do_GET()

    do_HEAD = do_GET

    def send_header(self, keyword, value):
        if "unversioned" not in self.path or keyword != "Last-Modified":
            super().send_header(keyword, value)

    def end_headers(self):
        if self.path.endswith(".gz"):
            self.send_header("Content-Encoding", "gzip")  # as some servers say of all .gz
        super().end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def web(tmp_path):
    """The address of a server of the folder tmp_path, which knows no ranges."""
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *arguments: Handler(*arguments, directory=str(tmp_path))
    )
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def write(folder, texts):
    for name, content in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def check_read(source: str):
    """`source` has all DOCUMENTS, in parts too, and the hashes are those of its files."""
    assert list(sources.documents(source)) == DOCUMENTS
    parts = sources.parts(source)
    assert len(parts) == len(TEXTS)
    assert [text for part in parts for text in sources.documents(part)] == DOCUMENTS
    found = sources.contents(source).values()
    assert [digest() for _, digest in found] == [
        hashlib.sha256(content).hexdigest() for content in TEXTS.values()
    ]


def test_objects_are_read_as_files_are(memory):
    memory.pipe({f"/in/{name}": content for name, content in TEXTS.items()})
    check_read("files:memory://in/**/*")
    check_read("files:memory://in/[ab].*,memory://in/c[1].txt.gz,memory://in/*/?.txt.*")
    assert list(sources.documents("lines:memory://in/a*")) == ["plain"]
    assert [text for _, text in sources.located("files:memory://in/b.jsonl")] == ["one", "two"]
    memory.pipe("/pairs.jsonl", b'{"prompt": "1", "answer": "2"}')
    assert list(sources.documents("pairs:memory://*.jsonl")) == ["1\n2"]


def test_web_pages_are_read_as_files_are(web, tmp_path):
    write(tmp_path / "in", TEXTS)
    check_read(f"files:{web}/in/**/*.*")
    assert list(sources.documents(f"files:{web}/in/b.jsonl?key=a.b")) == ["one", "two"]
    assert list(sources.documents(f"files:{web}/in/c%5B1%5D.txt.gz")) == ["packed"]
    (tmp_path / "long.txt").write_text("line\n" * 2_000_000, encoding="utf-8")
    (text,) = sources.documents(f"files:{web}/long.txt")
    assert len(text) == 10_000_000


def test_web_pages_have_a_stamp_that_changes_with_them(web, tmp_path):
    def stamp(name: str, content: bytes, time: int) -> str:
        (tmp_path / name).write_bytes(content)
        os.utime(tmp_path / name, (time, time))
        ((found, _),) = files.contents(f"{web}/{name}").values()
        return found

    assert stamp("a.txt", b"one", 100) == stamp("a.txt", b"one", 100)
    assert len({stamp("a.txt", b"one", 100), stamp("a.txt", b"one", 200)}) == 2
    # Without a version, the content tells.
    old, new = stamp("unversioned.txt", b"one", 100), stamp("unversioned.txt", b"two", 100)
    assert old != new
    assert old == stamp("unversioned.txt", b"one", 200)


@pytest.mark.parametrize("name", ["cut-told.txt", "cut-untold.txt"])
def test_a_read_that_breaks_is_no_end_of_the_text(web, name):
    with pytest.raises(UserError, match=rf"/{name} (ended after 500000|cannot be read)"):
        list(sources.documents(f"files:{web}/{name}"))
    with pytest.raises(UserError, match=name):
        list(sources.documents(f"lines:{web}/{name}"))
    ((_, digest),) = files.contents(f"{web}/{name}?versioned").values()
    with pytest.raises(UserError, match=name):
        digest()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("{web}/none.txt", "{web}/none.txt cannot be read (404, message='File not found', url="),
        ("{web}/none*.txt", "No file matches '{web}/none*.txt': check the path or pattern."),
        ("{web}/none/*.txt", "{web}/none/*.txt cannot be read (there is no such file or folder)"),
        ("{web}/denied.txt", "{web}/denied.txt cannot be read (403, message='Forbidden', url="),
        ("http://127.0.0.1:1/a.txt", "http://127.0.0.1:1/a.txt cannot be read (Connect call faile"),
        ("http://127.0.0.1:1/*.txt", "http://127.0.0.1:1/*.txt cannot be read (Connect call faile"),
        ("memory://none.txt", "memory://none.txt cannot be read (there is no such file or folder)"),
        ("memory://in", "memory://in is a folder: name its files, for example memory://in/*.txt."),
        ("{web}/made.pdf", "{web}/made.pdf is of an unknown kind: files must end in"),
        ("memory://**.txt", "memory://**.txt cannot be read (Invalid pattern: '**' can only be"),
        ("smtp://a/b.txt", "smtp://a/b.txt cannot be read (Protocol not known: smtp): check"),
    ],
)
def test_what_cannot_be_read_is_said_before_work_begins(
    url, message, web, memory, tmp_path, capsys
):
    memory.pipe("/in/a.txt", b"text")
    (tmp_path / "made.pdf").write_bytes(b"text")
    out = tmp_path / "made" / "out"
    assert main([f"--source=files:{url.format(web=web)}", "--tokenizer=byte", f"--out={out}"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"error: {message.format(web=web)}")
    assert said.err.count("\n") == 1
    assert not out.parent.exists()


@pytest.mark.parametrize(
    ("url", "package"),
    [("https://a/b.txt", "aiohttp"), ("s3://a/*.txt", "s3fs"), ("gs://a/b.txt", "gcsfs")],
)
def test_a_package_that_is_missing_is_named_with_its_extra(url, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "fsspec.implementations.http", raising=False)
    with pytest.raises(UserError) as caught:
        sources.documents(f"files:{url}")
    assert str(caught.value).startswith(f"{url} needs another package (")
    assert package in str(caught.value)
    assert str(caught.value).endswith("come with pip install 'hybrid_jax[remote]'.")


def test_a_folder_that_cannot_be_listed_is_not_empty(memory, monkeypatch):
    memory.pipe({"/in/a.txt": b"one", "/in/sub/b.txt": b"two"})
    listing = type(memory).ls

    def ls(self, path, **settings):
        if path.endswith("sub"):
            raise PermissionError(13, "Permission denied")
        return listing(self, path, **settings)

    monkeypatch.setattr(type(memory), "ls", ls)
    with pytest.raises(UserError, match=r"in/\*\*/\*.txt cannot be read \(Permission denied\)"):
        sources.documents("files:memory://in/**/*.txt")


def test_records_of_objects_are_those_of_files_and_go_with_their_text(memory, tmp_path):
    texts = {f"in/{n}.txt": f"Document {n} of some text.\n".encode() * (n + 1) for n in range(40)}
    write(tmp_path, texts)

    def prepared(out: str, source: str):
        plain = {"tokenizer": "byte", "vocab_size": 0, "length": 16, "workers": 1}
        return prepare.prepare(source=source, out=tmp_path / out, **plain)

    local = prepared("local", f"files:{tmp_path}/in/*.txt")
    memory.pipe({f"/{name}": content for name, content in texts.items()})
    remote = prepared("remote", "files:memory://in/*.txt")
    mixed = f"files:memory://in/*.txt,{tmp_path}/in/7.txt"
    prepared("mixed", mixed)
    assert (local.train, local.valid) == (remote.train, remote.valid)
    assert [one.sha256 for one in local.inputs] == [one.sha256 for one in remote.inputs]
    assert {one.name for one in remote.inputs} == {f"memory:///{name}" for name in texts}
    # Written again with the same text, and with another.
    memory.pipe("/in/7.txt", texts["in/7.txt"])
    assert prepared("remote", remote.source) == remote
    memory.pipe("/in/7.txt", texts["in/7.txt"].upper())
    with pytest.raises(UserError, match=r"other text \(memory:///in/7.txt has changed\)"):
        prepared("remote", remote.source)
    memory.rm("/in/7.txt")
    with pytest.raises(UserError, match=r"other text \(memory:///in/7.txt is gone\)"):
        prepared("remote", remote.source)
    # What nobody can reach counts as unchanged; but not beside files that are here.
    memory.rm("/in", recursive=True)
    assert prepared("remote", remote.source).inputs[0].name == "memory:///in/0.txt"
    with pytest.raises(UserError, match="there is no such file or folder"):
        prepared("mixed", mixed)
