"""The generation command, on a model that was really trained: what it writes and refuses."""

import dataclasses
import io
import json
import os
import pty
import shutil
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
import rich.console
import tiny
from conftest import REPOSITORY

from hybrid_jax import generate
from hybrid_jax.config import EvaluationConfig, Experiment, NoiseConfig, ScheduleConfig, TrainConfig
from hybrid_jax.data.tokenizers.byte import ByteTokenizer
from hybrid_jax.errors import UserError
from hybrid_jax.generation import driver, frames, generator, player, requests, terminal
from hybrid_jax.generation.driver import Round
from hybrid_jax.method import hyperschedule
from hybrid_jax.method.layout import Layout
from hybrid_jax.method.objective import Objective
from hybrid_jax.sampling import rules
from hybrid_jax.sampling.setting import check_ranges, setting, settings_of
from hybrid_jax.sampling.settings import SamplingConfig
from hybrid_jax.training import pretrained

pytestmark = pytest.mark.slow

LENGTH = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The workdir of a very small ε-hybrid, whose prepared data are gone."""
    place = tmp_path_factory.mktemp("generate")
    lines = [f"{n} plus {n} makes {2 * n}, and that is all there is to say.\n" for n in range(2000)]
    (place / "text.txt").write_text("".join(lines), encoding="utf-8")
    found = tiny.run(
        place,
        place / "text.txt",
        length=LENGTH,
        schedule=ScheduleConfig(family="block", width=4, levels=4),
        noise=NoiseConfig(kernel="epsilon"),
        layout=Layout(alignment="shifted"),
        objective=Objective(loss="weighted_cross_entropy", time="continuous"),
        train=TrainConfig(steps=3, batch_size=8, eval_every=100, checkpoint_every=2),
        evaluation=EvaluationConfig(kernel="absorbing"),
        sampling=SamplingConfig(rule="acs", eta=0.5),
    )
    shutil.rmtree(place / "data")
    return found


def records(folder, tmp_path, *arguments):
    out = tmp_path / "out.jsonl"
    command = [f"--workdir={folder}", f"--out={out}", *arguments]
    assert generate.main(command) == 0
    return [json.loads(line) for line in out.read_bytes().splitlines()]


def complaint(capsys, *arguments):
    assert generate.main(list(arguments)) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    return captured.err


def test_prompts_are_continued_and_everything_is_recorded(folder, tmp_path, capsys):
    rows = records(folder, tmp_path, "--prompt=7 plus 7", "--prompt=4", "--num_samples=2",
                   "--batch_size=3", "--seed=5")  # fmt: skip
    assert [row["prompt"] for row in rows] == ["7 plus 7"] * 2 + ["4"] * 2
    for row in rows:
        assert bytes(row["tokens"][: len(row["prompt"])]).decode() == row["prompt"]
        assert len(row["tokens"]) == LENGTH
        assert max(row["tokens"]) < 258
        assert row["step"] == 3
        assert row["seed"] == 5
        assert row["sampling"]["rule"] == "acs"
        assert row["sampling"]["eta"] == 0.5
        assert row["schedule"] == "block(ω=4, T=4)"
    # 24 positions in blocks of 4: the first prompt fills two of them.
    assert [row["nfe"] for row in rows] == [16, 16, 24, 24]
    printed = capsys.readouterr()
    assert "--- text 4 of 4 ---" in printed.out
    assert "tokens/s" in printed.err
    assert "NFE and " in printed.err
    assert "corrections a text (acs, block(ω=4, T=4))" in printed.err


def test_texts_do_not_depend_on_who_watches(folder):
    model = pretrained.load(folder)
    own = generator.build(model)
    wanted = [requests.beginning(text, model.tokenizer, stop=LENGTH) for text in ("a", "bc", "d")]
    seen = []
    alone = driver.run(own, wanted, seed=2, batch_size=2)
    watched = driver.run(
        own, wanted, seed=2, batch_size=2, every=7,
        on_round=lambda r: seen.append((*r.numbers, int(r.state.nfe[0]), len(r.texts))),
    )  # fmt: skip
    assert watched == alone
    assert [text.number for text in alone] == [0, 1, 2]
    assert [text.prompt for text in alone] == ["a", "bc", "d"]
    # 24 rounds, seven at a time; then one text is left.
    assert seen == [
        (*numbers, nfe, texts)
        for numbers, last in (((0, 1), 2), ((2, -1), 1))
        for nfe, texts in ((0, 0), (7, 0), (14, 0), (21, 0), (24, last))
    ]


def test_progress_is_shown_within_texts_of_adaptive_windows(folder, tmp_path, monkeypatch):
    rounds, asked = driver.rounds, []

    def noted(*arguments, **settings):
        asked.append(settings["every"])
        return rounds(*arguments, **settings)

    monkeypatch.setattr(driver, "rounds", noted)
    (row,) = records(folder, tmp_path, "--rule=ancestral", "--window_entropy=1", "--window_least=2")
    assert asked == [1]  # of 600 steps, but at most 96 rounds
    assert row["nfe"] <= 24 * 4


def test_gaps_are_filled_and_the_rest_stands(folder, tmp_path):
    (row,) = records(folder, tmp_path, "--infill=ab{{3}}cd{{2}}ef")
    tokens = row["tokens"]
    assert len(tokens) == 11
    given = [97, 98, None, None, None, 99, 100, None, None, 101, 102]
    assert all(want in (None, got) for want, got in zip(given, tokens, strict=True))
    assert row["prompt"] == "ab{{3}}cd{{2}}ef"


def test_other_rules_steps_and_lengths(folder, tmp_path):
    (row,) = records(folder, tmp_path, "--rule=remdm", "--strategy=rescale", "--eta=0.3",
                     "--levels=2", "--length=10", "--top_k=40", "--eos=stop")  # fmt: skip
    assert row["nfe"] == 2 * 3
    assert len(row["tokens"]) <= 10
    assert row["schedule"] == "block(ω=4, T=2)"
    expected = {"rule": "remdm", "strategy": "rescale", "eta": 0.3, "top_k": 40, "eos": "stop"}
    assert expected.items() <= row["sampling"].items()
    # Another rule starts afresh: the experiment's eta is not for it.
    (row,) = records(folder, tmp_path, "--rule=greedy")
    assert row["sampling"]["eta"] is None


def test_prompts_come_from_a_file(folder, tmp_path):
    (tmp_path / "prompts.txt").write_text("one\u2028\x0c1\r\n\ntwo\n", encoding="utf-8-sig")
    rows = records(folder, tmp_path, f"--prompt_file={tmp_path}/prompts.txt", "--rule=greedy")
    assert [row["prompt"] for row in rows] == ["one\u2028\x0c1", "two"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt=" + "x" * 25], "has 25 tokens, which does not fit a text of 24: shorten it"),
        (["--prompt=abcdef", "--length=4"], "does not fit a text of 4"),
        (["--length=25"], "--length=25 is outside 1 … 24"),
        (["--infill=nothing missing"], "has no gap"),
        (["--infill=a{{20}}b{{20}}"], "asks for a text of 42 tokens, but the model writes 1 to 24"),
        (["--infill=a{{9999999999}}b"], "The gap {{9999999999}} is longer than the 24 tokens"),
        (["--prompt_file=/nonexistent"], "/nonexistent cannot be read: No such file"),
        (["--eta=1.5"], "eta must lie in [0, 1], but is 1.5"),
        (["--top_p=0"], "top_p must lie in (0, 1], but is 0.0"),
        (["--sweeps=-1"], "sweeps must be 0 or more, but is -1"),
        (["--rule=ancestral", "--eta=0.5"], "Rule ancestral has no eta: it belongs to acs and rem"),
        (["--rule=greedy", "--temperature=0.5"], "Rule greedy fixes temperature at 0: leave tempe"),
        (["--guidance=doubt"], "guidance must be one of uniform, confidence"),
        (["--num_samples=0"], "--num_samples: '0' is not a whole number in 1 …"),
        (["--num_samples=99999999"], "and a command holds at most 1000000"),
        (["--batch_size=99999999999"], "--batch_size: '99999999999' is not a whole number in 1 …"),
        (["--seed=4294967296"], "--seed: '4294967296' is not a whole number in 0 … 4294967295"),
        (["--seed=18446744073709551616"], "is not a whole number in 0 … 4294967295"),
        (["--seed=-1"], "--seed: '-1' is not a whole number in 0 … 4294967295"),
        (["--seed=1e3"], "--seed: '1e3' is not a whole number"),
        (["--top_k=99999999999"], "top_k must be at most 2147483647, but is 99999999999"),
        (["--sweeps=4294967296"], "sweeps must be at most 2147483647"),
        (["--temperature=1e39"], "temperature must be at most 3.4"),
        (["--temperature=nan"], "temperature must be 0 or more, but is nan"),
        (["--levels=99999999999"], "levels must be at most 2147483647"),
        (["--levels=2147483647"], "The number of steps of block(ω=4, T=2147483647) must be"),
        (["--watch=nan"], "--watch: 'nan' is not a number in 0 … 60"),
        (["--watch=-1"], "--watch: '-1' is not a number in 0 … 60"),
        (["--infill=a{{3}}b", "--length=9"], "leave out --length"),
        (["--prompt=x", "--infill=a{{3}}b", "--length=9"], "leave out --length"),
        (["--temperature=0", "--top_k=3"], "top_k has no effect at temperature 0"),
        (["--temperature=0", "--top_p=0.5"], "top_p has no effect at temperature 0"),
        (["--rule=greedy", "--top_k=3"], "Rule greedy has no top_k"),
        (["--eta=0", "--sweeps=2"], "sweeps is of corrections, which eta=0 has none of"),
        (["--eta=0", "--guidance=confidence"], "guidance is of corrections"),
        (["--rule=remdm", "--eta=0", "--strategy=rescale"], "strategy is of remasking"),
        (["--prompt=caf\udce9"], "The argument '--prompt=caf\\udce9' is not UTF-8: convert it"),
        (["--infill=\udce9 {{3}}"], "is not UTF-8: convert it"),
        (["--out=/proc/none/x.jsonl"], "Cannot write /proc/none/x.jsonl (No such file"),
        (["--out=/"], "Cannot write / (it is a folder)"),
        (["--out=/dev/null/x"], "Cannot write /dev/null/x (Not a directory)"),
        (["--out=" + "x" * 300], "(File name too long)"),
        (["--levels=0"], "levels must be at least 1"),
        (["--rule=speculative", "--levels=2"], "speculative writes one in a single draft"),
        (["--step=77"], "There is no checkpoint"),
        (["--watch"], "--watch needs a terminal"),
    ],
)
def test_bad_input_is_one_sentence(folder, capsys, arguments, message):
    assert message in complaint(capsys, f"--workdir={folder}", *arguments)


def test_outputs_are_checked_before_the_model_is_opened(tmp_path, capsys):
    said = complaint(capsys, f"--workdir={tmp_path}/nothing", "--out=/proc/none/x.jsonl")
    assert said.startswith("error: Cannot write /proc/none/x.jsonl")


def test_folders_of_outputs_are_made(folder, tmp_path):
    out = tmp_path / "not" / "there.jsonl"
    assert generate.main([f"--workdir={folder}", f"--out={out}", "--rule=greedy"]) == 0
    assert len(requests.read(out, pretrained.load(folder).tokenizer).texts) == 1
    assert [place.name for place in out.parent.iterdir()] == ["there.jsonl"]


def test_texts_that_were_made_are_kept(folder, tmp_path, capsys, monkeypatch):
    whole = records(folder, tmp_path, "--num_samples=3", "--batch_size=1")
    (tmp_path / "out.jsonl").unlink()
    rounds = driver.rounds

    def interrupted(*arguments, **settings):
        for round_ in rounds(*arguments, **settings):
            if round_.done == 3:
                raise KeyboardInterrupt
            yield round_

    monkeypatch.setattr(driver, "rounds", interrupted)
    capsys.readouterr()
    command = [f"--workdir={folder}", f"--out={tmp_path}/out.jsonl", "--num_samples=3"]
    assert generate.main([*command, "--batch_size=1"]) == 130
    said = capsys.readouterr()
    assert said.out.count("--- text") == 2
    (part,) = tmp_path.iterdir()
    assert f"kept in {part}\ninterrupted; texts that were done are printed\n" in said.err
    kept = [json.loads(line) for line in part.read_text(encoding="utf-8").splitlines()]
    assert kept == whole[:2]


@pytest.mark.parametrize("out", [False, True])
def test_a_full_output_is_one_sentence_and_the_file_is_whole(
    folder, tmp_path, capsys, monkeypatch, out
):
    command = [f"--workdir={folder}", "--rule=greedy", *[f"--out={tmp_path}/o.jsonl"][:out]]
    with io.TextIOWrapper(open("/dev/full", "wb"), encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert generate.main(command) == 2
    said = [x for x in capsys.readouterr().err.splitlines() if not x.startswith(("step", "24 "))]
    assert said == ["error: Standard output cannot be written: No space left on device."]
    assert len(list(tmp_path.iterdir())) == out


def test_controls_of_a_text_are_escaped_on_terminals_and_pages(monkeypatch):
    text = "a\x1b]0;x\x07\x9b2J\r\u202eb\u2066\x7f\u200f\n\tγ\u200d"
    wanted = r"a\x1b]0;x\x07\x9b2J\r\u202eb\u2066\x7f\u200f" + "\n\tγ\u200d"
    assert terminal.shown(text) == text  # not a terminal
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert terminal.shown(text) == wanted
    frame = frames.Frame(
        cells=(text,), states=("active",), step=1, steps=1, nfe=1, corrections=0
    )  # fmt: skip
    assert player.changes(frame, None)[1] == [0, wanted]
    console = rich.console.Console(file=io.StringIO(), force_terminal=True, width=100)
    console.print(terminal.painted(frame))
    painted = console.file.getvalue()
    assert r"\x1b]0;x\x07\x9b2J\r\u202eb" in painted
    assert not {"\x07", "\x9b", "\r", "\u202e", "\u2066", "\x7f", "\u200f"} & set(painted)


def test_folders_that_cannot_serve(folder, tmp_path, capsys):
    assert "holds no run" in complaint(capsys, f"--workdir={tmp_path}/nothing")
    shutil.copytree(folder, tmp_path / "fresh")
    shutil.rmtree(tmp_path / "fresh" / "checkpoints")
    assert "holds no checkpoint yet" in complaint(capsys, f"--workdir={tmp_path}/fresh")
    shutil.rmtree(tmp_path / "fresh" / "tokenizer")
    assert "holds no tokenizer" in complaint(capsys, f"--workdir={tmp_path}/fresh")


def test_a_rule_for_another_noise_is_refused(folder, tmp_path, capsys):
    shutil.copytree(folder, tmp_path / "mdlm")
    path = tmp_path / "mdlm" / "config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values["noise"], values["sampling"] = {"kernel": "absorbing"}, {"rule": "ancestral"}
    del values["objective"]["shown_weight"]
    path.write_text(json.dumps(values), encoding="utf-8")
    error = complaint(capsys, f"--workdir={tmp_path}/mdlm", "--rule=acs")
    assert "never learnt to judge: choose rule remdm" in error


def test_an_experiment_whose_rule_does_not_go_with_its_noise_is_refused():
    values = dataclasses.asdict(Experiment(name="x", sampling=SamplingConfig(rule="acs")))
    with pytest.raises(UserError, match="never learnt to judge"):
        Experiment.from_config(values)


def test_the_averaged_parameters_are_used(folder):
    model = pretrained.load(folder)
    with pytest.raises(UserError, match="There is no checkpoint"):
        pretrained.load(folder, step=1)
    earlier = pretrained.load(folder, step=2)
    assert (earlier.step, model.step) == (2, 3)
    leaves = zip(jax.tree.leaves(earlier.params), jax.tree.leaves(model.params), strict=True)
    assert any(np.any(a != b) for a, b in leaves)


def test_watching_tells_tokens_apart():
    schedule = hyperschedule.slide(length=6, width=2, levels=2)
    sampler = types.SimpleNamespace(spec=types.SimpleNamespace(schedule=schedule))
    own = types.SimpleNamespace(
        sampler=sampler, model=types.SimpleNamespace(tokenizer=ByteTokenizer())
    )

    def round_(tokens, step, nfe):
        state = types.SimpleNamespace(
            tokens=np.array([tokens]), step=[step], nfe=[nfe], corrections=[nfe // 2],
            frozen=[np.arange(6) < 1], stop=[5],
        )  # fmt: skip
        return Round(numbers=np.zeros(1, int), step=np.array([step]), state=state, done=0)

    recorder = frames.Recorder(own)
    recorder.frame(round_([65, 67, 68, 258, 258, 258], 2, 2))
    frame = recorder.frame(round_([65, 67, 69, 258, 258, 258], 3, 3))
    # The last token is not wanted, and the frontier has not come to the one before.
    assert list(frame.runs()) == [
        ("given", "A"), ("settled", "C"), ("corrected", "E"), ("masked", "░"), ("worthless", "·"),
    ]  # fmt: skip
    console = rich.console.Console(
        file=io.StringIO(), force_terminal=True, color_system="standard", width=100
    )
    console.print(terminal.painted(frame))
    painted = console.file.getvalue()
    assert "\x1b[1mA\x1b[0m" in painted
    assert "\x1b[30;43mE\x1b[0m" in painted
    assert f"step 3/{schedule.steps}, NFE 3, corrections 1" in painted
    assert set(terminal.STYLES) == set(frames.STATES)


def test_watching_in_a_real_terminal(folder):
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "hybrid_jax.generate", f"--workdir={folder}"]
    command += ["--prompt=1 plus", "--watch=0", "--seed=3"]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
    with subprocess.Popen(
        command, stdout=theirs, stderr=subprocess.PIPE, cwd=REPOSITORY, env=environment
    ) as process:
        os.close(theirs)
        painted = b""
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # how Linux ends a terminal whose program has gone
                break
            if not piece:
                break
            painted += piece
        errors = process.stderr.read()
        assert process.wait() == 0, errors
    os.close(ours)
    text = painted.decode("utf-8")
    assert text.count("\x1b[1m1 plus\x1b[0m") > 10  # the given tokens, frame after frame
    assert "step 24/24" in text
    assert "░" in text


def test_settings_of_rules_are_told_once():
    """Flags, config and README from the fields of the rules."""
    lines = (REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    told = {cells[0].strip("`"): cells for cells in rows if len(cells) == 4}
    for name, named in rules.NAMED.items():
        flags = " ".join(f"--{setting}" for setting in settings_of(named.kind)
                         if setting not in named.fixed)  # fmt: skip
        assert (told[name][1], told[name][3].strip("`")) == (named.about, flags)
    actions = {action.dest: action for action in generate._parser()._actions}
    fields = {field.name for field in dataclasses.fields(SamplingConfig)}
    for name, known in rules.OPTIONS.items():
        assert actions[name].type is known.kind
        assert known.about in actions[name].help
        assert name in fields


def test_a_setting_of_a_new_rule_needs_its_field_alone(monkeypatch):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class New(rules.Threshold):
        depth: int = setting(int, 3, "how deep", "[1, 9]")

    monkeypatch.setitem(rules.NAMED, "new", rules.NamedRule(kind=New, about="new"))
    assert rules.make("new", depth=4) == New(depth=4)
    assert rules.NAMED["new"].settings.keys() == {"threshold", "depth", "temperature", "top_k",
                                                  "top_p", "window_entropy",
                                                  "window_least"}  # fmt: skip
    with pytest.raises(UserError, match="Rule acs has no depth: it belongs to new"):
        rules.make("acs", depth=4)
    with pytest.raises(UserError, match=r"depth must lie in \[1, 9\], but is 10"):
        check_ranges(New(depth=10))
