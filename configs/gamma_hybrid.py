"""γ-hybrid: masking and random replacement mixed in the rate matrix, trained on score entropy.

    python -m hybrid_jax.main --config=configs/gamma_hybrid.py

Cost and result of ``tiny``: see RESULT_TINY.

The network predicts each token from its context, and what the shown token itself says is added
analytically (parameterisation "context"): a network that has to learn by itself how far to trust a
shown token starts thousands of nats away and trains far worse (docs/math.md). ``base`` is the
paper's flat schedule with γ = 0.01, T = 2048, batch 256, adaLN on σ.
"""

from hybrid_jax.presets import sized


def get_config(size: str = "tiny"):
    config = sized("gamma_hybrid", size)
    config.noise.kernel = "gamma"
    config.noise.gamma = 0.01
    config.objective.parameterisation = "context"
    config.objective.time = "continuous"
    if size == "base":
        config.schedule.levels = 2048
        config.train.batch_size = 256
        config.model.condition = 128
        config.model.embedding_gamma = 0.01
        config.optimizer.beta2 = 0.999
        config.optimizer.weight_decay = 0.0
    return config
