"""Runs benchmarks of lm-eval, EleutherAI's evaluation harness, on a trained model.

    python -m hybrid_jax.lm_eval --model hybrid_jax --model_args workdir=runs/ar --tasks piqa

The command line is lm-eval's own. It finds no models of other packages, so this adds the model
`hybrid_jax` (see `hybrid_jax.eval.harness`) and then starts it.
"""

import sys

from hybrid_jax.errors import exit_status, require
from hybrid_jax.runtime import allocator, compilation_cache


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""

    def command() -> None:
        harness = require("lm_eval.__main__", "lm-eval")
        allocator.keep_freed_memory()
        compilation_cache.use()
        require("hybrid_jax.eval.harness", "lm-eval")
        sys.argv = ["lm_eval", *(sys.argv[1:] if argv is None else argv)]
        harness.cli_evaluate()

    return exit_status(command, interrupted="no results were written")


if __name__ == "__main__":
    sys.exit(main())
