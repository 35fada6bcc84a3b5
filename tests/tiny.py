"""Trained runs so small that tests share them: a few steps on sums, bytes as tokens."""

import io
import json
from pathlib import Path

import jax
import sentencepiece

from hybrid_jax.config import (
    EvaluationConfig,
    Experiment,
    ModelConfig,
    NoiseConfig,
    ScheduleConfig,
    TrainConfig,
)
from hybrid_jax.data.settings import DataConfig
from hybrid_jax.data.tokenizers.sentencepiece import SentencePieceTokenizer
from hybrid_jax.method.layout import Layout
from hybrid_jax.method.objective import Objective
from hybrid_jax.optim import OptimizerConfig
from hybrid_jax.runtime.preemption import Signals
from hybrid_jax.sampling.settings import SamplingConfig
from hybrid_jax.training import loop, workdir

LENGTH = 16
TEXT = "".join(f"{n} plus {n} makes {2 * n}.\n" for n in range(3000))

_AR = dict(
    schedule=ScheduleConfig(family="quenched_ar"),
    layout=Layout(alignment="shifted"),
    evaluation=EvaluationConfig(time="discrete"),
)
_BLOCK = ScheduleConfig(family="block", width=4, levels=4)
_CROSS_ENTROPY = Objective(
    parameterisation="context", loss="weighted_cross_entropy", time="continuous"
)
RUNS = {
    "ar": _AR,
    "gamma": dict(
        schedule=_BLOCK,
        noise=NoiseConfig(kernel="gamma"),
        objective=Objective(parameterisation="context", time="continuous"),
    ),
    "epsilon": dict(
        schedule=_BLOCK,
        noise=NoiseConfig(kernel="epsilon"),
        objective=_CROSS_ENTROPY,
        evaluation=EvaluationConfig(kernel="absorbing"),
    ),
}


def run(folder: Path, text: Path, *, length: int = LENGTH, tokenizer: str = "byte", **sections):
    """Trains on the file `text`: the workdir `folder`/run, with its data in `folder`/data.

    `sections` are those of an experiment.
    """
    settings = {
        "model": ModelConfig(layers=1, width=16, heads=2),
        "optimizer": OptimizerConfig(learning_rate=0.05, schedule="constant"),
        "train": TrainConfig(steps=8, batch_size=8, eval_every=100, checkpoint_every=100),
        "sampling": SamplingConfig(count=0),
        **sections,
    }
    size = {"vocab_size": 300} if tokenizer == "sentencepiece" else {}
    experiment = Experiment(
        name="tiny",
        data=DataConfig(
            source=f"files:{text}", tokenizer=tokenizer, length=length, dir=f"{folder}/data", **size
        ),
        **settings,
    )
    opened = loop.open_run(experiment, jax.devices()[:1])
    records = opened.data_dir, opened.manifest
    workdir.claim(folder / "run", experiment, opened.tokenizer, records)
    loop.train(opened, folder / "run", Signals(), say=lambda _: None)
    return folder / "run"


def stored(printed: str) -> list[dict]:
    """The measurements that `hybrid_jax.evaluate` says it stored, strict JSON all of them."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    folder, _, names = printed.strip().splitlines()[-1].partition("stored in ")[2].partition(": ")
    files = [Path(folder) / name for name in names.split(", ") if name.endswith(".json")]
    return [json.loads(f.read_text(encoding="utf-8"), parse_constant=refuse) for f in files]


def tiny_tokenizer() -> SentencePieceTokenizer:
    """Exactly 63 tokens: no bytes to fall back on, so only for text of these letters."""
    model = io.BytesIO()
    words = " ".join(a + b + c for a in "abcdefgh" for b in "aeiou" for c in "rstlmn")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([words] * 3), model_writer=model, model_type="bpe", vocab_size=63,
        pad_id=0, bos_id=1, eos_id=2, unk_id=3, add_dummy_prefix=False, minloglevel=3,
    )  # fmt: skip
    return SentencePieceTokenizer(model=model.getvalue())
