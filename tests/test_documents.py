"""The documents: their commands, flags, settings, names and the picture of the house exist."""

import argparse
import ast
import functools
import importlib
import json
import re
import shlex
import subprocess
import sys
import tomllib

import pytest
from conftest import REPOSITORY

from hybrid_jax.config import Experiment

DOCUMENTS = [
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
    *sorted((REPOSITORY / "docs").rglob("*.md")),
    *sorted((REPOSITORY / "benchmarks").rglob("*.md")),
]
TEXTS = {
    str(path.relative_to(REPOSITORY)): text.replace("\\\n", " ")
    for path in DOCUMENTS
    if "cannot be repeated" not in (text := path.read_text(encoding="utf-8"))
}
COMMAND = re.compile(
    r"(?:^ *|`|do )((?:\.venv/bin/)?python (?!-m venv|-m pip)[^`\n]*|hybrid-jax-[^`\n]*)"
    r"|(?:^ {4,}|`)((?:make |sbatch |launch/)[^`\n]*)",
    re.MULTILINE,
)
COMMANDS = sorted(
    {
        (document, (found[1] or found[2]).strip())
        for document, text in TEXTS.items()
        for found in COMMAND.finditer(text)
    }
)
SCRIPTS = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"][
    "scripts"
]


def test_commands_are_found():
    """So that the next test does not pass for want of commands."""
    programs = " ".join(command for _, command in COMMANDS)
    for module in (*SCRIPTS.values(), "launch/gcp_tpu.sh", "launch/slurm_gpu.sh", "make docs"):
        assert module.partition(":")[0].removesuffix(".__main__") in programs, module


@pytest.mark.parametrize(("document", "command"), COMMANDS)
def test_commands_take_their_arguments(document, command):
    program, *words = shlex.split(command, comments=True)
    if not words:
        assert program in SCRIPTS
        return
    if program == "make":
        makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
        for target in (word for word in words if "=" not in word):
            assert f"\n{target}:" in makefile
    elif program == "sbatch" or program.startswith("launch/"):
        script = words.pop(0) if program == "sbatch" else program
        own, rest = split(words, "--")
        assert {name(word) for word in own} <= flags_of_script(script)
        check_arguments("hybrid_jax.main", rest)
    elif program in SCRIPTS:
        check_arguments(SCRIPTS[program].partition(":")[0], words)
    elif words[0] != "-m":
        flags = {name(word) for word in words if word.startswith("--")}
        assert flags <= strings(REPOSITORY / words[0])
    elif words[1] != "pytest":
        check_arguments(words[1], words[2:])


PATH = re.compile(
    r"(benchmarks|colab|configs|docs|hybrid_jax|launch|method|sampling|tests)/[\w./-]*"
)
DOTTED = re.compile(r"[a-z_]+(\.\w+)+")


def split(words, mark):
    place = words.index(mark) if mark in words else len(words)
    return words[:place], words[place + 1 :]


def name(word):
    return word.partition("=")[0]


@functools.cache
def flags_of_script(script):
    """Flags that the help of a launch script names."""
    command = ["bash", REPOSITORY / script, "--help"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"--[a-z-]+", found))


@functools.cache
def strings(file):
    """The strings of a program."""
    nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    return {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}


def check_arguments(module, words):
    """Parses the arguments with the command's own parser, and looks up the settings."""
    _, overrides = parser_of(module).parse_known_args(words)
    for override in overrides:
        setting, _, value = override.removeprefix("--config.").partition("=")
        assert setting in settings(), override
        assert value, override


@functools.cache
def parser_of(module):
    found = importlib.import_module(module)
    if hasattr(found, "__path__"):
        found = importlib.import_module(f"{module}.__main__")
    return found._parser()


@functools.cache
def settings():
    values = json.loads(Experiment(name="any").to_json())
    sections = {key: value for key, value in values.items() if isinstance(value, dict)}
    return {f"{section}.{key}" for section, names in sections.items() for key in names}


@functools.cache
def flags():
    """Every flag of every command, launch script and benchmark."""
    parsers = [parser_of(entry.partition(":")[0]) for entry in SCRIPTS.values()]
    found = {f"--config.{setting}" for setting in settings()}
    while parsers:
        for action in parsers.pop()._actions:
            found |= set(action.option_strings)
            if isinstance(action, argparse._SubParsersAction):
                parsers += action.choices.values()
    for script in (REPOSITORY / "launch").glob("*.sh"):
        found |= flags_of_script(f"launch/{script.name}")
    for benchmark in (REPOSITORY / "benchmarks").glob("*.py"):
        found |= {string for string in strings(benchmark) if string.startswith("--")}
    return found


@functools.cache
def resolves(dotted):
    """Whether a name such as `method.noising.corrupt` is a module or something in one."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(["hybrid_jax", *parts[:end]]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            if part in getattr(found, "__annotations__", {}):
                return True  # a field without a default
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


def defined_tests():
    sources = (path.read_text(encoding="utf-8") for path in (REPOSITORY / "tests").glob("test_*"))
    return {name for source in sources for name in re.findall(r"^def (test_\w+)", source, re.M)}


@pytest.mark.parametrize("document", [name for name in TEXTS if "results/" not in name])
def test_names_in_the_text_exist(document):
    """Modules and what is in them, settings, flags, tests and files."""
    text = re.sub(r"```.*?```|^    .*?$", "", TEXTS[document], flags=re.DOTALL | re.MULTILINE)
    modules = {path.stem for path in (REPOSITORY / "hybrid_jax").iterdir()}
    for span in re.findall(r"`([^`]+)`", " ".join(text.split("\n"))):
        dotted = span.removeprefix("hybrid_jax.")
        if span.startswith("test_"):
            assert span in defined_tests()
        elif span.startswith("--"):
            assert {name(word) for word in span.split() if word.startswith("--")} <= flags(), span
        elif PATH.fullmatch(span):
            assert any((REPOSITORY / at / span).exists() for at in ("", "hybrid_jax")), span
        elif DOTTED.fullmatch(dotted) and dotted.partition(".")[0] in modules:
            assert dotted in settings() or resolves(dotted), span


def test_every_formula_of_the_method_is_in_the_document():
    """Every public function of the noise and the objective, and every rule."""
    for module, kind in (
        ("method.noising", ast.FunctionDef),
        ("method.objective", ast.FunctionDef),
        ("sampling.rules", ast.ClassDef),
    ):
        path = REPOSITORY / "hybrid_jax" / f"{module.replace('.', '/')}.py"
        names = {
            node.name
            for node in ast.parse(path.read_text(encoding="utf-8")).body
            if isinstance(node, kind) and not node.name.startswith("_")
        }
        names -= {"absorbing", "uniform", "gamma_hybrid", "epsilon_hybrid"}  # rows of a table
        assert not {one for one in names if f"`{module}.{one}`" not in TEXTS["docs/math.md"]}


def test_the_picture_shows_the_imports_of_the_code():
    pytest.importorskip("grimp")
    code = "import draw_architecture as d; assert d.PICTURE.read_text('utf-8') == d.picture()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY / "docs", capture_output=True, text=True
    )
    assert not done.returncode, f"run python docs/draw_architecture.py: {done.stderr}"
