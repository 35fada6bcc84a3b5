"""Commands whose output has nowhere to go, or goes to a terminal that knows few characters."""

import importlib
import io
import subprocess
import sys

import pytest

COMMANDS = ("main", "generate", "evaluate", "score", "data.prepare", "figures.__main__",
            "interop.__main__", "aot.__main__", "demo.__main__")  # fmt: skip
COMMAND = """
import sys
from hybrid_jax.errors import UserError, exit_status

def command():
    sys.stdin.read()
    {}

sys.exit(exit_status(command, interrupted="all is well"))
"""


def child(body, **settings):
    """A command that works once its standard input ends."""
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND.format(body)],
        stdin=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", **settings,
    )  # fmt: skip


@pytest.mark.parametrize("lines", [1, 100_000])
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_goes_away_ends_a_command_quietly(lines, stream):
    body = f"for i in range({lines}): print('a line of text', file=sys.{stream})"
    with child(body, stdout=subprocess.PIPE) as process:
        getattr(process, stream).close()
        process.stdin.close()
        left = process.stderr if stream == "stdout" else process.stdout
        assert left.read() == ""
        assert process.wait() == 141


@pytest.mark.parametrize("body", ["print('γ')", "for i in range(100_000): print('a line')"])
def test_full_output_is_one_sentence(body):
    with open("/dev/full", "w") as full, child(body, stdout=full) as process:
        _, said = process.communicate()
    assert said == "error: Standard output cannot be written: No space left on device.\n"
    assert process.returncode == 2


def test_closed_streams():
    program = COMMAND.format("print('done')")
    for closed, said, status in ((">&-", "error: Standard output is closed", 2), ("2>&-", "", 0)):
        done = subprocess.run(
            ["bash", "-c", f'exec "$0" -c "$1" {closed} </dev/null', sys.executable, program],
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == status
        assert done.stderr.startswith(said)
        assert done.stdout == ("" if status else "done\n")


def test_characters_that_a_terminal_does_not_know_are_escaped():
    body = "print('noise γ, naïve'); raise UserError('no ω')"
    environment = {"PYTHONIOENCODING": "latin-1"}
    process = subprocess.run(
        [sys.executable, "-c", COMMAND.format(body)],
        input=b"", capture_output=True, env=environment,
    )  # fmt: skip
    assert process.stdout == "noise \\u03b3, naïve\n".encode("latin-1")
    assert process.stderr == b"error: no \\u03c9\n"
    assert process.returncode == 2


def test_names_that_the_locale_does_not_know_are_one_sentence():
    environment = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    with child("open(chr(947))", stdout=subprocess.DEVNULL, env=environment) as process:
        _, said = process.communicate()
    assert said == "error: The locale knows no name '\\u03b3' (ascii): set PYTHONUTF8=1.\n"
    assert process.returncode == 2


def test_other_failures_are_not_taken_for_that_of_a_stream():
    with child("open('/nowhere/at/all')", stdout=subprocess.DEVNULL) as process:
        _, said = process.communicate()
    assert process.returncode == 1
    assert "FileNotFoundError" in said


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_notices_that_its_output_is_full(name, monkeypatch, capsys):
    module = importlib.import_module(f"hybrid_jax.{name}")
    with io.TextIOWrapper(open("/dev/full", "wb"), encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert module.main(["--help"]) == 2
    assert "Standard output cannot be written" in capsys.readouterr().err
