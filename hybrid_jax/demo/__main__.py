"""Serves a page on which one watches a trained model write.

    python -m hybrid_jax.demo --workdir=runs/gamma_hybrid

The page is for this machine alone (docs/demo.md).
"""

import argparse
import ipaddress
import sys
import threading

from hybrid_jax.demo.server import Server, listen
from hybrid_jax.demo.writer import Writer
from hybrid_jax.runtime.command_line import Parser, add_model, run_command
from hybrid_jax.runtime.preemption import Signals
from hybrid_jax.training import pretrained


def _run(options: argparse.Namespace) -> None:
    # First of all, so that a port that is taken shows before anything slow.
    with Signals(), listen(options.host, options.port) as listener:
        model = pretrained.asked(options)
        writer = Writer(model, options.workdir, options.step, options.schedule)
        server = Server(listener, writer, host=options.host)
        # Signals raise in this thread, and must find it waiting, not in the midst of a request.
        serving = threading.Thread(target=server.serve_forever, daemon=True)
        serving.start()
        try:
            places = " and ".join(server.urls)
            print(f"{model.experiment.name}, step {model.step}, writes at {places}", flush=True)
            if not ipaddress.ip_address(listener.getsockname()[0]).is_loopback:
                print("warning: others can reach this address, and may use it", file=sys.stderr)
            serving.join()
        finally:
            server.finish()


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m hybrid_jax.demo",
        description="Serves a page on which one watches a trained model write.",
        compiles=True,
    )
    add = parser.add_argument
    add_model(add)
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, which "
        "only this machine can reach)")  # fmt: skip
    add("--port", type=int, default=8000, help="0 for any that is free (default: %(default)s)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return run_command(_parser(), argv, _run, interrupted="the page is closed")


if __name__ == "__main__":
    sys.exit(main())
