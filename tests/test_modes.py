"""Flags without an effect are refused: every flag of every way to use a command."""

import importlib

import pytest

from hybrid_jax import evaluate, generate
from hybrid_jax.errors import UserError
from hybrid_jax.runtime.command_line import check_mode, parse

COMMANDS = ("evaluate", "score", "figures.__main__", "aot.__main__")
# What every command needs, and values that its flags accept.
NEEDED = {"workdir": "w", "config": "mdlm", "topology": "v5e:2x2"}
CASES = [
    (name, mode)
    for name in COMMANDS
    for mode in importlib.import_module(f"hybrid_jax.{name}").MODES
]


def flags_of(module):
    """All flags, with words that give them."""
    for action in module._parser()._actions:
        if action.option_strings and action.dest != "help":
            value = next(iter(action.choices or ()), NEEDED.get(action.dest, "2"))
            word = f"--{action.dest}"
            yield action.dest, word if action.nargs == 0 else f"{word}={value}", action.required


@pytest.mark.parametrize(("command", "mode"), CASES)
def test_flags_of_other_modes_are_refused(command, mode):
    module = importlib.import_module(f"hybrid_jax.{command}")
    flags = list(flags_of(module))
    named = {flag for names in module.MODES.values() for flag in names}
    assert named <= {name for name, _, _ in flags}
    for name, word, _ in flags:
        required = [other for _, other, needed in flags if needed and other != word]
        options = parse(module._parser(), [*required, word])
        if name in named and name not in module.MODES[mode]:
            with pytest.raises(UserError, match=f"--{name} has no effect with {mode}") as caught:
                check_mode(options, mode, module.MODES)
            assert "\n" not in str(caught.value)
        else:
            check_mode(options, mode, module.MODES)


class Watched:
    """Options that note which of them are read."""

    def __init__(self, options):
        self.options, self.read = options, set()

    def __getattr__(self, name):
        self.read.add(name)
        return getattr(self.options, name)


@pytest.mark.parametrize("mode", evaluate.MODES)
def test_what_evaluation_does_not_refuse_it_reads(mode, ar, epsilon, text, tmp_path, monkeypatch):
    """On a real run: what is in no table of flags cannot slip through."""
    way = {"--datasets": "_measure_sets", "--texts": "_score_files", "--pareto": "_sweep",
           "--code": "_measure_code"}[mode]  # fmt: skip
    real, seen = getattr(evaluate, way), []

    def watched(options, mesh):
        seen.append(Watched(options))
        real(seen[0], mesh)

    monkeypatch.setattr(evaluate, way, watched)
    texts, code = tmp_path / "x.jsonl", tmp_path / "code.txt"
    code.write_text("def a():\n b\n c\n", encoding="utf-8")
    if mode == "--texts":
        assert generate.main([f"--workdir={epsilon}", "--num_samples=2", f"--out={texts}"]) == 0
    flags = {
        "--datasets": ["--records=2", "--draws=1"],
        "--texts": [f"--texts={texts}", f"--scorer=run:{ar}", f"--reference=files:{text}/b.txt"],
        "--pareto": ["--pareto", "--count=2", "--rho=4", "--rules=acs", f"--scorer=run:{ar}"],
        "--code": ["--code", f"--reference=files:{code}"],
    }[mode]
    assert evaluate.main([f"--workdir={epsilon}", *flags]) == 0
    every = {name for name, _, _ in flags_of(evaluate)}
    elsewhere = {name for names in evaluate.MODES.values() for name in names}
    accepted = every - (elsewhere - set(evaluate.MODES[mode]))
    before = {
        "pareto",
        "code",
        "no_compilation_cache",
        "tensor",
        "coordinator",
        "processes",
        "process",
    }
    assert accepted - before <= seen[0].read


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--datasets=valid", "--rules=acs", "--rho=2", "--protocol=nonsense"],
         "--protocol has no effect with --datasets: leave it out, or choose --texts or --pareto."),
        (["--texts=a", "--records=0"], "--records has no effect with --texts: leave it out, or "
         "choose --datasets."),
        (["--pareto", "--texts=a"], "--texts has no effect with --pareto: leave it out."),
        (["--strict"], "--strict has no effect without --schedule: leave it out."),
    ],
)  # fmt: skip
def test_the_sentence_says_where_a_flag_belongs(arguments, message, capsys):
    assert evaluate.main(["--workdir=nowhere", *arguments]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
