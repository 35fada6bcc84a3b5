"""Waiting for a command: imports, restoring, compiling, and the first words.

    python -m hybrid_jax.main --config=configs/gamma_hybrid.py
    python benchmarks/startup.py --workdir=runs/gamma_hybrid

Each command is started anew: with an empty folder of compiled programs (cold), and again with what
the first left there (warm). Its time runs from its start to its end; for the page, from the click
to the first round of the loop that is shown.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import command
import in_turn

from hybrid_jax.runtime.command_line import Parser, path_of, within

Environment = dict[str, str]


def until_end(*words: str) -> Callable[[Environment], dict[str, float]]:
    """Starts Python with these words, and waits until it ends."""

    def run(environment: Environment) -> dict[str, float]:
        begun = time.perf_counter()
        subprocess.run([sys.executable, *words], env=environment, check=True, capture_output=True)
        return {"": time.perf_counter() - begun}

    return run


def page(workdir: str) -> Callable[[Environment], dict[str, float]]:
    """Starts the page, and clicks twice."""

    def run(environment: Environment) -> dict[str, float]:
        words = [sys.executable, "-m", "hybrid_jax.demo", f"--workdir={workdir}", "--port=0"]
        begun = time.perf_counter()
        with subprocess.Popen(
            words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as server:
            try:
                assert server.stdout is not None
                found = re.search(r"http://127\.0\.0\.1:(\d+)/", server.stdout.readline())
                assert found
                return {
                    " to its address": time.perf_counter() - begun,
                    ", click to first token": _click(int(found[1])),
                    ", second click": _click(int(found[1])),
                }
            finally:
                server.terminate()

    return run


def _click(port: int) -> float:
    """Seconds from a request to the frame after the first round; reads the text to its end."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    begun = time.perf_counter()
    connection.request("POST", "/write", "{}", {"Content-Type": "application/json"})
    frames, first = 0, 0.0
    for line in connection.getresponse():
        frames += "frame" in json.loads(line)
        first = first or (time.perf_counter() - begun if frames == 2 else 0.0)
    connection.close()
    return first


def measure(options: argparse.Namespace) -> None:
    workdir = f"--workdir={options.workdir}"
    commands = {
        "`import jax`": until_end("-c", "import jax"),
        "`generate --num_samples=2`": until_end(
            "-m", "hybrid_jax.generate", workdir, "--num_samples=2"
        ),
        "the page": page(options.workdir),
        "`evaluate --records=64`": until_end(
            "-m", "hybrid_jax.evaluate", workdir, "--records=64", "--draws=1"
        ),
    }
    # Python keeps what it compiled, too, unless it is told not to.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    until_end("-c", "import hybrid_jax.evaluate")(environment)
    times: dict[str, tuple[list[float], list[float]]] = {}
    for _ in range(options.repeats):
        for name, run in commands.items():
            with tempfile.TemporaryDirectory() as folder:
                for warm in (0, 1):
                    for part, seconds in run({**environment, "XDG_CACHE_HOME": folder}).items():
                        times.setdefault(name + part, ([], []))[warm].append(seconds)
        rows = ["| | cold, s | warm, s |", "|---|---|---|"]
        for name, (cold, warm_) in times.items():
            rows.append(f"| {name} | {in_turn.spread(cold, 2)} | {in_turn.spread(warm_, 2)} |")
        report = "\n".join(rows)
        if options.out:
            report = in_turn.store("startup", options.out, report, repeats=options.repeats)
    print(report)


def main() -> int:
    parser = Parser(prog="python benchmarks/startup.py", description="Times starts of commands.")
    add = parser.add_argument
    add("--workdir", required=True, type=path_of, metavar="DIR", help="folder of a trained run")
    add("--repeats", type=within(1), default=3, metavar="N", help="starts of each (default: 3)")
    add("--out", default="", type=path_of, metavar="DIR", help="folder for the table")
    return command.run(parser, measure, folder=True)


if __name__ == "__main__":
    sys.exit(main())
