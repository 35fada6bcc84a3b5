"""Proof that the tests notice wrong formulas: small mutations of a scratch copy, one at a time.

`mutants.toml` lists them: the file, the text that goes, the text that comes, and the tests that
should fail then. Run by `make mutants`; with words as arguments, only mutants whose file or text
contains one of them.
"""

import argparse
import concurrent.futures
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import tqdm

REPOSITORY = Path(__file__).resolve().parents[1]
COPIED = ("hybrid_jax", "configs", "benchmarks", "tests", "docs", "pyproject.toml")
WORKERS = 2
LONGEST = 300  # seconds; a program that hangs is noticed


def load(words: list[str]) -> list[dict]:
    """The mutants as `file`, `old`, `new` and `tests`. Exits where an old text is not unique."""
    with open(Path(__file__).with_suffix(".toml"), "rb") as file:
        groups = tomllib.load(file)["mutants"]
    found, stale = [], []
    for group in groups:
        for old, new in group["changes"]:
            mutant = {"file": f"hybrid_jax/{group['file']}", "old": old, "new": new}
            if (REPOSITORY / mutant["file"]).read_text(encoding="utf-8").count(old) != 1:
                stale.append(f"{mutant['file']} does not hold exactly once: {old}")
            found.append(mutant | {"tests": [f"tests/test_{test}" for test in group["tests"]]})
    if stale:
        sys.exit("\n".join(stale))
    wanted = [m for m in found if not words or any(w in m["file"] + m["old"] for w in words)]
    return wanted or sys.exit(f"There is no mutant of {' or '.join(words)}.")


def copy(folder: Path) -> Path:
    """A copy of what the tests need."""
    for name in COPIED:
        source = REPOSITORY / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, folder / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(source, folder / name)
    return folder


def run(folder: Path, tests: list[str]) -> tuple[int, str]:
    """Exit status and output of pytest on the copy, 1 where it hangs."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n0", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LONGEST
        )
    except subprocess.TimeoutExpired:
        return 1, ""
    return done.returncode, done.stdout + done.stderr


def judge(folders: queue.Queue, mutant: dict) -> str | None:
    """Applies a mutant and takes it back. Returns what is wrong: None if a test notices it."""
    folder = folders.get()
    path = folder / mutant["file"]
    whole = path.read_text(encoding="utf-8")
    try:
        path.write_text(whole.replace(mutant["old"], mutant["new"]), encoding="utf-8")
        status, output = run(folder, mutant["tests"])
    finally:
        path.write_text(whole, encoding="utf-8")
        folders.put(folder)
    what = f"{mutant['file']}\n  {mutant['old']}\n→ {mutant['new']}"
    if status == 0:
        return f"survives: {what}\n  tests: {' '.join(mutant['tests'])}"
    # 1: tests failed. Anything else: they could not run.
    return None if status == 1 else f"cannot be tested: {what}\n{output[-2000:]}"


def main(words: list[str]) -> int:
    mutants = load(words)
    with tempfile.TemporaryDirectory() as scratch:
        folders: queue.Queue = queue.Queue()
        for number in range(WORKERS):
            (Path(scratch) / str(number)).mkdir()
            folders.put(copy(Path(scratch) / str(number)))
        with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
            # A test that fails without a mutant would notice anything.
            tests = sorted({test for mutant in mutants for test in mutant["tests"]})
            whole = pool.map(lambda part: judge_whole(folders, part), (tests[::2], tests[1::2]))
            wrong = [fault for fault in whole if fault]
            if not wrong:
                jobs = [pool.submit(judge, folders, mutant) for mutant in mutants]
                done = tqdm.tqdm(
                    concurrent.futures.as_completed(jobs), "mutants", len(jobs), unit="mutant"
                )
                wrong = [fault for job in done if (fault := job.result())]
    print("\n".join(wrong) or f"{len(mutants)} mutants, no survivors")
    return int(bool(wrong))


def judge_whole(folders: queue.Queue, tests: list[str]) -> str | None:
    """Runs tests without a mutant; what is wrong, if they do not pass."""
    folder = folders.get()
    status, output = run(folder, tests) if tests else (0, "")
    folders.put(folder)
    return f"fails without a mutant:\n{output[-2000:]}" if status else None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*")
    sys.exit(main(parser.parse_args().words))
