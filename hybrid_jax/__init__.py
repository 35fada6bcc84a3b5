"""hybrid_jax: hyperschedules and hybrid-noise diffusion language models in JAX.

Implements *Unifying Autoregressive and Diffusion-Based Sequence Generation*
(Fathi, Scholak, Noël, arXiv 2504.06416)::

    import hybrid_jax as hj

    model = hj.load("runs/gamma_hybrid")
    texts = model.generate(["The function returns"], length=64, rule=hj.rules.ACS(eta=0.25))

Names are imported when they are first used, so that ``import hybrid_jax`` costs nothing; their
types are in ``__init__.pyi``.
"""

import importlib

__version__ = "0.1.0"

# Where a public name lives; a name without an attribute is a module.
_HOMES = {
    "Experiment": "config",
    "Layout": "method.layout",
    "Model": "api.model",
    "Objective": "method.objective",
    "Spec": "method.loss",
    "UserError": "errors",
    "load": "api.model",
    "hyperschedule": "method",
    "noising": "method",
    "rules": "sampling",
    "workdir": "training",  # where the config.py of an imported model looks for it
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'hybrid_jax' has no attribute {name!r}")
    home = f"hybrid_jax.{_HOMES[name]}"
    if name.islower() and name != "load":
        return importlib.import_module(f"{home}.{name}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return __all__
