"""Preparation: records that are the documents, manifests to match, and failures without traces."""

import contextlib
import dataclasses
import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from hybrid_jax.data import pipeline, prepare, splits, tokenizers
from hybrid_jax.data.manifest import Manifest
from hybrid_jax.data.packing import RecordWriter, token_dtype
from hybrid_jax.errors import UserError

STORY = [
    f"Document {n} tells\tof {n * n} hares,  {n % 7} naïve 狐 and\n\na river.\n" * (n % 5 + 1)
    for n in range(120)
]


@pytest.fixture(scope="module")
def story(tmp_path_factory) -> str:
    return write_story(tmp_path_factory.mktemp("story") / "story.jsonl", STORY)


def write_story(path, texts) -> str:
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")
    return f"files:{path}"


def settings(story: str, **changes) -> dict:
    plain = {"source": story, "tokenizer": "byte", "vocab_size": 0, "length": 32}
    return plain | changes


def stored(folder, split: str) -> np.ndarray:
    """All tokens of a split, one after the other."""
    records = pipeline.Records(folder, split)
    return records.read(range(len(records))).reshape(-1)


@pytest.mark.parametrize("kind", ["sentencepiece", "byte", "gpt2"])
def test_records_are_the_documents_one_after_the_other(story, tmp_path, kind, request):
    wanted = kind
    if kind == "gpt2":
        wanted = f"gpt2:{request.getfixturevalue('shared_data') / 'gpt2'}"
    out = tmp_path / "out"
    manifest = prepare.prepare(**settings(story, tokenizer=wanted, vocab_size=320), out=out)
    tokenizer = tokenizers.load_tokenizer(out)
    prepare.check_tokenizer(manifest, tokenizer)
    assert manifest.tokenizer_name == tokenizer.name == kind
    held_out = splits.held_out(story, every=20)
    passages = list(splits.passages(story, held_out=held_out))
    for name in ("train", "valid"):
        texts = ["".join(parts) for is_valid, parts in passages if is_valid == (name == "valid")]
        expected = np.concatenate([[*tokenizer.encode(text), tokenizer.eos] for text in texts])
        tokens = stored(out, name)
        np.testing.assert_array_equal(tokens, expected[: len(tokens)])
        # The separators and the text between them, read back from the records alone.
        ends = np.flatnonzero(tokens == tokenizer.eos)
        got = [tokenizer.decode(part) for part in np.split(tokens, ends + 1)[:-1]]
        assert got == texts[: len(got)]
        assert len(got) >= len(texts) - 2

        split = manifest.split(name)
        assert split.documents == len(texts)
        assert split.text_bytes == sum(len(text.encode()) for text in texts)
        assert split.tokens == len(expected)
        assert split.records * manifest.length == len(tokens)
        assert split.dropped_tokens == len(expected) - len(tokens) < manifest.length
        dropped = int(tokenizer.token_bytes[expected[len(tokens) :]].sum())
        assert split.kept_bytes == split.text_bytes - dropped
        assert split.bytes_per_token == split.kept_bytes / len(tokens)
        data = tokens.astype(manifest.dtype).tobytes()
        assert split.sha256 == hashlib.sha256(data).hexdigest()


def test_long_documents_are_encoded_in_pieces_but_stay_one(tmp_path):
    text = "".join(f"sentence {n} of a long tale\n" for n in range(3000))
    story = write_story(tmp_path / "a.jsonl", [text, "another tale"])
    out = tmp_path / "out"
    manifest = prepare.prepare(**settings(story, valid_source=story), out=out)
    assert manifest.train.documents == 2
    expected = [*text.encode(), 257, *b"another tale", 257]
    tokens = stored(out, "train")
    assert tokens.tolist() == expected[: len(tokens)]


def test_an_explicit_validation_text(story, tmp_path):
    other = write_story(tmp_path / "other.jsonl", ["held out text " * 9])
    manifest = prepare.prepare(**settings(story, valid_source=other), out=tmp_path / "out")
    assert (manifest.train.documents, manifest.valid.documents) == (len(STORY), 1)
    assert bytes(stored(tmp_path / "out", "valid").astype(np.uint8)).startswith(b"held out text")


def test_shards_hold_the_records_in_order(story, tmp_path):
    one = prepare.prepare(**settings(story), out=tmp_path / "one")
    many = prepare.prepare(**settings(story), shard_records=100, out=tmp_path / "many")
    count = one.train.records
    assert [shard.records for shard in many.train.shards[:-1]] == [100] * (count // 100)
    assert sum(shard.records for shard in many.train.shards) == count
    names = {shard.name for shard in many.train.shards + many.valid.shards}
    assert f"train-00000-of-{len(many.train.shards):05d}.array_record" in names
    assert {path.name for path in (tmp_path / "many").iterdir()} == names | {
        "manifest.json",
        "tokenizer.json",
    }
    assert many.train.sha256 == one.train.sha256
    np.testing.assert_array_equal(
        stored(tmp_path / "many", "train"), stored(tmp_path / "one", "train")
    )


def test_equal_settings_give_equal_data(story, tmp_path):
    wanted = settings(story, tokenizer="sentencepiece", vocab_size=320)
    first = prepare.prepare(**wanted, out=tmp_path / "a")
    assert prepare.prepare(**wanted, out=tmp_path / "b") == first
    other = write_story(tmp_path / "other.jsonl", STORY[1:])
    changed = prepare.prepare(**{**wanted, "source": other}, out=tmp_path / "c")
    assert changed.train.sha256 != first.train.sha256


def test_the_tokenizer_sees_no_held_out_text(tmp_path):
    marked = [f"{text} {'㊙' * 40 if n % 20 == 10 else ''}" for n, text in enumerate(STORY)]
    story = write_story(tmp_path / "a.jsonl", marked)
    wanted = settings(story, tokenizer="sentencepiece", vocab_size=320)
    prepare.prepare(**wanted, out=tmp_path / "out")
    ids = tokenizers.load_tokenizer(tmp_path / "out").encode("㊙")
    assert len(ids) == 3  # bytes: not a character that it knows


def test_types_of_tokens_leave_room_for_mask():
    assert token_dtype(2**16 - 1) == np.uint16
    assert token_dtype(2**16) == np.uint32
    assert token_dtype(258).str == "<u2"


def test_documents_longer_than_the_buffer_are_packed(tmp_path):
    ids = np.arange(3_000_000) % 250
    token_bytes = np.ones(258, np.int32)
    with RecordWriter(
        tmp_path, "train", length=1 << 21, eos=257, token_bytes=token_bytes, shard_records=9
    ) as writer:
        for start in range(0, len(ids), 100_000):
            writer.add(ids[start : start + 100_000], text_bytes=100_000, ends=False)
        split = writer.finish()
    assert (split.records, split.dropped_tokens) == (1, 3_000_000 - (1 << 21))
    expected = ids[: 1 << 21].astype("<u2").tobytes()
    assert split.sha256 == hashlib.sha256(expected).hexdigest()


# Folders -------------------------------------------------------------------------------------


def test_what_is_there_is_reused(story, tmp_path):
    out = tmp_path / "out"
    copy = tmp_path / "copy.jsonl"
    manifest = prepare.prepare(**settings(write_story(copy, STORY)), out=out)
    copy.unlink()  # without its text, nothing could be prepared
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert prepare.prepare(**settings(f"files:{copy}", vocab_size=7), out=out) == manifest
    assert Manifest.load(out) == manifest
    assert before == {path: path.stat().st_mtime_ns for path in out.iterdir()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length": 64}, "length=32, not 64"),
        ({"valid_every": 7}, "valid_every=20, not 7"),
        ({"valid_source": "pydocs"}, "valid_source='', not 'pydocs'"),
        ({"tokenizer": "sentencepiece"}, "tokenizer='byte', not 'sentencepiece'"),
        ({"shard_records": 3}, "shard_records=65536, not 3"),
    ],
)
def test_other_data_are_not_overwritten(story, tmp_path, change, message):
    out = tmp_path / "out"
    prepare.prepare(**settings(story), out=out)
    with pytest.raises(UserError) as caught:
        prepare.prepare(**settings(story, **change), out=out)
    assert str(caught.value) == (
        f"{out} was prepared with {message}: choose another folder, or delete this one."
    )


def test_foreign_folders_are_not_touched(story, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work", encoding="utf-8")
    with pytest.raises(UserError, match="exists but holds no prepared data"):
        prepare.prepare(**settings(story), out=tmp_path)
    with pytest.raises(UserError, match="exists but holds no prepared data"):
        prepare.prepare(**settings(story), out=tmp_path / "thesis.tex")
    with pytest.raises(UserError, match="cannot be written"):
        prepare.prepare(**settings(story), out=tmp_path / "thesis.tex" / "data")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_empty_folder_is_filled(story, tmp_path):
    (tmp_path / "out").mkdir()
    manifest = prepare.prepare(**settings(story), out=tmp_path / "out")
    assert Manifest.load(tmp_path / "out") == manifest


def test_a_failure_leaves_nothing(tmp_path):
    story = write_story(tmp_path / "a.jsonl", STORY)
    with open(tmp_path / "a.jsonl", "a", encoding="utf-8") as file:
        file.write("{]\n")
    # Given as validation text, the file fails when the training records are already written.
    good = write_story(tmp_path / "good.jsonl", STORY)
    for wanted in (settings(story), settings(good, valid_source=story)):
        with pytest.raises(UserError, match="Line 121"):
            prepare.prepare(**wanted, out=tmp_path / "out")
        assert {path.name for path in tmp_path.iterdir()} == {"a.jsonl", "good.jsonl"}


def test_an_interruption_leaves_nothing(story, tmp_path):
    """SIGINT while the text comes from a pipe that stalls: certain to strike in the middle."""
    fifo = tmp_path / "slow.txt"
    os.mkfifo(fifo)
    # A test run in the background of a shell ignores SIGINT, and so would its children.
    listening = (
        "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "runpy.run_module('hybrid_jax.data.prepare', run_name='__main__', alter_sys=True)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", listening, f"--source={story}", f"--valid_source=files:{fifo}",
         "--tokenizer=byte", "--length=32", f"--out={tmp_path}/out"],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process, open(fifo, "w", encoding="utf-8") as pipe:  # opens when the other side reads
        assert any(path.name.startswith(".out-") for path in tmp_path.iterdir())
        process.send_signal(2)
        assert process.wait(60) == 130
        assert process.stderr.read() == "interrupted; nothing was written\n"
        pipe.close()
    assert [path.name for path in tmp_path.iterdir()] == ["slow.txt"]


def test_a_full_disk_is_one_sentence(story, tmp_path):
    out = tmp_path / "out"
    limited = ["bash", "-c", 'ulimit -f 4; exec "$@"', "bash", *COMMAND]
    done = subprocess.run(
        [*limited, f"--source={story}", "--tokenizer=byte", "--length=8", f"--out={out}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {out} cannot be written: write() failed: File too large")
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_of_two_at_once_the_first_wins(story, tmp_path):
    """A second run finishes while the first one reads; both return the same manifest."""
    out, fifo = tmp_path / "out", tmp_path / "slow.jsonl"
    os.mkfifo(fifo)
    arguments = [f"--source={story}", f"--valid_source=files:{fifo}", "--tokenizer=byte",
                 "--length=32", f"--out={out}"]  # fmt: skip
    process = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, text=True)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in STORY[:9])
    with process, open(fifo, "w", encoding="utf-8") as pipe:
        other = write_story(tmp_path / "valid.jsonl", STORY[:9])
        manifest = prepare.prepare(**settings(story, valid_source=other), out=tmp_path / "twin")
        same = dataclasses.replace(manifest, valid_source=f"files:{fifo}")
        (tmp_path / "twin").rename(out)
        same.save(out)
        pipe.write(lines)
        pipe.close()
        assert process.wait(60) == 0
    assert Manifest.load(out) == same
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


# Mistakes ------------------------------------------------------------------------------------


def test_too_little_text(tmp_path):
    story = write_story(tmp_path / "a.jsonl", ["a short text", "b"])
    with pytest.raises(UserError) as caught:
        prepare.prepare(**settings(story, length=13), out=tmp_path / "out")
    assert str(caught.value) == (
        "The valid split has 2 tokens, too few for one record of 13: use more text, a smaller "
        "length or a valid_source."
    )
    with pytest.raises(UserError) as caught:
        prepare.prepare(**settings(story, length=16, valid_source=story), out=tmp_path / "out")
    assert str(caught.value) == (
        "The train split has 15 tokens, too few for one record of 16: use more text, a smaller "
        "length."
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length": 0}, "length must be at least 1, but is 0."),
        ({"shard_records": 0}, "shard_records must be at least 1, but is 0."),
        ({"valid_every": 1}, "valid_every must be at least 2, but is 1."),
        ({"length": 2**31}, "length must be at most 2147483647, but is 2147483648."),
        (
            {"tokenizer": "sentencepiece", "vocab_size": 10**11},
            "vocab_size must be at most 2147483647",
        ),
        ({"source": "web:x"}, "Unknown source 'web:x': choose one of files, hf, pydocs, tfds."),
        ({"tokenizer": "words"}, "Unknown tokenizer 'words'"),
        ({"tokenizer": "sentencepiece", "vocab_size": 9}, "vocab_size=9 is too small"),
    ],
)
def test_bad_settings(story, tmp_path, change, message):
    with pytest.raises(UserError) as caught:
        prepare.prepare(**settings(story, **change), out=tmp_path / "out")
    assert str(caught.value).startswith(message)
    assert list(tmp_path.iterdir()) == []


def test_another_tokenizer_is_refused(story, tmp_path):
    manifest = prepare.prepare(**settings(story), out=tmp_path / "out")
    other = tokenizers.make_tokenizer("sentencepiece", STORY, vocab_size=320)
    with pytest.raises(UserError) as caught:
        prepare.check_tokenizer(manifest, other)
    assert str(caught.value) == (
        f"The tokenizer (sentencepiece, {other.fingerprint[:12]}) does not match the prepared data "
        f"(byte, {manifest.fingerprint[:12]}): use the tokenizer in the folder of the data."
    )


def test_folders_of_older_versions_are_read(story, tmp_path):
    """Their manifest is called card.json."""
    out = tmp_path / "out"
    manifest = prepare.prepare(**settings(story), out=out)
    (out / "manifest.json").rename(out / "card.json")
    assert Manifest.load(out) == manifest
    assert prepare.prepare(**settings(story), out=out) == manifest
    assert not (out / "manifest.json").exists()


def test_damaged_manifests_are_refused(story, tmp_path):
    prepare.prepare(**settings(story), out=tmp_path / "out")
    path = tmp_path / "out" / "manifest.json"
    good = json.loads(path.read_text(encoding="utf-8"))
    fewer = {name: value for name, value in good.items() if name != "eos"}
    for content, message in [
        ("{", "is damaged"),
        ("[]", "is damaged (manifest is a section, not a value)"),
        (json.dumps(fewer), "is damaged (manifest.eos is missing)"),
        (json.dumps({**good, "more": 1}), "is damaged (manifest.more is not a setting"),
        (json.dumps({**good, "length": "32"}), "(manifest.length='32' should be of type int)"),
        (json.dumps({**good, "length": True}), "(manifest.length=True should be of type int)"),
        (json.dumps({**good, "train": {}}), "is damaged (manifest.train.documents is missing)"),
        (json.dumps({**good, "train": {**good["train"], "shards": 1}}), "shards=1 should be a lis"),
        (json.dumps({**good, "train": {**good["train"], "shards": [{}]}}), "shards[0].name is mis"),
        (json.dumps({**good, "format": 2}), "has format 2, but this version reads 1"),
    ]:
        path.write_text(content, encoding="utf-8")
        with pytest.raises(UserError) as caught:
            Manifest.load(tmp_path / "out")
        assert message in str(caught.value)
    with pytest.raises(UserError, match="holds no prepared data"):
        Manifest.load(tmp_path)


def test_default_folders_differ_with_the_data():
    plain = {"source": "files:my books/*.txt", "valid_source": "", "tokenizer": "byte",
             "vocab_size": 0, "length": 32}  # fmt: skip
    folder = prepare.default_dir(**plain)
    assert folder.parts[0] == "data"
    assert folder.name.startswith("files-my-books-txt-byte-32-")
    assert prepare.default_dir(**{**plain, "vocab_size": 9}) == folder  # which byte ignores
    for change in ({"source": "pydocs"}, {"valid_source": "pydocs"}, {"length": 64}):
        assert prepare.default_dir(**{**plain, **change}) != folder


# Command line --------------------------------------------------------------------------------

COMMAND = [sys.executable, "-m", "hybrid_jax.data.prepare"]


def test_command_line(story, tmp_path, capsys):
    arguments = [f"--source={story}", "--tokenizer=byte", "--length=32", f"--out={tmp_path}/out"]
    assert prepare.main(arguments) == 0
    printed = capsys.readouterr()
    manifest = Manifest.load(tmp_path / "out")
    assert f"train: {manifest.train.documents} documents" in printed.out
    assert f"valid: {manifest.valid.documents} documents" in printed.out
    assert printed.err == ""  # no progress bar where there is no terminal


def test_command_line_mistakes(tmp_path):
    done = subprocess.run(
        [*COMMAND, "--source=files:nothing.txt", f"--out={tmp_path}/out"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: No file matches 'nothing.txt': check the path or pattern.\n"
    assert list(tmp_path.iterdir()) == []


def test_command_line_help(capsys):
    with contextlib.suppress(SystemExit):
        prepare.main(["--help"])
    text = capsys.readouterr().out
    for option in (
        "--source",
        "--valid_source",
        "--tokenizer",
        "--vocab_size",
        "--length",
        "--out",
    ):
        assert option in text
