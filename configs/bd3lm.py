"""BD3-LM: masking, block after block.

    python -m hybrid_jax.main --config=configs/bd3lm.py

Cost of ``tiny``: about that of ``gamma_hybrid``. Result on English books: docs/results.md. After
Arriola et al. 2025, arXiv 2503.09573. ``base`` has blocks of 16.
"""

import ml_collections

from hybrid_jax.presets import sized


def get_config(size: str = "tiny") -> ml_collections.ConfigDict:
    config = sized("bd3lm", size)
    config.schedule.family = "block"
    if size == "base":
        config.schedule.width = 16
    config.noise.kernel = "absorbing"
    config.objective.time = "continuous"
    config.layout.context = "block_causal"
    return config
