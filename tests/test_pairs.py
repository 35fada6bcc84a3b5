"""Pairs of a prompt and an answer: their records, the loss on answers alone, and the start of a
run from another's parameters."""

import argparse
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from hybrid_jax import main
from hybrid_jax.config import Experiment, ModelConfig, NoiseConfig, TrainConfig
from hybrid_jax.data import pairs, pipeline, prepare, public, sources, tokenizers
from hybrid_jax.data.pipeline import Records, Stream, evaluation_batches
from hybrid_jax.data.settings import DataConfig
from hybrid_jax.errors import UserError
from hybrid_jax.method import loss as estimator
from hybrid_jax.sampling.settings import SamplingConfig
from hybrid_jax.training import flops, pretrained, workdir
from hybrid_jax.training.likelihood import evaluate_bound
from hybrid_jax.training.train_step import KeyPurpose, TrainSetup, train_step

pytestmark = pytest.mark.slow

LENGTH = 16
PAIRS = [(f"{a}+{b}=", str(a + b) * (1 + a % 3)) for a in range(12) for b in range(12)]
PAIRS += [(prompt, answer + "?") for prompt, answer in PAIRS[::5]]  # other answers to the same


def write_pairs(path, found=PAIRS, fields=pairs.FIELDS) -> str:
    lines = (json.dumps(dict(zip(fields, pair, strict=True))) + "\n" for pair in found)
    path.write_text("".join(lines), encoding="utf-8")
    return f"pairs:{path}"


def settings(source: str, **changes) -> dict:
    return {"source": source, "tokenizer": "byte", "vocab_size": 0, "length": LENGTH} | changes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("pairs")
    prepare.prepare(**settings(write_pairs(root / "pairs.jsonl")), out=root / "out")
    return root / "out"


def pairs_of(folder, split: str) -> list[tuple[str, str]]:
    """The pairs of a split, read from its records, whose filling is checked."""
    tokenizer, found = tokenizers.load_tokenizer(folder), []
    for padded in (True, False):
        records = Records(folder, split, padded=padded)
        batch = records.read(range(len(records)))
        assert ("length" in batch) != padded
    rows = zip(batch["tokens"], batch["given"], batch["length"], strict=True)
    for tokens, given, length in rows:
        assert np.all(tokens[length - 1 :] == tokenizer.eos)
        assert np.all(tokens[: length - 1] != tokenizer.eos)
        parts = tokens[:given], tokens[given : length - 1]
        found.append(tuple(tokenizer.decode(part.tolist()) for part in parts))
    return found


def test_records_are_the_pairs(folder):
    train, valid = pairs_of(folder, "train"), pairs_of(folder, "valid")
    assert sorted(train + valid) == sorted(PAIRS)
    assert valid
    # Not even with another answer is a prompt in both.
    assert not {prompt for prompt, _ in train} & {prompt for prompt, _ in valid}
    manifest = Records(folder, "train").manifest
    for split, found in ((manifest.train, train), (manifest.valid, valid)):
        assert split.kept_bytes == sum(len(answer) for _, answer in found)
        assert (split.documents, split.records) == (len(found), len(found))
        assert (split.tokens, split.dropped_tokens) == (len(found) * LENGTH, 0)


def test_no_record_may_be_read(folder):
    """As at the end of a run whose sampling.count is 0."""
    batch = Records(folder, "valid").read(range(0))
    assert (batch["tokens"].shape, batch["given"].shape) == ((0, LENGTH), (0,))


def test_the_end_of_a_pair_is_behind_its_prompt():
    tokens = np.array([[9, 9, 1, 9, 9], [1, 2, 3, 4, 9]])
    np.testing.assert_array_equal(pairs.lengths(tokens, np.array([2, 0]), 9), [4, 5])


def test_validation_text_is_left_out_by_prompt(tmp_path):
    source = write_pairs(tmp_path / "train.jsonl")
    valid = write_pairs(tmp_path / "valid.jsonl", [("3+4=", "seven"), ("7+1=", "eight")])
    out = tmp_path / "out"
    prepare.prepare(**settings(source, valid_source=valid), out=out)
    assert sorted(pairs_of(out, "valid")) == [("3+4=", "seven"), ("7+1=", "eight")]
    left = [pair for pair in PAIRS if pair[0] not in ("3+4=", "7+1=")]
    assert pairs_of(out, "train") == left


def test_rows_of_data_sets_are_pairs(monkeypatch):
    rows = [{"q": b"1+1=", "a": "2", "n": 1}, {"q": None, "a": "none asked", "n": 2}]
    monkeypatch.setattr(public, "_hub", lambda *_, **__: rows)
    found = list(sources.streams("pairs:hf:sums:train:q+a"))
    assert found == [("1+1=", "2"), ("", "none asked")]
    with pytest.raises(UserError, match=r"hf:sums has no field prompt\+answer: add one of q, a, n"):
        list(sources.streams("pairs:hf:sums:train"))
    with pytest.raises(UserError, match="names no two fields: write PROMPT"):
        list(sources.streams("pairs:hf:sums:train:q"))
    rows[1]["a"] = " "
    with pytest.raises(UserError, match="Row 2 of hf:sums has no answer: add it or drop the pair"):
        list(sources.streams("pairs:hf:sums:train:q+a"))


@pytest.mark.parametrize(
    ("lines", "change", "expected"),
    [
        ('{"prompt": "a"}\n', {}, 'Line 1 of {} has no field "answer" with a string: add it or'),
        ('{"prompt": "a", "answer": ""}\n', {}, "Line 1 of {} has no answer: add it or drop"),
        ('\n{"prompt": 3, "answer": "a"}\n', {}, 'Line 2 of {} has no field "prompt"'),
        ("\n", {}, "{} has no pairs in it: remove it from the source."),
        (None, {"length": 8}, "The pair with the prompt '1+9=' has 4 + 4 tokens and an eos, but a "
         "record has 8: choose a length of at least 9, or drop the pair."),
        (None, {"valid_source": "pydocs"}, "Some of the sources are pairs and others text"),
        (None, {"source": "pairs:{}x"}, "No file matches '{}x'"),
        (None, {"tokenizer": "ids:5"}, "Document 1 of pairs:{} is wrong: "),
    ],
)  # fmt: skip
def test_bad_pairs(tmp_path, lines, change, expected):
    path = tmp_path / "pairs.jsonl"
    source = write_pairs(path, [(p, a) for p, a in PAIRS if not p.startswith("11")])
    if lines is not None:
        path.write_text(lines, encoding="utf-8")
    change = {name: v.format(path) if name == "source" else v for name, v in change.items()}
    with pytest.raises(UserError) as caught:
        prepare.prepare(**settings(source) | change, out=tmp_path / "out")
    assert str(caught.value).startswith(expected.format(path))
    assert not (tmp_path / "out").exists()


def test_pairs_are_lines_of_json(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(UserError, match=r"a\.txt has no pairs: they are lines of \.jsonl files"):
        sources.streams(f"pairs:{tmp_path}/a.txt")


# ---------------------------------------------------------------------------------------------
# Loss.


def experiment(folder, **sections) -> Experiment:
    data = sections.pop("data", {})
    return Experiment(
        name="pairs",
        data=DataConfig(source="pairs:x.jsonl", tokenizer="byte", length=LENGTH, dir=str(folder),
                        **data),
        model=ModelConfig(layers=1, width=16, heads=2),
        sampling=SamplingConfig(count=2, eos="stop"),
        **{"train": TrainConfig(steps=2, batch_size=8)} | sections,
    )  # fmt: skip


SPECS = {"gamma": tiny.RUNS["gamma"], "ar": tiny.RUNS["ar"] | {"noise": NoiseConfig()}}


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("name", SPECS)
def test_the_loss_is_that_of_the_answers(folder, name, padded):
    """A mean over the tokens of the batch that are learned, however it is accumulated."""
    made = functools.partial(experiment, folder, data={"padded": padded}, **SPECS[name])
    setup = TrainSetup.build(made(), 258, bos=256)
    batch = Stream(Records(folder, "train", padded=padded), batch_size=8, seed=1).batch_at(0)
    state = jax.jit(setup.init)()
    step = jax.jit(functools.partial(train_step, setup))
    _, metrics = step(state, batch)

    place = np.arange(LENGTH)
    end = batch.get("length", np.full(8, LENGTH))[:, None]
    learned = (place >= batch["given"][:, None]) & (place < end)
    assert 0 < learned.sum() < learned.size
    key = jax.random.fold_in(setup.key(KeyPurpose.NOISE), 0)
    given = jnp.asarray(place < batch["given"][:, None])
    length = jnp.asarray(batch["length"]) if "length" in batch else None
    tokens, index = jnp.asarray(batch["tokens"]), jnp.asarray(batch["index"])
    rows = estimator.Batch(tokens, index, key, 8, given, length)
    found = np.asarray(estimator.batch_terms(setup.spec, setup.network, state.params, rows))
    assert not found[~learned].any()
    assert float(metrics["loss"]) == pytest.approx(found.sum() / learned.sum(), rel=1e-5)

    halves = TrainSetup.build(
        made(train=TrainConfig(steps=2, batch_size=8, accumulation=4)), 258, bos=256
    )
    _, parts = jax.jit(functools.partial(train_step, halves))(state, batch)
    for metric in ("loss", "grad_norm"):
        assert float(parts[metric]) == pytest.approx(float(metrics[metric]), rel=1e-4)

    if not padded:
        changed = np.where(place < end, batch["tokens"], 65)
        _, other = step(state, {**batch, "tokens": changed})
        assert float(other["loss"]) == float(metrics["loss"])


@pytest.mark.parametrize("padded", [True, False])
def test_the_bound_is_that_of_the_answers(folder, padded):
    setup = TrainSetup.build(experiment(folder, **SPECS["ar"]), 258, bos=256)
    params = jax.jit(setup.init)().ema
    records = Records(folder, "valid", padded=padded)
    found = evaluate_bound(
        setup.spec, setup.network, params, evaluation_batches(records, 5),
        setup.experiment.bound(258), key=jax.random.key(0), draws=1,
        bytes_per_token=records.manifest.valid.bytes_per_token,
    )  # fmt: skip
    batch = records.read(range(len(records)))
    place = np.arange(LENGTH)
    known = place < batch["given"][:, None]
    end = batch.get("length", np.full(len(records), LENGTH))[:, None]
    rows = estimator.Batch(
        jnp.asarray(batch["tokens"]), jnp.arange(len(records)), jax.random.key(0), len(records),
        jnp.asarray(known),
    )  # fmt: skip
    nats = np.asarray(estimator.batch_terms(setup.spec, setup.network, params, rows)) * (
        place < end
    )
    learned = (~known & (place < end)).sum(1)
    assert found.nll == pytest.approx(nats.sum() / learned.sum(), rel=1e-5)
    answers = sum(len(answer) for _, answer in pairs_of(folder.parent / "out", "valid"))
    assert found.bits_per_byte == pytest.approx(nats.sum() / np.log(2) / answers, rel=1e-5)
    residual = nats.sum(1) - found.nll * learned
    error = residual.std(ddof=1) / np.sqrt(len(records)) / learned.mean()
    assert found.nll_se == pytest.approx(error, rel=1e-4)


def test_answers_without_padding_must_end(folder):
    with pytest.raises(UserError, match=r"data\.padded belongs to data\.source=pairs:\*"):
        DataConfig(padded=True)
    made = experiment(folder, data={"padded": False})
    values = made.to_config()
    values.sampling.eos = "continue"
    with pytest.raises(UserError, match=r"give sampling\.eos=stop"):
        Experiment.from_config(values)


# ---------------------------------------------------------------------------------------------
# A start from another run.


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A run whose tokens are the characters of its own text."""
    root = tmp_path_factory.mktemp("source")
    text = "".join(f"{n % 12}+{n}={n + n % 12}?\n" for n in range(500))
    (root / "text.txt").write_text(text, encoding="utf-8")
    train = TrainConfig(steps=2, batch_size=8, eval_every=100, checkpoint_every=100)
    return tiny.run(root, root / "text.txt", tokenizer="char", train=train, **tiny.RUNS["gamma"])


def test_a_run_starts_from_another(source, tmp_path, capsys):
    pairs_source = write_pairs(tmp_path / "pairs.jsonl")
    command = [
        f"--init={source}", f"--workdir={tmp_path}/tuned", f"--config.data.source={pairs_source}",
        f"--config.data.dir={tmp_path}/data", "--config.train.steps=1",
        "--config.sampling.count=2", "--no_compilation_cache",
    ]  # fmt: skip
    assert main.main(command) == 0
    said = capsys.readouterr().out
    assert f"starting from step 2 of {source}" in said
    valid = pipeline.Records(tmp_path / "data", "valid")
    prompts = [prompt for prompt, _ in pairs_of(tmp_path / "data", "valid")]
    assert f"  | {prompts[0]}" in said
    assert f"  | {prompts[1]}" in said
    before, after = pretrained.load(source), pretrained.load(tmp_path / "tuned", step=0)
    assert before.tokenizer.fingerprint == after.tokenizer.fingerprint
    jax.tree.map(np.testing.assert_array_equal, before.params, after.params)
    assert pretrained.load(tmp_path / "tuned").step == 1
    assert after.experiment.schedule == before.experiment.schedule
    assert valid.manifest.tokenizer == f"saved:{source}"

    assert main.main(command) == 0
    assert "already trained for 1 steps" in capsys.readouterr().out
    assert main.main([f"--workdir={tmp_path}/tuned", "--no_compilation_cache"]) == 0


def test_a_run_goes_on_in_its_own_text_from_another(source, tmp_path, capsys):
    """With the records that are there."""
    command = [f"--init={source}", f"--workdir={tmp_path}/tuned", "--config.train.steps=1",
               "--init_step=2", "--config.train.seed=1", "--no_compilation_cache"]  # fmt: skip
    assert main.main(command) == 0
    assert f"starting from step 2 of {source}" in capsys.readouterr().out
    origin = json.loads((tmp_path / "tuned" / "init.json").read_text(encoding="utf-8"))
    assert origin == {"workdir": str(source), "step": 2, **flops.budget(pretrained.load(source))}
    assert pretrained.load(tmp_path / "tuned").data == pretrained.load(source).data


def test_a_config_goes_on_in_the_records_of_another_run(source, tmp_path, capsys):
    command = [f"--init={source}", f"--workdir={tmp_path}/tuned", "--config=gamma_hybrid",
               f"--config.data.dir={source.parent}/data", "--config.train.steps=1",
               "--config.evaluation.final_records=8", "--config.sampling.count=0",
               "--no_compilation_cache"]  # fmt: skip
    assert main.main(command) == 0
    assert f"starting from step 2 of {source}" in capsys.readouterr().out
    assert pretrained.load(tmp_path / "tuned").data == pretrained.load(source).data


def test_a_start_with_another_tokenizer_is_refused(source, tmp_path, capsys):
    text = "".join(f"{chr(97 + n % 26)}{n}\n" for n in range(500))
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    command = [f"--init={source}", f"--workdir={tmp_path}/tuned", "--config.data.tokenizer=char",
               f"--config.data.source=files:{tmp_path}/text.txt",
               f"--config.data.dir={tmp_path}/data"]  # fmt: skip
    assert main.main(command) == 2
    assert f"The records have another tokenizer than {source}" in capsys.readouterr().err
    assert not (tmp_path / "tuned").exists()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], "--init needs a --workdir for the run that it starts."),
        (["--init_step=1"], "checkpoints/1; choose one of [2]."),
        (["--config.model.width=32"], "model.width is 32 in the settings and 16 in the model"),
        (["--config.data.tokenizer=byte"], "data.tokenizer is 'byte' in the settings and 'char'"),
    ],
)
def test_bad_starts(source, tmp_path, capsys, flags, expected):
    flags = [*flags, f"--workdir={tmp_path}/tuned"] if flags else []
    assert main.main([f"--init={source}", *flags, f"--config.data.dir={tmp_path}/data"]) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "tuned").exists()


def test_a_run_keeps_the_start_that_it_had(source, tmp_path, capsys):
    run, other = (shutil.copytree(source, tmp_path / name) for name in ("run", "other"))
    assert main.main([f"--init={source}", f"--workdir={run}"]) == 2
    assert f"was not started from {source}: leave out --init" in capsys.readouterr().err
    for place in (f"{tmp_path}/gone", str(other)):
        origin = {"workdir": place, "step": 2}
        (run / "init.json").write_text(json.dumps(origin), encoding="utf-8")
        workdir.check_origin(run, f"{run}/../other", 2)
    for init, flags in ((source, []), (other, ["--init_step=1"])):
        assert main.main([f"--init={init}", f"--workdir={run}", *flags]) == 2
        said = f"was not started from {init} but from step 2 of {other}: leave out --init"
        assert said in capsys.readouterr().err


def test_a_config_that_names_records_keeps_their_tokenizer(source, tmp_path):
    config = tmp_path / "mine.py"
    config.write_text(
        "from hybrid_jax.presets import sized\n"
        "def get_config():\n"
        "    config = sized('mine', 'tiny')\n"
        f"    config.data.dir = '{source.parent}/data'\n"
        "    return config\n",
        encoding="utf-8",
    )
    given = argparse.Namespace(config=str(config), init=str(source), workdir="x", settings={})
    assert main.read_experiment(given).data.tokenizer == "char"
