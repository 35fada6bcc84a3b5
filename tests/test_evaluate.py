"""Perplexities on named texts: exact where they can be, honest where not."""

import math
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from tiny import LENGTH

from hybrid_jax import evaluate
from hybrid_jax.data.manifest import Manifest
from hybrid_jax.errors import UserError
from hybrid_jax.eval import datasets, perplexity
from hybrid_jax.eval.datasets import EvaluationSet
from hybrid_jax.eval.detokenize import NAMES, detokenizer
from hybrid_jax.training import pretrained
from hybrid_jax.training.likelihood import BoundEstimate

pytestmark = pytest.mark.slow


def measured(folder, dataset, **settings):
    model = pretrained.load(folder)
    packed = perplexity.pack(dataset, model.tokenizer, LENGTH)
    bound = model.experiment.bound(model.tokenizer.vocab_size)
    settings = {"draws": 1, "batch_size": 32, "seed": 0} | settings
    return perplexity.measure(model, dataset, packed, bound, **settings)


def test_autoregression_is_the_exact_cross_entropy(ar, text):
    """Computed again from the tokens up: byte ids, BOS in front, causal mask, log-softmax."""
    model = pretrained.load(ar)
    found = measured(ar, EvaluationSet(name="b", source=f"files:{text}/b.txt"))
    tokenizer = model.tokenizer
    stream = [*(text / "b.txt").read_bytes(), tokenizer.eos]
    records = np.array(stream[: len(stream) // LENGTH * LENGTH]).reshape(-1, LENGTH)
    shown = np.concatenate([np.full((len(records), 1), tokenizer.bos), records[:, :-1]], axis=1)
    features = jax.jit(model.network.features)(
        model.params,
        jnp.asarray(shown),
        jnp.arange(LENGTH)[None],
        jnp.tril(jnp.ones((1, LENGTH, LENGTH), bool)),
        jnp.zeros(shown.shape),
    )
    logits = np.asarray(model.network.logits(model.params, features), np.float64)
    logits = logits[..., : tokenizer.vocab_size]
    logits -= logits.max(-1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    nats = -np.take_along_axis(log_p, records[..., None], axis=-1).mean()
    assert found.estimate.nll == pytest.approx(nats, abs=1e-5)
    assert found.protocol.bound == "exact likelihood"
    assert found.protocol.draws == 1
    assert found.dropped_tokens == len(stream) % LENGTH
    bits = nats / np.log(2) * records.size / (records != tokenizer.eos).sum()
    assert found.estimate.bits_per_byte == pytest.approx(bits, rel=1e-5)


@pytest.mark.parametrize("which", ["ar", "gamma"])
def test_remainders_count_and_batches_do_not(which, request, text):
    folder = request.getfixturevalue(which)
    dataset = EvaluationSet(name="b", source=f"files:{text}/b.txt")
    seven, all_ = (measured(folder, dataset, batch_size=size) for size in (7, 64))
    assert seven.estimate.records == all_.estimate.records == 30
    assert seven.sha256 == all_.sha256
    unigrams = [found.estimate.unigram_perplexity for found in (seven, all_)]
    assert unigrams[0] == pytest.approx(unigrams[1])
    if which == "ar":
        assert seven.estimate.nll == pytest.approx(all_.estimate.nll, rel=1e-6)
    else:  # other draws
        error = np.hypot(seven.estimate.nll_se, all_.estimate.nll_se)
        assert abs(seven.estimate.nll - all_.estimate.nll) < 4 * error


def test_bounds_tighten_with_draws_as_their_errors_say(gamma, text):
    dataset = EvaluationSet(name="b", source=f"files:{text}/b.txt")
    many = measured(gamma, dataset, draws=64, seed=99).estimate
    few = [measured(gamma, dataset, draws=1, seed=seed).estimate for seed in range(12)]
    errors = [estimate.nll_se for estimate in few]
    assert many.nll_se < 0.6 * np.mean(errors)
    # Records are the same, so the spread of the means is that of the draws alone.
    spread = np.std([estimate.nll for estimate in few])
    assert spread < 1.5 * np.mean(errors)
    assert abs(np.mean([e.nll for e in few]) - many.nll) < 4 * np.mean(errors) / np.sqrt(12)
    assert "exact" not in measured(gamma, dataset).protocol.bound


def test_one_record_has_no_error():
    estimate = BoundEstimate(
        bound="exact likelihood", nll=1.0, nll_se=math.nan, bits_per_byte=0.5,
        unigram_perplexity=3.0, records=1, draws=1,
    )  # fmt: skip
    assert str(estimate).startswith("perplexity = 2.72 (0.500 bits per byte; exact likelihood; ")


def test_command_line_prints_and_stores(gamma, text, capsys):
    source = f"files:{text}/b.txt"
    arguments = [f"--workdir={gamma}", f"--datasets=valid,lambada={source},books={source}",
                 "--draws=2", "--batch_size=16"]  # fmt: skip
    assert evaluate.main(arguments) == 0
    shown = capsys.readouterr().out
    valid, lambada, books = tiny.stored(shown)
    for stored in (valid, lambada, books):
        assert stored["protocol"]["name"] == "packed-1"
        assert stored["protocol"]["draws"] == 2
        assert len(stored["sha256"]) == 64
        assert stored["versions"]["jax"] == jax.__version__
        name = stored["dataset"]["name"]
        line = next(line for line in shown.splitlines() if line.startswith(name))
        assert f"≤ {stored['values']['perplexity']:.2f} ± " in line
    assert lambada["dataset"]["detokenizer"] == "lambada"
    # The held-out records of the run, as the run itself evaluates them.
    assert valid["estimate"]["records"] == Manifest.load(gamma.parent / "data").valid.records


BUILD = """
class {name}(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    {configs}

    def _info(self):
        features = tfds.features.FeaturesDict({{{features}}})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, manager):
        return {{"train": self._generate_examples(5), "test": self._generate_examples(40)}}

    def _generate_examples(self, count):
        for number in range(count):
            words = f"text number {{number}}, with γ and a few more words ."
            yield number, {{name: words for name in self.info.features}}

for config in {wanted}:
    {name}(data_dir=sys.argv[1], file_format="array_record", **config).download_and_prepare()
"""
TEXT = "tfds.features.Text()"
BUILDERS = {
    "lambada": {
        "name": "Lambada", "configs": "", "features": f'"passage": {TEXT}', "wanted": "[{}]",
    },
    "scientific_papers": {
        "name": "ScientificPapers",
        "configs": 'BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=n, version="1.1.1") '
        'for n in ("arxiv", "pubmed")]',
        "features": ", ".join(f'"{n}": {TEXT}' for n in ("abstract", "article", "section_names")),
        "wanted": '[{"config": "arxiv"}, {"config": "pubmed"}]',
    },
}  # fmt: skip


def test_tfds_without_network_and_tensorflow(gamma, tmp_path):
    """Sets with the features of the real ones, built here and read back by their usual names."""
    classes = "".join(BUILD.format(**settings) for settings in BUILDERS.values())
    file = tmp_path / "build.py"
    file.write_text(f"import sys\nimport tensorflow_datasets as tfds\n{classes}", encoding="utf-8")
    subprocess.run([sys.executable, str(file), str(tmp_path)], check=True, capture_output=True)
    command = (
        "import sys; from hybrid_jax import evaluate; status = evaluate.main(sys.argv[1:]); "
        "from hybrid_jax.data import inputs; found = inputs.read('tfds:lambada:test'); "
        "assert [len(file.sha256) for file in found] == [64] and 'lambada-test' in found[0].name; "
        "from hybrid_jax.data import sources; name = 'pairs:tfds:scientific_papers/arxiv:test'; "
        "pairs = list(sources.streams(f'{name}:abstract+article')); assert len(pairs) == 40; "
        "assert ('text number 0, with γ and a few more words .',) * 2 in pairs; "
        "assert 'tensorflow' not in sys.modules; sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", command, f"--workdir={gamma}", "--draws=1", "--records=20",
         "--datasets=lambada,arxiv,pubmed"],
        capture_output=True, text=True, check=False,
        env={**os.environ, "TFDS_DATA_DIR": str(tmp_path), "JAX_NUM_CPU_DEVICES": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for stored in tiny.stored(done.stdout):
        assert f"\n{stored['dataset']['name']} " in done.stdout
        assert stored["dataset"]["source"].startswith("tfds:")
        assert stored["estimate"]["records"] == 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--datasets=lambda"], "There is no data set 'lambda': did you mean lambada?"),
        (["--datasets="], "names no data set"),
        (["--datasets=a=files:x,a=files:y"], "--datasets names a 2 times: leave out all but one"),
        (["--datasets=lm1b"], "lm1b is not prepared in {folder}: run  tfds build lm1b --file_fo"),
        (["--datasets=a=tfds:lambada"], "is not tfds:NAME[/CONFIG]:SPLIT[:FIELD]"),
        (["--datasets=a=tfds:nonesuch:test"], "TFDS knows no data set 'nonesuch'"),
        (["--datasets=a=tfds:lm1b/nonesuch:test"], "TFDS knows no data set 'lm1b/nonesuch'"),
        (["--datasets=a=tfds:a b:test"], "TFDS knows no data set 'a b'"),
        (["--datasets=valid,a=files:none.txt"], "No file matches 'none.txt'"),
        (["--datasets=a=files:{short}"], "a has 4 tokens, too few for one record of 16"),
        (["--draws=0"], "--draws: '0' is not a whole number in 1 …"),
        (["--step=7"], "There is no checkpoint"),
        (["--step=best"], "was evaluated: leave out the step"),
    ],
)
def test_mistakes_are_one_sentence(gamma, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    short = tmp_path / "short.txt"
    short.write_text("abc", encoding="utf-8")
    values = {"folder": tmp_path, "short": short}
    arguments = [argument.format(**values) for argument in arguments]
    assert evaluate.main([f"--workdir={gamma}", *arguments]) == 2
    said, error = capsys.readouterr()
    assert error.startswith("error: ")
    assert message.format(**values) in error
    assert len(error.splitlines()) == 1
    assert not said  # nothing was measured before


def test_names_of_sets():
    valid = EvaluationSet(name="valid", source="")
    assert datasets.parse("valid", validation=valid) is valid
    assert datasets.parse("arxiv", validation=valid).detokenizer == "scientific_papers"
    elsewhere = datasets.parse("valid=files:v.txt", validation=valid)
    assert (elsewhere.name, elsewhere.source) == ("valid", "files:v.txt")
    mine = datasets.parse("ptb=files:ptb.txt", validation=valid)
    assert (mine.source, mine.detokenizer) == ("files:ptb.txt", "ptb")
    for source in ("files:a.txt", "files:https://a/b.jsonl?c=d"):
        assert datasets.parse(source, validation=valid).source == source
    assert all(
        datasets.parse(name, validation=valid).detokenizer in NAMES for name in datasets.NAMES
    )
    with pytest.raises(UserError, match="did you mean wikitext"):
        datasets.parse("wikitex", validation=valid)
    with pytest.raises(UserError, match="There is no data set ''"):
        datasets.parse("=files:a.txt", validation=valid)


DETOKENIZED = [
    ("none", " a , b . ", " a , b . "),
    ("wikitext", "a well @-@ known 1 @,@ 500 and 3 @.@ 5 kg", "a well-known 1,500 and 3.5 kg"),
    ("wikitext", " = = Title = = \nHe ( in 1990 ) , so . ", " == Title ==\nHe (in 1990), so. "),
    ("wikitext", 'the dog \'s " big " bone ; then', 'the dog\'s "big" bone; then'),
    ("ptb", "the firm 's N pens do n't cost $ N now", "the firm's 1 pens don't cost $1 now"),
    ("ptb", "1 \\/ 2 of <unk>", "1 / 2 of ?"),
    ("lm1b", "He paid $ 5 , or so . Did he ? ( Yes )", "He paid $5, or so. Did he? (Yes)"),
    ("lambada", "  “ Well , ” he said .\n", '\n" Well , " he said .'),
]


@pytest.mark.parametrize(("name", "before", "after"), DETOKENIZED)
def test_detokenizers(name, before, after):
    assert detokenizer(name)(before) == after
