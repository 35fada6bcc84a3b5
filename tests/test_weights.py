"""Published weights: what is fetched, and what is not. Contents: see test_eval_gpt2, test_interop
and test_pretrained."""

import sys
import types

import numpy as np
import pytest

from hybrid_jax.errors import UserError
from hybrid_jax.eval.scorers import load as scorers
from hybrid_jax.runtime import weights


def test_torch_weights_are_fetched_where_there_are_no_others(tmp_path, monkeypatch):
    asked = []

    def fetch(name, *, allow_patterns):
        asked.append((name, *allow_patterns))
        return str(tmp_path)

    hub = types.SimpleNamespace(snapshot_download=fetch)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert weights.find("owner/model", others=["vocab.json"]) == tmp_path
    safe, torch = asked
    assert set(safe) >= {"owner/model", "model.safetensors", "model.safetensors.index.json"}
    assert set(torch) == {"owner/model", "config.json", "pytorch_model.bin", "vocab.json"}
    (tmp_path / "model-00001-of-00002.safetensors").touch()
    weights.find("owner/model")
    assert len(asked) == 3
    assert weights.find(tmp_path) == tmp_path  # a folder is not looked up


def test_a_name_that_cannot_be_fetched_is_refused_in_a_sentence(monkeypatch):
    """Whatever the hub's packages raise, and where they are missing."""
    for failure in (ConnectionError, FileNotFoundError, type("HubError", (Exception,), {})):

        def offline(name, *, allow_patterns, failure=failure):
            raise failure("cannot reach\nthe hub")

        hub = types.SimpleNamespace(snapshot_download=offline)
        monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
        with pytest.raises(UserError, match=r"can be fetched \(cannot reach the hub\): .*`hf dow"):
            weights.find("owner/model")
    with pytest.raises(UserError, match=r"There is no folder \./nowhere/model: name a folder"):
        weights.find("./nowhere/model")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # as if it were not installed
    with pytest.raises(UserError, match=r"folder gpt2-large.*needs huggingface_hub: install it"):
        scorers.load("gpt2:gpt2-large")


def test_what_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / weights.WEIGHTS).mkdir()
    with pytest.raises(UserError, match=r"Cannot write .* \(.*Is a directory"):
        weights.save(tmp_path, {"x": np.ones(3)})


@pytest.mark.parametrize("index", ["{}", '{"weight_map": []}', '{"weight_map": {"wte": 1}}'])
def test_an_index_without_places_is_refused(tmp_path, index):
    (tmp_path / weights.INDEX).write_text(index)
    with pytest.raises(UserError, match="has no weight_map"):
        weights.Tensors(tmp_path)
