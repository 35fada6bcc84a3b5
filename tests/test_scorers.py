"""Generated text scored from the command line: files, and sweeps over rules and tokens per NFE."""

import dataclasses
import itertools
import json
import math
import types

import numpy as np
import pytest
import tiny
from published import random_tensors, write
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
from hybrid_jax.eval.statistics import Estimate, combined
from hybrid_jax.eval.text_quality import evaluate as scored
from hybrid_jax.figures import pareto as pareto_plot
from hybrid_jax.generation import driver, requests
from hybrid_jax.sampling.settings import SamplingConfig
from hybrid_jax.training import pretrained
from hybrid_jax.training.likelihood import evaluate_bound

pytestmark = pytest.mark.slow

# ---------------------------------------------------------------------------------------------
# An autoregressive run as scorer.


def test_a_run_scores_by_its_own_likelihood(ar):
    """Against the bound of the same run, which is exact: another program, another layout."""
    model, (scorer, _) = pretrained.load(ar), scorers.load(f"run:{ar}")
    packed = perplexity.held_out(model, 5)
    front = np.full((5, 1), model.tokenizer.bos, np.int32)
    rows = np.concatenate([front, packed.tokens], axis=1)
    nats = scoring.score(scorer, rows, batch_size=3).nats
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
    scorer, tokenizer = scorers.load(f"run:{ar}")
    tokens = tokenizer.encode(TEXT)[: LENGTH + LENGTH // 2]
    bos = tokenizer.bos
    whole = np.concatenate([[bos], tokens]).astype(np.int32)
    found = scoring.score(scorer, [whole]).nats[0]
    # The last window: LENGTH tokens behind what stands in front.
    last = np.concatenate([[bos], tokens[-LENGTH:]]).astype(np.int32)
    alone = scoring.score(scorer, [last]).nats[0]
    np.testing.assert_allclose(found[LENGTH:], alone[-(LENGTH // 2) :], rtol=1e-5)
    first = scoring.score(scorer, [whole[: LENGTH + 1]]).nats[0]
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
    files = [
        made_by(epsilon, tmp_path / f"seed{seed}.jsonl", "--num_samples=4", f"--seed={seed}")
        for seed in (0, 1)
    ]
    capsys.readouterr()
    command = [f"--workdir={epsilon}", f"--texts={files[0]},{files[1]}", f"--scorer=run:{ar}"]
    assert evaluate.main(command) == 0
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert [line.split(" | ")[0] for line in lines[2:5]] == ["| seed0.jsonl", "| seed1.jsonl",
                                                             "| all"]  # fmt: skip
    assert "protocol standard-1" in lines[5]

    scorer, tokenizer = scorers.load(f"run:{ar}")
    model = pretrained.load(epsilon)
    stored = tiny.stored(printed)
    for file, found in zip(files, stored, strict=True):
        made = requests.read(file, model.tokenizer)
        wanted = scored(scorer, tokenizer, made.tokens, PROTOCOLS["standard"],
                        tokenizer=model.tokenizer)  # fmt: skip
        assert found["perplexity"]["value"] == pytest.approx(wanted.perplexity.value, rel=1e-5)
        assert found["settings"]["seed"] == made.settings["seed"]
        assert found["mauve"]["reference"] == found["mauve"]["generated"] == 4
    mean = np.mean([found["perplexity"]["value"] for found in stored])
    assert f"| {mean:.2f} ± " in lines[4]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A run with another tokenizer than the other tiny runs."""
    place = tmp_path_factory.mktemp("words")
    text = "".join(f"{n} plus {n} makes {2 * n}: Größe γ, naïve ε.\n" for n in range(2000))
    (place / "text.txt").write_text(text, encoding="utf-8")
    return tiny.run(place, place / "text.txt", tokenizer="sentencepiece", **tiny.RUNS["gamma"])


def made_by(workdir, file, *flags):
    file.parent.mkdir(exist_ok=True)
    flags = flags or ("--num_samples=2",)
    assert generate.main([f"--workdir={workdir}", f"--out={file}", *flags]) == 0
    return file


def test_files_of_one_name_are_told_apart_and_only_seeds_are_pooled(
    ar, epsilon, gamma, tmp_path, capsys
):
    files = [
        made_by(run, tmp_path / name / "seed0.jsonl")
        for name, run in (("a", gamma), ("b", epsilon))
    ]
    capsys.readouterr()
    command = [f"--workdir={epsilon}", f"--scorer=run:{ar}"]
    assert evaluate.main([*command, f"--texts={files[0]},{files[1]}"]) == 0
    printed, said = capsys.readouterr()
    found = tiny.stored(printed)
    assert [quality["settings"]["workdir"] for quality in found] == [str(gamma), str(epsilon)]
    assert [line.split(" | ")[0] for line in printed.splitlines()[2:-1]] == [
        "| a/seed0.jsonl", "| b/seed0.jsonl"
    ]  # fmt: skip
    assert "no line for all" in said
    (tmp_path / "link.jsonl").symlink_to(files[0])
    for twice in (files[0], tmp_path / "link.jsonl", tmp_path / "a" / ".." / "a" / "seed0.jsonl"):
        assert evaluate.main([*command, f"--texts={files[0]},{twice}"]) == 2
        assert "seed0.jsonl 2 times: leave out all but one" in capsys.readouterr().err


def test_a_measurement_never_takes_the_file_of_another(ar, epsilon, tmp_path, capsys):
    """And the same one takes the same file."""
    file = made_by(epsilon, tmp_path / "x.jsonl")
    texts, sweep = f"--texts={file}", ("--pareto", "--count=2", "--rho=4")
    scorer = f"--scorer=run:{ar}"
    other = tmp_path / "b.txt"
    other.write_text(TEXT[::-1], encoding="utf-8")
    asked = [
        ("--records=4",), ("--records=4", "--draws=2"), ("--records=4", "--seed=1"),
        ("--records=5",), ("--records=4", "--batch_size=2"),
        (f"--datasets=valid=files:{other}", "--records=4"),
        (texts, scorer), (texts, scorer, f"--reference=valid=files:{other}"),
        (*sweep, scorer, "--rules=acs:temperature=1e-1"),
        (*sweep, scorer, "--rules=acs:temperature=1e+1"),
        (*sweep, scorer, "--rules=acs:temperature=1e+1", "--seeds=2"),
    ]  # fmt: skip

    def stored(flags):
        capsys.readouterr()
        assert evaluate.main([f"--workdir={epsilon}", *flags]) == 0
        names = capsys.readouterr().out.splitlines()[-1].rpartition(": ")[2]
        return set(names.split(", "))

    files = [stored(flags) for flags in asked]
    assert len(set().union(*files)) == sum(map(len, files))
    assert stored(asked[0]) == files[0]
    assert stored(asked[6]) == files[6]
    kept = {path.name for path in (epsilon / "evaluation" / "pareto").glob("acs-temperature*")}
    assert len(kept) == 3  # the last sweep has one seed of the one before


def test_one_text_has_all_numbers_but_mauve(ar, epsilon, tmp_path, capsys):
    more = made_by(epsilon, tmp_path / "more.jsonl", "--num_samples=4")
    file = tmp_path / "one.jsonl"
    file.write_text(more.read_text(encoding="utf-8").splitlines()[0] + "\n", encoding="utf-8")
    capsys.readouterr()
    command = [f"--workdir={epsilon}", f"--texts={file}", f"--scorer=run:{ar}"]
    assert evaluate.main(command) == 0
    (found,) = tiny.stored(capsys.readouterr().out)
    scorer, tokenizer = scorers.load(f"run:{ar}")
    made = requests.read(file, tokenizer)
    row = np.concatenate([[tokenizer.bos], made.tokens[0]]).astype(np.int32)
    nats = scoring.score(scorer, [row]).nats[0]
    assert found["nats"] == {"value": pytest.approx(nats.mean(), rel=1e-5), "error": None,
                             "texts": 1}  # fmt: skip
    assert found["mauve"] is None
    assert evaluate.main([*command, "--reference=valid"]) == 2
    assert "--reference is for MAUVE, which one text does not have" in capsys.readouterr().err
    # Beside a file of several texts, and with few human ones, which are all read.
    few = tmp_path / "few.txt"
    few.write_text(TEXT[: 3 * LENGTH], encoding="utf-8")
    command = [f"--workdir={epsilon}", f"--texts={file},{more}", f"--scorer=run:{ar}"]
    assert evaluate.main([*command, f"--reference=few=files:{few}"]) == 0
    alone, several = tiny.stored(capsys.readouterr().out)
    assert alone["mauve"] is None
    assert several["mauve"]["reference"] == 3
    few.write_text(TEXT[:LENGTH], encoding="utf-8")
    assert evaluate.main([*command, f"--reference=few=files:{few}"]) == 2
    assert "few has 1 records of text, too few to compare with" in capsys.readouterr().err


def test_texts_of_another_tokenizer_are_refused(ar, epsilon, gamma, words, tmp_path, capsys):
    file, own = made_by(words, tmp_path / "words.jsonl"), made_by(gamma, tmp_path / "own.jsonl")

    def said(*flags):
        capsys.readouterr()
        status = evaluate.main([*flags, f"--scorer=run:{ar}"])
        return status, capsys.readouterr().err

    def without_fingerprint(file):
        """As earlier versions wrote them."""
        values = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        old = file.with_name(f"old-{file.name}")
        lines = [json.dumps({k: v for k, v in one.items() if k != "tokenizer"}) for one in values]
        old.write_text("\n".join(lines), encoding="utf-8")
        return old

    for texts in (file, without_fingerprint(file)):
        status, message = said(f"--workdir={epsilon}", f"--texts={texts}")
        assert (status, message.count("\n")) == (2, 1)
        assert f"{texts} are of another tokenizer than that of --workdir" in message
        assert f"the run that wrote them, {words}." in message
        assert said(f"--workdir={words}", f"--texts={texts}")[0] == 0
    # Tokens of bytes are no pieces of words; another run's texts of the same tokenizer are fine.
    assert said(f"--workdir={words}", f"--texts={own}")[0] == 2
    assert said(f"--workdir={words}", f"--texts={without_fingerprint(own)}")[0] == 2
    assert said(f"--workdir={epsilon}", f"--texts={own}")[0] == 0
    assert said(f"--workdir={epsilon}", f"--texts={without_fingerprint(own)}")[0] == 0
    # Files of other programs hold no tokens.
    own.write_text('{"text": "some text"}\n', encoding="utf-8")
    assert "score texts of other programs in Python" in said(
        f"--workdir={epsilon}", f"--texts={own}"
    )[1]  # fmt: skip


# ---------------------------------------------------------------------------------------------
# Sweeps.


def test_a_sweep_writes_table_and_picture_and_does_not_repeat_itself(ar, epsilon, tmp_path, capsys):
    corrects = "acs:eta=1:temperature=3"  # hot, so that tokens drawn again are others
    command = [
        f"--workdir={epsilon}", "--pareto", f"--scorer=run:{ar}", "--count=6", "--batch_size=6",
        "--rho=4,1", f"--rules=acs:eta=0,{corrects}", "--seeds=2",
    ]  # fmt: skip
    assert evaluate.main(command) == 0
    printed = capsys.readouterr().out
    (rows,) = tiny.stored(printed)
    folder = epsilon / "evaluation"
    table, picture = (folder / name for name in printed.rstrip().split(", ")[-2:])
    assert table.read_text() in printed
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert [(row["label"], row["rho"]) for row in rows] == [
        ("held-out text", None), ("acs:eta=0", 4), (corrects, 4), ("acs:eta=0", 1), (corrects, 1),
    ]  # fmt: skip
    for row in rows[1:]:
        settings = [quality["settings"] for quality in row["qualities"]]
        assert [s["seed"] for s in settings] == [0, 1]
        assert all(s["nfe"] == LENGTH / row["rho"] for s in settings)
        wanted = (row["label"], row["rho"]) == (corrects, 1)
        assert any(s["corrections"] > 0 for s in settings) is wanted

    # A text is that of its seed and number, as `generate` makes it.
    (file,) = (folder / "pareto").glob("acs-eta-1-temperature-3-rho1-seed1-*.jsonl")
    made = requests.read(file, pretrained.load(epsilon).tokenizer)
    assert len(made.texts) == 6
    alone = [
        f"--workdir={epsilon}", "--rule=acs", "--eta=1", "--temperature=3", "--num_samples=6",
        "--seed=1", "--batch_size=6",
    ]  # fmt: skip
    assert generate.main(alone) == 0
    assert made.texts[5] in capsys.readouterr().out

    # Again: texts are read, except for those that are not there.
    times = {file: file.stat().st_mtime_ns for file in (folder / "pareto").iterdir()}
    file.unlink()
    assert evaluate.main(command) == 0
    assert capsys.readouterr().out == printed
    after = {file: file.stat().st_mtime_ns for file in (folder / "pareto").iterdir()}
    assert {file for file in times if times[file] != after[file]} == {file}


def point(entropy, perplexity, errors=(0.0, 0.0)):
    return tuple(
        Estimate(value=value, error=error, texts=4)
        for value, error in zip((entropy, perplexity), errors, strict=True)
    )


def test_perplexity_is_interpolated_at_an_entropy():
    """Logarithms are linear, so halfway between 10 and 40 is 20; nothing is extrapolated."""
    known = [point(3.0, 40.0), point(1.0, 8.0), point(2.0, 10.0), point(2.6, 900.0)]
    for points in itertools.permutations(known):
        for entropy, value in ((1.0, 8.0), (1.5, 80.0**0.5), (2.0, 10.0), (2.3, 9000.0**0.5),
                               (2.7, 900.0 * (40 / 900) ** 0.25), (3.0, 40.0)):  # fmt: skip
            assert pareto.at_entropy(points, entropy).value == pytest.approx(value)
        for entropy in (0.99, 3.01):
            assert math.isnan(pareto.at_entropy(points, entropy).value)
    assert math.isnan(pareto.at_entropy(known[:1], 3.0).value)


def test_the_error_at_an_entropy_is_the_spread_over_repetitions():
    draw, errors = np.random.default_rng(0), ((0.02, 0.3), (0.03, 1.0))
    true = [point(2.0, 10.0, errors[0]), point(3.0, 40.0, errors[1])]
    for entropy in (2.2, 2.7):
        again = [
            pareto.at_entropy([point(*draw.normal([e.value for e in one], error))
                               for one, error in zip(true, errors, strict=True)], entropy).value
            for _ in range(4000)
        ]  # fmt: skip
        found = pareto.at_entropy(true, entropy)
        assert found.error == pytest.approx(np.std(again), rel=0.06)
        assert found.texts == 8


def test_the_table_compares_rules_at_the_entropy_of_held_out_text(tmp_path):
    def row(label, rho, entropy, perplexity):
        entropy, perplexity = point(entropy, perplexity)
        quality = types.SimpleNamespace(
            entropy=entropy, perplexity=perplexity, repetition={4: entropy}, mauve=None,
            settings={} if rho is None else {"nfe": 16 / rho, "corrections": 0},
        )  # fmt: skip
        return Row(label=label, rho=rho, qualities=(quality,))

    rows = [
        row("held-out text", None, 2.5, 15.0), row("acs:temperature=1:eta=1", 4.0, 3.0, 40.0),
        row("acs:temperature=0.8:eta=1", 4.0, 2.0, 10.0), row("acs:temperature=1", 4.0, 2.4, 9.0),
        row("acs:eta=1", 2.0, 2.9, 7.0), row("acs:eta=1:temperature=2", 2.0, 3.1, 7.0),
    ]  # fmt: skip
    head, _, *lines = as_markdown(pareto.matched(rows)).splitlines()
    number = head.split(" | ").index("perplexity at held-out entropy")
    cells = [line.split(" | ")[number] for line in lines]
    assert cells == ["–", "20.00 ± 0.00", "20.00 ± 0.00", "–", "not reached", "not reached"]
    assert len(pareto_plot.draw(pareto.matched(rows), title="swept")) > 10_000
    one_each = pareto.matched([rows[0], *rows[3:5]])  # nothing to interpolate
    assert "held-out entropy" not in as_markdown(one_each)


def test_temperatures_are_those_of_each_rule(ar, epsilon, capsys):
    assert evaluate.main([
        f"--workdir={epsilon}", "--pareto", f"--scorer=run:{ar}", "--count=2", "--batch_size=2",
        "--rho=4", "--rules=psi", "--temperatures=0,9",
    ]) == 0  # fmt: skip
    printed = capsys.readouterr().out
    (rows,) = tiny.stored(printed)
    samplings = [row["qualities"][0]["settings"]["sampling"] for row in rows[1:]]
    assert [(s["rule"], s["temperature"]) for s in samplings] == [("psi", 0), ("psi", 9)]
    assert [row["label"] for row in rows[1:]] == ["psi:temperature=0", "psi:temperature=9"]
    text, cold, hot = (row["qualities"][0]["entropy"]["value"] for row in rows)
    assert cold < hot < text  # so texts are less diverse at both, which also has a picture
    assert printed.count(" | not reached | ") == 2


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


def test_texts_of_a_sweep_end_as_the_texts_of_the_run(epsilon):
    model = pretrained.load(epsilon)
    sampling = dataclasses.replace(model.experiment.sampling, eos="stop")
    stops = dataclasses.replace(model.experiment, sampling=sampling)
    for experiment, eos in ((model.experiment, None), (stops, model.tokenizer.eos)):
        own = dataclasses.replace(model, experiment=experiment)
        (found,) = pareto.grid(own, ["acs:eta=0"], [4.0])
        assert found.generator.sampler.eos == eos


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pareto"], "need a scorer"),
        (["--texts=a.jsonl"], "need a scorer"),
        (["--scorer=run:{ar}"], "or choose --texts or --pareto"),
        (["--scorer=run:{ar}", "--texts=,"], "names no file"),
        (["--scorer=run:{ar}", "--texts=nowhere"], "cannot be read"),
        (["--scorer=run:{ar}", "--texts=a", "--pareto"], "--texts has no effect with --pareto"),
        (["--scorer=run:{ar}", "--pareto", "--rho=3"], "rho=3 does not divide the window of 4"),
        (["--scorer=run:{ar}", "--pareto", "--rho=0"], "rho=0 does not divide"),
        (["--scorer=run:{ar}", "--pareto", "--rho=1e-320"], "does not divide the window"),
        (["--scorer=run:{ar}", "--pareto", "--rho=x"], "no list of numbers"),
        (["--scorer=run:{ar}", "--pareto", "--rho=,"], "--rho names no number: for example"),
        (["--scorer=run:{ar}", "--pareto", "--rules="], "--rules names no rule: for example"),
        (["--scorer=run:{ar}", "--pareto", "--rules=best"], "There is no rule 'best'"),
        (["--scorer=run:{ar}", "--pareto", "--temperatures=1"], "compares two or more"),
        (["--scorer=run:{ar}", "--pareto", "--temperatures=1,1.0"], "names 1.0 2 times"),
        (["--scorer=run:{ar}", "--pareto", "--temperatures=1,x"], "--temperatures=1,x is no list"),
        (
            ["--scorer=run:{ar}", "--pareto", "--temperatures=1,2", "--rules=acs:temperature=1"],
            "gives temperature twice: leave one out",
        ),
        (["--scorer=run:{ar}", "--pareto", "--rules=acs,acs"], "--rules names acs 2 times"),
        (["--scorer=run:{ar}", "--pareto", "--rho=4,4.0"], "--rho names 4.0 2 times"),
        (
            ["--scorer=run:{ar}", "--pareto", "--count=1"],
            "--count: '1' is not a whole number in 2 …",
        ),
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
        ("acs:sweeps=1.5", "is not a whole number"),
        ("acs:rate=1", "'rate' in 'acs:rate=1' is not a setting"),
        ("acs:count=1", "is not a setting"),
        ("remdm:threshold=1", "Rule remdm has no threshold"),
        ("acs:eta=1:eta=0", "gives eta twice: leave one out"),
        ("acs:eos=stop:eos=stop", "gives eos twice"),
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
