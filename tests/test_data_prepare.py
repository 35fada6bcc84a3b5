"""Preparation: records that are the documents, manifests to match, and failures without traces."""

import contextlib
import dataclasses
import gzip
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import types

import numpy as np
import pytest

from hybrid_jax.data import inputs, pipeline, planning, prepare, pydocs, splits, tokenizers
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
    return records.read(range(len(records)))["tokens"].reshape(-1)


@pytest.mark.parametrize("kind", ["sentencepiece", "byte", "char", "gpt2"])
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
    found = splits.passages(story, held_out=held_out)
    passages = [(is_valid, list(pieces)) for is_valid, pieces in found]
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
    other = write_story(tmp_path / "b.jsonl", ["a third tale, longer than a record"])
    manifest = prepare.prepare(**settings(story, valid_source=other), out=out)
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
    letters = [chr(0x4E00 + n) for n in range(len(STORY))]
    story = write_story(
        tmp_path / "a.jsonl", [text + c * 40 for text, c in zip(STORY, letters, strict=True)]
    )
    wanted = settings(story, tokenizer="sentencepiece", vocab_size=440)
    prepare.prepare(**wanted, out=tmp_path / "out")
    tokenizer = tokenizers.load_tokenizer(tmp_path / "out")
    valid = tokenizer.decode(stored(tmp_path / "out", "valid"))
    sizes = {c: len(tokenizer.encode(c)) for c in letters}
    assert {sizes[c] for c in letters if c in valid} == {3}  # bytes: no character that it knows
    assert {sizes[c] for c in letters if c not in valid} == {1}


@pytest.mark.parametrize("valid", ["", "a text of its own, with ζ\n" * 9])
def test_the_alphabet_is_that_of_all_text(tmp_path, valid):
    """Validation text has letters that no other text has, and is prepared all the same."""
    texts = [text + chr(0x4E00 + n) for n, text in enumerate(STORY)]
    story = write_story(tmp_path / "a.jsonl", texts)
    other = valid and write_story(tmp_path / "b.jsonl", [valid])
    wanted = settings(story, tokenizer="char", valid_source=other)
    manifest = prepare.prepare(**wanted, out=tmp_path / "out")
    assert manifest.vocab_size == len(set("".join([*texts, valid]))) + 1
    train = stored(tmp_path / "out", "train")
    assert not set(stored(tmp_path / "out", "valid")) <= set(train)


NUMBERS = [" ".join(str((n * n + i) % 90) for i in range(40 + n)) for n in range(60)]


@pytest.mark.parametrize("lines", [NUMBERS, [" ".join(NUMBERS), *NUMBERS[:2]]])
def test_records_of_ids_are_the_lines(tmp_path, lines):
    """Also where lines are long and cut into pieces."""
    (tmp_path / "a.txt").write_text("".join(f"{line}\n\n" for line in lines))
    write_story(tmp_path / "a.jsonl", lines)
    made = [
        prepare.prepare(
            **settings(f"lines:{tmp_path}/a.{kind}", tokenizer="ids:90"), out=tmp_path / kind
        )
        for kind in ("txt", "jsonl")
    ]
    assert made[0].identity == made[1].identity
    assert (made[0].vocab_size, made[0].train.bytes_per_token) == (91, 0.0)
    held_out = splits.held_out(made[0].source, every=20, least=256)
    for split in ("train", "valid"):
        passages = splits.passages(made[0].source, held_out=held_out)
        texts = ["".join(parts) for is_valid, parts in passages if is_valid == (split == "valid")]
        expected = [i for text in texts for i in (*map(int, text.split()), 90)]
        tokens = stored(tmp_path / "txt", split).tolist()
        assert tokens == expected[: len(tokens)]


@pytest.mark.parametrize("kind", ["lines:{}/a.txt", "files:{}/a.txt", "files:{}/a.jsonl"])
@pytest.mark.parametrize("is_valid", [False, True])
def test_a_line_with_a_wrong_id_is_named(tmp_path, kind, is_valid):
    lines = [*NUMBERS[:3], "", "1 2 90 3"]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    (tmp_path / "a.jsonl").write_text("\n".join(x and json.dumps({"text": x}) for x in lines))
    good = write_story(tmp_path / "good.jsonl", NUMBERS)
    source = kind.format(tmp_path)
    chosen = (good, source) if is_valid else (source, "")
    wanted = settings(chosen[0], valid_source=chosen[1], tokenizer="ids:90")
    with pytest.raises(UserError) as caught:
        prepare.prepare(**wanted, out=tmp_path / "out")
    assert str(caught.value) == (
        f"Line 5 of {source.partition(':')[2]} is wrong: The id 90 of the record '1 2 90 3' is "
        "outside 0 … 89, those of the tokenizer ids:90."
    )


def test_types_of_tokens_leave_room_for_mask():
    assert token_dtype(2**16 - 1) == np.uint16
    assert token_dtype(2**16) == np.uint32
    assert token_dtype(258).str == "<u2"


def test_documents_longer_than_the_buffer_are_packed(tmp_path):
    ids = np.arange(3_000_000) % 250
    token_bytes = np.ones(258, np.int32)
    with RecordWriter(
        tmp_path, "train", length=1 << 21, token_bytes=token_bytes, shard_records=9
    ) as writer:
        for start in range(0, len(ids), 100_000):
            writer.add(ids[start : start + 100_000], text_bytes=100_000, documents=0)
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
        ({"tokenizer": "char"}, "tokenizer='byte', not 'char'"),
        ({"shard_records": 3}, "shard_records=65536, not 3"),
    ],
)
def test_other_data_are_not_overwritten(story, tmp_path, change, message):
    out = tmp_path / "out"
    prepare.prepare(**settings(story), out=out)
    with pytest.raises(UserError) as caught:
        prepare.prepare(**settings(story, **change), out=out)
    assert str(caught.value) == (
        f"{out} was prepared with {message}: choose another folder, or that value."
    )


@pytest.fixture
def books(tmp_path):
    """A folder with the text of two files, and settings that prepare it."""
    folder = tmp_path / "books"
    folder.mkdir()
    for name in "ab":
        (folder / f"{name}.txt").write_text(
            "".join(f"hare {name} ran {n} miles\n" for n in range(30)), encoding="utf-8"
        )
    return folder, settings(f"files:{folder}/*.*", length=16)


def rewrite(path):
    """Other text of the same length."""
    path.write_text(path.read_text(encoding="utf-8").replace("hare", "cony"), encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda books: rewrite(books / "a.txt"), "{0}/a.txt has changed"),
        (lambda books: (books / "b.txt").unlink(), "{0}/b.txt is gone"),
        (lambda books: shutil.copy(books / "a.txt", books / "c.txt"), "{0}/c.txt is new"),
        (
            lambda books: (books / "a.txt").rename(books / "z.txt"),
            "{0}/a.txt is gone, {0}/z.txt is new",
        ),
        (
            lambda books: [shutil.copy(books / "a.txt", books / f"{n}.txt") for n in range(5)],
            "{0}/0.txt is new, {0}/1.txt is new, {0}/2.txt is new and 2 more",
        ),
    ],
)
@pytest.mark.parametrize("role", ["source", "valid_source"])
def test_records_of_other_text_are_refused(story, books, tmp_path, change, message, role):
    folder, wanted = books
    if role == "valid_source":
        wanted = settings(story, valid_source=wanted["source"], length=16)
    out = tmp_path / "out"
    prepare.prepare(**wanted, out=out)
    change(folder)
    with pytest.raises(UserError) as caught:
        prepare.prepare(**wanted, out=out)
    assert str(caught.value) == (
        f"{out} was prepared from other text ({message.format(folder)}): choose another folder, or "
        "delete this one if no run needs it."
    )


def test_records_of_a_pattern_that_lost_its_files_are_refused(books, tmp_path):
    folder, wanted = books
    wanted["source"] = f"files:{folder}/a.txt,{folder}/b.txt"
    prepare.prepare(**wanted, out=tmp_path / "out")
    (folder / "b.txt").unlink()
    with pytest.raises(UserError, match=r"b\.txt is gone"):
        prepare.prepare(**wanted, out=tmp_path / "out")
    (folder / "a.txt").unlink()  # prepared elsewhere: nothing to compare with
    prepare.prepare(**wanted, out=tmp_path / "out")


def test_equal_text_with_other_times_and_names_is_read_once(books, tmp_path, monkeypatch):
    folder, wanted = books
    out = tmp_path / "out"
    manifest = prepare.prepare(**wanted, out=out)
    (folder / "a.txt").rename(folder / "0.txt")
    os.utime(folder / "b.txt", ns=(1, 1))
    again = prepare.prepare(**wanted, out=out)
    assert again.identity == manifest.identity

    def unread(path):
        raise AssertionError(f"{path} is read")

    monkeypatch.setattr("hybrid_jax.data.content._hash", unread)
    prepare.prepare(**wanted, out=out)
    os.utime(folder / "b.txt", ns=(2, 2))
    with pytest.raises(AssertionError, match=r"b\.txt is read"):
        prepare.prepare(**wanted, out=out)


def test_text_that_changes_while_it_is_read_is_refused(books, tmp_path, monkeypatch):
    folder, wanted = books

    def changing(*arguments, **more):
        rewrite(folder / "a.txt")
        return tokenizers.make_tokenizer(*arguments, **more)

    monkeypatch.setattr(planning, "make_tokenizer", changing)
    with pytest.raises(UserError, match=r"changed while it was read \(.*a.txt has changed\)"):
        prepare.prepare(**wanted, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_records_of_other_tokenizer_files_are_refused(story, tmp_path):
    """As if GPT-2's tokenizer had made them: the files are only compared."""
    out, tokenizer = tmp_path / "out", f"gpt2:{tmp_path}"
    for name in ("encoder.json", "vocab.bpe"):
        (tmp_path / name).write_text("a hare", encoding="utf-8")
    manifest = prepare.prepare(**settings(story), out=out)
    found = (*manifest.inputs, *inputs.read(tokenizer))
    dataclasses.replace(manifest, tokenizer=tokenizer, inputs=found).save(out)
    prepare.prepare(**settings(story, tokenizer=tokenizer), out=out)
    rewrite(tmp_path / "vocab.bpe")
    with pytest.raises(UserError, match=r"other text \(.*vocab.bpe has changed\)"):
        prepare.prepare(**settings(story, tokenizer=tokenizer), out=out)


def test_records_keep_the_tokenizer_of_hugging_face(story, tmp_path):
    """A copy of their own, and the files are compared while they are there."""
    library = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    made = library.ByteLevelBPETokenizer()
    made.train_from_iterator(STORY, vocab_size=300, show_progress=False)
    (tmp_path / "hf").mkdir()
    made.save(f"{tmp_path}/hf/tokenizer.json")
    wanted = settings(story, tokenizer=f"hf:{tmp_path}/hf")
    out = tmp_path / "out"
    manifest = prepare.prepare(**wanted, out=out)
    valid = tokenizers.load_tokenizer(out).decode(stored(out, "valid"))
    rewrite(tmp_path / "hf" / "tokenizer.json")
    with pytest.raises(UserError, match=r"other text \(.*tokenizer.json has changed\)"):
        prepare.prepare(**wanted, out=out)
    shutil.rmtree(tmp_path / "hf")
    assert prepare.prepare(**wanted, out=out) == manifest
    assert tokenizers.load_tokenizer(out).decode(stored(out, "valid")) == valid
    assert valid[:9] == "Document "


def test_records_outlive_the_folder_that_their_tokenizer_is_from(story, tmp_path):
    prepare.prepare(**settings(story), out=tmp_path / "first")
    wanted = settings(story, tokenizer=f"saved:{tmp_path / 'first'}")
    manifest = prepare.prepare(**wanted, out=tmp_path / "out")
    shutil.rmtree(tmp_path / "first")
    assert prepare.prepare(**wanted, out=tmp_path / "out") == manifest


@pytest.mark.parametrize("name", ["words", "gpt2:{}", "gpt2:", "hf:{}", "saved:{}", "ids:many"])
def test_tokenizers_that_cannot_be_are_refused_before_text_is_read(name, tmp_path):
    name = name.format(tmp_path / "none")
    with pytest.raises(UserError) as made:
        tokenizers.make_tokenizer(name, (), vocab_size=0)
    wanted = settings(f"files:{tmp_path / 'none.txt'}", tokenizer=name)
    with pytest.raises(UserError) as prepared:
        prepare.prepare(**wanted, out=tmp_path / "out")
    assert str(prepared.value) == str(made.value)


def test_records_of_another_python_are_refused(story, tmp_path, monkeypatch):
    wanted = settings(story, valid_source="pydocs")
    monkeypatch.setattr(pydocs, "documents", lambda: ("All the documentation of one Python.",))
    prepare.prepare(**wanted, out=tmp_path / "out")
    monkeypatch.setattr(sys, "version", "another build")
    prepare.prepare(**wanted, out=tmp_path / "out")
    monkeypatch.setattr(sys, "version", "4.0")
    monkeypatch.setattr(pydocs, "documents", lambda: ("All the documentation of another Python.",))
    with pytest.raises(UserError, match=r"\(Python's documentation has changed\)"):
        prepare.prepare(**wanted, out=tmp_path / "out")


def test_records_of_another_version_of_a_public_set_are_refused(story, tmp_path, monkeypatch):
    """With a stand-in for the package datasets; without it, the records are used."""
    hub = types.SimpleNamespace(
        commit="abc",
        text="of the hub",
        exceptions=types.SimpleNamespace(DatasetsError=ConnectionError),
        load_dataset=lambda name, config, split: [{"text": f"{hub.text}, {split}"}] * 9,
        load_dataset_builder=lambda name, config: types.SimpleNamespace(cache_dir=hub.commit),
    )
    monkeypatch.setitem(sys.modules, "datasets", hub)
    wanted = settings(story, valid_source="hf:owner/name:test", length=16)
    prepare.prepare(**wanted, out=tmp_path / "out")
    hub.commit = "def"
    prepare.prepare(**wanted, out=tmp_path / "out")
    hub.commit, hub.text = "123", "of today's hub"
    with pytest.raises(UserError, match=r"\(hf:owner/name:test has changed\)"):
        prepare.prepare(**wanted, out=tmp_path / "out")
    monkeypatch.setitem(sys.modules, "datasets", None)
    prepare.prepare(**wanted, out=tmp_path / "out")


def test_only_what_is_given_is_compared(story, tmp_path):
    out = tmp_path / "out"
    manifest = prepare.prepare(**settings(story), valid_every=7, shard_records=100, out=out)
    assert (manifest.valid_every, manifest.shard_records) == (7, 100)
    assert prepare.prepare(**settings(story), out=out) == manifest


def test_unwanted_records_are_not_kept(story, tmp_path):
    def refuse(manifest):
        raise UserError(f"not {manifest.length}")

    for _ in range(2):
        with pytest.raises(UserError, match="not 32"):
            prepare.prepare(**settings(story), out=tmp_path / "new" / "out", check=refuse)
        assert not (tmp_path / "new").exists()
    kept = prepare.prepare(**settings(story), out=tmp_path / "out")
    with pytest.raises(UserError, match="not 32"):
        prepare.prepare(**settings(story), out=tmp_path / "out", check=refuse)
    assert Manifest.load(tmp_path / "out") == kept


def test_identity_is_that_of_the_records(story, tmp_path):
    """Neither names nor shards matter; each setting that changes a token does."""

    def identity(name, **wanted):
        return prepare.prepare(**{**settings(story), **wanted}, out=tmp_path / name).identity

    same = write_story(tmp_path / "same.jsonl", STORY)
    assert identity("a") == identity("b", source=same, shard_records=100)
    others = [
        identity("c", length=16),
        identity("d", valid_every=7),
        identity("e", valid_source=write_story(tmp_path / "valid.jsonl", STORY[:9])),
        identity("f", source=write_story(tmp_path / "less.jsonl", STORY[1:])),
        identity("g", tokenizer="sentencepiece", vocab_size=320),
    ]
    assert len({identity("a"), *others}) == 6


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


# A test run in the background of a shell ignores these signals, and so would its children.
LISTENING = """
import signal, sys, time
from hybrid_jax.data import prepare, splits

def wait(source):
    print("waiting", flush=True)
    time.sleep(600)

signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
splits.digests = wait
sys.exit(prepare.main())
"""
KEPT = "what is encoded is kept: the same command goes on from there\n"


@contextlib.contextmanager
def stalled(story, folder):
    """A process that prepares `folder`/out and does not come to an end."""
    process = subprocess.Popen(
        [sys.executable, "-c", LISTENING, f"--source={story}", f"--valid_source={story}",
         "--tokenizer=byte", "--length=32", f"--out={folder}/out"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        assert process.stdout.readline() == "waiting\n"
        assert any(path.name.startswith(".out-") for path in folder.iterdir())
        yield process


def test_a_pipe_is_refused(story, tmp_path):
    os.mkfifo(tmp_path / "a.txt")
    for wanted in (
        {"source": f"files:{tmp_path}/a.txt"},
        {"valid_source": f"files:{tmp_path}/a.txt"},
    ):
        with pytest.raises(
            UserError, match=r"a\.txt can be read only once: write its text to a file"
        ):
            prepare.prepare(**settings(story, **wanted), out=tmp_path / "out")


@pytest.mark.parametrize(
    ("number", "status", "message"),
    [
        (signal.SIGINT, 130, f"interrupted; {KEPT}"),
        (signal.SIGTERM, 143, f"terminated; {KEPT}"),
        (signal.SIGHUP, 129, f"terminated; {KEPT}"),
    ],
)
def test_an_interruption_leaves_nothing(story, tmp_path, number, status, message):
    with stalled(story, tmp_path) as process:
        process.send_signal(number)
        assert process.wait(60) == status
        assert process.stderr.read() == message
    assert list(tmp_path.iterdir()) == []


def test_the_next_run_removes_what_a_killed_one_left_and_nothing_else(story, tmp_path):
    (tmp_path / ".out-notes").mkdir()
    with stalled(story, tmp_path) as process:
        inside = set(tmp_path.glob(".out-*/*"))
        prepare.prepare(**settings(story), out=tmp_path / "out")
        assert set(tmp_path.glob(".out-*/*")) == inside  # it is in use
        (tmp_path / "out").rename(tmp_path / "first")
        process.kill()
        process.wait(60)
        assert set(tmp_path.glob(".out-*/*")) == inside
        prepare.prepare(**settings(story), out=tmp_path / "out")
        assert [path.name for path in tmp_path.glob(".*")] == [".out-notes"]


def test_a_full_disk_is_one_sentence(story, tmp_path):
    out = tmp_path / "out"
    limited = ["bash", "-c", 'ulimit -f 4; exec "$@"', "bash", *COMMAND]
    done = subprocess.run(
        [*limited, f"--source={story}", "--tokenizer=byte", "--length=8", f"--out={out}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {out} cannot be written: File too large")
    assert len(done.stderr.splitlines()) == 1
    assert not out.exists()
    prepare.prepare(**settings(story, length=16), out=out)  # which removes what the other left
    assert list(tmp_path.iterdir()) == [out]


def test_of_two_at_once_the_first_wins(story, tmp_path, monkeypatch):
    """A second run finishes while the first one writes; both return the same manifest."""
    out, pack = tmp_path / "out", prepare._packed
    first = prepare.prepare(**settings(story), out=tmp_path / "first")

    def late(*arguments) -> Manifest:
        manifest = pack(*arguments)
        (tmp_path / "first").rename(out)
        return manifest

    monkeypatch.setattr(prepare, "_packed", late)
    before = (tmp_path / "first" / "manifest.json").stat().st_ino
    assert prepare.prepare(**settings(story), out=out) == first
    assert (out / "manifest.json").stat().st_ino == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# Validation text -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["b.txt", "link.txt", "hard.txt", "sub/../b.txt", "copy.jsonl.gz"])
def test_validation_text_inside_the_training_pattern_is_not_trained_on(tmp_path, caplog, name):
    """Also under another path, and as a copy; and it is said."""
    for letter in "abc":
        (tmp_path / f"{letter}.txt").write_text(letter * 40, encoding="utf-8")
    (tmp_path / "sub").mkdir()
    (tmp_path / "link.txt").symlink_to("b.txt")
    (tmp_path / "hard.txt").hardlink_to(tmp_path / "b.txt")
    copy = json.dumps({"text": "b" * 40}).encode()
    (tmp_path / "copy.jsonl.gz").write_bytes(gzip.compress(copy))
    wanted = settings(f"files:{tmp_path}/*.txt", valid_source=f"files:{tmp_path}/{name}")
    manifest = prepare.prepare(**wanted, out=tmp_path / "out")
    assert (manifest.train.documents, manifest.valid.documents) == (2, 1)
    assert not (stored(tmp_path / "out", "train") == ord("b")).any()
    assert caplog.messages == [
        "40 bytes of the source are validation text too: left out of training."
    ]


def test_text_that_is_all_validation_text(story, tmp_path):
    with pytest.raises(UserError) as caught:
        prepare.prepare(**settings(story, valid_source=story), out=tmp_path / "out")
    assert str(caught.value) == (
        "The train split has 0 tokens without the validation text, too few for one record of 32: "
        "use more text, a smaller length or another valid_source."
    )


# Mistakes ------------------------------------------------------------------------------------


def test_too_little_text(tmp_path):
    story = write_story(tmp_path / "a.jsonl", ["a short text", "b"])
    other = write_story(tmp_path / "b.jsonl", ["c"])
    with pytest.raises(UserError) as caught:
        prepare.prepare(**settings(story, length=13), out=tmp_path / "out")
    assert str(caught.value) == (
        "The valid split has 2 tokens, too few for one record of 13: use more text, a smaller "
        "length or a valid_source."
    )
    with pytest.raises(UserError) as caught:
        prepare.prepare(**settings(other, length=16, valid_source=story), out=tmp_path / "out")
    assert str(caught.value) == (
        "The train split has 2 tokens without the validation text, too few for one record of 16: "
        "use more text, a smaller length or another valid_source."
    )
    with pytest.raises(UserError) as caught:
        prepare.prepare(**settings(other, length=1), out=tmp_path / "out")
    assert str(caught.value) == (
        f"{other} is a single piece of text, alone or repeated, and a lone piece is held out "
        "whole, which leaves nothing to train on: use more text or a valid_source."
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
        (
            {"source": "web:x"},
            "Unknown source 'web:x': choose one of files, hf, lines, pairs, pydocs, ",
        ),
        ({"tokenizer": "words"}, "Unknown tokenizer 'words'"),
        ({"tokenizer": "sentencepiece", "vocab_size": 9}, "vocab_size=9 is too small"),
        ({"tokenizer": "sentencepiece", "vocab_size": 0}, "vocab_size must be at least 1, but is"),
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


def test_text_newer_than_records_of_older_versions_is_refused(books, tmp_path):
    """Their manifests do not tell what they were made from."""
    folder, wanted = books
    out = tmp_path / "out"
    prepare.prepare(**wanted, out=out)
    values = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    del values["inputs"]
    for split in ("train", "valid"):
        for shard in values[split]["shards"]:
            del shard["stamp"]
    (out / "manifest.json").write_text(json.dumps(values), encoding="utf-8")
    manifest = prepare.prepare(**wanted, out=out)
    assert manifest.inputs == ()
    pipeline.Records(out, "train").verify()
    later = (out / "manifest.json").stat().st_mtime_ns + 1
    os.utime(folder / "b.txt", ns=(later, later))
    with pytest.raises(UserError, match=r"\(.*b.txt is newer than the records\)"):
        prepare.prepare(**wanted, out=out)


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
        (
            json.dumps({**good, "dtype": "float16"}),
            "(manifest.dtype='float16' is not one of uint16",
        ),
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


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--vocab_size=9", "--tokenizer=byte"], "--vocab_size has no effect with --tokenizer=byt"),
        (["--valid_every=7", "--valid_source=x"], "--valid_every has no effect with --valid_sour"),
    ],
)
def test_flags_without_an_effect_are_refused(flags, said, tmp_path, capsys):
    assert prepare.main(["--source=pydocs", *flags, f"--out={tmp_path}/out"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {said}")
    assert list(tmp_path.iterdir()) == []


def test_command_line_mistakes(tmp_path):
    done = subprocess.run(
        [*COMMAND, "--source=files:nothing.txt", f"--out={tmp_path}/out"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: No file matches 'nothing.txt': check the path or pattern.\n"
    assert list(tmp_path.iterdir()) == []
