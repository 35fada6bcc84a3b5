"""What the documents say: commands that exist with their flags, names that exist, code that runs.

Blocks of commands are really run by a shell, with stand-ins for the programs that note what they
are given: loops, variables and quotes are the shell's business. What was noted is checked against
the real parsers.
"""

import argparse
import ast
import contextlib
import functools
import importlib
import itertools
import json
import re
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from conftest import REPOSITORY

from hybrid_jax import evaluate, generate, main
from hybrid_jax.aot import __main__ as aot
from hybrid_jax.config import Experiment
from hybrid_jax.data import prepare
from hybrid_jax.demo import __main__ as demo
from hybrid_jax.figures import __main__ as figures
from hybrid_jax.generation import requests
from hybrid_jax.interop import __main__ as interop
from hybrid_jax.method import noising, objective
from hybrid_jax.presets import sized
from hybrid_jax.runtime.command_line import parse, read_config
from hybrid_jax.sampling import prompts
from hybrid_jax.sampling.loop import generate as generate_texts
from hybrid_jax.sampling.rules import ACS, Ancestral
from hybrid_jax.sampling.state import Sampler

DOCUMENTS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)

# Programs of this project, and of others whose arguments are not ours to check.
OURS = ["python", ".venv/bin/python", "make", "sbatch"]
OTHERS = ["python3", "pip", ".venv/bin/pip", "hf"]
NOTE = '#!/bin/bash\nprintf "%s\\x1f" "${0#./}" "$@" >>"$NOTES"\nprintf "\\x1e" >>"$NOTES"\n'
COMMAND = re.compile(r"^(?:[A-Z]+=|for |(?:\S*/)?(?:python3?|pip) |make |sbatch |hf |launch/)")
MODULES = {
    "generate": generate,
    "evaluate": evaluate,
    "data.prepare": prepare,
    "demo": demo,
    "figures": figures,
}
CONFIGURED = {"main": main, "aot": aot, "interop": interop}


def blocks(document):
    """Code blocks of a document: (language, text)."""
    lines = document.read_text(encoding="utf-8").splitlines()
    fence, language, block = None, "", []
    for line in [*lines, ""]:
        if fence is None and (found := re.match(r"\s*```(\w*)", line)):
            fence, language, block = "```", found[1], []
        elif fence and line.strip() == fence:
            yield language, "\n".join(block)
            fence, block = None, []
        elif fence or line.startswith("    "):
            block.append(line if fence else line[4:])
        elif block and line:
            yield "", "\n".join(block).rstrip()
            block = []
        elif block:
            block.append(line)
    if block:
        yield "", "\n".join(block).rstrip()


def prose(document):
    """The text outside of code blocks."""
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    return "\n".join(line for line in text.splitlines() if not line.startswith("    "))


def spans(document):
    """What is set in code inside the text."""
    return re.findall(r"`([^`]+)`", " ".join(prose(document).split("\n")))


def shell_blocks(document):
    """Blocks of commands, and commands inside the text."""
    found = [text for language, text in blocks(document) if language in ("", "sh", "bash")]
    found += [text for text in spans(document) if " " in text]
    return [text for text in found if COMMAND.match(text)]


@functools.cache
def commands(document):
    """The words of every command of a document, as the shell gives them to the program."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scripts = [str(path.relative_to(REPOSITORY)) for path in REPOSITORY.glob("*/*.sh")]
        for name in [*OURS, *OTHERS, *scripts]:
            file = folder / name if "/" in name else folder / "bin" / name
            file.parent.mkdir(exist_ok=True, parents=True)
            file.write_text(NOTE, encoding="utf-8")
            file.chmod(0o755)
        notes = folder / "notes"
        for text in shell_blocks(document):
            done = subprocess.run(
                ["/bin/bash", "-euc", text],
                cwd=folder,
                env={"PATH": str(folder / "bin"), "NOTES": str(notes)},
                capture_output=True,
                text=True,
            )
            assert not done.returncode, f"{document.name}: {text}\n{done.stderr}"
        noted = notes.read_text(encoding="utf-8") if notes.exists() else ""
    found = [tuple(words.split("\x1f")[:-1]) for words in noted.split("\x1e")[:-1]]
    return [(program.removeprefix(f"{folder}/").removeprefix("bin/"), *rest)
            for program, *rest in found]  # fmt: skip


def ours(document, module):
    """Arguments of the commands of one module, those that launch scripts give it included."""
    for program, *words in commands(document):
        if program in OURS[:2] and words[:2] == ["-m", f"hybrid_jax.{module}"]:
            yield words[2:]
        elif module == "main" and "--" in words:
            yield words[words.index("--") + 1 :]


def test_commands_are_found():
    """So that nothing below passes for want of anything to check."""
    every = [command for document in DOCUMENTS for command in commands(document)]
    shown = sum(
        text.count("python -m hybrid_jax.") for d in DOCUMENTS for _, text in blocks(d)
    )  # one of them in a loop of three
    run = [words for program, *words in every if words[:1] == ["-m"] and "hybrid_jax" in words[1]]
    assert len(run) >= shown > 20
    programs = {program for program, *_ in every}
    assert {"make", "sbatch", "launch/gcp_tpu.sh", "launch/local_multiprocess.sh"} <= programs


@each_document
def test_commands_are_of_known_modules(document):
    known = {*MODULES, *CONFIGURED}
    for program, *words in commands(document):
        if program not in OURS[:2]:
            continue
        if words[0] == "-m":
            package, _, module = words[1].partition(".")
            assert package in ("venv", "pytest") or (package == "hybrid_jax" and module in known)
        else:
            assert (REPOSITORY / words[0]).is_file(), words[0]


@each_document
@pytest.mark.parametrize("module", MODULES)
def test_flags_of_commands(document, module):
    for words in ours(document, module):
        options = parsed(MODULES[module]._parser(), words)
        if module == "generate":
            sampling = Experiment.from_config(sized("any", "tiny")).sampling
            given = {k: v for k, v in vars(options).items() if hasattr(sampling, k)}
            requests.choose_sampling(sampling, given.pop("rule"), given).build()


def parsed(parser, words):
    """The options; an argparse that is not content fails the test with its sentence."""

    def fail(message):
        pytest.fail(f"{' '.join(words)}: {message}")

    every = [parser]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            every += action.choices.values()
    for one in every:
        one.error = fail
    return parser.parse_args(words)


@each_document
@pytest.mark.parametrize("module", CONFIGURED)
def test_flags_and_settings(document, module, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    made = {word.partition("=")[2] for words in ours(document, "interop") for word in words
            if word.startswith("--workdir=")}  # fmt: skip
    for words in ours(document, module):
        words = ["--config=gamma_hybrid" if word == "--config=…" else word for word in words]
        options = parse(CONFIGURED[module]._parser(), words)
        if config := getattr(options, "config", None):
            values = read_config(config)
        else:  # settings of a workdir or of a released model
            assert module == "interop" or options.workdir in made
            values = sized("any", "tiny")
        Experiment.from_config(values, options.settings)


@each_document
def test_flags_of_benchmarks(document):
    for program, *words in commands(document):
        if program in OURS[:2] and words[0].endswith(".py"):
            assert names(words[1:]) <= constants(REPOSITORY / words[0])


def constants(file):
    """The strings of a program."""
    nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    return {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}


def names(words):
    return {word.partition("=")[0] for word in words if word.startswith("--")}


@each_document
def test_flags_of_launch_scripts(document):
    for program, *words in commands(document):
        script = words[0] if program == "sbatch" else program
        if script.startswith("launch/"):
            before = words[: words.index("--")] if "--" in words else words
            assert names(before) <= script_flags(script)


@functools.cache
def script_flags(script):
    done = subprocess.run(
        ["bash", REPOSITORY / script, "--help"], capture_output=True, text=True, check=True
    )
    return set(re.findall(r"--[a-z-]+", done.stdout))


@each_document
def test_targets_of_make_and_extras_of_pip(document):
    extras = captured_setup()["extras_require"]
    for program, *words in commands(document):
        if program == "make":
            subprocess.run(
                ["make", "-n", "-C", REPOSITORY, *words], capture_output=True, check=True
            )
        if program.endswith("pip"):
            for extra in re.findall(r"\.\[(\w+)\]", " ".join(words)):
                assert extra in extras


@functools.cache
def captured_setup():
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("setuptools.setup", lambda **values: found.update(values))
        runpy.run_path(str(REPOSITORY / "setup.py"))
    return found


def test_help_really_runs():
    """One command as it is written, in a process: the others differ by their module only."""
    done = subprocess.run(
        [sys.executable, "-m", "hybrid_jax.data.prepare", "--help"],
        capture_output=True, text=True, cwd=REPOSITORY,
    )  # fmt: skip
    assert not done.returncode, done.stderr
    assert "python -m hybrid_jax.data.prepare" in done.stdout


# ---------------------------------------------------------------------------------------------
# Names.


@functools.cache
def all_flags():
    """Every flag of every command, --config.NAME included."""
    parsers = [module._parser() for module in (MODULES | CONFIGURED).values()]
    every = set()
    while parsers:
        for action in parsers.pop()._actions:
            every |= set(action.option_strings)
            if isinstance(action, argparse._SubParsersAction):
                parsers += action.choices.values()
    every |= {f"--config.{name}" for name in settings()}
    for benchmark in (REPOSITORY / "benchmarks").glob("*.py"):
        every |= {word for word in constants(benchmark) if word.startswith("--")}
    for script in (REPOSITORY / "launch").glob("*.sh"):
        if script.name != "tpu_worker.sh":
            every |= script_flags(f"launch/{script.name}")
    return every


@functools.cache
def settings():
    values = json.loads(Experiment(name="any").to_json())
    return {f"{a}.{b}" for a, section in values.items() if isinstance(section, dict)
            for b in section}  # fmt: skip


@each_document
def test_flags_in_the_text_exist(document):
    for span in spans(document):
        program, *words = span.split()
        if not program.startswith("--") and (program not in MODULES or not words):
            continue
        unknown = names(span.split()) - all_flags() - {"--config.NAME", "--config.SECTION.NAME"}
        assert not unknown, span


@each_document
def test_files_in_the_text_exist(document):
    folders = "configs|docs|tests|launch|benchmarks|hybrid_jax|colab"
    for span in [*spans(document), *links(document)]:
        path = span.partition(":")[0]
        if re.fullmatch(rf"(?:(?:{folders})/[\w./-]*|[\w/-]+\.(?:py|sh|md|ipynb))", path):
            if "NAME" in path:
                continue
            places = [REPOSITORY, REPOSITORY / "hybrid_jax", document.parent]
            assert any((place / path).exists() for place in places), span


def links(document):
    return [
        target.partition("#")[0]
        for target in re.findall(r"\]\(([^)]+)\)", prose(document))
        if "://" not in target
    ]


@functools.cache
def defined_tests():
    found = set()
    for path in (REPOSITORY / "tests").glob("test_*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found |= {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    return found


@functools.cache
def modules():
    folder = REPOSITORY / "hybrid_jax"
    paths = (path.relative_to(folder).with_suffix("") for path in folder.rglob("*.py"))
    return {".".join(path.parts).removesuffix(".__init__") for path in paths} - {"__init__"}


@functools.cache
def stands_for_code(name):
    """Whether a dotted name, as documents write it, is a module or something in one."""
    module = name
    while module and module not in modules():
        module = module.rpartition(".")[0]
    if not module:
        return False
    found = importlib.import_module(f"hybrid_jax.{module}")
    for part in name.removeprefix(module).split(".")[1:]:
        if part in getattr(found, "__annotations__", {}):
            return True  # a field without a default
        if not hasattr(found, part):
            return False
        found = getattr(found, part)
    return True


@functools.cache
def classes():
    found = set()
    for path in (REPOSITORY / "hybrid_jax").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found |= {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    return found


# Ends of names of files, which look like names in code.
FILES = ("json", "jsonl", "bin", "bpe", "safetensors", "cff", "py", "md", "png", "ipynb", "sh")


@each_document
def test_names_in_the_text_exist(document):
    sections = {name.partition(".")[0] for name in settings()}
    for span in spans(document):
        if span.startswith("test_"):
            assert span in defined_tests(), span
        elif re.fullmatch(r"[a-z_]\w*(\.\w+)+", span) and not span.endswith(FILES):
            top = span.partition(".")[0]
            if top in sections or top in {name.partition(".")[0] for name in modules()}:
                assert span in settings() or stands_for_code(span), span
        elif found := re.fullmatch(r"([A-Z][A-Za-z]+[a-z][A-Za-z]*|ACS)(\([^)]*\))?", span):
            assert found[1] in classes(), span


def math_sections():
    text = (REPOSITORY / "docs" / "math.md").read_text(encoding="utf-8")
    return re.findall(r"^## (.*)\n([^\0]*?)(?=^## |\Z)", text, flags=re.MULTILINE)


@pytest.mark.parametrize("section", math_sections(), ids=lambda section: section[0].split(" (")[0])
def test_formulas_have_their_place_and_their_test(section):
    title, text = section
    assert "| what | code | test |\n|---|---|---|\n" in text, title
    rows = text.rpartition("| what | code | test |\n|---|---|---|\n")[2]
    for row in rows.strip().splitlines():
        what, code, test = (cell.strip() for cell in row.strip("|").split("|"))
        code, test = (re.findall(r"`([^`]+)`", cell) for cell in (code, test))
        assert code, what
        assert test, what
        for name in code:
            assert stands_for_code(name), name
            assert name not in modules(), f"{name} is a module: name the place in it"
        for name in test:
            assert name in defined_tests(), name


def test_the_method_is_in_the_document():
    """Every public function of the noise and the objective, and every rule, has a formula."""
    text = (REPOSITORY / "docs" / "math.md").read_text(encoding="utf-8")
    for name in ("noising", "objective", "sampling.rules"):
        path = REPOSITORY / "hybrid_jax" / f"{name.replace('.', '/')}.py"
        kind = ast.ClassDef if name == "sampling.rules" else ast.FunctionDef
        tree = ast.parse(path.read_text(encoding="utf-8"))
        public = {node.name for node in tree.body
                  if isinstance(node, kind) and not node.name.startswith("_")}  # fmt: skip
        public -= {"absorbing", "uniform", "gamma_hybrid", "epsilon_hybrid"}  # rows of a table
        missing = {one for one in public if f"`{name}.{one}`" not in text}
        assert not missing


# ---------------------------------------------------------------------------------------------
# Code.


@functools.cache
def extending():
    """What docs/extending.md makes, block after block."""
    namespace = {"__name__": "extending"}
    with running_in_a_module(namespace):
        for language, text in blocks(REPOSITORY / "docs" / "extending.md"):
            if language == "python":
                exec(compile(text, "docs/extending.md", "exec"), namespace)
    return namespace


@contextlib.contextmanager
def running_in_a_module(namespace):
    """Dataclasses look up the module that they are defined in."""
    module = type(sys)(namespace["__name__"])
    module.__dict__.update(namespace)
    sys.modules[namespace["__name__"]] = module
    try:
        yield
    finally:
        del sys.modules[namespace["__name__"]]


def test_blocks_of_extending_are_short():
    found = [text for language, text in blocks(REPOSITORY / "docs" / "extending.md")
             if language == "python"]  # fmt: skip
    assert len(found) == 6
    assert all(len([line for line in text.splitlines() if line]) < 30 for text in found)


def test_a_table_of_ones_own():
    cosine = extending()["cosine"](length=8, levels=64, steps=16)
    levels = np.array(cosine.rows)
    assert levels.shape == (17, 8)
    wanted = np.floor(64 * np.cos(np.linspace(0, np.pi / 2, 17)))
    np.testing.assert_array_equal(levels, wanted[:, None] * np.ones(8))
    assert np.all(np.diff(levels[:, 0]) < 0), "an idle step"
    assert cosine.width == 8


def test_windows_of_the_doubling_schedule_double():
    doubling = extending()["doubling"](length=31, levels=2)
    windows = [int(doubling.frontier(s + 1) - doubling.settled(s)) for s in range(0, 10, 2)]
    assert windows == [1, 2, 4, 8, 16]
    assert doubling.steps == 10
    assert doubling.settles_whole


def test_the_schedule_trains_and_generates():
    made = extending()
    before = made["recipe"].init().params
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), before, made["params"])
    assert max(jax.tree.leaves(moved)) > 1e-4
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(made["params"]))
    texts = np.asarray(made["texts"].tokens)
    assert texts.shape == (4, 64)
    assert texts.max() < 64, "MASK is left"
    np.testing.assert_array_equal(made["texts"].nfe, made["schedule"].steps)


def test_a_table_trains_and_generates():
    made = extending()
    schedule = made["cosine"](length=64, levels=64, steps=8)
    setup = made["setup_of"](made["experiment"], tokens=64, schedule=schedule)
    batch = np.random.default_rng(1).integers(64, size=(8, 64), dtype=np.int32)
    params = made["train"](setup, [batch, batch])
    sampler = Sampler(spec=setup.spec, network=setup.network)
    keys = jax.random.split(jax.random.key(0), 2)
    texts = generate_texts(sampler, Ancestral(), params, keys, prompts.nothing(2, 64))
    assert np.asarray(texts.tokens).max() < 64
    np.testing.assert_array_equal(texts.nfe, 8)


def rates(beta, level, tokens):
    """The rate matrix of `Steady` at a level, per dλ, from its definition: [from, to]."""
    absorb, replace = (np.zeros((tokens + 1, tokens + 1)) for _ in range(2))
    absorb[:tokens, :tokens] -= np.eye(tokens)
    absorb[:tokens, tokens] = 1.0
    replace[:tokens, :tokens] = 1.0 / tokens - np.eye(tokens)
    # −d log A / dλ and −d log B / dλ.
    return absorb / (1 - level) + replace * beta / (1 - beta * level)


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.6), (0.2, 0.9)])
def test_the_kernel_is_the_exponential_of_its_rates(low, high):
    """Rates that change with the level: a product of many short exponentials."""
    steady = extending()["Steady"](name="steady", tokens=4, beta=0.2)
    ends = np.linspace(low, high, 401)
    wanted = np.eye(5)
    for a, b in itertools.pairwise(ends):
        wanted = wanted @ scipy.linalg.expm((b - a) * rates(0.2, (a + b) / 2, 4))
    found = [np.exp(noising.transition(steady, state, low, high)) for state in range(5)]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


def test_the_kernel_corrupts_as_it_says():
    steady = extending()["Steady"](name="steady", tokens=4, beta=0.5)
    draws = 40_000
    noisy = noising.corrupt(steady, jax.random.key(0), jnp.full(draws, 2), jnp.full(draws, 0.4))
    wanted = np.exp(np.asarray(noising.marginal(steady, 2, 0.4), np.float64))
    counts = np.bincount(noisy, minlength=5)
    assert scipy.stats.chisquare(counts, draws * wanted / wanted.sum()).pvalue > 1e-5
    assert noising.marginal(steady, 2, 0.0)[2] == 0.0


def test_the_reverse_step_of_the_kernel_is_bayes_rule():
    steady = extending()["Steady"](name="steady", tokens=4, beta=0.5)
    low, high = 0.3, 0.8
    forward = np.exp([noising.transition(steady, z, low, high) for z in range(5)])
    before = np.exp([noising.marginal(steady, x, low) for x in range(4)])
    joint = before[:, :, None] * forward[None]  # [x, z_s, z_t]
    wanted = joint / joint.sum(1, keepdims=True)
    for token in range(4):
        for state in range(5):
            found = np.exp(noising.posterior(steady, token, state, low, high))
            np.testing.assert_allclose(found, wanted[token, :, state], rtol=1e-4, atol=1e-6)


def test_the_kernel_trains_and_generates():
    made = extending()
    setup = made["setup_of"](made["experiment"], tokens=64, kernel=made["steady"])
    batch = np.random.default_rng(1).integers(64, size=(8, 64), dtype=np.int32)
    params = made["train"](setup, [batch, batch])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    assert objective.Bound(kernel=made["steady"], time="discrete").label
    sampler = Sampler(spec=setup.spec, network=setup.network)
    keys = jax.random.split(jax.random.key(0), 4)
    for rule in (Ancestral(), ACS(eta=0.5)):
        texts = generate_texts(sampler, rule, params, keys, prompts.nothing(4, 64))
        assert np.asarray(texts.tokens).max() < 64
        assert np.asarray(texts.corrections).sum() > 0, "the kernel replaces, so tokens move"


def test_the_rule_writes_text_without_mask():
    made = extending()
    tokens = np.asarray(made["leftmost"].tokens)
    assert tokens.shape == (4, 64)
    assert tokens.max() < 64, "MASK is left"
    assert np.all(np.asarray(made["leftmost"].corrections) == 0)


def test_the_rule_reveals_from_left_to_right():
    made = extending()
    kernel = noising.absorbing(vocab_size=4)
    rule = made["Leftmost"](threshold=0.9)
    window = made["rules"].Window(
        tokens=jnp.array([4, 2, 4, 4, 4, 4]),
        level=jnp.full(6, 0.75),
        level_next=jnp.full(6, 0.5),
        active=jnp.array([True, True, True, True, True, False]),
        confidence=jnp.zeros(6),
    )
    probability = jnp.array([0.1, 0.1, 0.2, 0.3, 0.95, 0.99])
    reading = made["rules"].Prediction(
        token=jnp.zeros(6, int), probability=probability, current=probability, entropy=probability
    )
    moved, confidence = rule.move(kernel, jax.random.key(0), window, reading)
    # Half of five active positions may stay masked: two go, and the one that is sure.
    np.testing.assert_array_equal(moved[:5], [0, 2, 0, 4, 0])
    np.testing.assert_allclose(confidence[:5], [0.1, 0.0, 0.2, 0.0, 0.95], rtol=1e-6)
    with pytest.raises(Exception, match="threshold must lie in"):
        made["Leftmost"](threshold=2.0).check(kernel, objective.Objective())
    with pytest.raises(Exception, match="never shows"):
        rule.check(noising.uniform(vocab_size=4), objective.Objective())
