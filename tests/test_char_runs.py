"""nanoGPT's split, windows and cost in benchmarks/char_runs.py and benchmarks/shakespeare.py."""

import json
from pathlib import Path

import char_runs
import epochs
import jax
import numpy as np
import pytest
import shakespeare
from char_runs import CONTEXT, Run, Text
from nanogpt import NanoGPT

from hybrid_jax.errors import UserError
from hybrid_jax.runtime.progress import Progress

pytestmark = pytest.mark.slow

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
SMALL = {
    "model.layers": "1",
    "model.width": "16",
    "model.heads": "2",
    "optimizer.warmup_steps": "0",
}


def test_a_text_as_long_as_tiny_shakespeare_is_split_as_by_nanogpt(tmp_path):
    (tmp_path / "input.txt").write_text("ab" * 557_697, encoding="utf-8")
    text = Text.read(tmp_path / "input.txt")
    assert (len(text.train), len(text.valid), text.size) == (1_003_854, 111_540, 2)


def test_windows_are_those_of_nanogpt():
    ids = np.arange(500, dtype=np.int32)
    batch = char_runs.drawn(ids, 20_000, 0).read(range(20_000))
    starts = batch["tokens"][:, 0]
    assert (starts.min(), starts.max()) == (0, len(ids) - CONTEXT - 1)  # as torch.randint
    assert np.array_equal(batch["tokens"][:, 1:], starts[:, None] + 1 + np.arange(CONTEXT))
    assert (batch["given"] == 1).all()
    assert len(char_runs.every(ids)) == len(ids) - CONTEXT
    once = char_runs.every(ids, CONTEXT)
    predicted = once.read(range(len(once)))["tokens"][:, 1:]
    assert np.array_equal(predicted.ravel(), 1 + np.arange(predicted.size))


def test_the_network_of_nanogpt_has_its_parameters_and_does_not_look_ahead():
    network = NanoGPT(vocab_size=65)
    params = network.init(jax.random.key(0))
    sizes = {name: sum(x.size for x in jax.tree.leaves(part)) for name, part in params.items()}
    assert sum(sizes.values()) - sizes["positions"] == 795_904  # "number of parameters: 0.80M"
    tokens = np.random.default_rng(0).integers(0, 65, (2, 1 + CONTEXT))
    other = np.where(np.arange(1 + CONTEXT) < 40, tokens, (tokens + 1) % 65)
    one, two = (network.features(params, rows, None, None, None) for rows in (tokens, other))
    assert np.array_equal(one[:, :40], two[:, :40])
    assert np.abs(one - two)[:, 40:].max(-1).min() > 0.1


def test_runs_that_share_flops_with_ar_have_them():
    text = Text(train=np.zeros(100), valid=np.zeros(100), size=65)
    cost = {
        (kind, run.method): run.marks[-1] * char_runs.step_flops(run.method, text.size)
        for kind, run in shakespeare.plan(text, 2000, 1)
    }
    ar = cost["both", "AR"]
    assert {kind for kind, _ in cost} == {"both", "tokens", "FLOPs"}
    for (kind, _), found in cost.items():
        wanted = {"both": 0.05, "FLOPs": 1e-3}
        if kind in wanted:
            assert found == pytest.approx(ar, rel=wanted[kind])
    assert {method for kind, method in cost if kind != "tokens"} == set(char_runs.METHODS)


def test_a_run_that_was_killed_goes_on_as_if_it_was_not(tmp_path):
    ids = np.random.default_rng(0).integers(0, 5, 400).astype(np.int32)
    text = Text(train=ids, valid=ids, size=5)
    run = Run(method="ε-hybrid, flat", seed=1, marks=(2, 4), settings=SMALL, draws=2)

    class Killed(Progress):
        def update(self, step, values):
            raise KeyboardInterrupt

    run.train(tmp_path / "whole", text, Progress(total=1), 0.0)
    with pytest.raises(KeyboardInterrupt):
        run.train(tmp_path / "cut", text, Killed(total=1), 0.0)
    assert set(run.found(tmp_path / "cut", text)) == {"2"}
    run.train(tmp_path / "cut", text, Progress(total=1), 0.0)
    whole, cut = (run.found(tmp_path / name, text) for name in ("whole", "cut"))
    for found in (whole, cut):
        found["4"].pop("loss")  # of the steps since the start of the process
    assert whole == cut
    assert whole["2"]["nats"] != whole["4"]["nats"]
    assert whole["4"]["bound"] == "absorbing, continuous time"


def test_rows_of_earlier_seeds_stay_as_another_machine_left_them(tmp_path):
    ids = np.random.default_rng(0).integers(0, 5, 400).astype(np.int32)
    text, out = Text(train=ids, valid=ids, size=5), tmp_path / "rows.jsonl"
    runs = [Run(method="AR", seed=seed, marks=(2,), settings=SMALL) for seed in (0, 1)]

    def publish(machine, seeds, first_seed):
        root = tmp_path / machine

        def rows_of():
            return [
                {"seed": run.seed, **run.found(root, text)} for run in runs if run.done(root, text)
            ]

        char_runs.publish(runs[:seeds], root, text, out, rows_of, str, {}, first_seed)
        return [json.loads(line) for line in out.read_text("utf-8").splitlines()]

    (first,) = publish("one", 1, 0)
    both = publish("two", 2, 1)
    assert both[0] == first
    assert [row["seed"] for row in both] == [0, 1]
    assert both[1]["2"]["nats"] != first["2"]["nats"]
    assert not runs[0].done(tmp_path / "two", text)
    with pytest.raises(UserError, match="no results of the seeds before 1"):
        char_runs.earlier_rows(tmp_path / "none.jsonl", 1, json.loads)


def test_stored_tables_are_those_of_the_stored_runs():
    stored = [
        (module, file)
        for module in (shakespeare, epochs)
        for file in RESULTS.glob(f"{module.__name__}-cpu-*.jsonl")
    ]
    assert stored
    for module, file in stored:
        rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        assert module.as_markdown(rows) in file.with_suffix(".md").read_text("utf-8")
