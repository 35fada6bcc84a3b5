"""MDLM: masking, all positions together (flat), cross-entropy weighted by 1/λ.

    python -m hybrid_jax.main --config=configs/mdlm.py

Cost of ``tiny``: about half that of ``gamma_hybrid`` (no clean rows). Result on English books:
docs/results.md. Sahoo et al. 2024, arXiv 2406.07524.
"""

import ml_collections

from hybrid_jax.presets import sized


def get_config(size: str = "tiny") -> ml_collections.ConfigDict:
    config = sized("mdlm", size)
    config.schedule = {"family": "flat"}
    config.noise.kernel = "absorbing"
    config.objective.time = "continuous"
    return config
