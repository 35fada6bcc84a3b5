"""Benchmarks by lm-eval's own command on trained runs, against scores and texts by hand."""

import json
import math
import re
import shutil
import sys

import pytest

import hybrid_jax as hj
from hybrid_jax import lm_eval as command

pytestmark = pytest.mark.filterwarnings("ignore")  # of lm-eval and what it imports

LENGTH = 16
TASK = """
task: tiny_{kind}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/docs.jsonl}}, cache_dir: {folder}/cache}}
test_split: test
output_type: {kind}
target_delimiter: ""
doc_to_text: "{{{{sum}}}}"
"""
KINDS = {
    "multiple_choice": """
doc_to_choice: "{{choices}}"
doc_to_target: 0
metric_list: [{metric: acc}]
""",
    "loglikelihood": """
doc_to_target: "{{choices[0]}}"
metric_list: [{metric: acc}]
""",
    "loglikelihood_rolling": """
doc_to_target: "{{sum}}{{choices[0]}}"
metric_list: [{metric: bits_per_byte}]
""",
    "generate_until": """
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["s", " 1"], max_gen_toks: 8}
metric_list: [{metric: exact_match}]
""",
}


@pytest.fixture(scope="module")
def harness():
    """The model that lm-eval knows."""
    pytest.importorskip(
        "lm_eval", reason="lm-eval is not installed: pip install 'hybrid_jax[lm-eval]'"
    )
    from hybrid_jax.eval import harness

    return harness


def asked(*arguments):
    """A request as lm-eval makes it."""
    from lm_eval.api.instance import Instance

    return Instance("loglikelihood", {}, arguments, 0, ("task", 0, 1))


@pytest.mark.parametrize(("run", "rule"), [("ar", None), ("epsilon", "ancestral:temperature=0.5")])
def test_the_command_gives_the_numbers_of_scores_and_texts(run, rule, harness, tmp_path, request):
    """Contexts end in a space, and are too long for the model or with what follows, too."""
    workdir = request.getfixturevalue(run)
    model = hj.load(workdir)
    greedy = model.generate("1 plus 1", length=11, rule="greedy")[0][8:]
    docs = [
        {"sum": "1 plus 1", "choices": [greedy, " makes 2", " makes 3"]},
        {"sum": "1234 plus 1234 ", "choices": ["makes", "x", ""]},
        {"sum": "99 plus 9", "choices": [" makes 108. That is all", "\n"]},
    ]
    for kind, rest in KINDS.items():
        text = TASK.format(kind=kind, folder=tmp_path) + rest
        (tmp_path / f"{kind}.yaml").write_text(text, encoding="utf-8")
    lines = "".join(json.dumps(doc) + "\n" for doc in docs)
    (tmp_path / "docs.jsonl").write_text(lines, encoding="utf-8")
    words = ["--model", "hybrid_jax", "--include_path", str(tmp_path), "--log_samples"]
    words += ["--model_args", f"workdir={workdir},draws=8,seed=3"]
    words[-1] += f",rule={rule}" if rule else ""
    words += ["--output_path", f"{tmp_path}/out", "--tasks", *(f"tiny_{kind}" for kind in KINDS)]
    assert command.main(words) == 0
    (results,) = (tmp_path / "out").rglob("results_*.json")
    written = json.loads(results.read_text(encoding="utf-8"))
    found = {}
    for kind in KINDS:
        (file,) = results.parent.glob(f"samples_tiny_{kind}_2*.jsonl")
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        found[kind] = [[resp[0] for resp in row["resps"]] for row in rows]

    def by_hand(context, text):
        kept = context.rstrip()
        text = context[len(kept) :] + text
        kept = kept[max(0, len(kept) + len(text) - LENGTH) :]
        (score,) = model.score([text], prompt=[kept], draws=8, seed=3)
        if len(kept + text) > LENGTH:
            return -score.nll, False
        whole = model.generate(kept, length=len(kept + text), rule="greedy:eos=stop")
        return -score.nll, whole[0] == kept + text

    best = 0
    for doc, answers, first in zip(
        docs, found["multiple_choice"], found["loglikelihood"], strict=True
    ):
        wanted = [by_hand(doc["sum"], choice) for choice in doc["choices"]]
        for (bound, is_greedy), answer in zip(wanted, answers, strict=True):
            assert float(answer[0]) == pytest.approx(bound, rel=1e-5)
            assert answer[1] == str(is_greedy)
        assert first == answers[:1]
        best += wanted[0] == max(wanted)
    assert found["loglikelihood"][0][0][1] == "True"
    assert written["results"]["tiny_multiple_choice"]["acc,none"] == pytest.approx(best / 3)
    texts = [doc["sum"] + doc["choices"][0] for doc in docs]
    nats = [score.nll for score in model.score(texts, draws=8, seed=3)]
    assert [float(row[0]) for row in found["loglikelihood_rolling"]] == pytest.approx(
        [-nll for nll in nats], rel=1e-5
    )
    assert written["results"]["tiny_loglikelihood_rolling"]["bits_per_byte,none"] == pytest.approx(
        sum(nats) / math.log(2) / sum(map(len, texts)), rel=1e-5
    )
    # Of 16 positions, 8 are for the answer.
    answers = model.generate(
        [doc["sum"][-8:] for doc in docs], rule=f"{rule or 'greedy'}:eos=stop", seed=3
    )
    wanted = [answer[8:].partition("s")[0].partition(" 1")[0] for answer in answers]
    assert [row[0] for row in found["generate_until"]] == wanted
    assert written["config"]["hybrid_jax"]["exact"] == (run == "ar")


def test_what_is_cut_is_said_once(harness, ar, caplog):
    from lm_eval.utils import warning_once

    warning_once.cache_clear()
    own, model = harness.Harness(workdir=ar, batch_size="auto", device="cuda:0"), hj.load(ar)
    pairs = [("9" * 15, "12"), ("γ" * 20, "123"), ("", "12"), ("8" * 40, ""), ("", "")]
    *some, without, nothing = own.loglikelihood([asked(*pair) for pair in pairs])
    assert without == nothing == (0.0, True)
    # Of a letter of two bytes, half would be left.
    wanted = model.score(["12", "123", "12"], prompt=["9" * 14, "γ" * 6, ""])
    assert [bound for bound, _ in some] == pytest.approx([-w.nll for w in wanted], rel=1e-5)
    own.generate_until([asked("9" * 40, {"max_gen_toks": 2, "top_p": 0.5, "until": None})])
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said == [
        "Contexts are cut on the left to the model's 16 tokens.",
        "The rule greedy answers, without the task's top_p.",
    ]


def test_noise_without_a_mask_has_scores_and_answers(harness, gamma, tmp_path):
    """But no greedy text, which is one of masks that are filled."""
    copy = shutil.copytree(gamma, tmp_path / "uniform")
    values = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    values["noise"] = {"kernel": "uniform"}
    (copy / "config.json").write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(hj.UserError, match="choose ancestral"):
        harness.Harness(workdir=copy)
    own = harness.Harness(workdir=copy, rule="ancestral", draws=2)
    ((bound, is_greedy),) = own.loglikelihood([asked("1 plus ", "1")])
    assert bound < 0
    assert not is_greedy


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(draws=8), "model_args.workdir is missing"),
        (dict(workdir="w", stpe=3), "model_args.stpe is not a setting: did you mean step?"),
        (dict(workdir="w", draws=1), "model_args.draws must be at least 2, but is 1"),
        (dict(workdir="w", step="last"), "model_args.step='last' is neither a number nor best"),
        (dict(workdir="w", seed="x"), "model_args.seed='x' should be of type int"),
        (dict(workdir="w", device="cpu"), "model_args.device is not a setting"),
        (dict(rule="best"), "There is no rule 'best'"),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(harness, ar, arguments, message):
    with pytest.raises(hj.UserError, match=re.escape(message)):
        harness.Harness(**({"workdir": ar, **arguments} if "rule" in arguments else arguments))


def test_the_command_says_a_mistake_in_one_sentence(harness, capsys):
    words = ["--model", "hybrid_jax", "--model_args", "workdir=/nowhere"]
    assert command.main([*words, "--tasks", "piqa"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert "/nowhere" in error


def test_tasks_that_cannot_be_done_are_refused(harness, ar):
    own = harness.Harness(workdir=ar)
    for settings, message in (
        ({"max_gen_toks": 16}, "answers of 16 tokens, but the model writes 16 in all"),
        ({"do_sample": True, "temperature": 0.7}, "The task asks for sampling: name the rule"),
    ):
        with pytest.raises(hj.UserError, match=message):
            own.generate_until([asked("1 plus 1", settings)])


def test_without_lm_eval_the_command_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval.__main__", None)
    assert command.main(["--model", "hybrid_jax"]) == 2
    assert capsys.readouterr().err == (
        "error: This needs lm_eval: install it with pip install 'hybrid_jax[lm-eval]'.\n"
    )
