"""Autoregression: one position a step, each predicted by the row before it. This is GPT, trained on
exact cross-entropy by the same code as everything else.

    python -m hybrid_jax.main --config=configs/ar.py

Cost of ``tiny``: about half that of ``gamma_hybrid``. Result on English books: docs/results.md.
"""

import ml_collections

from hybrid_jax.presets import sized


def get_config(size: str = "tiny") -> ml_collections.ConfigDict:
    config = sized("ar", size)
    config.schedule = {"family": "quenched_ar"}
    config.layout.alignment = "shifted"
    config.noise.kernel = "absorbing"
    config.objective.time = "discrete"
    config.evaluation.time = "discrete"
    config.evaluation.draws = 1
    return config
