"""Every config file in every size, every setting, and the sentences that meet a wrong one."""

import ast
import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from enumeration import quick_jit

from hybrid_jax.config import Experiment
from hybrid_jax.data import prepare
from hybrid_jax.errors import UserError
from hybrid_jax.method import hyperschedule
from hybrid_jax.method.layout import Layout, attention_mask, training_rows
from hybrid_jax.optim import OptimizerConfig, make_optimizer
from hybrid_jax.presets import sized
from hybrid_jax.runtime import sharding
from hybrid_jax.runtime.command_line import read_config
from hybrid_jax.training.train_step import TrainSetup, train_step

REPOSITORY = Path(__file__).resolve().parents[1]
NAMES = sorted(path.stem for path in (REPOSITORY / "configs").glob("*.py"))
SIZES = ("tiny", "small", "base")


def experiment(config: str = "gamma_hybrid", /, **settings) -> Experiment:
    """A config file with settings as a command line gives them: noise__gamma="0.1"."""
    texts = {key.replace("__", "."): str(value) for key, value in settings.items()}
    return Experiment.from_config(read_config(config), texts)


# ---------------------------------------------------------------------------------------------
# The config files.

HYBRID = ("block(ω=8, T=8)", "block(ω=16, T=16)")
FLAT = ("flat(T=64)", "flat(T=512)", "flat(T=1024)")
METHODS = {
    "adapt": ("absorbing", (*HYBRID, "block(ω=16, T=16)")),
    "ar": ("absorbing", ("quenched AR",) * 3),
    "code": ("epsilon(0.01)", (*HYBRID, "flat(T=1024)")),
    "bd3lm": ("absorbing", (*HYBRID, "block(ω=16, T=16)")),
    "epsilon_hybrid": ("epsilon(0.01)", (*HYBRID, "flat(T=1024)")),
    "gamma_hybrid": ("gamma(0.01)", (*HYBRID, "flat(T=2048)")),
    "mdlm": ("absorbing", FLAT),
    "sedd": ("absorbing", FLAT),
    "slide": ("gamma(0.01)", ("slide(ω=8, T=8)", "slide(ω=16, T=16)", "slide(ω=64, T=64)")),
}


def test_all_configs_are_known():
    assert sorted(METHODS) == NAMES


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_one_training_step_of_every_config_has_its_shapes(name, size):
    made = experiment(f"{name}:{size}")
    vocab_size = made.data.expected_vocab_size
    tiny = 1024 if name == "code" else 512
    assert vocab_size == {"tiny": tiny, "small": 16_384, "base": 50_257}[size]
    setup = TrainSetup.build(made, vocab_size, bos=0)
    kernel, schedules = METHODS[name]
    assert setup.spec.schedule.name == schedules[SIZES.index(size)]
    share = {"gamma": setup.spec.kernel.gamma, "epsilon": setup.spec.kernel.epsilon}
    share = {key: value for key, value in share.items() if value}
    assert kernel == next((f"{key}({value})" for key, value in share.items()), "absorbing")
    state = jax.eval_shape(setup.init)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    low, high = {"tiny": (0.5e6, 2e6), "small": (2e7, 8e7), "base": (1.5e8, 2.2e8)}[size]
    assert low < parameters < high
    if size == "small" and name != "gamma_hybrid":
        return  # of whose parts tiny or base has each
    batch = setup.abstract_batch(sharding.one_device())
    new, metrics = jax.eval_shape(functools.partial(train_step, setup), state, batch)
    assert jax.tree.all(
        jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), state, new)
    )
    assert {name: (value.shape, value.dtype) for name, value in metrics.items()} == {
        "loss": ((), jnp.float32),
        "grad_norm": ((), jnp.float32),
    }


# Values that settings without effect had in workdirs of the first format.
OLD = {
    "data.vocab_size": 512, "schedule.width": 16, "schedule.levels": 16, "noise.gamma": 0.01,
    "noise.epsilon": 0.01, "objective.shown_weight": 1.0, "optimizer.final_fraction": 0.1,
    "optimizer.muon_momentum": 0.95,
}  # fmt: skip


@pytest.mark.parametrize("size", ["tiny", "base"])
@pytest.mark.parametrize("name", NAMES)
def test_config_survives_json(name, size):
    made = experiment(f"{name}:{size}")
    text = made.to_json()
    assert Experiment.from_json(text) == made.resolved() == made.resolved().resolved()
    values = json.loads(text)
    assert values.pop("format") == 2
    # The first format had no number, and a value for every setting.
    filled = False
    for key, value in OLD.items():
        section, _, setting = key.partition(".")
        if values[section][setting] is None:
            values[section][setting] = value
            filled = True
    assert filled
    assert Experiment.from_json(json.dumps(values)) == made.resolved()


def test_a_loss_whose_weight_has_no_effect_survives_json():
    made = experiment("mdlm", objective__loss="weighted_cross_entropy")
    assert Experiment.from_json(made.to_json()) == made.resolved()


def test_layouts_without_effect_are_dropped_from_the_first_format():
    values = json.loads(experiment("ar").to_json())
    del values["format"]
    values["layout"] |= {"causal_window": True, "context": "block_causal"}
    assert Experiment.from_json(json.dumps(values)) == experiment("ar").resolved()
    values["objective"]["loss"] = "weighted_cross_entropy"
    values["objective"]["shown_weight"] = 1.0
    assert Experiment.from_json(json.dumps(values)).objective.shown_weight is None


@pytest.mark.parametrize("version", [3, 0, "new", None])
def test_settings_of_a_later_version_are_refused(version):
    values = json.loads(experiment().to_json()) | {"format": version}
    with pytest.raises(UserError, match=r"format .* reads formats up to 2: install the version"):
        Experiment.from_json(json.dumps(values))


# ---------------------------------------------------------------------------------------------
# Every setting has an effect, or is refused.


@functools.cache
def moved(optimizer: OptimizerConfig, steps: int) -> str:
    """The changes that three updates make to some parameters."""
    rng = np.random.default_rng(0)

    def draw(scale: float) -> dict:
        matrix, vector = rng.normal(size=(1, 2, 2)), rng.normal(size=2)
        return {"layers": {"matrix": np.float32(scale * matrix)}, "vector": np.float32(vector)}

    params = draw(1.0)
    made = make_optimizer(optimizer, steps, params)
    update = jax.jit(made.update)
    state, found = made.init(params), []
    for scale in (0.5, 2.0, 1e-7):
        updates, state = update(draw(scale), state, params)
        found.append(jax.tree.map(np.asarray, updates))
    return str(found)


@functools.cache
def built(made: Experiment) -> dict:
    """All that the settings of an experiment make, in values that compare."""
    spec, *others = (own.spec(258, bos=256, eos=257) for own in made.each)
    network = made.network(258)
    setup = TrainSetup(experiment=made, spec=spec, network=network, optimizer=None)
    data = dataclasses.asdict(made.data) | {"vocab_size": made.data.expected_vocab_size}
    named, *more = (data.pop(name) for name in ("dir", "padded", "weights"))
    folder = named or str(prepare.default_dir(**data))
    return {
        "name": made.name,
        "data": (folder, made.data.length, more),
        "schedule": [own.schedule for own in (spec, *others)] + [made.shares],
        "noise": (spec.kernel, made.bound(258)),
        "layout": spec.layout,
        "objective": (made.resolved().objective, spec.chunk),
        "network": network,
        "optimizer": moved(made.optimizer, made.train.steps),
        "seed": np.asarray(jax.random.key_data(setup.key(0))).tolist(),
        "train": made.train,
        "mesh": made.mesh.shape(8),
        "evaluation": made.evaluation,
        "rule": (made.sampling.build(), made.sampling.count, made.sampling.eos),
    }


# For each setting, values of others beside which it has an effect, if any, and a new value.
ACS = {"sampling__rule": "acs"}
WEIGHTED = {"objective__loss": "weighted_cross_entropy"}
EFFECTS = {
    "name": ({}, "other"),
    "data.source": ({}, "files:x.txt"),
    "data.valid_source": ({}, "files:y.txt"),
    "data.tokenizer": ({}, "byte"),
    "data.vocab_size": ({}, 300),
    "data.length": ({}, 32),
    "data.weights": ({"data__source": "mix:pydocs,pysource"}, "0.9,0.1"),
    "data.padded": ({"data__source": "pairs:x.jsonl", "sampling__eos": "stop"}, "false"),
    "data.dir": ({}, "somewhere"),
    "schedule.family": ({}, "slide"),
    "schedule.width": ({}, 4),
    "schedule.levels": ({"schedule__family": "flat"}, 5),
    "schedule.causal_window": ({}, "true"),
    "schedule.also": ({}, "quenched_ar"),
    "schedule.weights": ({"schedule__also": "quenched_ar"}, "0.1,0.9"),
    "noise.kernel": ({}, "absorbing"),
    "noise.gamma": ({}, 0.5),
    "noise.epsilon": ({"noise__kernel": "epsilon", "objective__time": "discrete",
                       "evaluation__time": "discrete"}, 0.5),
    "layout.alignment": ({}, "shifted"),
    "layout.causal_window": ({}, "true"),
    "layout.context": ({}, "block_causal"),
    "layout.documents": ({"sampling__eos": "stop"}, "separate"),
    "objective.parameterisation": ({}, "mean"),
    "objective.loss": ({}, "weighted_cross_entropy"),
    "objective.time": ({}, "discrete"),
    "objective.levels": ({}, "uniform"),
    "objective.shown_weight": (WEIGHTED, 0.5),
    "model.layers": ({}, 2),
    "model.width": ({}, 64),
    "model.heads": ({}, 4),
    "model.kv_heads": ({}, 1),
    "model.head_width": ({}, 32),
    "model.mlp_ratio": ({}, 2),
    "model.mlp_width": ({}, 40),
    "model.gated": ({}, "true"),
    "model.position": ({"model__positions": 65}, "learned"),
    "model.positions": ({}, 65),
    "model.rope_theta": ({}, 1e6),
    "model.rope_scaling": ({}, "llama3:8,1,4,32"),
    "model.norm": ({}, "rms"),
    "model.norm_epsilon": ({}, 1e-6),
    "model.norm_bias": ({}, "true"),
    "model.qkv_bias": ({}, "true"),
    "model.out_bias": ({}, "true"),
    "model.mlp_bias": ({}, "false"),
    "model.tied": ({}, "true"),
    "model.head_bias": ({}, "false"),
    "model.activation": ({}, "gelu"),
    "model.condition": ({}, 8),
    "model.embedding_gamma": ({"model__condition": 8}, 0.5),
    "model.qk_norm": ({}, "False"),
    "model.dropout": ({}, 0.1),
    "model.dtype": ({}, "bfloat16"),
    "model.remat": ({}, "true"),
    "model.unroll": ({}, 1),
    "model.attention": ({}, "dense"),
    "optimizer.name": ({}, "adamw"),
    "optimizer.learning_rate": ({}, 0.5),
    "optimizer.warmup_steps": ({}, 2),
    "optimizer.schedule": ({"optimizer__warmup_steps": 0, "train__steps": 4}, "linear"),
    "optimizer.final_fraction": ({"optimizer__warmup_steps": 0, "train__steps": 4}, 0.9),
    "optimizer.beta1": ({}, 0.5),
    "optimizer.beta2": ({}, 0.5),
    "optimizer.epsilon": ({}, 0.1),
    "optimizer.weight_decay": ({}, 0.1),
    "optimizer.clip_norm": ({}, "none"),
    "optimizer.muon_learning_rate": ({}, 0.5),
    "optimizer.muon_momentum": ({}, 0.5),
    **{f"train.{name}": ({}, 2) for name in ("batch_size", "accumulation", "log_every",
       "eval_every", "checkpoint_every", "keep", "loss_chunk", "seed")},
    "train.board": ({}, "trackio"),
    "train.steps": ({"optimizer__warmup_steps": 0}, 4),
    "train.ema_decay": ({}, 0.5),
    "mesh.data": ({}, 2),
    "mesh.fsdp": ({}, 2),
    "mesh.tensor": ({}, 2),
    "evaluation.kernel": ({}, "absorbing"),
    "evaluation.time": ({}, "discrete"),
    **{f"evaluation.{name}": ({}, 2) for name in ("records", "final_records", "draws",
                                                   "batch_size")},
    "sampling.count": ({}, 2),
    "sampling.rule": ({}, "acs"),
    "sampling.eta": (ACS, 0.5),
    "sampling.kappa": ({"sampling__rule": "psi"}, 0.5),
    "sampling.guidance": (ACS, "confidence"),
    "sampling.correction": (ACS, "remask"),
    "sampling.sweeps": (ACS, 2),
    "sampling.horizon": (ACS | {"sampling__sweeps": 1}, 2),
    "sampling.strategy": ({"sampling__rule": "remdm"}, "rescale"),
    "sampling.threshold": ({"sampling__rule": "threshold"}, 0.5),
    "sampling.bound": ({"sampling__rule": "entropy"}, 0.1),
    "sampling.temperature": ({}, 0.5),
    "sampling.top_k": ({}, 3),
    "sampling.top_p": ({}, 0.5),
    "sampling.window_entropy": ({}, 0.5),
    "sampling.window_least": ({"sampling__window_entropy": 0.5}, 2),
    "sampling.eos": ({}, "stop"),
}  # fmt: skip


def test_a_value_of_the_preset_goes_with_the_choice_that_it_belonged_to():
    settings = sized("mine", "tiny")
    settings.data.tokenizer = "byte"
    settings.optimizer.schedule = "constant"
    experiment = Experiment.from_config(settings)
    assert (experiment.data.vocab_size, experiment.optimizer.final_fraction) == (None, None)
    settings.data.vocab_size = 300  # said by the file itself
    with pytest.raises(UserError, match=r"data\.vocab_size belongs to data\.tokenizer=sentencep"):
        Experiment.from_config(settings)


def every_setting() -> set[str]:
    found = set()
    for field in dataclasses.fields(Experiment):
        parts = dataclasses.fields(field.default) if field.name != "name" else []
        found |= {f"{field.name}.{part.name}" for part in parts} or {field.name}
    return found


def test_no_setting_is_left_out_below():
    assert set(EFFECTS) == every_setting()


@pytest.mark.parametrize("name", EFFECTS)
def test_every_setting_changes_what_is_built(name):
    beside, value = EFFECTS[name]
    before = built(experiment(**beside))
    after = built(experiment(**beside, **{name.replace(".", "__"): value}))
    assert {key for key, made in after.items() if made != before[key]}


def test_every_setting_of_training_and_evaluation_is_read():
    package = REPOSITORY / "hybrid_jax"
    files = [package / "config.py", *(package / "training").glob("*.py")]
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text("utf-8")))]
    read = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    for name in EFFECTS:
        section, _, setting = name.partition(".")
        assert section not in ("train", "evaluation") or setting in read


VOID = [
    (
        "ar",
        "schedule.width",
        4,
        "schedule.family=block or slide and has no effect with quenched_ar",
    ),
    ("ar", "schedule.levels", 4, "schedule.family=flat or block or slide"),
    ("mdlm", "schedule.width", 4, "schedule.family=block or slide and has no effect with flat"),
    ("mdlm", "noise.gamma", 0.05, "noise.kernel=gamma and has no effect with absorbing"),
    ("gamma_hybrid", "noise.epsilon", 0.05, "noise.kernel=epsilon and has no effect with gamma"),
    ("mdlm", "objective.shown_weight", 1.0, "objective.loss=weighted_cross_entropy"),
    ("mdlm:base", "optimizer.muon_learning_rate", 0.1, "optimizer.name=muon and has no effect wi"),
    ("mdlm:base", "optimizer.muon_momentum", 0.9, "optimizer.name=muon"),
    ("mdlm:base", "data.vocab_size", 50_257, "data.tokenizer=sentencepiece"),
    ("ar", "layout.causal_window", True, "windows of several positions and has no effect with qu"),
    ("ar", "layout.context", "block_causal", "windows of several positions with settled ones"),
    ("mdlm", "layout.context", "block_causal", "has no effect with flat"),
    ("mdlm", "sampling.eta", 0.5, "Rule ancestral has no eta: it belongs to acs and remdm"),
    ("epsilon_hybrid", "sampling.strategy", "cap", "Rule acs has no strategy: it belongs to remdm"),
    ("epsilon_hybrid", "sampling.bound", 1.0, "it belongs to entropy"),
    ("mdlm", "sampling.window_entropy", 1.0, "has none: leave it out"),
    ("mdlm", "model.embedding_gamma", 0.1, "needs model.condition above 0"),
]


@pytest.mark.parametrize(("config", "name", "value", "message"), VOID)
def test_a_setting_without_effect_is_refused_on_command_lines_and_in_files(
    config, name, value, message
):
    section, setting = name.split(".")
    values = json.loads(json.dumps(read_config(config)))
    values[section][setting] = value
    given = functools.partial(experiment, config, **{name.replace(".", "__"): value})
    for act in (given, lambda: Experiment.from_config(values)):
        with pytest.raises(UserError, match=message.replace(".", r"\.")) as caught:
            act()
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("config", ["ar", "slide"])
def test_a_chosen_bell_is_refused_where_windows_leave_no_choice(config):
    assert experiment(config).objective.levels == "uniform"  # the preset's bell is left out
    with pytest.raises(UserError, match="leaves no choice: leave it out"):
        experiment(config, objective__levels="bell")


def test_settings_beside_which_another_has_no_effect():
    constant = {"optimizer__schedule": "constant", "optimizer__final_fraction": 0.5}
    with pytest.raises(UserError, match=r"belongs to optimizer\.schedule=cosine or linear"):
        experiment(**constant)
    with pytest.raises(UserError, match="belongs to noise that replaces tokens"):
        experiment("mdlm", **WEIGHTED, objective__shown_weight=0.5)


def test_settings_of_a_file_go_with_what_the_command_line_replaces():
    made = experiment("gamma_hybrid:small", data__tokenizer="byte", noise__kernel="absorbing",
                      schedule__family="flat")  # fmt: skip
    assert (made.data.vocab_size, made.noise.gamma, made.schedule.width) == (None, None, None)
    assert made.spec(258, 0).schedule.levels == 512
    assert experiment(optimizer__schedule="constant").optimizer.final_fraction is None
    made = experiment("epsilon_hybrid", sampling__rule="remdm")
    assert (made.sampling.eta, made.sampling.guidance) == (0.25, None)


@pytest.mark.parametrize("name", ["mdlm", "sedd"])
def test_levels_of_flat_schedules_follow_the_length(name):
    assert experiment(name, data__length=32).spec(258, 0).schedule.levels == 32
    assert experiment(name, data__length=32, schedule__levels=5).spec(258, 0).schedule.levels == 5


@pytest.mark.parametrize("alignment", ["aligned", "shifted"])
@pytest.mark.parametrize(
    "schedule",
    [
        hyperschedule.quenched_ar(length=6),
        hyperschedule.flat(length=6, levels=3),
        hyperschedule.block(length=6, width=1, levels=3),
        hyperschedule.block(length=6, width=2, levels=2),
        hyperschedule.block(length=6, width=4, levels=1),
        hyperschedule.slide(length=6, width=1, levels=3),
    ],
    ids=lambda schedule: schedule.name,
)
def test_a_layout_is_refused_where_it_changes_no_mask(schedule, alignment):
    family = schedule.name.partition("(")[0].replace("quenched AR", "quenched_ar")
    settings = {"data__length": 6, "schedule__family": family, "layout__alignment": alignment}
    if family != "quenched_ar":
        settings["schedule__levels"] = schedule.levels
    if family in ("block", "slide"):
        settings["schedule__width"] = schedule.width

    @functools.cache
    def masks(layout: Layout) -> np.ndarray:
        def at(phase):
            rows = training_rows(layout, schedule, jnp.full(schedule.phase_groups, phase))
            return attention_mask(layout, rows)

        return np.asarray(quick_jit(jax.vmap(at))(jnp.arange(schedule.phases)))

    plain = Layout(alignment=alignment)
    for name, value in (("causal_window", True), ("context", "block_causal")):
        if name == "context" and not schedule.settles_whole:
            continue  # refused for another reason
        layout = dataclasses.replace(plain, **{name: value})
        act = functools.partial(experiment, "bd3lm", **{"layout__context": "causal", **settings,
                                                       f"layout__{name}": value})  # fmt: skip
        if (masks(layout) == masks(plain)).all():
            with pytest.raises(UserError, match=f"layout.{name} belongs to"):
                act()
        else:
            assert getattr(act().layout, name) == value


def test_settings_that_do_not_go_together_are_refused():
    with pytest.raises(UserError, match=r"epsilon must lie in \[0, 1\)"):
        experiment("epsilon_hybrid", noise__epsilon=1.0)
    with pytest.raises(UserError, match="has no continuous form"):
        experiment("epsilon_hybrid", evaluation__kernel="own")
    with pytest.raises(UserError, match="windows that settle whole"):
        experiment("slide", layout__context="block_causal")
    with pytest.raises(UserError, match=r"separate nothing is learned .* sampling\.eos=stop"):
        experiment("ar", layout__documents="separate")
    with pytest.raises(UserError, match="has no effect with pairs"):
        experiment("ar", layout__documents="separate", data__source="pairs:x.jsonl")
