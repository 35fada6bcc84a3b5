"""A sliding window: the γ-hybrid with a ramp of noise levels that moves along the text, one of the
schedules between autoregression and diffusion.

    python -m hybrid_jax.main --config=configs/slide.py

Cost and result of ``tiny``: see RESULT_TINY.
"""

from hybrid_jax.presets import sized


def get_config(size: str = "tiny"):
    config = sized("slide", size)
    config.schedule.family = "slide"
    if size == "base":
        config.schedule.width = 64
        config.schedule.levels = 64
    config.noise.kernel = "gamma"
    config.noise.gamma = 0.01
    config.objective.parameterisation = "context"
    config.objective.time = "continuous"
    return config
