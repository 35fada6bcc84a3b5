"""Every config file in every size, and the sentences that meet a wrong setting."""

import functools
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from hybrid_jax.config import Experiment
from hybrid_jax.errors import UserError
from hybrid_jax.training.train_step import TrainSetup, train_step

REPOSITORY = Path(__file__).resolve().parents[1]
NAMES = sorted(path.stem for path in (REPOSITORY / "configs").glob("*.py"))


def config(name: str, size: str = "tiny"):
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(size)


def test_the_rows_of_the_paper_are_there():
    assert {"ar", "sedd", "mdlm", "bd3lm", "gamma_hybrid", "epsilon_hybrid", "slide"} == set(NAMES)


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
@pytest.mark.parametrize("name", NAMES)
def test_one_training_step_of_every_config_has_its_shapes(name, size):
    experiment = Experiment.from_config(config(name, size))
    setup = TrainSetup.build(experiment, experiment.data.vocab_size, bos=0)
    state = jax.eval_shape(setup.init)
    batch = jax.ShapeDtypeStruct((experiment.train.batch_size, experiment.data.length), jnp.int32)
    index = jax.ShapeDtypeStruct((experiment.train.batch_size,), jnp.int32)
    new, metrics = jax.eval_shape(functools.partial(train_step, setup), state, batch, index)
    assert jax.tree.all(
        jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), state, new)
    )
    assert {name: (value.shape, value.dtype) for name, value in metrics.items()} == {
        "loss": ((), jnp.float32),
        "grad_norm": ((), jnp.float32),
    }
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    low, high = {"tiny": (0.5e6, 2e6), "small": (2e7, 8e7), "base": (1.5e8, 2.2e8)}[size]
    assert low < parameters < high


@pytest.mark.parametrize("name", NAMES)
def test_config_survives_json(name):
    experiment = Experiment.from_config(config(name))
    assert Experiment.from_config(json.loads(experiment.to_json())) == experiment


@pytest.mark.parametrize(
    ("section", "setting", "value", "message"),
    [
        ("train", "stepz", 3, r"config\.train\.stepz is not a setting: did you mean steps\?"),
        ("train", "steps", "many", "should be of type int"),
        ("train", "steps", 0, "must be at least 1"),
        ("train", "accumulation", 5, "is not divisible by"),
        ("train", "ema_decay", 1.0, r"must lie in \[0, 1\)"),
        ("schedule", "width", 65, "does not fit a sequence of 64 positions"),
        ("schedule", "family", "blok", "is not one of"),
        ("schedule", "levels", 0, "must be at least 1"),
        ("noise", "gamma", 1.5, r"gamma must lie in \[0, 1\]"),
        ("noise", "gamma", -0.1, r"gamma must lie in \[0, 1\]"),
        ("model", "heads", 3, "does not split into"),
        ("model", "dropout", 1.0, r"dropout must lie in \[0, 1\)"),
        ("optimizer", "name", "adam", "one of adamw, muon"),
        ("objective", "loss", "mse", "is not one of"),
        ("evaluation", "draws", 0, "at least 1"),
    ],
)
def test_wrong_settings_are_refused_in_one_sentence(section, setting, value, message):
    values = config("gamma_hybrid").to_dict()
    values[section][setting] = value
    with pytest.raises(UserError, match=message) as caught:
        Experiment.from_config(values)
    assert "\n" not in str(caught.value)


def test_settings_that_do_not_go_together_are_refused():
    values = config("epsilon_hybrid").to_dict()
    values["noise"]["epsilon"] = 1.0
    with pytest.raises(UserError, match=r"epsilon must lie in \[0, 1\)"):
        Experiment.from_config(values)
    values["noise"]["epsilon"] = 0.01
    values["evaluation"]["kernel"] = "own"
    with pytest.raises(UserError, match="has no continuous form"):
        Experiment.from_config(values)
    values = config("slide").to_dict()
    values["layout"]["context"] = "block_causal"
    with pytest.raises(UserError, match="windows that settle whole"):
        Experiment.from_config(values)


def command(*arguments: str, folder: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "hybrid_jax.main", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config={configs}/nope.py"], "There is no config file"),
        (["--config={configs}/mdlm.py:huge"], "mdlm has no size 'huge'"),
        (
            ["--config={configs}/mdlm.py", "--config.train.stepz=3"],
            "There is no setting stepz: did you mean steps?",
        ),
        (
            ["--config={configs}/mdlm.py", "--config.data.source=files:none.txt"],
            "No file matches 'none.txt'",
        ),
    ],
)
def test_command_line_mistakes_end_in_one_sentence(arguments, message, tmp_path):
    arguments = [argument.format(configs=REPOSITORY / "configs") for argument in arguments]
    done = command(*arguments, folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}")
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_command_line_trains_evaluates_samples_and_continues(tmp_path):
    lines = [f"{n} and {n} make {2 * n}, says the book.\n" for n in range(4000)]
    (tmp_path / "book.txt").write_text("".join(lines), encoding="utf-8")
    arguments = [
        f"--config={REPOSITORY}/configs/gamma_hybrid.py",
        "--workdir=run",
        "--config.data.source=files:book.txt",
        "--config.data.tokenizer=byte",
        "--config.data.length=16",
        "--config.model.layers=1",
        "--config.model.width=16",
        "--config.optimizer.warmup_steps=1",
        "--config.evaluation.final_records=32",
    ]
    first = command(*arguments, "--config.train.steps=2", folder=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "perplexity ≤" in first.stdout
    again = command(*arguments, "--config.train.steps=3", folder=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "resuming at step 2" in again.stdout
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "checkpoints", "config.json", "metrics.jsonl", "result.json", "samples", "tokenizer",
    ]  # fmt: skip
    other = command(*arguments, "--config.noise.gamma=0.5", folder=tmp_path)
    assert other.returncode == 2
    assert "holds a run with noise.gamma=0.01, not 0.5" in other.stderr
