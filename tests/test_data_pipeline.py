"""Batches: addressed by step, shared among processes, and every record in its turn."""

import itertools
import json
import shutil

import numpy as np
import pytest

from hybrid_jax.data import prepare
from hybrid_jax.data.pipeline import Records, Stream, evaluation_batches
from hybrid_jax.errors import UserError

LENGTH = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """37 different training records in shards of 10, and 3 to validate on."""
    root = tmp_path_factory.mktemp("data")
    for name, count in (("train", 37), ("valid", 3)):
        texts = [f"{n:03d} {name:<11s}" for n in range(count)]
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (root / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    prepare.prepare(
        source=f"files:{root}/train.jsonl",
        valid_source=f"files:{root}/valid.jsonl",
        tokenizer="byte",
        vocab_size=0,
        length=LENGTH,
        shard_records=10,
        out=root / "out",
    )
    return root / "out"


@pytest.fixture(scope="module")
def records(folder) -> Records:
    return Records(folder, "train")


def numbers(tokens: np.ndarray) -> list[int]:
    """The record that each row is: their texts begin with it."""
    return [int(bytes(row[:3].astype(np.uint8))) for row in tokens]


def taken(stream: Stream, steps) -> list[int]:
    return [n for step in steps for n in numbers(stream.batch_at(step)["tokens"])]


def test_records_are_read_in_the_order_asked_for(records):
    assert len(records) == 37
    tokens = records.read([36, 0, 10, 0])["tokens"]
    assert (tokens.shape, tokens.dtype) == ((4, LENGTH), np.int32)
    assert numbers(tokens) == [36, 0, 10, 0]
    assert tokens[0].tolist() == [*b"036 train      ", 257]
    records.verify()


@pytest.mark.parametrize("start", [0, 5, 1000, 10**12])
def test_iterating_from_any_step_gives_the_batches_of_the_steps(records, start):
    stream = Stream(records, batch_size=6, seed=3)
    fresh = Stream(records, batch_size=6, seed=3)
    seen = list(itertools.islice(stream.iterate(start), 20))
    assert [step for step, _ in seen] == list(range(start, start + 20))
    for step, batch in seen:
        expected = fresh.batch_at(step)
        assert batch.keys() == expected.keys() == {"tokens", "index"}
        for name in batch:
            assert batch[name].dtype == np.int32
            np.testing.assert_array_equal(batch[name], expected[name])


def test_steps_may_come_in_any_order(records):
    stream = Stream(records, batch_size=4, seed=0)
    forward = [stream.batch_at(step)["tokens"] for step in range(12)]
    for step in reversed(range(12)):
        np.testing.assert_array_equal(stream.batch_at(step)["tokens"], forward[step])


@pytest.mark.parametrize("count", [2, 3])
def test_processes_share_one_global_batch(records, count):
    def part(index: int, total: int) -> Stream:
        rows = np.arange(6)[index * 6 // total : (index + 1) * 6 // total]
        return Stream(records, batch_size=6, seed=1, rows=rows)

    whole = part(0, 1)
    assert whole.batch_at(0)["index"].tolist() == [0, 1, 2, 3, 4, 5]
    iterators = [part(index, count).iterate(40) for index in range(count)]
    for step in range(40, 50):
        batches = [next(iterator)[1] for iterator in iterators]
        assert all(len(batch["tokens"]) == 6 // count for batch in batches)
        for name, expected in whole.batch_at(step).items():
            joined = np.concatenate([batch[name] for batch in batches])
            np.testing.assert_array_equal(joined, expected)


@pytest.mark.parametrize("batch_size", [1, 5, 37, 74, 100])
def test_every_epoch_takes_every_record_once_in_a_new_order(records, batch_size):
    stream = Stream(records, batch_size=batch_size, seed=0)
    places = taken(stream, range(-(-37 * 4 // batch_size)))[: 37 * 4]
    epochs = [tuple(places[start : start + 37]) for start in range(0, 37 * 4, 37)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(37))
    assert len({*epochs, tuple(range(37))}) == 5


def test_seeds_share_no_epoch(records):
    orders = set()
    for seed in range(6):
        places = taken(Stream(records, batch_size=37, seed=seed), range(6))
        orders |= {tuple(places[start : start + 37]) for start in range(0, len(places), 37)}
    assert len(orders) == 36


def test_fewer_records_than_a_batch(folder):
    stream = Stream(Records(folder, "valid"), batch_size=8, seed=0)
    places = taken(stream, range(6))
    for start in range(0, 48, 3):
        assert sorted(places[start : start + 3]) == [0, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, but is 0."),
        ({"batch_size": 1, "seed": -1}, "The seed of the data must be 0 or more, but is -1."),
    ],
)
def test_impossible_streams(records, arguments, message):
    with pytest.raises(UserError) as caught:
        Stream(records, **{"seed": 0, **arguments})
    assert str(caught.value) == message


def test_programming_errors(records, folder):
    with pytest.raises(ValueError, match="rows must lie in 0 … 1"):
        Stream(records, batch_size=2, seed=0, rows=np.array([1, 2]))
    with pytest.raises(ValueError, match="step is -1"):
        Stream(records, batch_size=2, seed=0).batch_at(-1)
    with pytest.raises(ValueError, match="not 'test'"):
        Records(folder, "test")


# Evaluation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 5, 37, 50])
@pytest.mark.parametrize("limit", [None, 1, 12, 37, 1000])
def test_evaluation_takes_every_record_once(records, batch_size, limit):
    batches = list(evaluation_batches(records, batch_size, limit=limit))
    total = min(limit or 37, 37)
    assert len(batches) == -(-total // batch_size)
    for batch in batches:
        assert (batch["tokens"].shape, batch["tokens"].dtype) == ((batch_size, LENGTH), np.int32)
        assert (batch["valid"].shape, batch["valid"].dtype) == ((batch_size,), bool)
    assert all(batch["valid"].all() for batch in batches[:-1])
    seen = [n for batch in batches for n in numbers(batch["tokens"][batch["valid"]])]
    assert seen == list(range(total))


@pytest.mark.parametrize(("batch_size", "limit"), [(0, None), (4, 0)])
def test_impossible_evaluation(records, batch_size, limit):
    with pytest.raises(UserError, match=f"but got {batch_size} and {limit}"):
        next(evaluation_batches(records, batch_size, limit))


# Damage --------------------------------------------------------------------------------------


@pytest.fixture
def copied(folder, tmp_path):
    """A copy of the folder, to be damaged."""
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


FIRST = "train-00000-of-00004.array_record"


def test_missing_and_cut_files_are_found_when_opening(copied):
    path = copied / FIRST
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    with pytest.raises(UserError, match=f"{FIRST} has not the size that the manifest says"):
        Records(copied, "train")
    path.write_bytes(b"\0" * len(content))
    with pytest.raises(UserError, match="are damaged"):
        Records(copied, "train")
    path.unlink()
    with pytest.raises(UserError) as caught:
        Records(copied, "train")
    assert str(caught.value) == (
        f"The prepared data in {copied} are damaged ({FIRST} is missing): delete the folder and "
        "prepare them again."
    )
    Records(copied, "valid").verify()


def test_what_the_system_refuses_is_no_damage(copied):
    class Refused:
        def __getitems__(self, numbers):
            raise RuntimeError("open() failed: Too many open files; opening some.array_record")

    records = Records(copied, "train")
    records._source = Refused()
    with pytest.raises(UserError) as caught:
        records.read([0])
    assert str(caught.value) == (
        f"The prepared data in {copied} cannot be read (Too many open files): change that on this "
        "machine, the data need not be damaged."
    )


def test_files_that_contradict_the_card_are_found(copied):
    manifest = json.loads((copied / "manifest.json").read_text(encoding="utf-8"))
    shards = manifest["train"]["shards"]
    for changes, message in [
        ({"length": LENGTH + 1}, "a record has not 17 tokens"),
        (
            {
                "train": {
                    **manifest["train"],
                    "shards": [{**shards[0], "records": 11}, *shards[1:]],
                    "records": 38,
                }
            },
            "there are 37 records, but the manifest says 38",
        ),
        ({"train": {**manifest["train"], "records": -1}}, "its manifest contradicts itself"),
        ({"train": {**manifest["train"], "shards": []}}, "its manifest contradicts itself"),
        (
            {"train": {**manifest["train"], "sha256": "0"}},
            "the records are not those of the manifest",
        ),
    ]:
        (copied / "manifest.json").write_text(json.dumps({**manifest, **changes}), encoding="utf-8")
        with pytest.raises(UserError) as caught:
            Records(copied, "train").verify()
        assert message in str(caught.value)


def test_copied_files_are_read_once_and_others_refused(copied, tmp_path, monkeypatch):
    Records(copied, "train")
    monkeypatch.setattr(Records, "verify", lambda self: pytest.fail("everything is read again"))
    Records(copied, "train")
    monkeypatch.undo()
    # Other text of the same length: names, sizes and numbers of records are the same.
    lines = "".join(json.dumps({"text": f"{n:03d} other      "}) + "\n" for n in range(37))
    (tmp_path / "other.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "valid.txt").write_text("to validate on\n" * 2, encoding="utf-8")
    prepare.prepare(
        source=f"files:{tmp_path}/other.jsonl", valid_source=f"files:{tmp_path}/valid.txt",
        tokenizer="byte", vocab_size=0, length=LENGTH, shard_records=10, out=tmp_path / "other",
    )  # fmt: skip
    shutil.copy2(tmp_path / "other" / FIRST, copied / FIRST)
    with pytest.raises(UserError, match="the records are not those of the manifest"):
        Records(copied, "train")


def test_damage_inside_a_file_surfaces_while_training(copied):
    records = Records(copied, "train")
    path = copied / FIRST
    content = bytearray(path.read_bytes())
    place = content.index(b"t\0r\0a\0i\0n\0")  # the text of some record, two bytes a token
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="a record cannot be read"):
        records.verify()
    stream = Stream(records, batch_size=37, seed=0)
    with pytest.raises(UserError, match="a record cannot be read"):
        next(stream.iterate())
