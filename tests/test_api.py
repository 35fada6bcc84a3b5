"""The public interface: what README shows, without cost until it is used."""

import doctest
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import hybrid_jax as hj
from hybrid_jax import evaluate, generate
from hybrid_jax import score as score_command
from hybrid_jax.api import model as api
from hybrid_jax.config import TrainConfig
from hybrid_jax.eval.score import score
from hybrid_jax.generation import requests
from hybrid_jax.method import hyperschedule

pytestmark = pytest.mark.slow

AR_TEXT = "12 plus 12 makes 24."


def test_importing_the_package_imports_nothing_else():
    code = "import hybrid_jax, sys; print(sorted({m.partition('.')[0] for m in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert "hybrid_jax" in loaded
    for package in ("jax'", "numpy", "flax", "optax", "orbax"):
        assert f"'{package.rstrip(chr(39))}'" not in loaded


def test_every_public_name_is_there():
    assert set(dir(hj)) == set(hj.__all__)
    assert all(getattr(hj, name) is not None for name in hj.__all__)
    stub = Path(hj.__file__).with_suffix(".pyi").read_text(encoding="utf-8")
    assert set(re.findall(r"as (\w+)$|^(\w+): ", stub, re.M)) >= {(name, "") for name in hj._HOMES}
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        hj.nothing  # noqa: B018


def test_the_examples_of_the_docstrings_run(epsilon):
    found = doctest.testmod(api, extraglobs={"workdir": epsilon, "model": hj.load(epsilon)})
    assert found.attempted >= 7
    assert not found.failed


def test_generate_gives_the_texts_of_the_command(epsilon, tmp_path):
    out = tmp_path / "texts.jsonl"
    command = [f"--workdir={epsilon}", "--prompt=1 plus", "--prompt=2", "--seed=3", "--length=14"]
    assert generate.main([*command, "--rule=acs", "--eta=0.25", f"--out={out}"]) == 0
    model = hj.load(epsilon)
    for rule in ("acs:eta=0.25", hj.rules.ACS(eta=0.25)):
        texts = model.generate(["1 plus", "2"], length=14, rule=rule, seed=3, batch_size=1)
        assert tuple(texts) == requests.read(out, model.tokenizer).texts
    ended = model.generate("", rule="ancestral:eos=stop", seed=1)
    command = [f"--workdir={epsilon}", "--rule=ancestral", "--eos=stop", "--seed=1"]
    assert generate.main([*command, f"--out={out}"]) == 0
    assert tuple(ended) == requests.read(out, model.tokenizer).texts
    with pytest.raises(hj.UserError, match="There is no rule 'best'"):
        model.generate("", rule="best")
    with pytest.raises(hj.UserError, match="does not fit a text of 3"):
        model.generate("1 plus 1", length=3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(seed=2**32), "seed must be a whole number in 0 … 4294967295, but is 4294967296"),
        (dict(seed=-1), "seed must be a whole number in 0"),
        (dict(seed=1.5), "but is 1.5"),
        (dict(seed="3"), "but is '3'"),
        (dict(batch_size=0), "batch_size must be at least 1"),
        (dict(batch_size=2.5), "batch_size must be a whole number, but is 2.5"),
        (dict(length=2.5), "a whole number of tokens, and not 2.5"),
        (dict(prompts=b"12"), "The prompt must be a str, but is a int"),
        (dict(prompts=["1", None]), "The prompt must be a str, but is a NoneType"),
        (dict(prompts="caf\udce9"), "The prompt is not UTF-8"),
        (dict(rule="acs:top_k=99999999999"), "top_k must be at most 2147483647"),
        (dict(rule="acs:eta=0:guidance=confidence"), "guidance is of corrections"),
        (dict(rule=hj.rules.ACS), "rule must be an update rule such as rules.ACS(eta=0.25)"),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(epsilon, arguments, message):
    with pytest.raises(hj.UserError, match=re.escape(message)):
        hj.load(epsilon).generate(**arguments)


def test_seeds_are_whole_numbers_of_32_bits_everywhere(epsilon):
    model = hj.load(epsilon)
    highest = model.generate("", seed=2**32 - 1)
    assert highest == model.generate("", seed=np.uint32(2**32 - 1)) != model.generate("", seed=0)
    for seed in (-1, 2**32, 2**64):
        for call in (
            lambda seed=seed: model.score("a text", seed=seed),
            lambda seed=seed: model.perplexity("valid", records=2, seed=seed),
            lambda seed=seed: TrainConfig(seed=seed),
        ):
            with pytest.raises(hj.UserError, match="seed must be a whole number in 0"):
                call()
    assert evaluate.main([f"--workdir={epsilon}", f"--seed={2**32 - 1}", "--seeds=2"]) == 2
    with pytest.raises(hj.UserError, match="Text 1 is not UTF-8"):
        model.score(["a", "\ud800"])


def test_the_score_of_an_autoregressive_model_is_the_likelihood(ar):
    """Against a cross-entropy written down here, for texts below and above the model's length."""
    model = hj.load(ar)
    spec, length = model.spec, model.spec.schedule.length

    def nats(ids):
        """Row i holds token i − 1 and predicts token i."""
        held = jnp.array([spec.bos, *ids[:-1]], jnp.int32)[None]
        position = jnp.arange(-1, len(ids) - 1)[None]
        mask = jnp.tril(jnp.ones((1, len(ids), len(ids)), bool))
        features = jax.jit(model.network.features)(
            model.params, held, position, mask, jnp.zeros(held.shape, jnp.float32)
        )
        logits = model.network.logits(model.params, features)[0, :, : model.network.vocab_size]
        return -float(jnp.sum(jax.nn.log_softmax(logits)[np.arange(len(ids)), np.array(ids)]))

    for text in (AR_TEXT[:5], AR_TEXT[:length], AR_TEXT * 3):
        ids = model.tokenizer.encode(text)
        wanted = sum(nats(ids[i : i + length].tolist()) for i in range(0, len(ids), length))
        (found,) = model.score(text)
        assert found.nll == pytest.approx(wanted, rel=1e-5)
        assert (found.exact, found.nll_se, found.tokens) == (True, 0.0, len(ids))
        assert found.bits_per_byte == pytest.approx(wanted / math.log(2) / len(text.encode()))


def test_the_score_of_a_text_is_a_mean_of_draws_with_its_error(epsilon):
    """Many draws of one text against many scores of few draws."""
    model = hj.load(epsilon)
    text = AR_TEXT[:9]
    (many,) = model.score(text, draws=512)
    few = [model.score(text, draws=4, seed=seed)[0] for seed in range(1, 60)]
    error = np.std([each.nll for each in few]) / np.sqrt(len(few))
    assert np.mean([each.nll for each in few]) == pytest.approx(many.nll, abs=4 * error)
    # Draws are stratified, so the error is not too small.
    assert np.var([each.nll for each in few]) < 1.5 * np.mean([each.nll_se**2 for each in few])
    assert model.score([text, "x"], draws=4)[0] == model.score(text, draws=4)[0]
    with pytest.raises(hj.UserError, match="Text 1 is empty"):
        model.score(["a", ""])
    with pytest.raises(hj.UserError, match="at least 2 draws"):
        score(model, ["a"], draws=1)


def test_a_score_behind_a_prompt_is_that_of_the_rest(ar, epsilon):
    """log p(rest | prompt) = log p(prompt, rest) − log p(prompt) for autoregression. All ways to go
    on by a letter have together at most 1, within the error of bounds."""
    model = hj.load(ar)
    prompt, rest = AR_TEXT[:7], AR_TEXT[7:12]
    whole, alone = model.score([prompt + rest, prompt])
    (behind,) = model.score(rest, prompt=prompt)
    assert behind.nll == pytest.approx(whole.nll - alone.nll, rel=1e-5)
    assert (behind.tokens, behind.bytes) == (5, 5)
    for run in (ar, epsilon):
        letters = [chr(i) for i in range(128)]
        scores = hj.load(run).score(letters, prompt="1 plu", draws=256)
        total = sum(math.exp(-score.nll) for score in scores)
        error = max(score.nll_se for score in scores)
        assert 0.5 < total <= math.exp(4 * error) + 1e-5


def test_a_score_does_not_depend_on_what_is_scored_beside_it(epsilon):
    model = hj.load(epsilon)
    texts = ["makes 2", "m", "makes 24.\n", "plus 1 plus"]
    together = model.score(texts, prompt="1 plu", draws=8)
    for order in ([3, 1, 0, 2], [1], [2, 0]):
        again = model.score([texts[i] for i in order], prompt=["1 plu"] * len(order), draws=8)
        for number, found in zip(order, again, strict=True):
            np.testing.assert_allclose(found.draws, together[number].draws, rtol=1e-4)
    with pytest.raises(hj.UserError, match="Text 1 has 9 tokens behind a prompt of 8, but the mod"):
        model.score(["a", "b" * 9], prompt="12345678")
    with pytest.raises(hj.UserError, match="There are 1 prompts for 2 texts"):
        model.score(["a", "b"], prompt=["x"])


def test_draws_are_shared_so_that_differences_are_known_better_than_values(epsilon):
    from hybrid_jax.eval.score import chance_of_noise

    model = hj.load(epsilon)
    one, two = model.score(["makes 24", "makes 25"], prompt="12 plus ", draws=256)
    apart = math.hypot(one.nll_se, two.nll_se)
    together = np.std(np.subtract(one.draws, two.draws), ddof=1) / 16
    assert together < 0.8 * apart
    better, worse = sorted((one, two), key=lambda score: score.nll)
    assert 0 <= chance_of_noise(better, worse) <= 0.5
    assert chance_of_noise(one, one) == 0.5


def test_the_command_ranks_choices_and_writes_scores(epsilon, ar, tmp_path, capsys):
    out = tmp_path / "scores.jsonl"
    command = [f"--workdir={epsilon}", "--prompt=12 plu", "--draws=32", f"--out={out}"]
    assert score_command.main([*command, "--choice=q", "--choice=s 1", "--choice=s"]) == 0
    said = capsys.readouterr().out.splitlines()
    wanted = hj.load(epsilon).score(["q", "s 1", "s"], prompt="12 plu", draws=32)
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row["text"] for row in rows] == ["q", "s 1", "s"]
    np.testing.assert_allclose([row["nll"] for row in rows], [w.nll for w in wanted], rtol=1e-6)
    ranked = sorted(range(3), key=lambda i: wanted[i].nll)
    assert [line.rpartition("  ")[2] for line in said[2:]] == [["q", "s 1", "s"][i] for i in ranked]
    (tmp_path / "texts.txt").write_text("12 plus\n1", encoding="utf-8")
    assert score_command.main([f"--workdir={ar}", f"--texts={tmp_path}/texts.txt"]) == 0
    assert "±" not in capsys.readouterr().out  # likelihoods
    for flags, message in {
        (): "Say what to score",
        ("--choice=a",): "There is one --choice",
        ("--choice=a", "--choice="): "Text 1 is empty",
        ("--choice=a", "--choice=b", "--texts=x"): "--texts has no effect with --choice",
        ("--choice=a", "--choice=b", f"--prompt={'x' * 16}"): "behind a prompt of 16",
        ("--texts=/nowhere",): "/nowhere cannot be read",
    }.items():
        assert score_command.main([f"--workdir={ar}", *flags]) == 2
        said = capsys.readouterr()
        assert message in said.err
        assert (said.err.count("\n"), said.out) == (1, "")


@pytest.mark.parametrize(
    "schedule",
    [
        hyperschedule.quenched_ar(length=7),
        hyperschedule.block(length=7, width=3, levels=2),
        hyperschedule.slide(length=7, width=3, levels=6),
        hyperschedule.flat(length=7, levels=4),
        hyperschedule.custom([[3] * 7, [1] * 4 + [3] * 3, [0] * 4 + [2] * 3, [0] * 7]),
    ],
    ids=lambda schedule: schedule.name,
)
@pytest.mark.parametrize("length", [1, 4, 7])
def test_the_beginning_of_a_hyperschedule_has_its_levels(schedule, length):
    short = hyperschedule.beginning(schedule, length)
    whole = np.asarray(hyperschedule.table(schedule))[:, :length]
    table = np.asarray(hyperschedule.table(short))
    np.testing.assert_array_equal(table, whole[: len(table)])
    assert not whole[len(table) - 1 :].any()


def test_perplexity_is_that_of_the_command(epsilon, capsys):
    model = hj.load(epsilon)
    few = model.perplexity("valid", records=6, draws=2)
    assert evaluate.main([f"--workdir={epsilon}", "--records=6", "--draws=2"]) == 0
    (stored,) = tiny.stored(capsys.readouterr().out)
    assert (few.records, few.draws) == (6, 2)
    assert few.nll == pytest.approx(stored["estimate"]["nll"], rel=1e-6)
    assert few.nll_se == pytest.approx(stored["estimate"]["nll_se"], rel=1e-5)
    for wrong, said in (
        (dict(dataset="nowhere"), "There is no data set 'nowhere'"),
        (dict(records=-1), "records must be at least 0, but is -1"),
        (dict(draws=0), "draws must be at least 1, but is 0"),
        (dict(batch_size=2.5), "batch_size must be a whole number, but is 2.5"),
    ):
        with pytest.raises(hj.UserError, match=said):
            model.perplexity(**wrong)
