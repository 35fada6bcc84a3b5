"""Memory that a program frees, as the operating system counts it."""

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

PROGRAM = """
import resource, sys
import jax, jax.numpy as jnp
from hybrid_jax.runtime.allocator import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
program = jax.jit(lambda x: jnp.cumsum(x @ x.T, axis=1)[::-1] @ x)
x = jnp.ones((2048, 1024))


def faults():
    begun = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    program(x).block_until_ready()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begun


print(min(faults() for _ in range(10)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_a_program_that_runs_again_finds_its_memory():
    """Of ten runs, the one with the fewest new pages."""
    returned, kept = (
        int(subprocess.check_output([sys.executable, "-c", PROGRAM, how], text=True))
        for how in ("return", "keep")
    )
    assert kept < returned / 10
