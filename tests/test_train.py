"""The training loop on real records: what it saves, what it resumes, what it refuses."""

import dataclasses
import gzip
import json
import shutil
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import latest_step

from hybrid_jax import generate
from hybrid_jax.config import (
    EvaluationConfig,
    Experiment,
    ModelConfig,
    NoiseConfig,
    ScheduleConfig,
    TrainConfig,
)
from hybrid_jax.data.settings import DataConfig
from hybrid_jax.errors import UserError
from hybrid_jax.generation import requests, summary
from hybrid_jax.method.layout import Layout
from hybrid_jax.method.objective import Objective
from hybrid_jax.optim import OptimizerConfig
from hybrid_jax.runtime import sharding
from hybrid_jax.runtime.preemption import Signals
from hybrid_jax.runtime.sharding import MeshConfig
from hybrid_jax.sampling.settings import SamplingConfig
from hybrid_jax.training import loop as train
from hybrid_jax.training import workdir
from hybrid_jax.training.train_step import TrainState, train_step

pytestmark = pytest.mark.slow


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


def trained(experiment: Experiment, folder, **options) -> TrainState:
    run = opened(experiment)
    return train.train(run, folder, Signals(), **{"say": lambda _: None, **options})


def metrics(folder) -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def whole(experiment, tmp_path_factory) -> tuple[Path, TrainState]:
    """The workdir of a run that was trained to its end, and its last state."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, trained(experiment, folder)


@pytest.fixture
def finished(whole, tmp_path) -> Path:
    """A copy of that workdir."""
    return shutil.copytree(whole[0], tmp_path / "run")


def test_resumed_is_uninterrupted_bit_for_bit(experiment, whole, finished, tmp_path):
    # Dropping the last checkpoint is what a kill after step 4 leaves behind.
    (finished / "checkpoints" / "6").rename(tmp_path / "lost")
    resumed = trained(experiment, finished)
    assert int(resumed.step) == 6
    chex.assert_trees_all_equal(whole[1], resumed)
    same = [(line["step"], line["kind"]) for line in metrics(whole[0])]
    assert [(line["step"], line["kind"]) for line in metrics(finished)] == same
    assert same == [(2, "train"), (4, "train"), (4, "valid"), (6, "train")]


def test_finished_run_does_nothing_more(experiment, whole, finished):
    chex.assert_trees_all_equal(whole[1], trained(experiment, finished))


def test_accumulation_and_chunks_do_not_change_the_result(experiment, tmp_path):
    plain = replaced(experiment, "model", dropout=0.0)
    plain = replaced(plain, "train", eval_every=100)
    once = trained(plain, tmp_path / "once")
    parts = replaced(plain, "train", accumulation=4, loss_chunk=3)
    split = trained(parts, tmp_path / "split")
    chex.assert_trees_all_close(once.params, split.params, atol=2e-5)
    for a, b in zip(metrics(tmp_path / "once"), metrics(tmp_path / "split"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)


def test_noise_depends_on_the_place_in_the_batch_alone(experiment):
    """In another order, with their places, the examples give the same update. One compilation
    serves all steps."""
    run = opened(replaced(experiment, "model", dropout=0.0))
    state = jax.jit(run.setup.init)()
    tokens = jax.random.randint(jax.random.key(0), (8, 16), 0, 256)
    index = jnp.arange(8)
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(state, batch):
        return train_step(run.setup, state, batch)

    state, _ = step(state, {"tokens": tokens, "index": index})
    _, whole = step(state, {"tokens": tokens, "index": index})
    order = jnp.asarray([3, 1, 7, 0, 2, 6, 5, 4])
    _, shuffled = step(state, {"tokens": tokens[order], "index": index[order]})
    for name in ("loss", "grad_norm"):
        assert float(whole[name]) == pytest.approx(float(shuffled[name]), rel=1e-5)
    _, moved = step(state, {"tokens": tokens[order], "index": index})
    assert float(whole["grad_norm"]) != pytest.approx(float(moved["grad_norm"]), rel=1e-4)
    assert int(state.step) == 1


def test_training_lowers_the_bound(experiment, tmp_path):
    longer = replaced(experiment, "train", steps=150, eval_every=150, checkpoint_every=150)
    run = opened(longer)
    before = train.evaluate(run, jax.jit(run.setup.init)().ema, final=True)
    after = train.evaluate(run, trained(longer, tmp_path).ema, final=True)
    assert before.nll == pytest.approx(np.log(258), abs=6 * before.nll_se)
    assert after.nll + 3 * after.nll_se < before.nll - 1.5
    assert after.records == 24
    assert after.draws == 2


def test_divergence_stops_and_keeps_the_last_good_checkpoint(experiment, tmp_path):
    wild = replaced(experiment, "optimizer", name="adamw", learning_rate=1e38, warmup_steps=0,
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
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match=r"config\.json cannot be read: it is not a JSON object"):
        workdir.load(tmp_path)


# Ways to compute and to report, and how long to train.
FREE = {
    "name": "other",
    "data": {"dir": "elsewhere"},
    "model": {"remat": True, "unroll": 2, "attention": "dense"},
    "train": {"steps": 9, "accumulation": 2, "log_every": 1, "eval_every": 1, "keep": 1,
              "checkpoint_every": 1, "loss_chunk": 1, "board": "wandb"},
    "mesh": MeshConfig(data=1),
    "evaluation": EvaluationConfig(kernel="absorbing", records=1),
    "sampling": SamplingConfig(rule="remdm", eta=0.5),
}  # fmt: skip


def test_a_run_goes_on_with_other_ways_to_compute_and_report(experiment, tmp_path):
    workdir.claim(tmp_path, experiment, opened(experiment).tokenizer)
    for section, values in FREE.items():
        if isinstance(values, dict):
            for name, value in values.items():
                workdir.check(tmp_path, replaced(experiment, section, **{name: value}))
        else:
            workdir.check(tmp_path, dataclasses.replace(experiment, **{section: values}))


IDENTITY = [
    ("data", {"source": "pydocs"}), ("data", {"valid_source": "pydocs"}),
    ("data", {"tokenizer": "sentencepiece"}), ("data", {"length": 8}),
    ("schedule", {"family": "slide"}), ("schedule", {"width": 2}), ("schedule", {"levels": 2}),
    ("noise", {"gamma": 0.5}), ("layout", {"alignment": "shifted"}),
    ("layout", {"causal_window": True}), ("layout", {"context": "block_causal"}),
    ("objective", {"parameterisation": "mean"}), ("objective", {"time": "discrete"}),
    ("objective", {"loss": "weighted_cross_entropy"}), ("optimizer", {"muon_momentum": 0.5}),
    ("model", {"layers": 2}), ("model", {"width": 32}), ("model", {"heads": 1}),
    ("model", {"mlp_ratio": 2}), ("model", {"activation": "relu2"}), ("model", {"condition": 4}),
    ("model", {"qk_norm": True}), ("model", {"dropout": 0.2}), ("model", {"dtype": "bfloat16"}),
    ("optimizer", {"learning_rate": 0.02}), ("optimizer", {"final_fraction": 0.5}),
    ("train", {"batch_size": 16}), ("train", {"ema_decay": 0.5}), ("train", {"seed": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("section", "values"), IDENTITY)
def test_a_run_is_not_continued_with_other_settings(experiment, tmp_path, section, values):
    (tmp_path / "config.json").write_text(experiment.to_json(), encoding="utf-8")
    with pytest.raises(UserError, match=rf"{section}\.{next(iter(values))}="):
        workdir.check(tmp_path, replaced(experiment, section, **values))
    difference = workdir.difference(
        experiment.to_json(), replaced(experiment, section, **values).to_json()
    )
    assert difference.startswith(f"{section}.{next(iter(values))} is ")


def test_the_natural_value_is_no_difference(experiment, tmp_path):
    (tmp_path / "config.json").write_text(experiment.to_json(), encoding="utf-8")
    assert experiment.optimizer.muon_momentum is None
    workdir.check(tmp_path, replaced(experiment, "optimizer", muon_momentum=0.95))
    workdir.check(tmp_path, replaced(experiment, "schedule", levels=None))


def test_report_writes_samples_and_result(experiment, whole, finished, capsys):
    run = opened(experiment)
    summary.finish(run, finished, whole[1])
    shown = capsys.readouterr().out
    assert "perplexity ≤" in shown
    assert "unigram perplexity of the same tokens" in shown
    result = json.loads((finished / "result.json").read_text(encoding="utf-8"))
    assert result["perplexity"] == pytest.approx(np.exp(result["nll"]))
    bits = result["nll"] / np.log(2) / run.manifest.valid.bytes_per_token
    assert result["bits_per_byte"] == pytest.approx(bits)
    # The samples are those that the command generates, in a file that evaluation reads.
    (file,), again = (finished / "samples").glob("step-6-*.jsonl"), finished / "again.jsonl"
    assert len(requests.read(file, run.tokenizer).texts) == 2
    command = [f"--workdir={finished}", "--num_samples=2", "--seed=0", f"--out={again}"]
    assert generate.main(command) == 0
    assert again.read_text(encoding="utf-8") == file.read_text(encoding="utf-8")


def test_a_board_may_be_added_to_a_run(experiment, finished):
    pytest.importorskip("tensorboardX")
    assert not (finished / "tensorboard").exists()
    shutil.rmtree(finished / "checkpoints" / "6")
    trained(replaced(experiment, "train", board="tensorboard"), finished)
    assert len(list((finished / "tensorboard").iterdir())) == 1


def test_a_profile_is_a_trace_of_some_steps(experiment, tmp_path):
    said, place = [], tmp_path / "some" / "profile"
    short, longer = (replaced(experiment, "train", steps=steps) for steps in (9, 12))
    with pytest.raises(UserError, match=r"steps 6–10, but .* set train\.steps to at least 10"):
        trained(short, tmp_path / "short", profile=place)
    assert not place.exists()
    with pytest.raises(UserError, match=r"Cannot write .*text\.txt/x"):
        trained(longer, tmp_path / "short", profile=Path(experiment.data.dir).parent / "text.txt/x")
    trained(longer, tmp_path / "run", say=said.append, profile=place)
    assert f"trace of steps 6–10 in {place}: " in said[-1]
    (file,) = place.rglob("*.trace.json.gz")
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    steps = [event["args"]["step_num"] for event in events if event.get("name") == "train"]
    assert sorted(map(int, steps)) == [6, 7, 8, 9, 10]


def test_samples_do_not_depend_on_the_mesh(experiment, tmp_path):
    """Parameters are cut among eight devices, and the texts are the same."""
    found = []
    for devices in (jax.devices()[:1], jax.devices()):
        run = train.open_run(experiment, devices)
        with sharding.use(run.mesh):
            state = run.setup.compile_init(run.mesh)()
        found.append(summary.sample_texts(run, tmp_path, state))
    assert run.mesh.size == 8
    assert found[0] == found[1]
    assert len(found[0][0]) == 2


@pytest.mark.parametrize(
    ("schedule", "layout", "noise", "objective"),
    [
        (ScheduleConfig(family="flat"), "aligned", "absorbing",
         Objective(parameterisation="score", time="continuous")),
        (ScheduleConfig(family="slide", width=4), "shifted", "gamma", Objective()),
    ],
)  # fmt: skip
def test_other_kinds_of_objective_train(experiment, tmp_path, schedule, layout, noise, objective):
    """Than those of `tiny.RUNS`."""
    other = dataclasses.replace(
        experiment,
        schedule=schedule,
        noise=NoiseConfig(kernel=noise),
        layout=Layout(alignment=layout),
        objective=objective,
        evaluation=EvaluationConfig(time=objective.time, records=16),
    )
    state = trained(other, tmp_path)
    assert int(state.step) == 6
    assert all(np.isfinite(line.get("loss", 0.0)) for line in metrics(tmp_path))
