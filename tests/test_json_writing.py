"""JSON that any strict parser reads, from one writer; names that only equal values share."""

import dataclasses
import json
import math
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import REPOSITORY

from hybrid_jax.runtime.checkpoint import Checkpointer
from hybrid_jax.runtime.files import labels
from hybrid_jax.runtime.json_text import digest, file_name, json_text


def strict(text):
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


@dataclasses.dataclass(frozen=True)
class Pair:
    value: float
    parts: tuple


def test_numbers_that_are_not_finite_are_null():
    values = {
        "pair": Pair(math.nan, (math.inf, np.float32(-math.inf), np.float64(0.5), np.int64(3))),
        1: [True, None, "γ", {"deep": [math.nan]}],
    }
    assert strict(json_text(values)) == {
        "pair": {"value": None, "parts": [None, None, 0.5, 3]},
        "1": [True, None, "γ", {"deep": [None]}],
    }
    assert "γ" in json_text(values)
    assert json_text([1.5, {"a": 2}], indent=1) == json.dumps([1.5, {"a": 2}], indent=1)


def test_any_text_can_be_written():
    """Paths that are not UTF-8 come as half characters."""
    text = b"caf\xe9 \xce\xb3".decode("utf-8", "surrogateescape")
    for layout in ({}, {"ensure_ascii": True}):
        written = json_text({"path": text, "\ud800": "\\udce9"}, **layout).encode("utf-8")
        assert strict(written) == {"path": text, "\ud800": "\\udce9"}


def test_nothing_else_writes_json():
    """The strict reader turns what it has read back into text, to see that UTF-8 can write it; a
    driver runs where this package is not installed."""
    found = {
        path.relative_to(REPOSITORY)
        for folder in ("hybrid_jax", "benchmarks", "launch")
        for path in (REPOSITORY / folder).rglob("*.py")
        if re.search(r"json\.dumps?\b", path.read_text(encoding="utf-8"))
        and path.name != "released_driver.py"
    }
    assert found == {Path("hybrid_jax/runtime", name) for name in ("json_text.py", "decode.py")}


def test_names_of_files_are_those_of_equal_values():
    some = [1, 1.5, "1", None, [1], {"a": 1}, {"a": 2}, {"b": 1}, {"a": 1e-1}, {"a": 1e1}]
    assert len({file_name("x", value) for value in some}) == len(some)
    assert digest({"a": 1, "b": (2,)}) == digest({"b": [2], "a": 1})
    for label in ("a/b", "..", "γ", "x" * 400, "", "-rf"):
        assert re.fullmatch(r"([A-Za-z0-9_][\w.-]*)?-[0-9a-f]{16}", file_name(label, 0))
        assert len(file_name(label, 0)) < 100


@pytest.mark.parametrize(
    ("paths", "wanted"),
    [
        (["a/x.jsonl", "b/y.jsonl"], ["x.jsonl", "y.jsonl"]),
        (["a/x", "b/x", "b/y"], ["a/x", "b/x", "y"]),
        (["a/c/x", "b/c/x"], ["a/c/x", "b/c/x"]),
        (["x", "a/x"], None),
        (["/x", "/a/x", "/a/a/x"], None),
        (["only/x"], ["x"]),
    ],
)
def test_labels_tell_paths_apart(paths, wanted):
    found = labels(paths)
    assert found == wanted or wanted is None
    assert len(set(found)) == len(paths)
    assert all(
        path.endswith(label) or label.endswith(path)
        for path, label in zip(paths, found, strict=True)
    )


def test_scores_of_checkpoints_are_numbers(tmp_path):
    state = {"x": jax.numpy.zeros(2)}
    with Checkpointer(tmp_path, keep=9) as saver:
        for step, score in enumerate((None, math.inf, math.nan)):
            saver.save(step, state, score=score)
        saver.wait()
        assert saver.best_step() is None
        saver.save(3, state, score=2.0)
        saver.wait()
        assert saver.best_step() == 3
    files = list(tmp_path.rglob("metrics/metrics"))
    assert len(files) == 4
    for file in files:
        assert math.isfinite(strict(file.read_text())["score"])
