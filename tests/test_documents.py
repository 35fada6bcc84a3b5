"""The documents: their commands, settings, names and formulas exist, and the picture is current."""

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
from hybrid_jax.runtime.command_line import parse, read_config

DOCUMENTS = [
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
    *sorted((REPOSITORY / "docs").rglob("*.md")),
    *sorted((REPOSITORY / "benchmarks").rglob("*.md")),
]
TEXTS = {
    str(path.relative_to(REPOSITORY)): text.replace("\\\n", " ")
    for path in DOCUMENTS
    if "`" in (text := path.read_text("utf-8")) and "cannot be repeated" not in text
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
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
SCRIPTS = {script: entry.partition(":")[0] for script, entry in PROJECT["scripts"].items()}
LM_EVAL = SCRIPTS.pop("hybrid-jax-lm-eval")  # whose flags are those of another package
PATH = re.compile(
    r"(benchmarks|colab|configs|docs|hybrid_jax|launch|method|sampling|tests)/[\w./-]*"
)
DOTTED = re.compile(r"[a-z_]+(\.\w+)+(?<!\.py)")


def test_commands_are_found():
    """So that the next test does not pass for want of commands."""
    commands = " ".join(command for _, command in COMMANDS)
    for program in (*SCRIPTS.values(), "launch/gcp_tpu.sh", "launch/slurm_gpu.sh", "make docs"):
        assert program.removesuffix(".__main__") in commands, program


@pytest.mark.parametrize(("document", "command"), COMMANDS)
def test_commands_take_their_arguments(document, command, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    program, *words = shlex.split(command, comments=True)
    if program == "make":
        makefile = (REPOSITORY / "Makefile").read_text("utf-8")
        assert all(f"\n{word}:" in makefile for word in words if "=" not in word)
    elif program == "sbatch" or program.startswith("launch/"):
        script = words.pop(0) if program == "sbatch" else program
        end = words.index("--") if "--" in words else len(words)
        assert names(words[:end]) <= flags_in(REPOSITORY / script)
        check_arguments("hybrid_jax.main", words[end + 1 :])
    elif program in SCRIPTS:
        if words:
            check_arguments(SCRIPTS[program], words)
    elif words[0] != "-m":
        assert names(words) <= flags_in(REPOSITORY / words[0])
    elif words[1] not in ("pytest", "zipfile", LM_EVAL):
        check_arguments(words[1], words[2:])


def test_extras_of_pip_exist():
    extras = re.findall(r"(?:hybrid_jax|'\.)\[([\w,-]+)\]", "".join(TEXTS.values()))
    assert extras
    assert {one for extra in extras for one in extra.split(",")} <= {
        *PROJECT["optional-dependencies"]
    }


@pytest.mark.parametrize("document", TEXTS)
def test_links_lead_somewhere(document):
    """Files, and headings in them as GitHub names them."""
    here = (REPOSITORY / document).parent
    for link in re.findall(r"\]\(([^)\s]+)\)", TEXTS[document]):
        path, _, heading = link.partition("#")
        if re.match(r"\w+:", link):
            continue
        target = here / path if path else REPOSITORY / document
        assert target.exists(), link
        if heading:
            titles = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), re.MULTILINE)
            kept = (re.sub(r"[^\w\s-]", "", title.lower()) for title in titles)
            assert heading in {title.replace(" ", "-") for title in kept}, link


def names(words):
    return {word.partition("=")[0] for word in words if word.startswith("--")}


@functools.cache
def flags_in(file):
    return set(re.findall(r"--[a-z][\w-]*", file.read_text("utf-8")))


def check_arguments(module, words):
    """Reads the arguments as the command does, and builds the experiment that they describe."""
    if not any(word.startswith("--config") for word in words):
        parser_of(module).parse_args(words)
        return
    options = parse(parser_of(module), words)
    assert set(options.settings) <= settings()
    config = getattr(options, "config", None)
    if config and config != "…" and "$" not in "".join(words):
        Experiment.from_config(read_config(config), options.settings)


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
    return {f"{section}.{key}" for section, keys in sections.items() for key in keys}


@functools.cache
def flags():
    """Every flag of every command, launch script and benchmark."""
    parsers = [parser_of(module) for module in SCRIPTS.values()]
    found = {f"--config.{setting}" for setting in ("NAME", "SECTION.NAME", *settings())}
    while parsers:
        for action in parsers.pop()._actions:
            found |= set(action.option_strings)
            if isinstance(action, argparse._SubParsersAction):
                parsers += action.choices.values()
    programs = [*REPOSITORY.glob("launch/*.sh"), *REPOSITORY.glob("benchmarks/*.py")]
    return found.union(*map(flags_in, programs))


@functools.cache
def resolves(dotted):
    """True if a name such as `method.noising.corrupt` is a module or something in one."""
    try:
        return importlib.import_module(f"hybrid_jax.{dotted}")
    except ModuleNotFoundError:
        module, _, last = dotted.rpartition(".")
        found = module and resolves(module)
        # The annotations have the fields without a default.
        return getattr(found, last, None) or last in getattr(found, "__annotations__", {})


@functools.cache
def defined_tests():
    sources = (path.read_text("utf-8") for path in (REPOSITORY / "tests").glob("test_*.py"))
    return {name for source in sources for name in re.findall(r"^def (test_\w+)", source, re.M)}


@pytest.mark.parametrize("document", [name for name in TEXTS if "results/" not in name])
def test_names_in_the_text_exist(document):
    """Modules and what is in them, settings, flags, tests and files."""
    text = re.sub(r"```.*?```|^    .*?$", "", TEXTS[document], flags=re.DOTALL | re.MULTILINE)
    modules = {path.stem for path in (REPOSITORY / "hybrid_jax").iterdir()}
    for span in re.findall(r"`([^`]+)`", text.replace("\n", " ")):
        dotted = span.removeprefix("hybrid_jax.")
        if span.startswith("test_"):
            assert span in defined_tests()
        elif span.startswith("--"):
            assert names(span.split()) <= flags(), span
        elif PATH.fullmatch(span):
            assert any((REPOSITORY / at / span).exists() for at in ("", "hybrid_jax")), span
        elif span.endswith((".json", ".png")):
            continue  # files, not modules
        elif DOTTED.fullmatch(dotted) and dotted.partition(".")[0] in modules:
            assert dotted in settings() or resolves(dotted), span


@pytest.mark.parametrize(
    "module", ["method.noising", "method.scores", "method.objective", "sampling.rules"]
)
def test_every_formula_of_the_method_is_in_the_document(module):
    """Every public function of the noise and the objective, and every rule."""
    path = REPOSITORY / "hybrid_jax" / f"{module.replace('.', '/')}.py"
    kind = ast.ClassDef if module == "sampling.rules" else ast.FunctionDef
    found = {
        node.name for node in ast.parse(path.read_text("utf-8")).body if isinstance(node, kind)
    }
    found -= {"absorbing", "uniform", "gamma_hybrid", "epsilon_hybrid"}  # rows of a table
    found -= {"NamedRule", "log_add", "safe_log"}  # of the command line, and of numerics
    text = TEXTS["docs/math.md"]
    assert all(f"`{module}.{name}`" in text for name in found if not name.startswith("_"))


def test_the_picture_shows_the_imports_of_the_code():
    code = "import draw_architecture as d; assert d.PICTURE.read_text('utf-8') == d.picture()"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY / "docs")
    assert not done.returncode, "run python docs/draw_architecture.py"
