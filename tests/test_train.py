"""The training loop on real records: what it saves, what it resumes, what it refuses."""

import dataclasses
import functools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_jax.config import (
    DataConfig,
    EvaluationConfig,
    Experiment,
    ModelConfig,
    NoiseConfig,
    ScheduleConfig,
    TrainConfig,
)
from hybrid_jax.errors import UserError
from hybrid_jax.generation import summary
from hybrid_jax.method.layout import Layout
from hybrid_jax.method.objective import Objective
from hybrid_jax.optim import OptimizerConfig
from hybrid_jax.runtime.checkpoint import latest_step
from hybrid_jax.runtime.preemption import Signals
from hybrid_jax.sampling.settings import SamplingConfig
from hybrid_jax.training import loop as train
from hybrid_jax.training import workdir
from hybrid_jax.training.train_step import TrainState, train_step


@pytest.fixture(scope="session")
def experiment(tmp_path_factory) -> Experiment:
    """A very small γ-hybrid on a small text."""
    folder = tmp_path_factory.mktemp("train")
    lines = [f"{n} plus {n} makes {2 * n}, and that is all there is to say.\n" for n in range(3000)]
    (folder / "text.txt").write_text("".join(lines), encoding="utf-8")
    return Experiment(
        name="test",
        data=DataConfig(
            source=f"files:{folder}/text.txt", tokenizer="byte", length=16, dir=str(folder / "out")
        ),
        schedule=ScheduleConfig(family="block", width=4, levels=4),
        noise=NoiseConfig(kernel="gamma", gamma=0.05),
        objective=Objective(parameterisation="context", time="continuous"),
        model=ModelConfig(layers=1, width=16, heads=2, dropout=0.1),
        optimizer=OptimizerConfig(name="muon", learning_rate=0.01, warmup_steps=2),
        train=TrainConfig(
            steps=6, batch_size=8, log_every=2, eval_every=4, checkpoint_every=2, loss_chunk=8
        ),
        evaluation=EvaluationConfig(records=16, final_records=24, draws=2, batch_size=16),
        sampling=SamplingConfig(count=2),
    )


def replaced(experiment: Experiment, section: str, **values) -> Experiment:
    part = dataclasses.replace(getattr(experiment, section), **values)
    return dataclasses.replace(experiment, **{section: part})


def opened(experiment: Experiment) -> train.Run:
    """On one device, so that equal means equal bit for bit."""
    return train.open_run(experiment, jax.devices()[:1])


def trained(experiment: Experiment, folder) -> TrainState:
    run = opened(experiment)
    workdir.claim(folder, experiment, run.tokenizer)
    return train.train(run, folder, Signals(), say=lambda _: None)


def metrics(folder) -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_resumed_is_uninterrupted_bit_for_bit(experiment, tmp_path):
    whole = trained(experiment, tmp_path / "whole")
    # Dropping the last checkpoint is what a kill after step 4 leaves behind.
    stopped = tmp_path / "stopped"
    trained(experiment, stopped)
    (stopped / "checkpoints" / "6").rename(tmp_path / "lost")
    resumed = trained(experiment, stopped)
    assert int(resumed.step) == 6
    chex.assert_trees_all_equal(whole, resumed)
    same = [(line["step"], line["kind"]) for line in metrics(tmp_path / "whole")]
    assert [(line["step"], line["kind"]) for line in metrics(stopped)] == same
    assert same == [(2, "train"), (4, "train"), (4, "valid"), (6, "train")]


def test_finished_run_does_nothing_more(experiment, tmp_path):
    first = trained(experiment, tmp_path)
    chex.assert_trees_all_equal(first, trained(experiment, tmp_path))


def test_accumulation_and_chunks_do_not_change_the_result(experiment, tmp_path):
    plain = replaced(experiment, "model", dropout=0.0)
    once = trained(plain, tmp_path / "once")
    parts = replaced(plain, "train", accumulation=4, loss_chunk=3)
    split = trained(parts, tmp_path / "split")
    chex.assert_trees_all_close(once.params, split.params, atol=2e-5)
    for a, b in zip(metrics(tmp_path / "once"), metrics(tmp_path / "split"), strict=True):
        key = "loss" if a["kind"] == "train" else "nll"
        assert a[key] == pytest.approx(b[key], rel=1e-4)


def test_noise_depends_on_the_place_in_the_batch_alone(experiment):
    """In another order, with their places, the examples give the same update."""
    run = opened(replaced(experiment, "model", dropout=0.0))
    state = run.setup.init()
    tokens = jax.random.randint(jax.random.key(0), (8, 16), 0, 256)
    index = jnp.arange(8)
    step = jax.jit(functools.partial(train_step, run.setup))
    _, whole = step(state, tokens, index)
    order = jnp.asarray([3, 1, 7, 0, 2, 6, 5, 4])
    _, shuffled = step(state, tokens[order], index[order])
    for name in ("loss", "grad_norm"):
        assert float(whole[name]) == pytest.approx(float(shuffled[name]), rel=1e-5)
    _, moved = step(state, tokens[order], index)
    assert float(whole["grad_norm"]) != pytest.approx(float(moved["grad_norm"]), rel=1e-4)


def test_one_compilation_for_all_steps(experiment):
    run = opened(experiment)
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(state, tokens, index):
        return train_step(run.setup, state, tokens, index)

    state = jax.jit(run.setup.init)()
    tokens = np.zeros((8, 16), np.int32)
    index = np.arange(8, dtype=np.int32)
    for _ in range(3):
        state, _ = step(state, tokens, index)
    assert int(state.step) == 3


def test_training_lowers_the_bound(experiment, tmp_path):
    longer = replaced(experiment, "train", steps=150, eval_every=150, checkpoint_every=150)
    run = opened(longer)
    before = train.evaluate(run, run.setup.init().ema, final=True)
    after = train.evaluate(run, trained(longer, tmp_path).ema, final=True)
    assert before.nll == pytest.approx(np.log(258), abs=6 * before.nll_se)
    assert after.nll + 3 * after.nll_se < before.nll - 1.5
    assert after.records == 24
    assert after.draws == 2


def test_divergence_stops_and_keeps_the_last_good_checkpoint(experiment, tmp_path):
    wild = replaced(experiment, "optimizer", name="adamw", learning_rate=1e30, warmup_steps=0,
                    schedule="constant", clip_norm=None)  # fmt: skip
    wild = replaced(wild, "train", steps=40, checkpoint_every=1, log_every=1, eval_every=100)
    with pytest.raises(UserError, match=r"became (nan|inf) at step \d+; the checkpoint of"):
        trained(wild, tmp_path)
    last = latest_step(tmp_path / "checkpoints")
    lines = [line for line in metrics(tmp_path) if line["kind"] == "train"]
    assert all(isinstance(line["loss"], float) for line in lines)
    assert last == lines[-1]["step"]


def test_workdir_of_another_experiment_is_refused(experiment, tmp_path):
    workdir.claim(tmp_path, experiment, opened(experiment).tokenizer)
    with pytest.raises(UserError, match=r"noise\.gamma=0\.05, not 0\.2"):
        workdir.check(tmp_path, replaced(experiment, "noise", gamma=0.2))
    assert workdir.load(tmp_path) == experiment.resolved()
    with pytest.raises(UserError, match="holds no run"):
        workdir.load(tmp_path / "nothing")


def test_report_writes_samples_and_result(experiment, tmp_path, capsys):
    run = opened(experiment)
    state = trained(experiment, tmp_path)
    summary.finish(run, tmp_path, state)
    shown = capsys.readouterr().out
    assert "perplexity ≤" in shown
    assert "unigram perplexity of the same tokens" in shown
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert result["perplexity"] == pytest.approx(np.exp(result["nll"]))
    bits = result["nll"] / np.log(2) / run.manifest.valid.bytes_per_token
    assert result["bits_per_byte"] == pytest.approx(bits)
    samples = (tmp_path / "samples" / "step-6.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(samples) == 2
    assert (tmp_path / "tensorboard").is_dir()


@pytest.mark.parametrize(
    ("schedule", "layout", "noise", "objective"),
    [
        ("quenched_ar", "shifted", "absorbing", Objective()),
        ("flat", "aligned", "absorbing", Objective(parameterisation="score", time="continuous")),
        ("slide", "shifted", "gamma", Objective(parameterisation="mean")),
        ("block", "aligned", "epsilon", Objective(loss="weighted_cross_entropy")),
    ],
)
def test_every_kind_of_objective_trains(experiment, tmp_path, schedule, layout, noise, objective):
    narrow = 4 if schedule in ("block", "slide") else None
    other = dataclasses.replace(
        experiment,
        schedule=ScheduleConfig(family=schedule, width=narrow),
        noise=NoiseConfig(kernel=noise),
        layout=Layout(alignment=layout),
        objective=objective,
        evaluation=EvaluationConfig(
            kernel="absorbing" if noise == "epsilon" else "own", time=objective.time, records=16
        ),
    )
    state = trained(other, tmp_path)
    assert int(state.step) == 6
    assert all(np.isfinite(line.get("loss", 0.0)) for line in metrics(tmp_path))
