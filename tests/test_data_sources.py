"""Documents of every source, and the split into training and held-out text."""

import ast
import encodings.cp1252
import gzip
import html.entities
import inspect
import io
import json
import lzma
import os
import random
import stringprep
import sys
import sysconfig
import types
from collections.abc import Callable
from pydoc_data import topics

import pytest
import zstandard

from hybrid_jax.data import files, public, pysource, sources, splits
from hybrid_jax.errors import UserError

TEXT = "naïve\t日本語  two spaces\r\n\n  ➜ 🙂 end "


def zstd(raw: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(raw)


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
}


def noise(size: int) -> bytes:
    """Letters that compress badly, so that a cut file is cut in its content."""
    return bytes(random.Random(0).choices(b"abcdefghijklmnopqrstuvwxyz \n", k=size))


def read(path) -> list[str]:
    return list(sources.documents(f"files:{path}"))


def test_pydocs_is_the_documentation_of_this_interpreter():
    texts = list(sources.documents("pydocs"))
    assert texts == list(sources.documents("pydocs"))
    assert len(texts) == len(set(texts)) > 400
    assert 1_500_000 < sum(map(len, texts)) < 6_000_000
    (module,) = (text for text in texts if text.startswith("json.decoder\n"))
    assert "json.decoder.JSONDecoder.raw_decode\n\nDecode a JSON document" in module
    assert any(text.startswith("json\n\nJSON (JavaScript") for text in texts)
    assert any('The "if" statement' in text for text in texts)
    assert not any(text.startswith(("test.", "idlelib", "site-packages")) for text in texts)


def test_pysource_is_the_code_of_this_interpreter():
    texts = list(sources.documents("pysource"))
    assert texts == list(sources.documents("pysource"))
    assert len(texts) == len(set(texts)) > 400
    assert 5_000_000 < sum(map(len, texts)) < 20_000_000
    assert inspect.getsource(json.decoder) in texts
    assert all(ast.parse(text) for text in texts[:50])
    for table in (html.entities, stringprep, encodings.cp1252, topics):
        assert inspect.getsource(table) not in texts
    assert not any(text.startswith("import unittest\n") for text in texts)


def test_modules_that_do_not_parse_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(sysconfig, "get_path", lambda name: tmp_path)
    table = "ROWS = [\n" + "    1,\n" * 60 + "]\n"
    for name, text in {
        "b.py": "# naïve\nx = 1\n", "a/__init__.py": "# -*- coding: latin-1 -*-\ny = 'é'\n",
        "copy.py": "# naïve\nx = 1\n", "broken.py": "def f(\n", "empty.py": "\n",
        "test/c.py": "z = 1\n", "not-a-name/d.py": "z = 2\n", "table.py": table,
        "half.py": table + "\n\ndef f():\n" + "    print()\n" * 80,
    }.items():  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="latin-1" if "latin" in text else "utf-8")
    pysource.documents.cache_clear()
    found = list(pysource.documents())
    pysource.documents.cache_clear()
    assert [text.splitlines()[-1] for text in found] == ["y = 'é'", "x = 1", "    print()"]


@pytest.mark.parametrize("suffix", PACKERS)
def test_text_and_lines_plain_and_compressed(tmp_path, suffix):
    pack = PACKERS[suffix]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in (TEXT, "", "second"))
    (tmp_path / f"a.jsonl{suffix}").write_bytes(pack(lines.encode() + b"  \n"))
    (tmp_path / f"b.txt{suffix}").write_bytes(pack(TEXT.encode()))
    assert read(tmp_path / "*") == [TEXT, "second", TEXT]
    one_by_one = [
        TEXT,
        "second",
        *(line for line in TEXT.replace("\r\n", "\n").split("\n") if line),
    ]
    assert list(sources.documents(f"lines:{tmp_path}/*")) == one_by_one


def test_patterns_keep_their_order_and_files_come_once(tmp_path):
    for name in ("a.txt", "b.txt", "c[1].txt", "sub/d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name, encoding="utf-8")
    source = f"{tmp_path}/b.txt,{tmp_path}/c[1].txt,{tmp_path}/**/*.txt"
    assert read(source) == ["b.txt", "c[1].txt", "a.txt", "sub/d.txt"]


def test_a_file_is_read_once_whatever_leads_to_it(tmp_path, monkeypatch):
    for name in ("z.txt", "sub/a.txt", "sub/deep/b.txt", ".hidden/c.txt", "elsewhere/d.txt"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text(name, encoding="utf-8")
    root = tmp_path / "in"
    (root / "elsewhere").rename(tmp_path / "out")
    (root / "linked").symlink_to(tmp_path / "out")
    # `glob` would follow each of the loops forty times, in each turn of the other.
    (root / "sub" / "loop").symlink_to(".")
    (root / "sub" / "deep" / "up").symlink_to("../..")
    (root / "sub" / "self").symlink_to("self")
    (root / "link.txt").symlink_to("sub/a.txt")
    (root / "hard.txt").hardlink_to(root / "z.txt")
    found = ["z.txt", "sub/a.txt", "elsewhere/d.txt", "sub/deep/b.txt"]
    assert read(root / "**" / "*.txt") == found
    monkeypatch.chdir(root)
    for pattern in ("**/*.txt", "./**/**/*.txt", "**/*.txt,*.txt", "sub/../**/*.txt,sub/a.txt"):
        assert read(pattern) == found
    assert read(f"sub/**/*.txt,{root}/sub/deep/../a.txt") == [
        "sub/a.txt", "sub/deep/b.txt", "z.txt", "elsewhere/d.txt"
    ]  # fmt: skip


# One reader ----------------------------------------------------------------------------------

# What other readers cut lines at, or drop.
ODD = "a\u2028b\x0cc\x0b\x85d\x1c\u2029e\rf\ufeff g\u00a0"


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_text("text", encoding="utf-8-sig")
    line = '\ufeff{"text": "line"}\n'
    (tmp_path / "b.jsonl").write_text(line + line, encoding="utf-8")  # two files joined
    assert read(tmp_path / "*") == ["text", "line", "line"]
    assert files.prompts(f"{tmp_path}/a.txt") == ["text"]
    assert files.prompts(f"{tmp_path}/b.jsonl") == ["line", "line"]


@pytest.mark.parametrize("suffix", PACKERS)
def test_prompts_are_read_as_training_text_is(tmp_path, suffix):
    def write(name: str, text: str) -> str:
        (tmp_path / (name + suffix)).write_bytes(PACKERS[suffix](text.encode("utf-8-sig")))
        return f"{tmp_path}/{name}{suffix}"

    lines = write("a.jsonl", "".join(json.dumps({"text": t}) + "\n" for t in (ODD, " ", "x\n\ny")))
    assert files.prompts(lines) == read(lines) == [ODD, "x\n\ny"]
    assert files.prompts(write("b.txt", ODD)) == read(f"{tmp_path}/b.txt{suffix}") == [ODD]
    ends = write("c.txt", f"{ODD}\r\n\n \n  second \nlast")
    assert files.prompts(ends) == [ODD, "  second ", "last"]


def test_prompts_of_standard_input(tmp_path):
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbfone\ntwo\n")
    before = os.dup(0)
    try:
        with open(tmp_path / "a", "rb") as file:
            os.dup2(file.fileno(), 0)
        assert files.prompts("-") == ["one", "two"]
        os.lseek(0, 0, os.SEEK_SET)  # it is still open
    finally:
        os.dup2(before, 0)
        os.close(before)


def test_bad_prompts(tmp_path):
    for name, content, message in [
        ("a.txt", b"one\ncaf\xe9", "Line 2 of {} is not UTF-8 at its byte 3: convert it."),
        ("a.txt", b" \n", "There are no prompts in {}: write one a line."),
        ("a.jsonl", b"{}", 'Line 1 of {} has no field "text" with a string: add it or drop'),
        ("a.txt.gz", b"one", "{} is damaged"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError) as caught:
            files.prompts(f"{tmp_path}/{name}")
        assert str(caught.value).startswith(message.format(tmp_path / name))


@pytest.mark.parametrize("window", [27, 28, 31])
def test_zstandard_with_a_long_window(tmp_path, window):
    parameters = zstandard.ZstdCompressionParameters(window_log=window, enable_ldm=True)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    (tmp_path / "a.txt.zst").write_bytes(packer.compress(b"text") + packer.flush())
    assert read(tmp_path / "a.txt.zst") == ["text"]


def test_a_limit_of_a_library_is_no_damage(tmp_path, monkeypatch):
    samples = [f"some text {n} of a kind".encode() * 20 for n in range(500)]
    words = zstandard.train_dictionary(2000, samples)
    packed = zstandard.ZstdCompressor(dict_data=words).compress(b"text")
    window = bytes.fromhex("28b52ffd00f0010000")  # of 2^40 bytes

    class Full(io.BytesIO):
        def readlines(self, *_):
            raise MemoryError

    monkeypatch.setitem(files._DECOMPRESSORS, ".xz", lambda _: Full())
    for name, content, reason in [
        ("a.txt.zst", packed, "(zstd decompressor error: Dictionary mismatch)"),
        ("b.txt.zst", window, "(zstd decompressor error: Frame requires too much memory"),
        ("c.txt.xz", b"", "(out of memory)"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError) as caught:
            read(tmp_path / name)
        assert f"{name} cannot be read here {reason}" in str(caught.value)
    (tmp_path / "d.jsonl").write_text(f'{{"n": {"9" * 5000}, "text": "x"}}\n', encoding="utf-8")
    assert read(tmp_path / "d.jsonl") == ["x"]
    deep = "[" * 100_000 + "]" * 100_000
    (tmp_path / "d.jsonl").write_text(f'{{"n": {deep}, "text": "x"}}\n', encoding="utf-8")
    with pytest.raises(UserError, match="is nested too deeply to be read"):
        read(tmp_path / "d.jsonl")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([b"caf\xc3\xa9", None, " \n", "text"], ["café", "text"]),
        (["a", b"caf\xe9"], "Row 2 of hf:x is not UTF-8 in its field text: name another field."),
        (["a", ["b"]], "Row 2 of hf:x has no string in its field text: name another field."),
        ([3], "Row 1 of hf:x has no string in its field text: name another field."),
        ([None, ""], "hf:x has no text in its field text: name another field."),
    ],
)
def test_rows_of_data_sets_are_read_as_lines_are(values, expected):
    """Without text, no document; never one that is the name of an object."""
    rows = ({"text": value} for value in values)
    if isinstance(expected, list):
        assert list(public._texts("hf:x", "", rows)) == expected
    else:
        with pytest.raises(UserError) as caught:
            list(public._texts("hf:x", "", rows))
        assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("a", ("a", None)),
        ("o/a", ("o/a", None)),
        ("o/a/b", ("o/a", "b")),
        ("o/a/b/c", ("o/a", "b/c")),
    ],
)
def test_no_part_of_a_name_of_the_hub_is_dropped(name, asked, monkeypatch):
    def load(*arguments, split):
        assert (arguments, split) == (asked, "test")
        return [{"text": "one"}]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load))
    assert list(sources.documents(f"hf:{name}:test")) == ["one"]


def test_suffixes_in_capitals(tmp_path):
    (tmp_path / "A.TXT").write_text("text", encoding="utf-8")
    (tmp_path / "B.JSONL.GZ").write_bytes(gzip.compress(b'{"text": "line"}'))
    assert read(tmp_path / "*") == ["text", "line"]


def test_all_frames_of_zstandard_are_read(tmp_path):
    body = noise(300_000)
    (tmp_path / "a.txt.zst").write_bytes(zstd(body) + zstd(b"") + zstd(body))
    assert read(tmp_path / "a.txt.zst") == [(body * 2).decode()]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "has no text in it: remove it from the source."),
        ("a.txt", b" \n\n", "has no text in it: remove it from the source."),
        ("a.jsonl", b'\n{"text": ""}\n', "has no text in it: remove it from the source."),
        ("a.txt", b"one\ntwo \xff", "is not UTF-8 at byte 8 (line 2): convert it to UTF-8."),
        ("a.jsonl", b'{"text": "x"}\nab\xff\n', "is not UTF-8 at its byte 2: convert it"),
        ("a.jsonl", b"{}\n", 'has no field "text" with a string: add it or drop the line.'),
        (
            "a.jsonl",
            b'{"text": 3}\n',
            'has no field "text" with a string: add it or drop the line.',
        ),
        ("a.jsonl", b"[]\n", 'has no field "text" with a string: add it or drop the line.'),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "has half a surrogate pair in it: fix or drop it."),
        ("a.txt.gz", gzip.compress(noise(99_999))[:-2000], "is damaged"),
        ("a.txt.xz", lzma.compress(noise(99_999))[:-2000], "is damaged"),
        ("a.txt.zst", zstd(noise(999_999))[:-2000], "is damaged (the last frame is cut short)"),
        ("a.txt.gz", b"plain text", "is damaged"),
        ("a.txt.xz", b"plain text", "is damaged"),
        ("a.txt.zst", b"plain text", "is damaged"),
        ("a.pdf", b"x", "is of an unknown kind: files must end in .txt or .jsonl"),
        ("a.gz", b"x", "is of an unknown kind: files must end in .txt or .jsonl"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        read(tmp_path / name)
    assert f"{tmp_path / name} {message}" in str(caught.value)


def test_a_flipped_byte_in_gzip_is_damage(tmp_path):
    raw = bytearray(gzip.compress(noise(99_999)))
    raw[5000:5010] = b"\xff" * 10
    (tmp_path / "a.txt.gz").write_bytes(raw)
    with pytest.raises(UserError, match="is damaged"):
        read(tmp_path / "a.txt.gz")


def test_bad_lines_are_numbered(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "x"}\n\n{"text": \n')
    with pytest.raises(UserError) as caught:
        read(path)
    assert str(caught.value) == (
        f"Line 3 of {path} is not valid JSON (Expecting value): fix or drop it."
    )


def test_files_are_streamed(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "first"}\nbroken\n')
    texts = sources.documents(f"files:{path}")
    assert next(texts) == "first"
    with pytest.raises(UserError, match="Line 2"):
        next(texts)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "web:x",
            "Unknown source 'web:x': choose one of files, hf, lines, pairs, pydocs, pysource, "
            "tfds.",
        ),
        ("", "Unknown source '': choose one of files, hf, lines, pairs, pydocs, pysource, tfds."),
        ("pydocs:x", "The source pydocs takes no argument, but got 'x': leave it out."),
        ("pysource:x", "The source pysource takes no argument, but got 'x': leave it out."),
        ("files:", "The source files: names no file: write files:PATTERN."),
        ("files:{}/*.txt", "No file matches '{}/*.txt': check the path or pattern."),
        ("files:{}", "{} is a folder: name its files, for example {}/*.txt."),
    ],
)
def test_bad_sources_are_refused_at_once(tmp_path, source, message):
    with pytest.raises(UserError) as caught:
        sources.documents(source.replace("{}", str(tmp_path)))
    assert str(caught.value) == message.replace("{}", str(tmp_path))


# Splits --------------------------------------------------------------------------------------


def test_a_blank_line_early_in_a_piece_is_no_place_to_cut():
    document = "ab\n\n" + "x" * 60 + "\n" + "y" * 50
    assert [len(piece) for piece in splits.cut([document], 100)] == [65, 50]


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ("short", ["short"]),
        ("", [""]),
        ("aaaaaa\n\nbbb\nc", ["aaaaaa\n\n", "bbb\nc"]),
        ("aaaaaa\nbbbb", ["aaaaaa\n", "bbbb"]),
        ("aaaaaa bbbb", ["aaaaaa", " bbbb"]),
        ("a" * 23, ["a" * 10, "a" * 10, "a" * 3]),
        ("\n" * 15, ["\n" * 10, "\n" * 5]),
    ],
)
def test_pieces(document, expected):
    assert list(splits.cut([document], 10)) == expected


def test_pieces_join_to_the_document():
    rng = random.Random(1)
    for _ in range(200):
        document = "".join(rng.choices("ab \n", weights=[4, 4, rng.random(), 1], k=200))
        parts = list(splits.cut([document], 16))
        assert "".join(parts) == document
        assert all(0 < len(part) <= 16 for part in parts)


def write_lines(path, texts) -> str:
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")
    return f"files:{path}"


def parted(source: str, every: int = 20, least: int = 1) -> tuple[list[str], list[str]]:
    chosen = splits.held_out(source, every=every, least=least)
    texts: tuple[list[str], list[str]] = ([], [])
    for is_held_out, pieces in splits.passages(source, held_out=chosen):
        texts[is_held_out].append("".join(pieces))
    return texts


def words(rng: random.Random, count: int) -> str:
    return " ".join("".join(rng.choices("abcdefghij", k=rng.randint(2, 8))) for _ in range(count))


def corpora():
    rng = random.Random(0)
    documents = [words(rng, 30) for _ in range(31)]
    for copies in (1, 5, 10, 20):
        yield f"31 documents, {copies} times", documents * copies
    yield "900 equal rows of 1,000", ["one row"] * 900 + [words(rng, 4) for _ in range(100)]
    huge = words(rng, 40_000)
    for copies in (1, 2, 20):
        yield f"a huge document {copies} times", [huge] * copies
        yield f"a small document {copies} times", [huge[:600]] * copies
    yield "3 documents", [words(rng, 500) for _ in range(3)]
    yield "10 equal documents of one size", [words(rng, 500)[:900] for _ in range(10)]
    large = [words(rng, 3000) for _ in range(20)]
    yield "near-empty documents", [f"{n}" for n in range(1000)] + large
    yield "letters", rng.choices("abcdefghijklmnopqrstuvwxyz", k=1000)
    yield "copies by a power law", [f"w{rng.paretovariate(1):.0f}" for _ in range(3000)]
    yield "a long document over and over", [huge[:5000]] * 970 + [words(rng, 4) for _ in range(30)]


CORPORA = dict(corpora())


@pytest.mark.parametrize("name", CORPORA)
def test_copies_are_held_out_together_and_one_twentieth_of_the_text(tmp_path, name):
    texts = CORPORA[name]
    train, valid = parted(write_lines(tmp_path / "a.jsonl", texts))
    assert sum(map(len, train + valid)) == sum(map(len, texts))
    assert 0.025 <= sum(map(len, valid)) / sum(map(len, texts)) <= 0.075
    assert not set(train) & set(valid)


def test_the_split_does_not_depend_on_order_or_files(tmp_path):
    rng = random.Random(1)
    texts = [words(rng, 20) for _ in range(200)] * 3
    train, valid = parted(write_lines(tmp_path / "a.jsonl", texts))
    rng.shuffle(texts)
    write_lines(tmp_path / "b1.jsonl", texts[:70])
    write_lines(tmp_path / "b2.jsonl", texts[70:])
    again = parted(f"files:{tmp_path}/b*.jsonl")
    assert (sorted(train), sorted(valid)) == tuple(map(sorted, again))
    # More text leaves what is held out in its split, but for the one piece at the edge.
    more = write_lines(tmp_path / "c.jsonl", texts + [words(rng, 20) for _ in range(60)])
    assert len(set(valid) - set(parted(more)[1])) <= 1


def test_few_candidates_give_the_same_split(tmp_path, monkeypatch):
    """As with millions of documents, of which not all digests are kept."""
    source = write_lines(tmp_path / "a.jsonl", [f"text {n % 2000}" for n in range(3000)])
    whole = splits.held_out(source, every=20)
    monkeypatch.setattr(splits, "_CANDIDATES", 50)
    assert splits.held_out(source, every=20) == whole


def test_much_of_the_different_text_is_trained_on(tmp_path):
    texts = ["one row"] * 980 + [f"row {n}" for n in range(20)]
    train, valid = parted(write_lines(tmp_path / "a.jsonl", texts))
    assert len(set(valid)) <= 10 < len(set(train))


def test_a_small_source_holds_out_enough(tmp_path):
    text = words(random.Random(2), 200)
    for least in (60, 300):
        train, valid = parted(write_lines(tmp_path / "a.jsonl", [text]), least=least)
        assert least / 2 <= sum(map(len, valid)) <= least * 1.5
        assert "".join(train) != text
    assert all(parted(write_lines(tmp_path / "a.jsonl", ["one", "two"]), least=300))


def test_a_share_of_ones_choice(tmp_path):
    source = write_lines(tmp_path / "a.jsonl", [f"text {n}" for n in range(100)])
    assert len(parted(source, 4)[1]) in (24, 25, 26)


def test_a_large_document_is_divided_between_lines(tmp_path):
    text = "".join(f"line {n} of a large file\n" for n in range(40_000))
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    held_out = splits.held_out(f"files:{tmp_path}/a.txt", every=20)
    found = splits.passages(f"files:{tmp_path}/a.txt", held_out=held_out)
    passages = [(is_held_out, list(pieces)) for is_held_out, pieces in found]
    # What was not divided stays together: neighbouring passages are of different splits.
    assert [is_held_out for is_held_out, _ in passages][::2] == [passages[0][0]] * -(
        -len(passages) // 2
    )
    parts = ["".join(pieces) for _, pieces in passages]
    assert "".join(parts) == text
    assert all(part.endswith("\n") for part in parts)


@pytest.mark.parametrize("texts", [["a lone piece"], ["over and over"] * 1000])
def test_what_cannot_be_divided_is_refused(tmp_path, texts):
    source = write_lines(tmp_path / "a.jsonl", texts)
    with pytest.raises(UserError, match="a lone piece is held out whole, which leaves nothing to"):
        splits.held_out(source, every=20)


def test_one_in_one_is_not_a_split():
    with pytest.raises(ValueError, match="at least 2"):
        splits.held_out("pydocs", every=1)
