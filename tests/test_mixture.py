"""Mixtures: every source has its share of every stretch, its own epochs, and records of its own."""

import itertools
from collections import Counter

import numpy as np
import pytest

from hybrid_jax import main
from hybrid_jax.data import mixture, prepare
from hybrid_jax.data.pipeline import Records, Stream, evaluation_batches
from hybrid_jax.data.settings import DataConfig
from hybrid_jax.errors import UserError
from hybrid_jax.training import workdir

pytestmark = pytest.mark.slow

LENGTH = 8
STAGES = "0.7,0.2,0.1 6:1/3,0,2/3 12:0,1,0"
STEPS, BATCH = 40, 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three sources, whose texts are of letters of their own."""
    root = tmp_path_factory.mktemp("mixture")
    for letter, count in (("a", 300), ("b", 2000), ("c", 40)):
        texts = (f"{letter * (n % 9 + 1)} {n}\n" for n in range(count))
        (root / f"{letter}.txt").write_text("".join(texts))
    (root / "c.txt").write_text((root / "c.txt").read_text() + "a 0\n")  # in two sources
    prepare.prepare(source=source(root), tokenizer="byte", vocab_size=0, length=LENGTH,
                    out=root / "out")  # fmt: skip
    return root / "out"


def source(root) -> str:
    return "mix:" + ",".join(f"lines:{root}/{letter}.txt" for letter in "abc")


def letters(tokens: np.ndarray) -> list[set[str]]:
    """The letters of each record."""
    texts = (bytes(row[row < 256].astype(np.uint8)).decode() for row in tokens)
    return [set(text) & set("abc") for text in texts]


def test_records_have_text_of_one_source(folder):
    seen: set[str] = set()
    for split in ("train", "valid"):
        records = Records(folder, split)
        assert sum(records.sources) == len(records)
        assert len(records.sources) == 3
        numbers = range(len(records))
        source_of = np.repeat(np.arange(3), records.sources)
        for number, found in zip(source_of, letters(records.read(numbers)["tokens"]), strict=True):
            # The line that is in two sources is in one split.
            assert found <= ({"abc"[number]} if number < 2 else {"a", "c"})
        seen |= {"abc"[number] for number in source_of}
    assert seen == set("abc")
    assert all(Records(folder, "train").sources)


def test_every_source_has_its_share_and_its_epochs(folder):
    records = Records(folder, "train")
    starts = [0, *itertools.accumulate(records.sources)]
    stream = Stream(records, batch_size=BATCH, seed=3, weights=STAGES)
    stages = mixture.parse(STAGES, 3)
    taken: dict[int, list[int]] = {0: [], 1: [], 2: []}
    of_step = []
    for step in range(STEPS):
        found = [stream._record(step * BATCH + row) for row in range(BATCH)]
        sources = [int(np.searchsorted(starts, number, side="right")) - 1 for number in found]
        of_step.append(Counter(sources))
        for number, one in zip(found, sources, strict=True):
            taken[one].append(number - starts[one])
    for steps, weights in ((range(6), (0.7, 0.2, 0.1)), (range(6, 12), (1 / 3, 0, 2 / 3)),
                           (range(12, STEPS), (0, 1, 0))):  # fmt: skip
        total = sum((of_step[step] for step in steps), Counter())
        for one, weight in enumerate(weights):
            assert abs(total[one] - weight * BATCH * len(steps)) <= 1
            # As evenly as in the whole, in every step.
            assert all(abs(of_step[step][one] - weight * BATCH) <= 2 for step in steps)
    for one, numbers in taken.items():  # across stages too, none is left out or taken twice
        size = records.sources[one]
        for start in range(0, len(numbers) - size + 1, size):
            assert sorted(numbers[start : start + size]) == list(range(size))
        rest = numbers[len(numbers) // size * size :]
        assert len(set(rest)) == len(rest)
    assert len(taken[2]) > records.sources[2]  # a whole epoch of one of them was seen
    assert [stage.step for stage in stages] == [0, 6, 12]


def test_a_batch_is_a_function_of_its_step(folder):
    records = Records(folder, "train")
    whole = Stream(records, batch_size=BATCH, seed=3, weights=STAGES)
    rows = [np.arange(0, BATCH, 2), np.arange(1, BATCH, 2)]
    parts = [Stream(records, batch_size=BATCH, seed=3, rows=r, weights=STAGES) for r in rows]
    for step, batch in itertools.islice(whole.iterate(7), 4):
        for own, part in zip(rows, parts, strict=True):
            found = part.batch_at(step)["tokens"]
            np.testing.assert_array_equal(found, batch["tokens"][own])


def test_all_sources_are_evaluated(folder):
    records = Records(folder, "train")
    (batch,) = evaluation_batches(records, 64, limit=64)
    found = Counter("".join(sorted(one)) for one in letters(batch["tokens"]))
    for letter, size in zip("ab", records.sources, strict=False):
        assert abs(found[letter] - 64 * size / len(records)) < 4


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ("0.5,0.4", "The weights '0.5,0.4' sum to 0.9: give weights from 0 on that sum to 1"),
        ("1.5,-0.5", "The weights '1.5,-0.5' sum to 1: give weights from 0 on that sum to 1"),
        ("1", "'1' has 1 weights for 2 sources."),
        ("a,b", "The weights 'a,b' are none: write one for each of the sources, such as 0.7,0.3"),
        ("1/0,1", "The weights '1/0,1' are none"),
        ("0.5,0.5 0.4,0.6", "The weights '0.5,0.5 0.4,0.6' name no step where they change"),
        ("0.5,0.5 9:1,0 8:0,1", "The weights '0.5,0.5 9:1,0 8:0,1' name no step where they change"),
        ("3:0.5,0.5", "The weights '3:0.5,0.5' name no step"),
        ("0.12345,0.87655", "The weights '0.12345,0.87655' are too fine: give at most four"),
    ],
)
def test_bad_weights(weights, expected):
    with pytest.raises(UserError) as caught:
        DataConfig(source="mix:pydocs,pysource", weights=weights)
    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize("source", ["mix:", "mix:[]", "mix:pydocs,pydocs"])
def test_mixtures_without_sources(source):
    with pytest.raises(UserError, match=r"names no source, or one twice: write mix:SOURCE,SOURCE"):
        DataConfig(source=source)


def test_weights_belong_to_mixtures():
    with pytest.raises(UserError, match=r"data\.weights belongs to data\.source=mix:\*"):
        DataConfig(weights="1")
    assert mixture.parse("", 3)[0].shares == (1, 1, 1)
    assert mixture.Stage(0, (6, 3)).order.tolist() == [0, 1, 0, 0, 1, 0, 0, 1, 0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("d\n" * 3, "is a single piece of text"), (None, "pairs and others text: choose all of one")],
)
def test_bad_mixtures(folder, tmp_path, text, expected):
    (tmp_path / "d.txt").write_text(text or "")
    other = f"lines:{tmp_path}/d.txt" if text else "pairs:x.jsonl"
    settings = dict(tokenizer="byte", vocab_size=0, length=LENGTH, out=tmp_path / "out")
    with pytest.raises(UserError, match=expected):
        prepare.prepare(source=f"mix:lines:{folder.parent}/a.txt,{other}", **settings)


def test_it_trains_on_a_mixture(folder, tmp_path):
    """From the command line, and on after a change of its text is refused."""
    command = [
        "--config=ar", f"--workdir={tmp_path}/run", f"--config.data.source={source(folder.parent)}",
        f"--config.data.dir={folder}", "--config.data.weights=0.5,0.25,0.25 1:0,0,1",
        "--config.data.tokenizer=byte", f"--config.data.length={LENGTH}", "--config.train.steps=2",
        "--config.model.layers=1", "--config.model.width=16", "--config.model.unroll=1",
        "--config.sampling.count=0", "--config.evaluation.final_records=16",
        "--no_compilation_cache",
    ]  # fmt: skip
    assert main.main(command) == 0
    assert workdir.load(tmp_path / "run").data.weights == "0.5,0.25,0.25 1:0,0,1"
    assert main.main([*command[:5], "--config.data.weights=1,0,0", *command[6:]]) == 2
