"""Released models in and out, and starting one run from another: the same network each time."""

import argparse
import dataclasses
import functools
import json
import shutil
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy as safetensors
from conftest import REPOSITORY
from enumeration import quick_jit
from tiny import tiny_tokenizer

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
from hybrid_jax.data.tokenizers.byte import ByteTokenizer
from hybrid_jax.errors import UserError
from hybrid_jax.interop import released_config
from hybrid_jax.interop.__main__ import main as interop
from hybrid_jax.interop.released import Released, export_released, load_released
from hybrid_jax.interop.workdirs import network_of, workdir_from_released
from hybrid_jax.main import read_experiment
from hybrid_jax.method.layout import Layout
from hybrid_jax.method.objective import Objective
from hybrid_jax.optim import OptimizerConfig
from hybrid_jax.runtime.checkpoint import Checkpointer, named_leaves
from hybrid_jax.runtime.preemption import Signals
from hybrid_jax.sampling.settings import SamplingConfig
from hybrid_jax.training import loop, pretrained
from hybrid_jax.training import workdir as workdirs

pytestmark = pytest.mark.slow

LENGTH = 16
ADAMW = OptimizerConfig(
    name="adamw", learning_rate=1e-3, beta2=0.95, weight_decay=0.1, final_fraction=0.13
)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> DataConfig:
    """A small text in bytes."""
    folder = tmp_path_factory.mktemp("interop")
    lines = [f"{n} plus {n} makes {2 * n}, and that is all there is to say.\n" for n in range(500)]
    (folder / "text.txt").write_text("".join(lines), encoding="utf-8")
    return DataConfig(
        source=f"files:{folder}/text.txt", tokenizer="byte", length=LENGTH, dir=f"{folder}/data"
    )


def experiment(kind: str, data: DataConfig = DataConfig(length=LENGTH), **sections) -> Experiment:
    size = {"layers": 2, "width": 16, "heads": 2}
    values = {
        "epsilon": {
            "noise": NoiseConfig(kernel="epsilon", epsilon=0.02),
            "objective": Objective(
                loss="weighted_cross_entropy", time="continuous", shown_weight=0.5
            ),
            "model": ModelConfig(**size),
            "evaluation": EvaluationConfig(kernel="absorbing", records=16, batch_size=16),
            "sampling": SamplingConfig(rule="acs", eta=0.25, guidance="confidence", count=1),
        },
        "gamma": {
            "noise": NoiseConfig(kernel="gamma", gamma=0.05),
            "objective": Objective(parameterisation="score", time="continuous"),
            "model": ModelConfig(**size, condition=6, embedding_gamma=0.05),
            "evaluation": EvaluationConfig(records=16, batch_size=16),
        },
    }[kind]
    common = {
        "schedule": ScheduleConfig(family="block", width=4),
        "optimizer": ADAMW,
        "train": TrainConfig(
            steps=3, batch_size=8, log_every=1, eval_every=100, checkpoint_every=3, loss_chunk=8
        ),
    }
    return Experiment(name=kind, data=data, **{**common, **values, **sections})


@functools.cache
def random_model(kind: str, data: DataConfig = DataConfig(length=LENGTH)) -> Released:
    """Parameters with every path switched on, those of padding included."""
    run = experiment(kind, data)
    network = run.network(258)
    leaves, tree = jax.tree.flatten(quick_jit(network.init)(jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [x + 0.2 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    params = jax.tree.unflatten(tree, noisy)
    return Released(kind=kind, experiment=run, network=network, params=params)


@functools.partial(quick_jit, static_argnums=0)
def logits(network, params, tokens, mask, level):
    position = jnp.arange(tokens.shape[1])[None]
    return network.logits(params, network.features(params, tokens, position, mask, level))


def seen(network, params):
    """The output of a network for some tokens at some levels under a causal mask, [2, L, N]."""
    tokens = jax.random.randint(
        jax.random.key(2), (2, LENGTH), 0, network.vocab_size + 1, jnp.int32
    )
    level = jax.random.uniform(jax.random.key(3), tokens.shape)
    mask = jnp.tril(jnp.ones((1, LENGTH, LENGTH), bool))
    return logits(network, params, tokens, mask, level)[..., : network.vocab_size]


def same(first, second):
    first, second = named_leaves(first), named_leaves(second)
    assert list(first) == list(second)
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


# ---------------------------------------------------------------------------------------------
# The released implementation.


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", ["epsilon", "gamma"])
def test_a_released_folder_is_all_that_its_output_needs(reference, kind, masked):
    folder = reference / f"hdlm-tiny-{kind}"
    model = load_released(folder)
    assert (model.kind, model.network.vocab_size, model.notes) == (kind, 63, ())
    with np.load(folder / "io.npz") as released:
        values = dict(released)
    tokens = jnp.asarray(values["tokens"], jnp.int32)
    rows = tokens.shape[1]
    assert model.experiment.data.length == rows
    mask = values["attend"] if masked else np.ones((rows, rows), bool)
    level = jnp.asarray(-np.expm1(-values.get("sigma", np.zeros(tokens.shape))), jnp.float32)
    found = logits(model.network, model.params, tokens, jnp.asarray(mask)[None], level)
    name = ("log_score" if kind == "gamma" else "logits") + "_masked" * masked
    if kind == "epsilon":
        np.testing.assert_allclose(found[..., :64], values[name], atol=1e-4)
        return
    spec = model.experiment.spec(63, bos=0)
    read = functools.partial(spec.objective.log_prediction, spec.kernel)
    scores = jax.vmap(jax.vmap(read))(found, tokens, level)
    np.testing.assert_allclose(scores, values[name][..., :63], atol=1e-4)


@pytest.mark.parametrize("kind", ["epsilon", "gamma"])
def test_what_was_read_is_written_back_bit_for_bit(reference, tmp_path, kind):
    folder = reference / f"hdlm-tiny-{kind}"
    model = load_released(folder)
    export_released(model, tmp_path / "out")
    before, after = (
        safetensors.load_file(place / "model.safetensors") for place in (folder, tmp_path / "out")
    )
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert after[name].dtype == value.dtype
        np.testing.assert_array_equal(after[name], value, err_msg=name)
    again = load_released(tmp_path / "out")
    assert dataclasses.replace(again.experiment, name=folder.name) == model.experiment
    written, given = (
        json.loads((place / "config.json").read_text()) for place in (tmp_path / "out", folder)
    )
    assert written["model_type"] == given["model_type"]
    changed = {name for name, value in given["model"].items() if written["model"][name] != value}
    assert changed == ({"cond_dim"} if kind == "epsilon" else set())  # which it does not use


def test_a_released_model_generates(reference, tmp_path):
    tokenizer = tiny_tokenizer()
    assert tokenizer.vocab_size == 63
    source = reference / "hdlm-tiny-gamma"
    workdir_from_released(source, tmp_path / "run", tokenizer=tokenizer)
    texts = generated(tmp_path / "run", "--num_samples=2", "--levels=4", "--prompt=bas")
    prompt = tokenizer.encode("bas").tolist()
    for text in texts:
        assert text["tokens"][: len(prompt)] == prompt
        assert len(text["tokens"]) == 32
        assert all(0 <= token < 63 for token in text["tokens"])


def generated(folder, *arguments):
    out = folder / "texts.jsonl"
    assert generate.main([f"--workdir={folder}", f"--out={out}", *arguments]) == 0
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


# ---------------------------------------------------------------------------------------------
# Files of our own.


@pytest.mark.parametrize("kind", ["epsilon", "gamma"])
def test_export_and_import_are_the_identity(tmp_path, kind):
    model = random_model(kind)
    export_released(model, tmp_path / "first")
    found = load_released(tmp_path / "first")
    assert found.kind == kind
    # One network for both: it is compiled once.
    np.testing.assert_array_equal(
        seen(model.network, found.params), seen(model.network, model.params)
    )
    real = model.network.vocab_size + 1
    vocabulary = {"embedding": 0, "head/kernel": 1, "head/bias": 0}
    wanted = named_leaves(model.params)
    for name, value in named_leaves(found.params).items():
        before = wanted[name]
        if name in vocabulary:  # padding, which nothing reads, is not kept
            rows = jnp.moveaxis(value, vocabulary[name], 0)
            assert not rows[real:].any()
            value, before = rows[:real], jnp.moveaxis(before, vocabulary[name], 0)[:real]
        np.testing.assert_array_equal(value, before, err_msg=name)
    old, new = model.experiment.resolved(), found.experiment.resolved()
    for section in ("schedule", "noise", "layout", "objective"):
        assert getattr(new, section) == getattr(old, section)
    assert found.network == dataclasses.replace(model.network, remat=found.network.remat)
    names = ("learning_rate", "beta1", "beta2", "weight_decay", "warmup_steps", "clip_norm")
    for name in names:
        assert getattr(found.experiment.optimizer, name) == getattr(ADAMW, name)
    assert found.experiment.train.steps == 3

    export_released(found, tmp_path / "second")
    same(load_released(tmp_path / "second").params, found.params)
    first, second = (tmp_path / name / "model.safetensors" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()


def test_torch_files_are_read_where_torch_is(tmp_path, monkeypatch):
    """With a stand-in for torch: what it is asked for, and that nothing else is."""
    export_released(random_model("gamma"), tmp_path / "out")
    wanted = load_released(tmp_path / "out")
    weights = tmp_path / "out" / "model.safetensors"
    tensors = safetensors.load_file(weights)
    weights.rename(tmp_path / "out" / "pytorch_model.bin")

    class Tensor:
        def __init__(self, value):
            self.float = lambda: types.SimpleNamespace(numpy=lambda: value)

    def load(path, *, map_location, weights_only):
        assert (path.name, map_location, weights_only) == ("pytorch_model.bin", "cpu", True)
        return {name: Tensor(value) for name, value in tensors.items()}

    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(load=load))
    same(load_released(tmp_path / "out").params, wanted.params)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        UserError, match=r"read with torch: install that, or convert .* to model\.safe"
    ):
        load_released(tmp_path / "out")


def set_config(setting, value):
    def damage(folder):
        path = folder / "config.json"
        config = json.loads(path.read_text())
        *sections, name = setting.split(".")
        place = functools.reduce(lambda found, section: found[section], sections, config)
        place[name] = value
        path.write_text(json.dumps(config))

    return damage


def set_tensor(name, change):
    def damage(folder):
        path = folder / "model.safetensors"
        tensors = safetensors.load_file(path)
        value = change(tensors.pop(name, np.zeros(1, np.float32)))
        safetensors.save_file(tensors if value is None else tensors | {name: value}, path)

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (set_tensor("output_layer.adaLN_modulation.bias", lambda x: x),
         r"output_layer\.adaLN_modulation\.bias, which its config does not ask for"),
        (set_tensor("vocab_embed.embedding", lambda x: x[:-1]), r"\[258, 16\], .*\[259, 16\]"),
        (set_tensor("rotary_emb.inv_freq", lambda x: x / 2), "is not that of a rotary base 10000"),
        (set_config("model.n_blocks", None), r"has no model\.n_blocks: it is not the conf"),
        (set_config("model.length", 2**60), r"data\.length must be at most"),
        (set_config("model.n_heads", "two"), r"model\.n_heads='two' should be of type int"),
        (set_config("model.n_blocks", 3), r"has no tensor blocks\.2\.norm1\.weight|blocks\.2"),
        (set_config("model_type", "sedd"), "supports only epsilon_hybrid and gamma_hybrid"),
        (set_config("graph.type", "uniform"), "supports only QGamma and absorb"),
        (set_config("model.scale_by_sigma", False), "supports only true for a γ-hybrid"),
        (set_config("model.transformer_sigma_conditioning", False), "true for a γ-hybrid and fals"),
        (set_config("annealing.sampling_method", "AR"), "supports only SAR where logits are post"),
        (set_config("annealing.type", "hybrid"), r"annealing\.type='hybrid', .* none, block and s"),
        (set_config("annealing.attention.context_type", "x"), "only causal, block_causal and full"),
        (set_config("graph.gamma", 2.0), r"gamma must lie in \[0, 1\]"),
    ],
)  # fmt: skip
def test_what_is_not_a_released_model_is_refused_in_one_sentence(tmp_path, damage, message):
    export_released(random_model("gamma"), tmp_path / "out")
    load_released(tmp_path / "out")
    damage(tmp_path / "out")
    with pytest.raises(UserError, match=message) as caught:
        load_released(tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_unneeded_tensors_are_known_by_name(tmp_path):
    """An ε-hybrid may have been saved with the embedding of σ, which it does not read."""
    model = random_model("epsilon")
    export_released(model, tmp_path / "out")
    wanted = load_released(tmp_path / "out").params
    set_tensor("sigma_map.mlp.0.bias", lambda x: x)(tmp_path / "out")
    set_tensor("rotary_emb.inv_freq", lambda x: None)(tmp_path / "out")
    same(load_released(tmp_path / "out").params, wanted)


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("model", {"qk_norm": True}, r"model\.qk_norm=True, only False"),
        ("model", {"activation": "relu2"}, r"model\.activation=relu2, only gelu"),
        ("model", {"mlp_ratio": 2}, r"model\.mlp_ratio=2, only 4"),
        ("model", {"condition": 0, "embedding_gamma": 0.0}, "has model.condition for scores only"),
        ("model", {"embedding_gamma": 0.1}, r"model\.embedding_gamma=0\.1, only 0\.0 or 0\.05"),
        ("layout", {"documents": "separate"}, r"layout\.documents=separate, only joined"),
        ("objective", {"parameterisation": "context"}, "parameterisation=context, only mean or"),
        (
            "noise",
            {"kernel": "uniform", "gamma": None},
            r"noise\.kernel=uniform, only absorbing or gamma",
        ),
    ],
)
def test_what_the_format_cannot_say_is_not_exported(tmp_path, section, values, message):
    run = experiment("gamma")
    run = dataclasses.replace(
        run, **{section: dataclasses.replace(getattr(run, section), **values)}
    )
    model = Released(kind="gamma", experiment=run, network=run.network(258), params=None)
    with pytest.raises(UserError, match=message):
        export_released(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("config", "family", "width", "levels", "layout", "notes"),
    [
        ({}, "flat", None, 16, Layout(), 0),
        ({"annealing": {"type": "none", "tau": 64}}, "flat", None, 64, Layout(), 0),
        ({"annealing": {"type": "block", "width": 99, "tau": 2048}},
         "flat", None, 2048, Layout(), 0),
        ({"annealing": {"type": "block", "width": 4, "tau": 8,
                        "attention": {"context_type": "block_causal", "block_type": "causal"}}},
         "block", 4, 8, Layout(context="block_causal", causal_window=True), 0),
        ({"annealing": {"type": "block", "width": 4, "tau": 8,
                        "attention": {"context_type": "full"}}},
         "block", 4, 8, Layout(context="block_causal"), 1),
        ({"annealing": {"type": "simple", "width": 4, "tau": 4}}, "slide", 4, 4, Layout(), 0),
        ({"annealing": {"type": "simple", "width": 4, "tau": 8, "attention":
                        {"context_type": "block_causal"}}}, "slide", 4, 8, Layout(), 2),
        ({"type": "shifted", "annealing": {"type": "block", "width": 1, "tau": 1}},
         "quenched_ar", None, None, Layout(alignment="shifted"), 0),
        ({"type": "shifted", "annealing": {"type": "block", "width": 4, "tau": 4}},
         "block", 4, 4, Layout(alignment="shifted"), 1),
    ],
)  # fmt: skip
def test_schedules_of_released_configs(tmp_path, config, family, width, levels, layout, notes):
    model = {"length": 16, "hidden_size": 8, "n_blocks": 1, "n_heads": 1}
    config = {**config, "tokens": 63, "model": model, "training": {"epsilon": 0.0}}
    kind, run, tokens, found = released_config.read_config(config, tmp_path, name="x")
    assert (kind, tokens, run.noise.kernel, run.sampling.rule) == (
        "epsilon", 63, "absorbing", "ancestral",
    )  # fmt: skip
    assert run.schedule == ScheduleConfig(family=family, width=width, levels=levels)
    assert run.layout == layout
    assert len(found) == notes
    again = released_config.write_config(run, run.network(63))
    assert released_config.read_config(again, tmp_path, name="x")[1] == run


# ---------------------------------------------------------------------------------------------
# Workdirs.


def said(capsys, *arguments):
    """The error of a command, which has to be one sentence."""
    assert interop(list(arguments)) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def continued(folder) -> Experiment:
    """The experiment that ``hybrid_jax.main --workdir=WORKDIR`` goes on with."""
    return read_experiment(argparse.Namespace(config="", workdir=str(folder), init="", settings={}))


def open_run(experiment: Experiment) -> loop.Run:
    return loop.open_run(experiment, jax.devices()[:1])


def train_on(folder, run: loop.Run):
    workdirs.claim(folder, run.experiment, run.tokenizer)
    return loop.train(run, folder, Signals(), say=lambda _: None)


def start_of(folder, run):
    """The state of the checkpoint of step 0, as training would take it up."""
    with Checkpointer(folder / "checkpoints", read_only=True) as saver:
        step, state = saver.restore(run.setup.abstract_state(run.mesh))
    assert step == int(state.step) == 0
    same(state.params, state.ema)
    return state


def imported(model, folder, data):
    """The workdir of a model that went through released files, made by the command."""
    export_released(model, folder / "released")
    settings = [f"--config.data.source={data.source}", f"--config.data.dir={data.dir}",
                "--config.train.loss_chunk=16", "--config.evaluation.records=16",
                "--config.evaluation.batch_size=16", "--config.model.remat=false"]  # fmt: skip
    command = ["import", f"--from={folder / 'released'}", f"--workdir={folder / 'run'}"]
    assert interop([*command, "--tokenizer=byte", *settings]) == 0
    return folder / "run"


def test_an_imported_epsilon_hybrid_has_its_bound_and_generates(tmp_path, data):
    model = random_model("epsilon", data)
    folder = imported(model, tmp_path, data)
    opened = pretrained.load(folder)
    assert opened.step == 0
    assert isinstance(opened.tokenizer, ByteTokenizer)
    same(opened.params, load_released(tmp_path / "released").params)
    assert continued(folder).bound(258).label == "absorbing, continuous time"
    (text,) = generated(folder, "--prompt=7 plus")
    assert text["text"].startswith("7 plus")
    assert len(text["tokens"]) == LENGTH


def test_training_goes_on_from_an_imported_gamma_hybrid(tmp_path, data, capsys):
    model = random_model("gamma", data)
    folder = imported(model, tmp_path, data)
    assert f"hybrid_jax.main --workdir={folder}\n" in capsys.readouterr().out
    run = open_run(continued(folder))
    state = start_of(folder, run)
    same(state.params, load_released(tmp_path / "released").params)
    before = loop.evaluate(run, state.params, final=False)
    # Padding rows differ, and nothing reads them.
    assert before == loop.evaluate(run, model.params, final=False)
    after = train_on(folder, run)
    assert int(after.step) == 3
    assert loop.evaluate(run, after.params, final=False).nll < before.nll

    # What was trained here goes out again, with its tokenizer, and comes back.
    assert pretrained.load(folder).step == 3
    out, back = tmp_path / "out", tmp_path / "back"
    assert interop(["export", f"--workdir={folder}", f"--out={out}", "--step=3"]) == 0
    again = ["import", f"--from={out}", f"--workdir={back}", f"--tokenizer={out / 'tokenizer'}"]
    assert interop(again) == 0
    np.testing.assert_array_equal(
        seen(model.network, pretrained.load(back).params),
        seen(model.network, pretrained.load(folder).params),
    )


SHIFTED = Layout(alignment="shifted")
SIZE = {"layers": 1, "width": 16, "heads": 2}  # that of the tiny runs
HYBRIDS = {
    "epsilon": {"layout": SHIFTED, "model": ModelConfig(**SIZE)},
    "gamma": {
        "layout": SHIFTED,
        "model": ModelConfig(**SIZE, condition=6, embedding_gamma=0.05),
        "objective": Objective(parameterisation="context", time="continuous"),
    },
}


@pytest.mark.parametrize("kind", HYBRIDS)
def test_a_hybrid_starts_as_the_autoregressive_network(data, ar, kind):
    """One of the same form (ε), and one that is told the level and mixes embeddings (γ)."""
    new = experiment(kind, data, **HYBRIDS[kind])
    old, params = network_of(ar, new)
    assert old.step == 8
    network = new.network(258)
    tokens = jax.random.randint(jax.random.key(2), (2, LENGTH), 0, 258, jnp.int32)
    mask = jnp.tril(jnp.ones((1, LENGTH, LENGTH), bool))
    clean = jnp.zeros(tokens.shape)
    levels = [clean]
    if not new.model.embedding_gamma:
        levels.append(jax.random.uniform(jax.random.key(3), tokens.shape))
    wanted = logits(old.network, old.params, tokens, mask, clean)
    for level in levels:
        found = logits(network, params, tokens, mask, level)
        np.testing.assert_array_equal(found, wanted)


def test_starts_that_mean_nothing_are_refused(tmp_path, data, ar):
    shifted, gamma = HYBRIDS["epsilon"], HYBRIDS["gamma"]["model"]
    narrow = ModelConfig(**SIZE | {"width": 8})
    other = dataclasses.replace(data, tokenizer="sentencepiece", vocab_size=300)
    for new, message in (
        (
            experiment("epsilon", data, model=shifted["model"]),
            r"layout\.alignment is 'aligned' .* 'shifted' in the model",
        ),
        (
            experiment("gamma", data, layout=SHIFTED, model=gamma),
            r"objective\.parameterisation is 'score' in",
        ),
        (
            experiment("epsilon", data, **shifted | {"model": narrow}),
            r"--config\.model\.width=16\.",
        ),
        (experiment("epsilon", other, **shifted), r"data\.tokenizer is 'sentencepiece' in"),
    ):
        with pytest.raises(UserError, match=message):
            network_of(ar, new)
    with pytest.raises(UserError, match="holds no run"):
        network_of(tmp_path / "none", experiment("epsilon", data))


def test_the_import_and_export_commands_refuse_in_one_sentence(tmp_path, ar, capsys):
    released = tmp_path / "released"
    export_released(random_model("gamma"), released)
    command = ["import", f"--from={released}", f"--workdir={tmp_path / 'run'}"]
    byte = [*command, "--tokenizer=byte"]
    assert "is made for a text" in said(capsys, *command, "--tokenizer=sentencepiece")
    assert "Unknown tokenizer 'bytes'" in said(capsys, *command, "--tokenizer=bytes")
    config = f"--config={REPOSITORY / 'configs/gamma_hybrid.py'}"
    assert "data.tokenizer is 'sentencepiece'" in said(capsys, *byte, config)
    size = [config, "--config.data.tokenizer=byte"]
    assert "--config.model.layers=2." in said(capsys, *byte, *size)
    mean = "--config.objective.parameterisation=mean"
    assert "--config.objective.parameterisation=score." in said(capsys, *byte, mean)
    shifted = "--config.layout.alignment=shifted"
    assert "--config.layout.alignment=aligned." in said(capsys, *byte, shifted)
    assert "has no function get_config" in said(capsys, *byte, f"--config={__file__}")
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    tiny_tokenizer().save(tokenizer)
    wrong = said(capsys, *command, f"--tokenizer={tokenizer}")
    assert "has 63 tokens and the released model has 258" in wrong
    assert "There is no folder" in said(capsys, "import", f"--from={tmp_path}/no", *byte[2:])
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "file").touch()
    assert "is not an empty folder" in said(capsys, *byte)

    out = f"--out={tmp_path / 'out'}"
    assert "holds no run" in said(capsys, "export", f"--workdir={tmp_path / 'none'}", out)
    assert "choose another" in said(capsys, "export", f"--workdir={ar}", f"--out={released}")
    blocked = tmp_path / "blocked"
    blocked.touch()
    assert "Cannot write" in said(capsys, "export", f"--workdir={ar}", f"--out={blocked}/out")
    for command in (["export", "--workdir=none"], ["import", *byte[1:2], "--tokenizer=byte"]):
        place = "--out" if command[0] == "export" else "--workdir"
        assert "Cannot write" in said(capsys, *command, f"{place}=/proc/none/at/all")
    assert list(blocked.parent.glob(".*")) == []
    shutil.rmtree(released)
