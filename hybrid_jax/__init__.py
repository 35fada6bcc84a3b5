"""hybrid_jax: hyperschedules and hybrid-noise diffusion language models in JAX.

Implements *Unifying Autoregressive and Diffusion-Based Sequence Generation*
(Fathi, Scholak, Noël, arXiv 2504.06416).
"""

__version__ = "0.1.0"
