"""Documents of every source, and the split into training and held-out text."""

import gzip
import json
import lzma
import random
from collections.abc import Callable

import pytest
import zstandard

from hybrid_jax.data import sources, splits
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


@pytest.mark.parametrize("suffix", PACKERS)
def test_text_and_lines_plain_and_compressed(tmp_path, suffix):
    pack = PACKERS[suffix]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in (TEXT, "", "second"))
    (tmp_path / f"a.jsonl{suffix}").write_bytes(pack(lines.encode() + b"  \n"))
    (tmp_path / f"b.txt{suffix}").write_bytes(pack(TEXT.encode()))
    assert read(tmp_path / "*") == [TEXT, "second", TEXT]


def test_patterns_keep_their_order_and_files_come_once(tmp_path):
    for name in ("a.txt", "b.txt", "c[1].txt", "sub/d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name, encoding="utf-8")
    source = f"{tmp_path}/b.txt,{tmp_path}/c[1].txt,{tmp_path}/**/*.txt"
    assert read(source) == ["b.txt", "c[1].txt", "a.txt", "sub/d.txt"]


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_text("text", encoding="utf-8-sig")
    (tmp_path / "b.jsonl").write_text('{"text": "line"}\n', encoding="utf-8-sig")
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
        ("web:x", "Unknown source 'web:x': choose one of files, hf, pydocs, tfds."),
        ("", "Unknown source '': choose one of files, hf, pydocs, tfds."),
        ("pydocs:x", "The source pydocs takes no argument, but got 'x': leave it out."),
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
    assert splits.pieces(document, 10) == expected


def test_pieces_join_to_the_document():
    rng = random.Random(1)
    for _ in range(200):
        document = "".join(rng.choices("ab \n", weights=[4, 4, rng.random(), 1], k=200))
        parts = splits.pieces(document, 16)
        assert "".join(parts) == document
        assert all(0 < len(part) <= 16 for part in parts)


def write_lines(path, texts) -> str:
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")
    return f"files:{path}"


def parted(source: str, every: int) -> tuple[list[str], list[str]]:
    chosen = splits.held_out(source, every=every)
    passages = list(splits.passages(source, held_out=chosen))
    train = ["".join(pieces) for is_held_out, pieces in passages if not is_held_out]
    valid = ["".join(pieces) for is_held_out, pieces in passages if is_held_out]
    return train, valid


def test_every_kth_document_is_held_out(tmp_path):
    source = write_lines(tmp_path / "a.jsonl", [f"text {n}" for n in range(10)])
    train, valid = parted(source, 4)
    assert valid == ["text 2", "text 6"]
    assert train == [f"text {n}" for n in (0, 1, 3, 4, 5, 7, 8, 9)]


def test_no_text_is_in_both_splits(tmp_path):
    source = write_lines(tmp_path / "a.jsonl", [f"text {n % 9}" for n in range(90)])
    train, valid = parted(source, 20)
    assert set(valid)
    assert not set(train) & set(valid)
    assert len(train) + len(valid) == 90


def test_a_single_large_document_is_divided(tmp_path):
    text = "".join(f"line {n} of a large file\n" for n in range(40_000))
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    train, valid = parted(f"files:{tmp_path}/a.txt", 20)
    assert 0.03 < sum(map(len, valid)) / len(text) < 0.08
    lines = [set("".join(part).splitlines()) for part in (train, valid)]
    assert not lines[0] & lines[1]
    assert lines[0] | lines[1] == set(text.splitlines())
    # What was not divided stays together: one passage before, between and after those held out.
    assert len(train) == len(valid) + 1
    assert text.startswith(train[0] + valid[0] + train[1])


def test_a_small_source_has_something_to_hold_out(tmp_path):
    source = write_lines(tmp_path / "a.jsonl", ["one", "two", "three"])
    assert parted(source, 20) == (["one", "two"], ["three"])


def test_one_in_one_is_not_a_split():
    with pytest.raises(ValueError, match="at least 2"):
        splits.held_out("pydocs", every=1)
