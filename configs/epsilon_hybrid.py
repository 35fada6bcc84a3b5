"""ε-hybrid: a share ε of the tokens is replaced at random, masking after that; trained on the
paper's weighted cross-entropy, reported by the absorbing bound (as in the paper).

    python -m hybrid_jax.main --config=configs/epsilon_hybrid.py

Samples with the adaptive correction sampler, guided by confidence (docs/results.md says why).
Cost of ``tiny``: about that of ``gamma_hybrid``. Results: docs/results.md. ``base`` is the paper's
flat schedule with ε = 0.01.
"""

import ml_collections

from hybrid_jax.presets import sized


def get_config(size: str = "tiny") -> ml_collections.ConfigDict:
    config = sized("epsilon_hybrid", size)
    config.noise.kernel = "epsilon"
    config.noise.epsilon = 0.01
    config.objective.loss = "weighted_cross_entropy"
    config.objective.time = "continuous"
    config.evaluation.kernel = "absorbing"
    config.sampling.rule = "acs"
    config.sampling.eta = 0.25
    config.sampling.guidance = "confidence"
    return config
