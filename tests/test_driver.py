"""Generation by request: places that are filled again, and devices that share the texts."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from runs import finished, together
from tiny import LENGTH

from hybrid_jax import generate
from hybrid_jax.errors import UserError
from hybrid_jax.eval import perplexity
from hybrid_jax.eval.datasets import validation_set
from hybrid_jax.eval.scorers import load as scorers
from hybrid_jax.eval.scorers.base import score
from hybrid_jax.generation import driver, generator, requests
from hybrid_jax.runtime import sharding
from hybrid_jax.runtime.sharding import MeshConfig
from hybrid_jax.sampling import rules
from hybrid_jax.training import pretrained

pytestmark = pytest.mark.slow

PROMPTS = ["", "12 plus", "7", "", "a b", "33 plus 33 ma", "", "5 plus", "", "1", "", "22"]
MESH = MeshConfig(data=4, fsdp=1, tensor=2)


@pytest.fixture(scope="module")
def ended(epsilon):
    """A generator whose texts end early: a common letter is their end token."""
    own = generator.build(pretrained.load(epsilon), rule=rules.make("acs", eta=0.5))
    return dataclasses.replace(own, sampler=dataclasses.replace(own.sampler, eos=ord(" ")))


def asked(own: generator.Generator) -> list[requests.Request]:
    return [requests.beginning(text, own.model.tokenizer, stop=LENGTH) for text in PROMPTS]


@pytest.fixture(scope="module")
def one_by_one(ar):
    """Plain autoregression, whose prompts are fed in rounds of their own."""
    return generator.build(pretrained.load(ar), rule=rules.make("ancestral"))


@pytest.mark.parametrize("kind", ["ended", "one_by_one"])
def test_a_text_in_a_place_that_was_used_is_the_text_alone(request, kind):
    own = request.getfixturevalue(kind)
    whole = driver.run(own, asked(own), seed=3, batch_size=len(PROMPTS))
    assert [text.number for text in whole] == list(range(len(PROMPTS)))
    assert len({text.nfe for text in whole}) > 2  # they end at different rounds
    assert driver.run(own, asked(own), seed=3, batch_size=5) == whole


@pytest.mark.parametrize("every", [None, 1, 3])
def test_no_place_is_idle_while_requests_wait(ended, every):
    """All places have then worked on texts in as many rounds."""
    places, worked, compared = 3, np.zeros(3, int), 0
    for round_ in driver.rounds(ended, asked(ended), seed=3, batch_size=places, every=every):
        if round_.numbers.max() == len(PROMPTS) - 1:
            break
        so_far = worked + round_.state.nfe
        assert len(set(so_far.tolist())) == 1
        compared += len(round_.texts) < places
        for place in round_.texts:
            worked[place] = so_far[place]
    assert compared >= 3


def test_texts_are_those_of_one_device_on_a_mesh(ended, epsilon):
    wanted = driver.run(ended, asked(ended), seed=3, batch_size=4)
    model = pretrained.load(epsilon, mesh=sharding.make_mesh(MESH))
    own = dataclasses.replace(ended, model=model)
    seen = []
    texts = driver.run(own, asked(own), seed=3, batch_size=8, on_round=seen.append)
    assert texts == wanted
    # The work is really divided: each device holds a part of the texts, and of the heads.
    for leaf in jax.tree.leaves(seen[0].state):
        part = leaf.sharding.shard_shape(leaf.shape)
        if leaf.ndim == 5:
            assert part[1:3] == (leaf.shape[1] // 4, leaf.shape[2] // 2)
        else:
            assert part[0] == leaf.shape[0] // 4


def test_bounds_and_scores_do_not_depend_on_the_mesh(epsilon, ar):
    def measured(mesh):
        model = pretrained.load(epsilon, mesh=mesh)
        dataset = validation_set(model.experiment)
        packed = perplexity.records_of(model, dataset, 11)
        bound = model.experiment.bound(model.tokenizer.vocab_size)
        found = perplexity.measure(model, dataset, packed, bound, draws=2, batch_size=6, seed=0)
        scorer, _ = scorers.load(f"run:{ar}", mesh)
        rows = np.concatenate([np.full((len(packed), 1), scorer.vocab_size - 1), packed.tokens], 1)
        scores = score(scorer, rows, batch_size=3)
        return [found.estimate.nll, found.estimate.nll_se], scores, scorer.fingerprint

    bound, scores, name = measured(None)
    again, found, same = measured(sharding.make_mesh(MESH))
    np.testing.assert_allclose(again, bound, rtol=1e-5)
    np.testing.assert_allclose(found.nats, scores.nats, atol=1e-5)
    np.testing.assert_allclose(found.features, scores.features, atol=1e-5)
    assert same == name


def test_compiling_ahead_leaves_nothing_to_compile(ended):
    def compiled():
        return [part._cache_size() for part in (driver._begin, driver.loop.advance)]

    driver.compile_rounds(ended, asked(ended), batch_size=2)
    before = compiled()
    driver.run(ended, asked(ended), seed=3, batch_size=2, every=2)
    assert compiled() == before


def test_a_prompt_that_does_not_fit_is_refused_before_any_work(ended):
    wanted = [*asked(ended), requests.Request(prompt="", ids=[1] * LENGTH, stop=LENGTH)]
    with pytest.raises(UserError, match=r"Prompt 13 fills all 16 tokens"):
        next(driver.rounds(ended, wanted, seed=0, batch_size=1, every=1))
    assert driver.run(ended, [], seed=0, batch_size=1) == []


def said(out: str) -> str:
    """Standard output without the lines of the library that connects processes on CPU."""
    lines = out.splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("[Gloo]"))


def test_two_processes_write_and_evaluate_as_one(epsilon, ar, tmp_path, capsys):
    """Each has two devices; process 0 alone prints and writes."""
    write = [f"--workdir={epsilon}", "--seed=2", "--prompt=1", "--prompt=22 plus",
             "--num_samples=3", "--batch_size=4"]  # fmt: skip
    assert generate.main([*write, f"--out={tmp_path}/alone.jsonl"]) == 0
    shown = capsys.readouterr().out
    command = ["hybrid_jax.generate", *write, f"--out={tmp_path}/shared.jsonl"]
    with together([command] * 2, tmp_path, devices=2) as children:
        first, second = finished(children)
    assert [first[0], second[0]] == [0, 0], first[2] + second[2]
    assert (said(first[1]), said(second[1])) == (shown, "")
    texts = (tmp_path / "shared.jsonl").read_text(encoding="utf-8")
    assert texts == (tmp_path / "alone.jsonl").read_text(encoding="utf-8")
    assert len(texts.splitlines()) == 6

    measure = ["hybrid_jax.evaluate", f"--workdir={epsilon}", f"--texts={tmp_path}/shared.jsonl",
               f"--scorer=run:{ar}", "--batch_size=4"]  # fmt: skip
    with together([measure] * 2, tmp_path, devices=2) as children:
        first, second = finished(children)
    assert [first[0], second[0]] == [0, 0], first[2] + second[2]
    assert "shared" in first[1]
    assert said(second[1]) == ""
    (stored,) = (epsilon / "evaluation").glob("quality-shared-*.json")
    assert json.loads(stored.read_text(encoding="utf-8"))["texts"] == 6


def test_processes_that_were_asked_for_different_texts_stop(epsilon, tmp_path):
    command = ["hybrid_jax.generate", f"--workdir={epsilon}"]
    with together([[*command, "--seed=1"], [*command, "--seed=2"]], tmp_path) as children:
        for status, out, err in finished(children):
            assert status == 2, err
            assert said(out) == ""
            assert "error: Process 1 has another request than process 0: start all" in err
