"""SEDD-absorb: masking, all positions together (flat), score entropy on ratios of marginals.

    python -m hybrid_jax.main --config=configs/sedd.py

Cost of ``tiny``: about half that of ``gamma_hybrid`` (no clean rows). Result on English books:
docs/results.md. Lou et al. 2024, arXiv 2310.16834. The network is told σ.
"""

import ml_collections

from hybrid_jax.presets import sized


def get_config(size: str = "tiny") -> ml_collections.ConfigDict:
    config = sized("sedd", size)
    config.schedule = {"family": "flat"}
    config.noise.kernel = "absorbing"
    config.objective.parameterisation = "score"
    config.objective.time = "continuous"
    config.model.condition = 32 if size == "tiny" else 128
    return config
