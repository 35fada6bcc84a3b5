"""A sliding window: the γ-hybrid with a ramp of noise levels that moves along the text, one of the
schedules between autoregression and diffusion.

    python -m hybrid_jax.main --config=configs/slide.py

Cost of ``tiny``: about that of ``gamma_hybrid``. No full run has been recorded yet.
"""

import ml_collections

from hybrid_jax.presets import sized


def get_config(size: str = "tiny") -> ml_collections.ConfigDict:
    config = sized("slide", size)
    config.schedule.family = "slide"
    if size == "base":
        config.schedule.width = 64
    config.noise.kernel = "gamma"
    config.noise.gamma = 0.01
    config.objective.parameterisation = "context"
    config.objective.time = "continuous"
    return config
