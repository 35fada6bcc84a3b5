"""One network on several hyperschedules: in training, and on another one when it is used."""

import dataclasses
import json
import shutil
from collections import Counter

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import hybrid_jax as hj
from hybrid_jax import generate
from hybrid_jax.config import Experiment, TrainConfig
from hybrid_jax.data import mixture
from hybrid_jax.demo.writer import Writer
from hybrid_jax.errors import UserError
from hybrid_jax.method.layout import Layout
from hybrid_jax.method.objective import Objective
from hybrid_jax.method.settings import NoiseConfig, ScheduleConfig
from hybrid_jax.runtime import sharding
from hybrid_jax.training import flops, pretrained
from hybrid_jax.training.train_step import TrainSetup

pytestmark = pytest.mark.slow

WEIGHTS = "1/2,1/4,1/4 8:0,0,1"
MIXED = {
    "schedule": ScheduleConfig(
        family="block", width=4, levels=4, also="quenched_ar,flat:levels=8", weights=WEIGHTS
    ),
    "noise": NoiseConfig(kernel="gamma"),
    "layout": Layout(alignment="shifted", causal_window=True),
    "objective": Objective(parameterisation="context", time="continuous"),
    "train": TrainConfig(steps=12, batch_size=8, log_every=4, eval_every=100, checkpoint_every=4),
}


@pytest.fixture(scope="module")
def mixed(text, tmp_path_factory):
    return tiny.run(tmp_path_factory.mktemp("mixed"), text / "a.txt", **MIXED)


def test_a_step_is_that_of_its_hyperschedule_alone(mixed):
    experiment = pretrained.load(mixed).experiment
    setup = TrainSetup.build(experiment, 258, bos=256, eos=257)
    mesh = sharding.one_device()
    batch = {"tokens": jax.random.randint(jax.random.key(0), (8, tiny.LENGTH), 0, 256),
             "index": jnp.arange(8)}  # fmt: skip
    states, init = [], setup.compile_init(mesh)
    for own, schedule in zip(setup.each, experiment.schedule.each, strict=True):
        alone = TrainSetup.build(experiment.on(schedule), 258, bos=256, eos=257)
        found = [s.compile_step(mesh)(init(), batch)[0] for s in (own, alone)]
        chex.assert_trees_all_equal(*found)
        states.append(found[0])
    different = [np.asarray(state.params["head"]["kernel"]) for state in states]
    assert not any(np.array_equal(different[0], other) for other in different[1:])


def test_steps_are_shared_as_the_weights_say(mixed):
    setup = TrainSetup.build(pretrained.load(mixed).experiment, 258, bos=256, eos=257)
    turns = [setup.turn(step) for step in range(12)]
    assert Counter(turns[:8]) == {0: 4, 1: 2, 2: 2}
    assert Counter(turns[:4]) == {0: 2, 1: 1, 2: 1}
    assert turns[8:] == [2] * 4
    for rows in range(13):
        counts = mixture.counts(setup.experiment.shares, 1, rows)
        assert counts.tolist() == [turns[:rows].count(source) for source in range(3)]
    lines = [json.loads(line) for line in (mixed / "metrics.jsonl").read_text().splitlines()]
    names = [{n.removeprefix("loss of ") for n in line if n.startswith("loss of")}
             for line in lines if line["kind"] == "train"]  # fmt: skip
    every = {"block(ω=4, T=4)", "quenched AR", "flat(T=8)"}
    assert names == [every, every, {"flat(T=8)"}]
    first = lines[0]
    parts = [first["loss of block(ω=4, T=4)"]] * 2
    parts += [first["loss of quenched AR"], first["loss of flat(T=8)"]]
    assert first["loss"] == pytest.approx(np.mean(parts), rel=1e-5)


def test_the_budget_of_a_mixed_run_is_that_of_its_steps(mixed):
    model = pretrained.load(mixed)
    setup = TrainSetup.build(model.experiment, 258, bos=256, eos=257)
    work = [flops.training_flops(own.network, own.spec) for own in setup.each]
    assert flops.budget(model) == {
        "tokens": 12 * 8 * tiny.LENGTH,
        "flops": pytest.approx(8 * (4 * work[0] + 2 * work[1] + 6 * work[2])),
    }


def changed(workdir, folder, **schedule):
    """A copy of a workdir that says it was trained on another hyperschedule."""
    copy = shutil.copytree(workdir, folder)
    experiment = Experiment.from_json((copy / "config.json").read_text(encoding="utf-8"))
    own = experiment.on(ScheduleConfig(**schedule))
    (copy / "config.json").write_text(own.to_json(), encoding="utf-8")
    return copy


@pytest.mark.parametrize(
    ("name", "schedule"),
    [
        ("slide:width=8:levels=4", {"family": "slide", "width": 8, "levels": 4}),
        ("flat", {"family": "flat"}),
        ("dilated:levels=4", {"family": "dilated", "levels": 4}),
        ("quenched_ar", {"family": "quenched_ar"}),
    ],
)
def test_another_hyperschedule_is_as_if_it_had_been_the_trained_one(
    mixed, tmp_path, capsys, name, schedule
):
    other = changed(mixed, tmp_path / "other", **schedule)
    texts = []
    for flags in ([f"--workdir={mixed}", f"--schedule={name}"], [f"--workdir={other}"]):
        assert generate.main([*flags, "--seed=3", "--prompt=7 plus"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    scores = [pretrained.load(mixed, schedule=name), pretrained.load(other)]
    assert scores[0].spec == scores[1].spec
    assert scores[0].experiment.bound(258) == scores[1].experiment.bound(258)


def test_a_hyperschedule_may_have_windows_of_its_own_sight(mixed):
    model = pretrained.load(mixed, schedule="block:width=8:causal_window=false")
    assert pretrained.load(mixed).spec.layout.causal_window
    assert not model.spec.layout.causal_window
    own = ScheduleConfig(family="block", width=4, also="block:width=4:causal_window=false,flat")
    experiment = dataclasses.replace(pretrained.load(mixed).experiment, schedule=own)
    assert [one.layout.causal_window for one in experiment.each] == [True, False, True]
    experiment.check()


def test_the_rule_of_the_run_need_not_go_with_another_hyperschedule(mixed, tmp_path, capsys):
    copy = shutil.copytree(mixed, tmp_path / "copy")
    values = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    values["sampling"]["window_entropy"] = 0.5  # of blocks
    (copy / "config.json").write_text(json.dumps(values), encoding="utf-8")
    model = pretrained.load(copy, schedule="flat")
    assert model.spec == pretrained.load(mixed, schedule="flat").spec
    page = Writer(model, str(copy)).describe()
    assert page["rule"] in [rule["name"] for rule in page["rules"]]
    command = [f"--workdir={copy}", "--schedule=flat"]
    assert generate.main(command) == 2
    assert "has none: leave it out" in capsys.readouterr().err
    assert generate.main([*command, "--rule=greedy"]) == 0


def test_strict_refuses_windows_that_were_not_trained(mixed):
    for known in ("block:width=4:levels=2", "quenched_ar", "flat"):
        pretrained.load(mixed, schedule=known, strict=True)
    for other in ("block:width=8", "slide:width=4"):
        pretrained.load(mixed, schedule=other)
        with pytest.raises(UserError, match="quenched AR and flat"):
            pretrained.load(mixed, schedule=other, strict=True)


def test_on_the_hyperschedule_of_gpt_the_likelihood_is_exact(mixed):
    found = hj.load(mixed, schedule="quenched_ar").perplexity("valid", records=4)
    assert found.draws == 1
    (score,) = hj.load(mixed, schedule="quenched_ar").score("7 plus 7")
    assert score.exact


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        ({"also": "quenched_ar", "weights": "0.5,0.25,0.25"}, "3 weights for 2 hyperschedules"),
        ({"also": "quenched_ar", "weights": "0.5,0.6"}, "sum to 1.1"),
        ({"also": "quenched_ar,block:width=4:levels=2"}, "twice"),
        ({"also": "block:size=4"}, "'size=4' in 'block:size=4' sets nothing"),
        ({"also": "block:width=4:width=8"}, "sets nothing"),
        ({"also": f"block:width={'9' * 5000}"}, "sets nothing"),
        ({"also": "block:width=8:causal_window=1"}, "'causal_window=1' in 'block:width=8:caus"),
        ({"also": "quenched_ar:causal_window=true"}, "belongs to schedule.family=flat or block"),
        ({"also": "block:width=0"}, "width must be at least 1"),
        ({"also": "flat:width=4"}, "schedule.width belongs to"),
        ({"also": "flat,"}, "schedule.family must be one of"),
        ({"also": "block:width=32"}, "does not fit a sequence of 16"),
        ({"weights": "1"}, "schedule.weights belongs to schedule.also"),
    ],
)
def test_wrong_mixtures_are_refused(schedule, said):
    values = {"name": "x", "data": {"source": "files:x", "length": 16},
              "schedule": {"family": "block", "width": 4, **schedule}}  # fmt: skip
    with pytest.raises(UserError, match=said):
        Experiment.from_config(values)


def test_levels_are_chosen_where_windows_pass_through_several():
    objective = Objective(parameterisation="context", time="continuous", levels="bell")
    also = "quenched_ar,flat:levels=8,slide:width=4,block:levels=1"
    experiment = Experiment(
        **{**MIXED, "name": "mixed", "objective": objective,
           "schedule": ScheduleConfig(family="block", width=4, levels=4, also=also)}
    )  # fmt: skip
    experiment.check()
    levels = [own.objective.levels for own in experiment.each]
    assert levels == ["bell", "uniform", "bell", "uniform", "uniform"]
