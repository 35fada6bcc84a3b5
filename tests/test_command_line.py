"""The command that trains: wrong settings, flags and config files, and a run that continues."""

import dataclasses
import functools
import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import hybrid_jax
from hybrid_jax import evaluate, generate, main
from hybrid_jax.aot import __main__ as aot
from hybrid_jax.config import Experiment
from hybrid_jax.data import prepare, sources
from hybrid_jax.data.manifest import Manifest
from hybrid_jax.data.pipeline import Records
from hybrid_jax.demo import __main__ as demo
from hybrid_jax.errors import UserError, require
from hybrid_jax.eval.scorers import load as scorers
from hybrid_jax.figures import __main__ as figures
from hybrid_jax.interop import __main__ as interop
from hybrid_jax.runtime.command_line import path_of, read_config
from hybrid_jax.runtime.decode import listed
from hybrid_jax.runtime.files import write_atomic
from hybrid_jax.training import loop, workdir

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("train.stepz", "3", r"config\.train\.stepz is not a setting: did you mean steps\?"),
        ("noize.gamma", "3", r"config\.noize is not a setting: did you mean noise\?"),
        ("gamma", "3", r"config\.gamma is not a setting: did you mean noise\.gamma\?"),
        ("noise", "gamma", r"config\.noise is not a setting: write config\.SECTION\.NAME=VALUE"),
        ("name.x", "3", r"config\.name\.x is not a setting: write"),
        ("train.steps", "many", "'many' should be of type int"),
        ("train.steps", "1.5", "'1.5' should be of type int"),
        ("train.steps", "none", "'none' should be of type int"),
        ("model.remat", "yes", "'yes' should be of type bool"),
        ("noise.gamma", "much", r"'much' should be of type float \(or none\)"),
        ("optimizer.learning_rate", "nan", "should be a finite number"),
        ("train.steps", "0", "must be at least 1"),
        ("train.steps", "2147483648", "must be at most 2147483647"),
        ("train.seed", "-1", r"train\.seed must be a whole number in 0 … 4294967295"),
        ("train.seed", "4294967296", r"train\.seed must be a whole number in 0 … 4294967295"),
        ("optimizer.learning_rate", "1e39", r"optimizer\.learning_rate must be at most 3\.4"),
        ("data.length", "1048577", r"data\.length must be at most 1048576"),
        ("schedule.levels", "2147483647", r"number of steps .* must be at most 2147483647"),
        ("sampling.count", "1001", r"sampling\.count must lie in 0 … 1000"),
        ("sampling.top_k", "4294967296", "top_k must be at most 2147483647"),
        ("train.accumulation", "5", "is not divisible by"),
        ("train.ema_decay", "1.0", r"must lie in \[0, 1\)"),
        (
            "data.tokenizer",
            "bytes",
            "Unknown tokenizer 'bytes': choose sentencepiece, byte, char, ",
        ),
        ("schedule.width", "65", "does not fit a sequence of 64 positions"),
        ("schedule.family", "blok", "is not one of quenched_ar, flat, block, slide"),
        ("schedule.levels", "0", "must be at least 1"),
        ("noise.gamma", "1.5", r"gamma must lie in \[0, 1\]"),
        ("noise.gamma", "-0.1", r"gamma must lie in \[0, 1\]"),
        ("model.heads", "3", "does not split into"),
        ("model.dropout", "1.0", r"dropout must lie in \[0, 1\)"),
        ("model.condition", "-1", r"model\.condition must be at least 0"),
        ("optimizer.name", "adam", "is not one of adamw, muon"),
        ("objective.loss", "mse", "is not one of"),
        ("evaluation.draws", "0", "at least 1"),
    ],
)
def test_wrong_settings_are_refused_in_one_sentence(name, text, message):
    with pytest.raises(UserError, match=message) as caught:
        Experiment.from_config(read_config("gamma_hybrid"), {name: text})
    assert "\n" not in str(caught.value)


def sentence(capsys, *arguments: str) -> str:
    """The error of the command, which has to be one sentence."""
    assert main.main(list(arguments)) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    return said.err.removeprefix("error: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Say what to train, for example --config=configs/gamma_hybrid.py."),
        (["--workdir=nowhere"], "Say what to train"),
        (["--config=nope.py"], "There is no config file 'nope.py'"),
        (["--config=mdml"], "There is no config 'mdml': did you mean mdlm?"),
        (["--config=mdlm:huge"], "mdlm has no size 'huge': known are base, small, tiny."),
        (["--config", "mdlm", "--config.train.stepz", "3"], "config.train.stepz is not a setting"),
        (["--config=mdlm", "--config.train.steps"], "--config.train.steps needs a value: write"),
        (["--config=mdlm", "--config.train.steps=1", "--config.train.steps", "2"],
         "--config.train.steps is given 2 times"),
        (["--config=mdlm", "--config=ar"], "--config is given 2 times"),
        (["--config=mdlm", "--wokdir=x"], "Unexpected argument '--wokdir=x' (see --help)."),
        (["--config=mdlm", "x"], "Unexpected argument 'x'"),
        (["--config=mdlm", "--processes=two"], "Argument --processes: invalid int value: 'two'"),
        (["--config=mdlm", "--processes=2"], "--coordinator, --processes and --process belong"),
        (["--config=mdlm", "--init=x", "--init_step=new"], "The step 'new' is neither a number"),
        (["--config=mdlm", "--config.data.source=files:none.txt"], "No file matches 'none.txt'"),
        (["--config=mdlm", "--workdir=gs://b/run"], "gs://b/run is not on a disk here: mount"),
        (["--config=mdlm", "--config.data.dir=s3://b/d"], "s3://b/d is not on a disk here: mount"),
        (["--config=mdlm", "--config.name=gs://b"], "runs/gs://b is not on a disk here: mount"),
    ],
)  # fmt: skip
def test_command_line_mistakes_end_in_one_sentence(
    arguments, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert sentence(capsys, *arguments).startswith(message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "has no function get_config: define one."),
        ("get_config = 3", "has no function get_config: define one."),
        ("def get_config(:", "fails with SyntaxError: "),
        ("raise ValueError('two\\nlines')", "fails with ValueError: two lines: correct it."),
        ("import not_there", "fails with ModuleNotFoundError: No module named 'not_there'"),
        ("import sys; sys.exit(3)", "fails with SystemExit: 3: correct it."),
        ("def get_config(size): return {}", "has no default size: write --config="),
        ("def get_config(): raise SystemExit", "fails with SystemExit: SystemExit: correct it."),
        ("def get_config(): return 3", "returns int: return a ConfigDict or a dict."),
        ("def get_config(): return None", "returns NoneType: return a ConfigDict or a dict."),
        ("def get_config(): return {'noise': 3}", "config.noise is a section, not a value."),
        ("def get_config(): return {3: 4}", "config.3 is not a setting: names are strings."),
        ("def get_config(): return {'preset': 3}", "config.preset is a section, not a value."),
        ("def get_config(): return {'noise': {'gamma': 10**400}}", "should be of type float"),
        ("def get_config(): return {'train': {'steps': 2**31}}", "train.steps must be at most"),
        ("def get_config(): return {}", "The experiment has no name: give it one"),
    ],
)
def test_config_files_that_are_none_are_named(text, message, tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text(text, encoding="utf-8")
    said = sentence(capsys, f"--config={file}")
    assert message in said
    assert str(file) in said or "config" in said or "train" in said
    if "get_config()" in text:
        assert "has no sizes: leave out :tiny." in sentence(capsys, f"--config={file}:tiny")


def test_what_is_no_config_file_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "ar").mkdir()  # beside which the config of this name is found
    for flag, message in (
        ("folder.py", "--config=folder.py is a folder: name a file in it."),
        ("notes.txt", "--config=notes.txt is no Python file: name a FILE.py with get_config."),
        ("x" * 300 + ".py", "xxx"),
        ("a\nb", "There is no config 'a\\nb'"),
        ("ar:huge", "ar has no size 'huge'"),
    ):
        assert sentence(capsys, f"--config={flag}").startswith(message)


def test_parts_of_a_list():
    assert listed("a, b,,c") == ["a", "b", "c"]
    assert listed('["a,b", "[c]"]') == ["a,b", "[c]"]
    assert listed("[ab]*.txt,[c]") == ["[ab]*.txt", "[c]"]  # patterns
    assert listed("[1]") == ["[1]"]
    assert listed("") == listed("[]") == []


def test_a_source_may_name_files_with_commas(tmp_path):
    (tmp_path / "a,b.txt").write_text("one", encoding="utf-8")
    (tmp_path / "c.txt").write_text("two", encoding="utf-8")
    names = json.dumps([str(tmp_path / "a,b.txt"), str(tmp_path / "c.txt")])
    assert list(sources.documents(f"files:{names}")) == ["one", "two"]


COMMANDS = (main, generate, evaluate, demo, figures, prepare, aot, interop)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_every_flag_for_a_path_knows_the_home_folder(command, monkeypatch):
    monkeypatch.setenv("HOME", "/the/home")
    assert path_of("~/a~") == "/the/home/a~"
    parser = command._parser()
    found = 0
    for action in [*parser._actions]:  # and those of its commands
        parts = action.choices.values() if isinstance(action.choices, dict) else []
        for flag in [action, *(flag for part in parts for flag in part._actions)]:
            if flag.metavar in ("DIR", "FILE", "FOLDER"):
                assert flag.type is path_of, flag.option_strings
                found += 1
    assert found


def test_the_home_folder_in_settings_and_the_api(ar, monkeypatch):
    monkeypatch.setenv("HOME", str(ar.parent))
    assert hybrid_jax.load("~/run").step == hybrid_jax.load(ar).step
    experiment = workdir.load("~/run")
    assert experiment == workdir.load(ar)
    data = dataclasses.replace(experiment.data, dir="~/data")
    run = loop.open_run(dataclasses.replace(experiment, data=data))
    folder, manifest = run.data_dir, run.manifest
    assert folder == ar.parent / "data"
    assert Manifest.load("~/data") == manifest
    assert len(Records("~/data", "valid")) == manifest.valid.records
    assert scorers.load("run:~/run")[0].name.endswith("/run, step 8")
    write_atomic("~/file", "text")
    assert (ar.parent / "file").read_text(encoding="utf-8") == "text"


def test_help_says_where_settings_are_listed(capsys):
    with pytest.raises(SystemExit) as caught:
        main.main(["--help"])
    assert caught.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "--workdir DIR" in said
    assert "python -m pydoc hybrid_jax.config lists them" in said


def test_commands_check_flags_before_jax_and_define_none_for_others():
    program = """
import sys
from absl import flags
from hybrid_jax import main
from hybrid_jax.aot import __main__ as aot
from hybrid_jax.interop import __main__ as interop
for command in (main, aot, interop):
    assert command.main(["--nothing"]) == 2
assert not any(name.startswith("hybrid_jax") for name in flags.FLAGS.flags_by_module_dict())
assert "jax" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("error: ") == 3


def test_command_line_trains_evaluates_samples_and_continues(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jax, "devices", functools.partial(lambda found: found[:1], jax.devices()))
    lines = [f"{n} and {n} make {2 * n}, says the book.\n" for n in range(4000)]
    (tmp_path / "book.txt").write_text("".join(lines), encoding="utf-8")
    arguments = [
        "--config=gamma_hybrid",
        "--workdir=run",
        "--config.data.source=files:book.txt",
        "--config.data.tokenizer=byte",
        "--config.data.length=16",
        "--config.model.layers=1",
        "--config.model.width=16",
        "--config.optimizer.warmup_steps=1",
        "--config.evaluation.final_records=32",
    ]
    assert main.main([*arguments, "--config.train.steps=2"]) == 0
    assert "perplexity ≤" in capsys.readouterr().out
    assert main.main(["--workdir=run", "--config.train.steps=3"]) == 0
    assert "resuming at step 2" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "checkpoints", "config.json", "metrics.jsonl", "records.json", "result.json", "samples",
        "tokenizer",
    ]  # fmt: skip
    other = sentence(capsys, *arguments, "--config.noise.gamma=0.5")
    assert "holds a run with noise.gamma=0.01, not 0.5" in other


def test_the_comparison_with_the_released_code_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(hybrid_jax.__file__).parents[1] / "benchmarks")
    from against_release import Released

    with pytest.raises(UserError, match=r"give a folder with a checkout of github\.com"):
        Released("", sys.executable)
    write_atomic(tmp_path / "hdlm/model/diffusion_lm.py", "")
    python = tmp_path / "python"
    write_atomic(python, f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')  # without packages
    python.chmod(0o755)
    with pytest.raises(UserError, match=r"has no module torch.*install it there"):
        Released(str(tmp_path), str(python))
    with pytest.raises(UserError, match=r"does not run .*name one with torch"):
        Released(str(tmp_path), str(tmp_path / "none"))


def test_a_package_that_another_lacks_is_the_one_that_is_named(tmp_path, monkeypatch):
    (tmp_path / "needy.py").write_text("import nowhere.at.all", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"needs nowhere: .*'hybrid_jax\[eval\]'"):
        require("needy", "eval")
