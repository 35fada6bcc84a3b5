"""Three sizes that every config file offers: what all methods share at one size.

- ``tiny``   trains on a laptop CPU in minutes, on text that every Python brings along;
- ``small``  fits one GPU for about half an hour;
- ``base``   is the setting of the paper (arXiv 2504.06416 section 5): 12 layers of 768, L = 1024,
  GPT-2 BPE, OpenWebText, AdamW 3e-4, EMA 0.9999.
"""

import dataclasses

import ml_collections

from hybrid_jax.config import EvaluationConfig, Experiment, TrainConfig
from hybrid_jax.data.settings import DataConfig
from hybrid_jax.errors import UserError
from hybrid_jax.method.objective import Objective
from hybrid_jax.method.settings import ScheduleConfig
from hybrid_jax.models.settings import ModelConfig
from hybrid_jax.optim import OptimizerConfig
from hybrid_jax.runtime.decode import nearest

_MUON = OptimizerConfig(name="muon", final_fraction=0.05, beta2=0.95)
# Left out is what has its default.
_SIZES: dict[str, Experiment] = {
    "tiny": Experiment(
        data=DataConfig(source="pydocs", tokenizer="sentencepiece", vocab_size=512, length=64),
        schedule=ScheduleConfig(family="block", width=8),
        objective=Objective(levels="bell"),
        model=ModelConfig(layers=4, width=128, heads=2, activation="relu2", qk_norm=True, unroll=4),
        optimizer=dataclasses.replace(_MUON, learning_rate=0.01, warmup_steps=20),
        train=TrainConfig(
            steps=500, ema_decay=0.98, eval_every=250, checkpoint_every=250, loss_chunk=64
        ),
        evaluation=EvaluationConfig(records=128, final_records=512, batch_size=32),
    ),
    "small": Experiment(
        data=DataConfig(
            source="files:data/text/*.txt", tokenizer="sentencepiece", vocab_size=16_384, length=512
        ),
        schedule=ScheduleConfig(family="block", width=16),
        objective=Objective(levels="bell"),
        model=ModelConfig(layers=8, width=512, heads=8, qk_norm=True, dtype="bfloat16"),
        optimizer=dataclasses.replace(_MUON, learning_rate=3e-3, warmup_steps=500),
        train=TrainConfig(
            steps=20_000,
            batch_size=64,
            ema_decay=0.9995,
            log_every=100,
            eval_every=2_000,
            checkpoint_every=2_000,
        ),
        evaluation=EvaluationConfig(records=512),
    ),
    "base": Experiment(
        data=DataConfig(
            source="files:data/openwebtext/*.jsonl.zst", tokenizer="gpt2:data/gpt2", length=1024
        ),
        schedule=ScheduleConfig(family="flat"),
        model=ModelConfig(
            layers=12, width=768, heads=12, dropout=0.1, dtype="bfloat16", remat=True
        ),
        optimizer=OptimizerConfig(
            warmup_steps=10_000, final_fraction=0.13, beta2=0.95, weight_decay=0.1
        ),
        train=TrainConfig(
            steps=1_000_000,
            batch_size=512,
            ema_decay=0.9999,
            log_every=100,
            eval_every=10_000,
            checkpoint_every=5_000,
        ),
        evaluation=EvaluationConfig(records=1024, draws=1),
    ),
}


def sized(name: str, size: str) -> ml_collections.ConfigDict:
    """The settings of a size for a method to build on. Raises UserError for an unknown size."""
    if size not in _SIZES:
        raise UserError(f"{name} has no size {size!r}: {nearest(size, _SIZES)}")
    suffix = "" if size == "tiny" else f"-{size}"
    config = dataclasses.replace(_SIZES[size], name=f"{name}{suffix}").to_config()
    config.preset = config.to_dict()  # see `Experiment.from_config`
    return config
