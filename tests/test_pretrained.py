"""Pretrained models of five families: the same logits as `transformers`, in and out again.

Folders with random weights are made once. Where torch is missing, they are written without it, and
compared with themselves alone.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from enumeration import quick_jit

from hybrid_jax.interop.__main__ import main as interop
from hybrid_jax.models import cache as caches
from hybrid_jax.training import pretrained

tokenizers = pytest.importorskip("tokenizers")

ROWS, TOKENS, LENGTH = 67, 61, 16  # of the embedding; more than the tokenizer's
_LLAMA = dict(
    vocab_size=ROWS, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, intermediate_size=40, max_position_embeddings=64, hidden_act="silu",
    rms_norm_eps=1e-6, rope_theta=5e4, tie_word_embeddings=False,
)  # fmt: skip
_SCALED = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
               original_max_position_embeddings=12)  # fmt: skip
FAMILIES = {
    "gpt2": dict(model_type="gpt2", vocab_size=ROWS, n_positions=LENGTH, n_embd=32, n_layer=2,
                 n_head=4, n_inner=None, activation_function="gelu_new"),
    "llama": _LLAMA | dict(model_type="llama", rope_scaling=_SCALED),
    "smollm2": _LLAMA | dict(model_type="llama", tie_word_embeddings=True),
    "qwen2.5": _LLAMA | dict(model_type="qwen2", num_key_value_heads=4, use_sliding_window=False,
                             sliding_window=8, max_window_layers=1),
    "qwen3": _LLAMA | dict(model_type="qwen3", head_dim=12, tie_word_embeddings=True),
}  # fmt: skip


def write_tokenizer(folder):
    """One of TOKENS letters and pairs, the last of which ends a document."""
    letters = [chr(code) for code in range(97, 123)]
    words = [*letters, *(f"a{x}" for x in letters), *"?. 01234567"]
    ids = {word: i for i, word in enumerate(words[: TOKENS - 1])} | {"<|endoftext|>": TOKENS - 1}
    model = tokenizers.models.WordLevel(ids, unk_token="?")
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))


def model_of(family):
    """A random model of `transformers`, in which every part matters."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    values = dict(FAMILIES[family])
    config = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def logits_of(model, tokens):
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        return model(torch.tensor(tokens, dtype=torch.long)).logits.float().numpy()[..., :TOKENS]


def texts():
    return np.random.default_rng(0).integers(0, TOKENS, (2, LENGTH), np.int32)


def import_(folder, out, *settings):
    assert interop(["import", f"hf:{folder}", f"--workdir={out}", *settings]) == 0
    return pretrained.load(out)


def our_logits(model, tokens):
    """Of all rows at once; position −1 is that of the first."""
    rows = tokens.shape[1]
    position = jnp.arange(rows)[None] - 1
    mask, level = jnp.tril(jnp.ones((1, rows, rows), bool)), jnp.zeros(tokens.shape)

    @quick_jit
    def read(params, tokens):
        features = model.network.features(params, tokens, position, mask, level)
        return model.network.logits(params, features)[..., :TOKENS]

    return read(model.params, jnp.asarray(tokens))


def cached_logits(model, tokens):
    """Of one row after another, each on top of the cache."""
    network, (batch, rows) = model.network, tokens.shape

    def step(cache, row):
        token, place = row
        position = jnp.broadcast_to(place, (1, 1)) - 1
        mask = jnp.concatenate([jnp.arange(rows) < place, jnp.array([True])])[None, None]
        level = jnp.zeros((batch, 1))
        features, new = network.extend(model.params, cache, token[:, None], position, mask, level)
        slot = jnp.broadcast_to(place, (batch, 1))
        return caches.commit(cache, new, slot), network.logits(model.params, features)[:, 0]

    rows_of = jnp.asarray(tokens).T, jnp.arange(rows)
    run = quick_jit(lambda rows_of: jax.lax.scan(step, network.empty_cache(batch, rows), rows_of))
    return run(rows_of)[1].swapaxes(0, 1)[..., :TOKENS]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers_in_and_out(family, tmp_path, capsys):
    """With a cache and without; and those of the exported model, which they load."""
    theirs = model_of(family)
    theirs.save_pretrained(tmp_path / "hf")
    write_tokenizer(tmp_path / "hf")
    tokens = texts()
    wanted = logits_of(theirs, tokens)
    assert np.ptp(wanted) > 5  # so that the tolerance means something
    model = import_(tmp_path / "hf", tmp_path / "run")
    assert "generate with" in capsys.readouterr().out
    assert model.network.vocab_size == TOKENS
    np.testing.assert_allclose(our_logits(model, tokens), wanted, atol=1e-4)
    np.testing.assert_allclose(cached_logits(model, tokens), wanted, atol=1e-4)

    assert interop(["export", f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'out'}"]) == 0
    transformers = pytest.importorskip("transformers")
    again, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(again) is type(theirs)
    np.testing.assert_allclose(logits_of(again.eval(), tokens), wanted, atol=1e-5)
    found = tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert found.get_vocab_size() == TOKENS
