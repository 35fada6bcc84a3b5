"""Pretrained models of five families: the same logits as `transformers`, in and out again.

Where torch is missing, folders are written by our own export.
"""

import argparse
import dataclasses
import json
import shutil
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy as safetensors
from enumeration import quick_jit
from published import reference, rewritten

import hybrid_jax
from hybrid_jax import main
from hybrid_jax.config import Experiment, ModelConfig, ScheduleConfig
from hybrid_jax.data.settings import DataConfig
from hybrid_jax.data.tokenizers.huggingface import HuggingFaceTokenizer
from hybrid_jax.errors import UserError
from hybrid_jax.interop import families, family_config
from hybrid_jax.interop.__main__ import main as interop
from hybrid_jax.interop.workdirs import network_of
from hybrid_jax.method.layout import Layout
from hybrid_jax.models import cache as caches
from hybrid_jax.models.transformer import Transformer
from hybrid_jax.runtime import sharding
from hybrid_jax.runtime.checkpoint import Checkpointer, named_leaves
from hybrid_jax.runtime.sharding import MeshConfig, make_mesh, one_device
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
    "llama": _LLAMA | dict(model_type="llama", num_key_value_heads=4, rope_scaling=_SCALED),
    "smollm2": _LLAMA | dict(model_type="llama", tie_word_embeddings=True),
    "qwen2.5": _LLAMA | dict(model_type="qwen2", use_sliding_window=False,
                             sliding_window=8, max_window_layers=1),
    "qwen3": _LLAMA | dict(model_type="qwen3", head_dim=12, tie_word_embeddings=True),
}  # fmt: skip


def write_tokenizer(folder):
    """One of TOKENS tokens: letters, and the end of a document."""
    letters = [chr(code) for code in range(64, 63 + TOKENS)]
    ids = {letter: i for i, letter in enumerate([*letters, "<|endoftext|>"])}
    model = tokenizers.models.WordLevel(ids, unk_token="@")
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    made.decoder = tokenizers.decoders.Fuse()
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


# ---------------------------------------------------------------------------------------------
# Without torch.


def random_model(family, tokens=TOKENS):
    """A network in the form of a family, and parameters with every path switched on."""
    form, _ = family_config.read_config(FAMILIES[family], "config.json")
    experiment = Experiment(
        data=DataConfig(length=LENGTH),
        schedule=ScheduleConfig(family="quenched_ar"),
        layout=Layout(alignment="shifted"),
        model=ModelConfig(**form),
    )
    network = experiment.network(tokens)
    shapes = network.shapes
    rng = np.random.default_rng(0)
    noise = [
        jnp.asarray(0.3 * rng.standard_normal(x.shape), jnp.float32)
        + (1.0 if "norm" in name and "bias" not in name else 0.0)
        for name, x in named_leaves(shapes).items()
    ]
    return experiment, network, jax.tree.unflatten(jax.tree.structure(shapes), noise)


def folder_of(family, folder):
    """A folder of ROWS rows, in float32, and its tensors."""
    experiment, network, params = random_model(family, ROWS)
    families.export(experiment, network, params, folder)
    write_tokenizer(folder)
    return safetensors.load_file(folder / "model.safetensors")


def read(family, folder, mesh):
    network = random_model(family)[1]
    return network, families.parameters(network, folder, ROWS, mesh)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_published_formulas(family, tmp_path):
    tensors = folder_of(family, tmp_path / "hf")
    network, params = read(family, tmp_path / "hf", one_device())
    tokens = texts()
    every = [reference(FAMILIES[family], tensors, text)[0] for text in tokens]
    wanted = np.stack(every)[..., :TOKENS]
    assert np.ptp(wanted) > 2  # so that the tolerance means something
    model = types.SimpleNamespace(network=network, params=params)
    np.testing.assert_allclose(our_logits(model, tokens), wanted, atol=1e-4)
    np.testing.assert_allclose(cached_logits(model, tokens), wanted, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_read_is_written_back_bit_for_bit(family, tmp_path):
    """From arrays that are cut among eight devices, but for rows that no token has."""
    before = folder_of(family, tmp_path / "hf")
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    network, params = read(family, tmp_path / "hf", mesh)
    for name, leaf in named_leaves(params).items():
        wanted = sharding.on(mesh, leaf.shape, *network.axes[name])
        assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim), name
    # MASK is the mean of all tokens, and padding is nothing.
    rows = np.asarray(params["embedding"])
    np.testing.assert_allclose(rows[TOKENS], rows[:TOKENS].mean(0), atol=1e-6)
    assert not rows[TOKENS + 1 :].any()

    families.export(random_model(family)[0], network, params, tmp_path / "out")
    after = safetensors.load_file(tmp_path / "out" / "model.safetensors")
    assert after.keys() == before.keys()
    for name, value in before.items():
        value = value[:TOKENS] if value.shape[0] == ROWS else value
        np.testing.assert_array_equal(after[name], value, err_msg=name)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    """A workdir made of three files in bfloat16, and the folder."""
    root = tmp_path_factory.mktemp("qwen")
    tensors = folder_of("qwen3", root / "hf")
    rewritten(root / "hf", {n: x.astype(jnp.bfloat16) for n, x in tensors.items()}, shards=3)
    model = import_(root / "hf", root / "run", f"--config.data.length={LENGTH}")
    return root, tensors, model


def test_files_of_16_bits_in_parts_are_kept_and_widened(qwen):
    root, tensors, model = qwen
    kept = read("qwen3", root / "hf", one_device())[1]
    for name, leaf in named_leaves(kept).items():
        assert leaf.dtype == jnp.bfloat16
        found = named_leaves(model.params)[name]
        assert found.dtype == jnp.float32
        np.testing.assert_array_equal(found, leaf.astype(jnp.float32), err_msg=name)
    norm = tensors["model.norm.weight"].astype(jnp.bfloat16)
    np.testing.assert_array_equal(kept["norm"], norm)


def test_an_imported_model_generates_and_scores_at_once(qwen):
    root, _, model = qwen
    opened = hybrid_jax.load(root / "run")
    (text,) = opened.generate(["abc"], rule=hybrid_jax.rules.make("greedy"), seed=0)
    assert text.startswith("abc")
    # Greedy texts are those of the logits, which is one token after another.
    tokens = model.tokenizer.encode(text)
    rows = np.concatenate([[model.tokenizer.bos], tokens[:-1]])[None].astype(np.int32)
    if len(tokens) == LENGTH:  # no special token, which has no text
        assert our_logits(model, rows)[0].argmax(-1)[3:].tolist() == tokens[3:].tolist()
    logits = jax.nn.log_softmax(our_logits(model, rows)[0])
    wanted = -sum(float(logits[i, token]) for i, token in enumerate(tokens))
    (found,) = opened.score([text])
    assert found.exact
    assert found.nll == pytest.approx(wanted, rel=1e-4)
    with (
        Checkpointer(root / "run" / "checkpoints", read_only=True) as saver,
        pytest.raises(UserError, match="start one from its workdir, with --init"),
    ):
        saver.restore({"step": jax.ShapeDtypeStruct((), jnp.int32)})


def test_an_export_that_is_broken_off_leaves_nothing(qwen, tmp_path, monkeypatch, capsys):
    """Its last file is the tokenizer's."""

    def stop(*_):
        raise KeyboardInterrupt

    command = ["export", f"--workdir={qwen[0] / 'run'}", f"--out={tmp_path / 'new' / 'out'}"]
    with monkeypatch.context() as patch:
        patch.setattr(HuggingFaceTokenizer, "write", stop)
        assert interop(command) == 130
    assert capsys.readouterr().err == "interrupted; nothing was written\n"
    assert list(tmp_path.iterdir()) == []
    assert interop(command) == 0
    assert {path.name for path in tmp_path.glob("new/*/*")} == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip


def test_a_hybrid_starts_from_an_imported_model(qwen):
    """By a config file, whose network gives way to that of the model."""
    root, _, model = qwen
    settings = {"layout.alignment": "shifted", "model.condition": "6", "model.dropout": "0.1"}
    given = argparse.Namespace(
        config="slide", init=str(root / "run"), workdir="x", settings=settings
    )
    experiment = main.read_experiment(given)
    assert (experiment.schedule.family, experiment.model.dropout) == ("slide", 0.1)
    _, params = network_of(root / "run", experiment)
    added = {"condition", "condition_bias"}
    kept = {n: x for n, x in params["layers"].items() if n not in added}
    same = {**params, "layers": kept}
    del same["level"]
    jax.tree.map(np.testing.assert_array_equal, same, model.params)
    given.settings = settings | {"model.kv_heads": "1"}
    with pytest.raises(UserError, match=r"give --config\.model\.kv_heads=2"):
        network_of(root / "run", main.read_experiment(given))


@pytest.mark.parametrize(
    ("config", "rows", "count"),
    [
        (dict(FAMILIES["gpt2"], vocab_size=50257, n_positions=1024, n_embd=768, n_layer=12,
              n_head=12), 50257, 124_439_808),
        (dict(FAMILIES["smollm2"], vocab_size=49152, hidden_size=576, num_hidden_layers=30,
              num_attention_heads=9, num_key_value_heads=3, intermediate_size=1536), 49152,
         134_515_008),
        (dict(FAMILIES["qwen2.5"], vocab_size=151936, hidden_size=896, num_hidden_layers=24,
              num_attention_heads=14, num_key_value_heads=2, intermediate_size=4864,
              tie_word_embeddings=True), 151936, 494_032_768),
        (dict(FAMILIES["qwen3"], vocab_size=151936, hidden_size=1024, num_hidden_layers=28,
              num_attention_heads=16, num_key_value_heads=8, intermediate_size=3072,
              head_dim=128), 151936, 596_049_920),
        (dict(FAMILIES["llama"], vocab_size=128256, hidden_size=2048, num_hidden_layers=16,
              num_attention_heads=32, num_key_value_heads=8, intermediate_size=8192,
              tie_word_embeddings=True), 128256, 1_235_814_400),
    ],
)  # fmt: skip
def test_sizes_of_published_models(config, rows, count):
    """GPT-2, SmolLM2-135M, Qwen2.5-0.5B, Qwen3-0.6B and Llama 3.2 1B."""
    form, found = family_config.read_config(config, "config.json")
    network = Transformer(vocab_size=rows, **form)
    shapes = jax.tree.leaves(network.shapes)
    padding = (network.rows - rows) * network.width
    assert (found, sum(x.size for x in shapes) - padding) == (rows, count)


# ---------------------------------------------------------------------------------------------
# Refusals.


@pytest.mark.parametrize(
    ("family", "change", "said"),
    [
        ("qwen3", {"model_type": "mamba"}, "has model_type='mamba', and hybrid_jax only gpt2 or"),
        ("qwen2.5", {"use_sliding_window": True}, "use_sliding_window=True, and hybrid_jax only"),
        ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types='slidi"),
        ("llama", {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_type='yarn', and hybri"),
        ("llama", {"rope_parameters": {"rope_type": "linear"}}, "rope_parameters.rope_type='linea"),
        ("llama", {"rope_scaling": {"rope_type": "llama3"}}, "rope_scaling.factor=None should be"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act='gelu', and hybrid_jax only silu"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config="),
        ("llama", {"hidden_size": None}, "has no hidden_size"),
        ("llama", {"num_attention_heads": 0}, "num_attention_heads=0, and hybrid_jax only 1 or"),
        ("qwen3", {"layer_types": 2}, "layer_types=2 should be a list"),
        ("llama", {"num_hidden_layers": "2"}, "num_hidden_layers='2' should be of type int"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
        ("gpt2", {"tie_word_embeddings": False}, "tie_word_embeddings=False"),
    ],
)  # fmt: skip
def test_fields_that_ask_for_what_is_not_there_are_named(family, change, said):
    with pytest.raises(UserError) as caught:
        family_config.read_config(FAMILIES[family] | change, "config.json")
    assert said in str(caught.value)


@pytest.mark.parametrize("change", [{"use_sliding_window": True, "sliding_window": None},
                                    {"use_sliding_window": True, "max_window_layers": 2},
                                    {"attention_dropout": 0.1, "rope_scaling": None}])  # fmt: skip
def test_fields_without_effect_are_no_reason_to_refuse(change):
    known = family_config.read_config(FAMILIES["qwen2.5"], "config.json")
    assert family_config.read_config(FAMILIES["qwen2.5"] | change, "config.json") == known


def cut(folder, tensors):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def no_part(folder, tensors):
    rewritten(folder, tensors, shards=2)
    (folder / "model-00002-of-00002.safetensors").unlink()


def many_tokens(folder, tensors):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 9}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (cut, "model.safetensors cannot be read"),
        (no_part, "model-00002-of-00002.safetensors cannot be read"),
        (lambda f, t: rewritten(f, {n: x for n, x in t.items() if "k_norm" not in n}),
         "has no tensor layers.0.self_attn.k_norm.weight and 1 more, which its config asks"),
        (lambda f, t: rewritten(f, t | {"model.x": np.ones(1, np.float32)}), "a tensor model.x"),
        (lambda f, t: rewritten(f, t | {"model.norm.weight": np.ones(3, np.float32)}),
         "model.norm.weight has the shape [3], and its config asks for [32]"),
        (lambda f, t: rewritten(f, t | {"model.norm.weight": np.ones(32, np.int8)}),
         "model.norm.weight is I8: convert it to float32"),
        (lambda f, t: (f / "tokenizer.json").unlink(), "tokenizer.json cannot be read"),
        (many_tokens, f"has vocab_size=9, and the tokenizer beside it {TOKENS} tokens"),
        (lambda f, t: (f / "config.json").unlink(), "config.json cannot be read"),
        (lambda f, t: shutil.rmtree(f), "There is no folder"),
    ],
)  # fmt: skip
def test_bad_folders_are_refused_in_a_sentence_that_names_the_file(tmp_path, capsys, change, said):
    folder = tmp_path / "hf"
    change(folder, folder_of("qwen3", folder))
    assert interop(["import", f"hf:{folder}", f"--workdir={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_commands_that_say_too_little_or_too_much(tmp_path, capsys, qwen, monkeypatch):
    root, _, model = qwen
    out = f"--workdir={tmp_path / 'run'}"
    wrong = [(["import", out], "Say what to import"), (["import", "hf:", out], "Say what to"),
             (["import", f"hf:{root / 'hf'}", out, "--tokenizer=byte"], "hf:FOLDER alone"),
             (["import", f"hf:{root / 'hf'}", out, "--config.model.width=64"],
              "--config.model.width=32"),
             (["import", "hf:some/model", out], "no model of that name can be")]  # fmt: skip
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # as if it were not installed
    for command, said in wrong:
        assert interop(command) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    changed = dataclasses.replace(model.experiment.model, mlp_bias=True)
    experiment = dataclasses.replace(model.experiment, model=changed)
    with pytest.raises(UserError, match=r"No qwen3 has model\.mlp_bias=True, only False"):
        family_config.write_config(experiment, experiment.network(TOKENS))


def test_texts_longer_than_the_positions_are_refused():
    """Windows have one row more than autoregression."""
    values = dataclasses.replace(random_model("gpt2")[0], name="x")
    values.check()
    with pytest.raises(UserError, match=r"model\.positions=16 are too few for the 17 rows"):
        dataclasses.replace(values, schedule=ScheduleConfig(family="block")).check()
