"""From autoregression to blocks: what goes on from an AR run, or from an imported model.

    python -m hybrid_jax.main --config=configs/ar.py
    python -m hybrid_jax.main --config=configs/adapt.py --init=runs/ar --workdir=runs/adapted

Network and tokenizer are those of ``--init``, whatever the size. Rows stay shifted, since the
network predicts the token after the one it sees, and a quarter of the steps stays autoregressive.
Settings that the literature has for this, by name: the share of autoregression
(``schedule.weights``), blocks that grow (``schedule.also=quenched_ar,block:width=4`` with weights
that change at a step), windows that are causal at first
(``schedule.also=quenched_ar,block:width=16:causal_window=true``), and a slide in their place
(``schedule.family=slide``). The share of AR keeps what the network knew and costs blocks nothing;
a third of the size's learning rate was a little better than all of it; other ways were no better
than blocks at once (docs/results.md, "From autoregression to blocks").
"""

import ml_collections

from hybrid_jax.presets import sized


def get_config(size: str = "tiny") -> ml_collections.ConfigDict:
    config = sized("adapt", size)
    config.schedule.family = "block"
    config.schedule.also = "quenched_ar"
    config.schedule.weights = "3/4,1/4"
    if size == "base":
        config.schedule.width = 16
    config.layout.alignment = "shifted"
    config.noise.kernel = "absorbing"
    config.objective.time = "continuous"
    config.optimizer.learning_rate /= 3
    return config
