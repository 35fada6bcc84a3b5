"""Preparation of much text: speed of its stages, processors used, and memory.

    python benchmarks/prepare.py --text='files:gutenberg/*.jsonl.xz' --tokenizer=gpt2:gpt2

The text is made of that of --text: its documents over and over in files of JSON lines, the lines of
each shuffled, so that no two copies are the same. Three stages are timed: planning (hashes of the
files, and what to validate on), encoding, and packing into records. What a larger text and more
hosts would take is computed from them: each host plans, all share the encoding, and one packs.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import command
import in_turn

from hybrid_jax.data import sources
from hybrid_jax.runtime.command_line import Parser, path_of, within

MB = 10**6


def write_text(folder: Path, options: argparse.Namespace) -> int:
    """Writes --files files of --megabytes together; returns their bytes of text."""
    rng = random.Random(options.seed)
    documents = list(sources.documents(options.text))
    total = 0
    for number in range(options.files):
        with open(folder / f"{number:03d}.jsonl", "w", encoding="utf-8") as file:
            while total < options.megabytes * MB * (number + 1) / options.files:
                lines = rng.choice(documents).splitlines(keepends=True)
                rng.shuffle(lines)
                text = "".join(lines)
                total += len(text.encode("utf-8"))
                file.write(json.dumps({"text": text}) + "\n")
    return total


def watched(words: list[str]) -> tuple[float, float, dict[int, int]]:
    """Runs a command: seconds to its first line of progress, and to its end, and peaks of memory.

    The peaks are in bytes, of each of its processes.
    """
    peaks: dict[int, int] = {}
    begun = time.perf_counter()
    first = 0.0
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(
            [sys.executable, "-m", "hybrid_jax.data.prepare", *words], stderr=said
        ) as process,
    ):
        while process.poll() is None:
            if not first and said.tell():
                first = time.perf_counter() - begun
            for pid in (process.pid, *_children(process.pid)):
                peaks[pid] = max(peaks.get(pid, 0), _peak(pid))
            time.sleep(0.02)
    if process.returncode:
        sys.exit(process.returncode)
    return first, time.perf_counter() - begun, peaks


def _children(pid: int) -> list[int]:
    try:
        return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _peak(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def measure(options: argparse.Namespace) -> None:
    rows = ["| processes | planning, s | encoding, s | packing, s | MB/s | MB/s a process | "
            "MB per second of a processor | memory, MB: all, largest |",
            "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    larger = ["| text | hosts, processes each | planning | encoding | packing | all, minutes |",
              "|---|---|---|---|---|---|"]  # fmt: skip
    with tempfile.TemporaryDirectory(dir=options.folder or None) as folder:
        size = write_text(Path(folder), options) / MB
        in_turn.note(f"{size:.0f} MB of text are written")
        for workers in options.workers:
            words = [f"--source=files:{folder}/*.jsonl", f"--tokenizer={options.tokenizer}",
                     f"--workers={workers}", f"--out={folder}/out-{workers}"]  # fmt: skip
            before = _processor_seconds()
            plan, planned_and_encoded, peaks = watched([*words, "--shard=0/1"])
            _, pack, _ = watched(words)
            used = _processor_seconds() - before
            encode = planned_and_encoded - plan
            seconds = planned_and_encoded + pack
            rows.append(
                f"| {workers} | {plan:.1f} | {encode:.1f} | {pack:.1f} | {size / seconds:.1f} | "
                f"{size / seconds / workers:.1f} | {size / used:.1f} | "
                f"{sum(peaks.values()) / MB:.0f}, {max(peaks.values()) / MB:.0f} |"
            )
            for gigabytes, hosts in ((1, 1), (40, 1), (40, 64)):
                times = gigabytes * 1000 / size
                parts = [plan * times, encode * times / hosts, pack * times]
                larger.append(
                    f"| {gigabytes} GB | {hosts}, {workers} | "
                    + " | ".join(f"{part / 60:.1f}" for part in (*parts, sum(parts))) + " |"
                )  # fmt: skip
            report = "\n".join([*rows, "", "Computed from these, for hosts with disks as fast:", "",
                                *larger])  # fmt: skip
            if options.out:
                shape = {"megabytes": round(size), "files": options.files, "seed": options.seed}
                report = in_turn.store("prepare", options.out, report, **shape)
    print(report)


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> int:
    parser = Parser(prog="python benchmarks/prepare.py", description="Times data preparation.")
    add = parser.add_argument
    add("--text", required=True, help="a source of text, see hybrid_jax.data.prepare")
    add("--tokenizer", required=True, help="such as gpt2:FOLDER")
    add("--megabytes", type=within(1), default=1000, help="of text (default: %(default)s)")
    add("--files", type=within(1), default=8, help="for the text (default: %(default)s)")
    add("--workers", type=int, nargs="+", default=[1, 2], help="processes (default: 1 2)")
    add("--seed", type=int, default=0)
    add(
        "--folder", default="", type=path_of, metavar="DIR", help="for text and records, for a time"
    )
    add("--out", default="", type=path_of, metavar="DIR", help="folder for the table")
    return command.run(parser, measure, folder=True)


if __name__ == "__main__":
    sys.exit(main())
