"""Settings shared by all tests: several CPU devices, strict promotion, and the paths of
optional reference material."""

import os
from pathlib import Path

# The package's `main` keeps third-party start-up chatter down in the same way.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "standard")
jax.config.update("jax_numpy_rank_promotion", "allow")

SHARED = Path(__file__).resolve().parents[2] / "shared"


def optional_folder(path: Path) -> Path:
    if not path.is_dir():
        pytest.skip(f"optional folder {path.name} is not present")
    return path


@pytest.fixture(scope="session")
def reference() -> Path:
    """Reference values from the released implementation, when they lie beside the checkout."""
    return optional_folder(SHARED / "reference")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Optional corpora and tokenizer files, when they lie beside the checkout."""
    return optional_folder(SHARED / "data")
