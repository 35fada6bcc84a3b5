"""Text to records to batches, on real files, tokenizers and ArrayRecords."""

import gzip
import json
import lzma
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zstandard

from hybrid_jax.data import pipeline, prepare, sources, tokenizers
from hybrid_jax.errors import UserError

TRICKY = "naïve façade\t日本語  two spaces\n\n  ➜ 🙂 <s> </s> <|endoftext|> end "
STORY = [f"Document {n} tells of {n * n} hares, {n % 7} foxes and a river.\n" * 3 for n in range(90)]


def write_story(folder: Path) -> str:
    path = folder / "story.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in STORY), encoding="utf-8")
    return f"files:{path}"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> tuple[Path, prepare.Card]:
    folder = tmp_path_factory.mktemp("data")
    out = folder / "out"
    card = prepare.ensure_prepared(
        source=write_story(folder), tokenizer="byte", vocab_size=0, length=32, out=out
    )
    return out, card


# Sources -------------------------------------------------------------------------------------


def test_pydocs_is_english_and_deterministic():
    first = list(sources.documents("pydocs"))
    assert first == list(sources.documents("pydocs"))
    assert 1_500_000 < sum(map(len, first)) < 6_000_000
    assert sum(text.count(" the ") for text in first) > 10_000
    assert len(set(first)) == len(first)


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz", ".zst"])
@pytest.mark.parametrize("kind", [".txt", ".jsonl"])
def test_files_of_every_kind(tmp_path, kind, suffix):
    text = TRICKY if kind == ".txt" else json.dumps({"text": TRICKY}) + "\n"
    raw = text.encode()
    pack = {
        "": lambda b: b,
        ".gz": gzip.compress,
        ".xz": lzma.compress,
        ".zst": zstandard.ZstdCompressor().compress,
    }[suffix]
    (tmp_path / f"a{kind}{suffix}").write_bytes(pack(raw))
    assert list(sources.documents(f"files:{tmp_path}/*{suffix}")) == [TRICKY]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "is empty"),
        ("a.txt", b"good \xff bad", "not UTF-8 at byte 5"),
        ("a.jsonl", b'{"text": "x"}\n\xff\n', "line 2 is not UTF-8"),
        ("a.jsonl", b"{]\n", "line 1 is not JSON"),
        ("a.jsonl", b'{"title": "x"}\n', 'line 1 has no text in a field "text"'),
        ("a.jsonl", b"", "is empty"),
        ("a.pdf", b"x", "neither .txt nor .jsonl"),
        ("a.txt.gz", b"not gzip", "cannot be read"),
        ("a.txt.xz", lzma.compress(b"x" * 9999)[:-9], "cannot be read"),
        ("a.txt.zst", b"not zstd", "cannot be read"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        list(sources.documents(f"files:{tmp_path / name}"))
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [("files:/nowhere/*.txt", "No file matches"), ("files:", "needs a path"), ("web:x", "known are")],
)
def test_bad_sources(spec, message):
    with pytest.raises(UserError, match=message):
        list(sources.documents(spec))


def test_split_parts_are_disjoint_and_whole(tmp_path):
    text = "".join(f"line {n} of one large file\n" for n in range(20_000))
    (tmp_path / "one.txt").write_text(text, encoding="utf-8")
    spec = f"files:{tmp_path}/one.txt"
    train = list(sources.split(spec, held_out=False))
    valid = list(sources.split(spec, held_out=True))
    assert valid
    assert sorted("".join(train + valid).splitlines()) == sorted(text.splitlines())
    assert not set("".join(train).splitlines()) & set("".join(valid).splitlines())


# Tokenizers ----------------------------------------------------------------------------------


def make(kind: str, folder) -> tokenizers.Tokenizer:
    spec = f"gpt2:{folder}" if kind == "gpt2" else kind
    return tokenizers.make_tokenizer(spec, STORY + [TRICKY], 320)


@pytest.mark.parametrize("kind", ["sentencepiece", "byte", "gpt2"])
def test_tokenizer_round_trip_and_reload(kind, tmp_path, request):
    source = request.getfixturevalue("shared_data") / "gpt2" if kind == "gpt2" else None
    tokenizer = make(kind, source)
    for text in (TRICKY, STORY[3], "never seen: ðŋħ ☂"):
        (ids,) = tokenizer.encode([text])
        assert ids.dtype == np.int32
        assert 0 <= ids.min() <= ids.max() < tokenizer.vocab_size
        assert tokenizer.eos not in ids
        mask = tokenizer.vocab_size
        assert tokenizer.decode([tokenizer.bos, *ids, mask, tokenizer.eos]) == text
    with pytest.raises(UserError, match="outside the vocabulary"):
        tokenizer.decode([tokenizer.vocab_size + 1])
    tokenizer.save(tmp_path)
    again = tokenizers.load_tokenizer(tmp_path)
    assert again.fingerprint == tokenizer.fingerprint
    assert again.encode([TRICKY])[0].tolist() == tokenizer.encode([TRICKY])[0].tolist()


def test_gpt2_ids_are_the_usual_ones(shared_data):
    tokenizer = make("gpt2", shared_data / "gpt2")
    assert (tokenizer.vocab_size, tokenizer.eos) == (50257, 50256)
    assert tokenizer.encode(["Hello world"])[0].tolist() == [15496, 995]


def test_sentencepiece_training_is_reproducible():
    first, second = make("sentencepiece", None), make("sentencepiece", None)
    assert first.fingerprint == second.fingerprint
    assert first.vocab_size == 320


def test_tokenizer_errors(tmp_path):
    with pytest.raises(UserError, match="vocab_size=50000"):
        tokenizers.make_tokenizer("sentencepiece", STORY, 50_000)
    with pytest.raises(UserError, match="Unknown tokenizer"):
        tokenizers.make_tokenizer("words", STORY, 300)
    with pytest.raises(UserError, match=r"encoder\.json is missing"):
        tokenizers.make_tokenizer(f"gpt2:{tmp_path}", STORY, 300)
    with pytest.raises(UserError, match="no tokenizer"):
        tokenizers.load_tokenizer(tmp_path)


# Records -------------------------------------------------------------------------------------


def test_records_hold_the_documents_one_after_the_other(prepared):
    out, card = prepared
    tokenizer = tokenizers.load_tokenizer(out)
    source = card.source
    for split in ("train", "valid"):
        records = pipeline.Records(out, split)
        packed = np.concatenate([records[i] for i in range(len(records))])
        expected = b""
        for text in sources.split(source, held_out=split == "valid"):
            expected += text.encode() + b"\0"  # stands for the end-of-sequence token
        got = bytes(np.where(packed == tokenizer.eos, 0, packed).astype(np.uint8))
        described = getattr(card, split)
        assert got == expected[: len(packed)]
        assert described.tokens == len(expected) == len(packed) + described.dropped_tokens
        assert described.text_bytes == len(expected) - described.documents
        assert described.dropped_tokens < card.length


def test_prepared_again_is_the_same_and_reused(prepared, tmp_path):
    out, card = prepared
    settings = {"source": card.source, "tokenizer": "byte", "vocab_size": 0, "length": 32}
    again = prepare.ensure_prepared(**settings, out=tmp_path / "again")
    assert again == card
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert prepare.ensure_prepared(**settings, out=out) == card
    assert before == {path: path.stat().st_mtime_ns for path in out.iterdir()}
    with pytest.raises(UserError, match="prepared with length=32, not 64"):
        prepare.ensure_prepared(**{**settings, "length": 64}, out=out)


def test_failure_leaves_nothing_behind(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(json.dumps({"text": STORY[0]}).encode() + b"\n{]\n")
    with pytest.raises(UserError, match="line 2 is not JSON"):
        prepare.ensure_prepared(
            source=f"files:{tmp_path}/a.jsonl",
            tokenizer="byte",
            vocab_size=0,
            length=8,
            out=tmp_path / "out",
        )
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_too_little_text(tmp_path):
    (tmp_path / "a.txt").write_text("short", encoding="utf-8")
    with pytest.raises(UserError, match="train part of the source has 6 tokens, too few for one"):
        prepare.ensure_prepared(
            source=f"files:{tmp_path}/a.txt",
            valid_source=f"files:{tmp_path}/a.txt",
            tokenizer="byte",
            vocab_size=0,
            length=16,
            out=tmp_path / "out",
        )


def test_tokenizer_of_other_data_is_refused(prepared):
    _, card = prepared
    other = make("sentencepiece", None)
    with pytest.raises(UserError, match="did not make this data"):
        prepare.check_tokenizer(card, other)


def test_damage_is_reported(prepared, tmp_path):
    out, _ = prepared
    with pytest.raises(UserError, match="no prepared data"):
        prepare.Card.load(tmp_path)
    (tmp_path / "card.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="is damaged"):
        prepare.Card.load(tmp_path)
    (tmp_path / "card.json").write_bytes((out / "card.json").read_bytes())
    with pytest.raises(UserError, match="is missing"):
        pipeline.Records(tmp_path, "train")


def test_command_line(tmp_path):
    def run(*arguments):
        command = [sys.executable, "-m", "hybrid_jax.data.prepare", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    source = write_story(tmp_path)
    done = run(f"--source={source}", "--tokenizer=byte", "--length=32", f"--out={tmp_path}/out")
    assert done.returncode == 0, done.stderr
    assert "records of 32" in done.stdout
    failed = run("--source=files:/nowhere.txt", f"--out={tmp_path}/other")
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: No file matches")
    assert len(failed.stderr.splitlines()) == 1
    assert not (tmp_path / "other").exists()


# Batches -------------------------------------------------------------------------------------


def test_batches_are_a_function_of_seed_and_step(prepared):
    records = pipeline.Records(prepared[0], "train")
    stream = pipeline.Stream(records, batch_size=4, seed=1)
    again = pipeline.Stream(records, batch_size=4, seed=1)
    other = pipeline.Stream(records, batch_size=4, seed=2)
    for start in (0, 3, 1000):
        for (step, batch), _ in zip(stream.iterate(start), range(3), strict=False):
            np.testing.assert_array_equal(batch["tokens"], again.batch_at(step)["tokens"])
    assert not np.array_equal(stream.batch_at(0)["tokens"], other.batch_at(0)["tokens"])


def test_processes_share_one_global_batch(prepared):
    records = pipeline.Records(prepared[0], "train")
    whole = pipeline.Stream(records, batch_size=6, seed=0).batch_at(7)
    parts = [
        pipeline.Stream(
            records, batch_size=6, seed=0, process_index=p, process_count=3
        ).batch_at(7)
        for p in range(3)
    ]
    for name in ("tokens", "index"):
        joined = np.concatenate([part[name] for part in parts])
        np.testing.assert_array_equal(joined, whole[name])
    with pytest.raises(UserError, match="does not divide among 4"):
        pipeline.Stream(records, batch_size=6, seed=0, process_index=0, process_count=4)


def test_every_epoch_visits_every_record_once_in_a_new_order(prepared):
    records = pipeline.Records(prepared[0], "train")
    stream = pipeline.Stream(records, batch_size=1, seed=0)
    count = len(records)
    epochs = [
        [stream.batch_at(epoch * count + i)["tokens"].tobytes() for i in range(count)]
        for epoch in range(2)
    ]
    everything = sorted(records[i].tobytes() for i in range(count))
    assert sorted(epochs[0]) == sorted(epochs[1]) == everything
    assert epochs[0] != epochs[1]


def test_evaluation_drops_no_remainder(prepared):
    records = pipeline.Records(prepared[0], "valid")
    size = len(records) // 2 - 1
    batches = list(pipeline.evaluation_batches(records, size))
    assert {batch["tokens"].shape for batch in batches} == {(size, 32)}
    seen = np.concatenate([batch["tokens"][batch["valid"]] for batch in batches])
    expected = np.stack([records[i] for i in range(len(records))])
    np.testing.assert_array_equal(seen, expected)
    limited = list(pipeline.evaluation_batches(records, size, limit=size + 1))
    assert sum(batch["valid"].sum() for batch in limited) == size + 1
