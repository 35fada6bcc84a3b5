"""Published weights: what is fetched, and folders that cannot be read. Contents: see test_eval_gpt2
and test_interop."""

import sys
import types

import pytest

from hybrid_jax.errors import UserError
from hybrid_jax.interop import weights


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


@pytest.mark.parametrize("index", ["{}", '{"weight_map": []}', '{"weight_map": {"wte": 1}}'])
def test_an_index_without_places_is_refused(tmp_path, index):
    (tmp_path / weights.INDEX).write_text(index)
    with pytest.raises(UserError, match="has no weight_map"):
        list(weights.tensors(tmp_path))
