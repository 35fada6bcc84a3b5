"""Generated text scored from the command line: files, and sweeps over rules and tokens per NFE."""

import json

import numpy as np
import pytest
from gpt2_files import random_tensors, write
from tiny import LENGTH, TEXT

from hybrid_jax import evaluate, generate
from hybrid_jax.data.pipeline import evaluation_batches
from hybrid_jax.data.tokenizers import gpt2 as gpt2_tokenizer
from hybrid_jax.errors import UserError
from hybrid_jax.eval import pareto, perplexity
from hybrid_jax.eval.protocols import PROTOCOLS
from hybrid_jax.eval.quality_table import Row, as_markdown
from hybrid_jax.eval.scorers import base as scoring
from hybrid_jax.eval.scorers import load as scorers
from hybrid_jax.eval.scorers import run as run_scorer
from hybrid_jax.eval.statistics import Estimate, combined
from hybrid_jax.eval.text_quality import evaluate as scored
from hybrid_jax.generation import driver, requests
from hybrid_jax.sampling.settings import SamplingConfig
from hybrid_jax.training import pretrained
from hybrid_jax.training.likelihood import evaluate_bound

# ---------------------------------------------------------------------------------------------
# An autoregressive run as scorer.


def test_a_run_scores_by_its_own_likelihood(ar):
    """Against the bound of the same run, which is exact: another program, another layout."""
    model, scorer = pretrained.load(ar), run_scorer.load(ar)
    packed = perplexity.held_out(model, 5)
    front = np.full((5, 1), model.tokenizer.bos, np.int32)
    rows = np.concatenate([front, packed.tokens], axis=1)
    nats = scoring.score(scorer, rows, np.full(5, LENGTH + 1), batch_size=3).nats
    bound = model.experiment.bound(model.tokenizer.vocab_size)
    for row, record in zip(nats, packed.tokens, strict=True):
        one = perplexity.Packed(tokens=record[None], documents=1, dropped=0, bytes_per_token=1.0)
        wanted = evaluate_bound(
            model.spec, model.network, model.params, evaluation_batches(one, 1), bound,
            key=driver.keys_of(0, np.arange(1))[0], draws=1, bytes_per_token=1.0,
        )  # fmt: skip
        assert row.mean(dtype=np.float64) == pytest.approx(wanted.nll, rel=1e-5)


def test_windows_of_a_run_begin_with_the_beginning_of_sequence(ar):
    """The second half of a long text is read as a record of its own would be."""
    scorer = run_scorer.load(ar)
    tokens = scorer.tokenizer.encode(TEXT)[: LENGTH + LENGTH // 2]
    bos = scorer.tokenizer.bos
    whole = np.concatenate([[bos], tokens])[None].astype(np.int32)
    found = scoring.score(scorer, whole, np.array([whole.shape[1]])).nats[0]
    # The last window: LENGTH tokens behind what stands in front.
    last = np.concatenate([[bos], tokens[-LENGTH:]])[None].astype(np.int32)
    alone = scoring.score(scorer, last, np.array([LENGTH + 1])).nats[0]
    np.testing.assert_allclose(found[LENGTH:], alone[-(LENGTH // 2) :], rtol=1e-5)
    first = scoring.score(scorer, whole[:, : LENGTH + 1], np.array([LENGTH + 1])).nats[0]
    np.testing.assert_allclose(found[:LENGTH], first, rtol=1e-5)


def test_scorers_by_name(ar, epsilon, tmp_path, shared_data):
    scorer, tokenizer = scorers.load(f"run:{ar}")
    assert scorer.vocab_size == tokenizer.vocab_size == 258
    with pytest.raises(
        UserError, match=r"cannot score texts: it holds a run of block.*configs/ar\.py"
    ):
        scorers.load(f"run:{epsilon}")
    for name in ("gpt3:large", "run:", "gpt2", str(ar)):
        with pytest.raises(UserError, match="There is no scorer"):
            scorers.load(name)
    with pytest.raises(UserError, match="only learnt to read behind a beginning-of-sequence"):
        scored(scorer, tokenizer, ["ab"], PROTOCOLS["mdlm"])
    # The tokenizer's files lie beside the weights, under either pair of names.
    folder = write(tmp_path / "model", random_tensors())
    with pytest.raises(UserError, match=r"needs the files encoder.json and vocab.bpe"):
        scorers.load(f"gpt2:{folder}")
    (folder / "vocab.json").write_bytes((shared_data / "gpt2/encoder.json").read_bytes())
    with pytest.raises(UserError, match=r"needs the files vocab.json and merges.txt"):
        scorers.load(f"gpt2:{folder}")
    (folder / "merges.txt").write_bytes((shared_data / "gpt2/vocab.bpe").read_bytes())
    _, tokenizer = scorers.load(f"gpt2:{folder}")
    assert tokenizer.fingerprint == gpt2_tokenizer.load(shared_data / "gpt2").fingerprint


# ---------------------------------------------------------------------------------------------
# Files of texts.


def test_files_of_several_seeds_are_scored_in_one_table(ar, epsilon, tmp_path, capsys):
    files = []
    for seed in (0, 1):
        files.append(tmp_path / f"seed{seed}.jsonl")
        options = [f"--workdir={epsilon}", "--num_samples=6", f"--seed={seed}"]
        assert generate.main([*options, f"--out={files[-1]}"]) == 0
    capsys.readouterr()
    command = [f"--workdir={epsilon}", f"--texts={files[0]},{files[1]}", f"--scorer=run:{ar}"]
    assert evaluate.main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines[2:5]] == ["| seed0.jsonl", "| seed1.jsonl",
                                                             "| all"]  # fmt: skip
    assert "protocol standard-1" in lines[5]

    scorer, tokenizer = scorers.load(f"run:{ar}")
    model = pretrained.load(epsilon)
    stored = [
        json.loads((epsilon / f"evaluation/quality-seed{seed}.json").read_text()) for seed in (0, 1)
    ]
    for file, found in zip(files, stored, strict=True):
        made = requests.read(file)
        wanted = scored(scorer, tokenizer, made.tokens, PROTOCOLS["standard"],
                        tokenizer=model.tokenizer)  # fmt: skip
        assert found["perplexity"]["value"] == pytest.approx(wanted.perplexity.value, rel=1e-5)
        assert found["settings"]["seed"] == made.settings["seed"]
        assert found["mauve"]["reference"] == found["mauve"]["generated"] == 6
    mean = np.mean([found["perplexity"]["value"] for found in stored])
    assert f"| {mean:.2f} ± " in lines[4]


# ---------------------------------------------------------------------------------------------
# Sweeps.


def test_a_sweep_writes_table_and_picture_and_does_not_repeat_itself(ar, epsilon, tmp_path, capsys):
    command = [
        f"--workdir={epsilon}", "--pareto", f"--scorer=run:{ar}", "--count=6", "--batch_size=4",
        "--rho=4,1", "--rules=acs:eta=0,acs:eta=0.5", "--seeds=2",
    ]  # fmt: skip
    assert evaluate.main(command) == 0
    printed = capsys.readouterr().out
    folder = epsilon / "evaluation"
    assert (folder / "pareto.md").read_text() in printed
    assert (folder / "pareto.png").read_bytes().startswith(b"\x89PNG")
    rows = json.loads((folder / "pareto.json").read_text())
    assert [(row["label"], row["rho"]) for row in rows] == [
        ("held-out text", None), ("acs:eta=0", 4), ("acs:eta=0.5", 4), ("acs:eta=0", 1),
        ("acs:eta=0.5", 1),
    ]  # fmt: skip
    for row in rows[1:]:
        settings = [quality["settings"] for quality in row["qualities"]]
        assert [s["seed"] for s in settings] == [0, 1]
        assert all(s["nfe"] == LENGTH / row["rho"] for s in settings)
        # A model that is sure of its tokens draws the same ones again.
        corrects = row["label"] == "acs:eta=0.5" and row["rho"] == 1
        assert corrects or not any(s["corrections"] for s in settings)

    # A text is that of its seed and number, as `generate` makes it.
    made = requests.read(folder / "pareto" / "acs-eta-0.5-rho1-seed1.jsonl")
    assert len(made.texts) == 6
    alone = [
        f"--workdir={epsilon}", "--rule=acs", "--eta=0.5", "--num_samples=6", "--seed=1",
        "--batch_size=6",
    ]  # fmt: skip
    assert generate.main(alone) == 0
    assert made.texts[5] in capsys.readouterr().out

    # Again: texts are read, except where they are others than are asked for.
    times = {file: file.stat().st_mtime_ns for file in (folder / "pareto").iterdir()}
    changed = folder / "pareto" / "acs-eta-0-rho4-seed0.jsonl"
    changed.write_text("".join(changed.read_text().splitlines(keepends=True)[:5]))
    assert evaluate.main(command) == 0
    assert capsys.readouterr().out == printed
    after = {file: file.stat().st_mtime_ns for file in (folder / "pareto").iterdir()}
    assert {file for file in times if times[file] != after[file]} == {changed}


def test_rules_that_do_not_go_with_the_noise_are_left_out(ar, epsilon):
    model = pretrained.load(epsilon)
    assert pareto.tokens_per_nfe(model) == [4, 2, 1]
    fit, reasons = pareto.fitting(model, pareto.RULES)
    assert fit == list(pareto.RULES)
    assert not reasons
    fit, reasons = pareto.fitting(pretrained.load(ar), pareto.RULES)
    assert "acs:eta=0" in fit
    assert "acs:eta=0.5" not in fit
    assert any("choose rule remdm" in reason for reason in reasons)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pareto"], "need a scorer"),
        (["--texts=a.jsonl"], "need a scorer"),
        (["--scorer=run:{ar}"], "name them with --texts"),
        (["--scorer=run:{ar}", "--texts=,"], "names no file"),
        (["--scorer=run:{ar}", "--texts=nowhere"], "cannot be read"),
        (["--scorer=run:{ar}", "--texts=a", "--pareto"], "leave out --texts"),
        (["--scorer=run:{ar}", "--pareto", "--rho=3"], "rho=3 does not divide the window of 4"),
        (["--scorer=run:{ar}", "--pareto", "--rho=0"], "rho=0 does not divide"),
        (["--scorer=run:{ar}", "--pareto", "--rho=x"], "no list of numbers"),
        (["--scorer=run:{ar}", "--pareto", "--rules=best"], "There is no rule 'best'"),
        (["--scorer=run:{ar}", "--pareto", "--count=1"], "--count must be at least 2"),
        (["--scorer=run:{ar}", "--pareto", "--protocol=best"], "Unknown protocol"),
    ],
)
def test_mistakes_are_one_sentence(ar, epsilon, capsys, arguments, message):
    arguments = [argument.format(ar=ar) for argument in arguments]
    assert evaluate.main([f"--workdir={epsilon}", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert len(error.splitlines()) == 1


def test_an_autoregressive_run_has_one_token_per_nfe(ar, capsys):
    assert evaluate.main([f"--workdir={ar}", "--pareto", f"--scorer=run:{ar}"]) == 2
    assert "there is no ρ to choose" in capsys.readouterr().err


def test_a_rule_in_one_word():
    found = SamplingConfig.parse("acs:eta=1:guidance=confidence:sweeps=2:temperature=0.5")
    assert found == SamplingConfig(
        rule="acs", eta=1.0, guidance="confidence", sweeps=2, temperature=0.5
    )
    assert type(found.eta) is float
    for text, said in (
        ("acs:eta", "is not a number"),
        ("acs:sweeps=1.5", "is not a number"),
        ("acs:rate=1", "'rate' in 'acs:rate=1' is not a setting"),
        ("acs:count=1", "is not a setting"),
        ("remdm:threshold=1", "Rule remdm has no threshold"),
    ):
        with pytest.raises(UserError, match=said):
            SamplingConfig.parse(text)


def test_estimates_of_seeds_are_combined():
    parts = [Estimate(value=1.0, error=0.3, texts=4), Estimate(value=2.0, error=0.4, texts=6)]
    assert combined(parts) == Estimate(value=1.5, error=0.25, texts=10)


def test_text_that_was_not_generated_has_no_calls(ar):
    scorer, tokenizer = scorers.load(f"run:{ar}")
    quality = scored(scorer, tokenizer, ["one text", "and another"], PROTOCOLS["standard"])
    line = as_markdown([Row(label="held-out text", qualities=(quality,))]).splitlines()[2]
    assert line.startswith("| held-out text | – | – | ")
    assert line.endswith(" | – | – |")
