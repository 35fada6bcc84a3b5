"""Evaluation on code: functions found in text, where they end, which parse; lines written again."""

import dataclasses
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from hybrid_jax import evaluate
from hybrid_jax.data.tokenizers.byte import ByteTokenizer
from hybrid_jax.eval import code
from hybrid_jax.eval.code import Function, Line, Tasks
from hybrid_jax.generation import generator
from hybrid_jax.method import hyperschedule, noising
from hybrid_jax.method.layout import Layout
from hybrid_jax.method.loss import Spec
from hybrid_jax.method.objective import Objective
from hybrid_jax.sampling.settings import SamplingConfig
from hybrid_jax.training import pretrained

pytestmark = pytest.mark.slow

BYTES = ByteTokenizer()
TEXT = '''\
half of a body
    return 1

def short(): return 1

def long(a,
         b): return 2

def only(): "is documented"

class A:
    @property
    def one(
        self,
    ) -> int:
        """One.

        More.
        """
        # Ends no header: no statement.
        @other
        def inner(self):
            return 1

        return inner

    # of the class
    async def two(self):
        """Is documented."""
        return f"{{}}"
def broken(:
    def inside():
        x = """
         y"""
        pass
def three(a):
\tif a:

\t\tpass
'''
FUNCTION = Function("def f(a):\n", "    b = a\n    return b\n")


def test_functions_of_a_text():
    one, two, inside, three = code.functions(TEXT)
    assert one.header.startswith("    def one(\n        self,\n    ) -> int:\n")
    assert one.header.endswith("# Ends no header: no statement.\n")
    assert one.body.startswith("        @other\n")
    assert one.body.endswith("\n\n        return inner\n")
    documented = '    async def two(self):\n        """Is documented."""\n'
    assert two == (documented, '        return f"{{}}"\n')
    assert inside == ("    def inside():\n", '        x = """\n         y"""\n        pass\n')
    assert three == ("def three(a):\n", "\tif a:\n\n\t\tpass\n")
    assert all(map(code.parses, (one, two, inside, three)))
    assert not [*code.functions("no code\n\ndef")]
    assert not [*code.functions("def f():\r\r\r    return 1\n")]
    assert len([*code.functions("def f():\r\n    return 1\r\n")]) == 1


@pytest.mark.parametrize(
    ("text", "body"),
    [
        ("    return a\n", "    return a\n"),
        ("    if a:\n\n        b\nc = 1\n    d\n", "    if a:\n\n        b\n"),
        ("    x = 1\n    retu", "    x = 1\n"),  # cut where the text is full
        ("    x = 1", ""),
        ("x = 1\n    y\n", ""),
    ],
)
def test_a_body_ends_with_its_function(text, body):
    assert code.body_of("def f(a):\n", text) == body
    deeper = "".join(f"  {line}" for line in text.splitlines(keepends=True))
    assert code.body_of("  def f(a):\n", deeper).replace("\n  ", "\n").strip() == body.strip()


@pytest.mark.parametrize(
    ("header", "body", "wanted"),
    [
        ("def f(a):\n", "    return a\n", True),
        ("  def f(a):\n", "      return a\n", True),
        ("def f(a):\n", "    return a)\n", False),
        ("def f(a):\n", "", False),
        ("def f(a):\n", "    # Later.\n", False),
        ("def f(a):\n", "    if a:\n", False),
        ("def f(a):\n", "    return '\0'\n", False),
        ("def f(a):\n", f"    return {'(' * 9999}\n", False),
        ('def f(a):\n    """Doc."""\n', "", False),  # nothing of its own
        ('def f(a):\n    """Doc."""\n', "    pass\n", True),
    ],
)
def test_what_parses(header, body, wanted):
    assert code.parses(Function(header, body)) is wanted


@pytest.mark.parametrize(
    ("a", "b", "wanted"),
    [("kitten", "sitting", 3 / 7), ("", "", 0), ("abc", "", 1), ("ab", "ba", 1), ("x=1", "x=1", 0),
     ("return a", "return", 2 / 8), ("flaw", "lawn", 2 / 4)],
)  # fmt: skip
def test_edit_distance(a, b, wanted):
    assert code.distance(a, b) == code.distance(b, a) == pytest.approx(wanted)


def records(text, length=16):
    ids = [*BYTES.encode(text), BYTES.eos]
    return np.array(ids + [BYTES.eos] * (-len(ids) % length)).reshape(-1, length)


def test_tasks_are_of_functions_that_fit():
    """Tasks that are drawn differ, fit, and are the same for the same seed."""
    text = "".join(
        f"def f{n}():\n" + "".join(f"    {'x' * k} = {n}\n" for k in range(n, n + 3)) + "\n"
        for n in range(1, 10)
    )
    found = dict.fromkeys(code.functions(text))
    text += "def braces():\n    x = '{{3}}'\n    return x\n"  # a gap to fill is written so
    drawn = code.tasks(records(text * 2), BYTES, 55, count=5, seed=1)
    assert drawn == code.tasks(records(text * 2), BYTES, 55, count=5, seed=1)
    assert drawn != code.tasks(records(text * 2), BYTES, 55, count=5, seed=2)
    assert len(set(drawn.functions)) == 5
    assert set(drawn.functions) <= set(found)
    # f1 to f5 have at most 55 bytes.
    assert {"".join(line) for line in drawn.lines} == {"".join(own) for own in [*found][:5]}
    assert all("=" in line.text and line.behind.count("=") in (1, 2) for line in drawn.lines)


# ---------------------------------------------------------------------------------------------
# A network that knows one text by heart.

LENGTH = 48


@dataclasses.dataclass(frozen=True)
class Memory:
    text: bytes
    shift: int

    def features(self, params, tokens, position, mask, level, dropout_keys=None):
        garbage = b"    )(\n" * 8  # behind the end, where nothing counts
        text = [*self.text, BYTES.eos, *garbage][:LENGTH]
        place = jnp.where(position < 0, 0, position + self.shift)
        wanted = jnp.asarray(text)[jnp.minimum(place, LENGTH - 1)]
        return 30.0 * jax.nn.one_hot(jnp.broadcast_to(wanted, tokens.shape), BYTES.vocab_size + 1)

    def head(self, params):
        return {}

    def logits(self, params, features):
        return features


@pytest.mark.parametrize(
    ("run", "known", "scores"),
    [
        ("ar", "    b = a\n", {"parse": 1, "equal": 1, "distance": 0}),
        ("epsilon", "    b = (\n", {"parse": 0, "equal": 0, "distance": 1 / 5}),
    ],
)
def test_what_a_model_knows_is_what_is_counted(run, known, scores, request):
    """Autoregression and blocks, one with a wrong character; behind the end it writes nonsense."""
    folder = request.getfixturevalue(run)
    schedule = hyperschedule.block(length=LENGTH, width=8, levels=8)
    layout = Layout()
    if run == "ar":
        schedule, layout = hyperschedule.quenched_ar(length=LENGTH), Layout(alignment="shifted")
    spec = Spec(
        schedule=schedule, kernel=noising.absorbing(vocab_size=BYTES.vocab_size), layout=layout,
        objective=Objective(), bos=BYTES.bos,
    )  # fmt: skip
    network = Memory(f"{FUNCTION.header}{known}    return b\n".encode(), layout.shift)
    model = dataclasses.replace(pretrained.load(folder), network=network, spec=spec, params={})
    own = generator.build(model, SamplingConfig(rule="ancestral"))
    own = dataclasses.replace(own, sampler=dataclasses.replace(own.sampler, cached=False))
    given = code.tasks(records("".join(FUNCTION)), BYTES, LENGTH, count=4, seed=0)
    assert given == ([FUNCTION], [Line(FUNCTION.header, "    b = a", "\n    return b\n")])
    written = code.write(own, given, seed=0, batch_size=32)
    assert written["parse"] == [f"{known}    return b\n"]
    assert all(written[way] == [known[:-1]] for way in code.WAYS)
    found = {name: own.value for name, own in code.row("m", given, written).scores.items()}
    for name, value in found.items():
        assert value == pytest.approx(scores[name.rpartition("_")[2]])


def test_limits_are_of_text_cut_alike():
    lines = [Line("", text, "") for text in ("  ab", "b", "ab")]
    given = Tasks([FUNCTION], lines)
    for length, wanted in ((33, 1), (25, 1), (19, 0)):  # whole, one line, none
        real, others = code.limits(given, BYTES, length)
        assert real.scores["parse"].value == wanted
        assert real.written["parse"] == [FUNCTION.body[: {33: 23, 25: 10, 19: 0}[length]]]
    assert others.scores["open_equal"].value == pytest.approx(1 / 3)  # white space does not count
    assert others.scores["open_distance"].value == pytest.approx((0 + 1 / 2 + 1 / 2) / 3)
    assert len(code.limits(Tasks([FUNCTION], lines[:1]), BYTES, 33)) == 1  # no other function
    table = code.as_markdown([real, others]).splitlines()
    assert table[2].startswith("| the real functions | – | – | 0.000 | – |")
    assert len({line.count("|") for line in table}) == 1


# ---------------------------------------------------------------------------------------------
# The command.


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Functions that fit the 16 tokens of the tiny runs."""
    file = tmp_path_factory.mktemp("code") / "code.txt"
    text = "\n".join(f"def {name}():\n {name}\n {n}\n" for n, name in enumerate("abcdef"))
    file.write_text(text, encoding="utf-8")
    return file


def test_runs_side_by_side(ar, epsilon, source, capsys):
    flags = [f"--workdir={epsilon}", "--code", f"--reference=files:{source}", "--count=3"]
    assert evaluate.main([*flags, f"--beside={ar}"]) == 0
    shown = capsys.readouterr().out
    (stored,) = tiny.stored(shown)
    assert len(stored["functions"]) == len(stored["lines"]) == 3
    rows = stored["rows"]
    assert [row["settings"].get("workdir") for row in rows] == [str(epsilon), str(ar), None, None]
    assert rows[0]["settings"]["flops"] > rows[1]["settings"]["flops"] > 0
    assert [row["settings"].get("tokens") for row in rows[:2]] == [8 * 8 * 16] * 2
    for row in rows[:2]:
        assert {name: len(texts) for name, texts in row["written"].items()} == {
            "parse": 3, "known": 3, "open": 3, "left": 3,
        }  # fmt: skip
        assert all(0 <= own["value"] <= 1 and own["texts"] == 3 for own in row["scores"].values())
        line = next(line for line in shown.splitlines() if line.startswith(f"| {row['label']} |"))
        parse = row["scores"]["parse"]
        assert f"| {parse['value']:.3f} ± {parse['error']:.3f} |" in line
    assert rows[2]["scores"]["parse"]["value"] == 1
    # Beside another or alone, and however many at a time.
    assert evaluate.main([*flags, "--batch_size=5"]) == 0
    (alone,) = tiny.stored(capsys.readouterr().out)
    assert {**rows[0], "label": ""} == {**alone["rows"][0], "label": ""}


def test_what_is_no_code_or_of_other_data_is_refused(ar, gamma, text, source, tmp_path, capsys):
    other = shutil.copytree(gamma, tmp_path / "other")
    (other / "records.json").unlink()
    settings = json.loads((other / "config.json").read_text(encoding="utf-8"))
    settings["data"] |= {"valid_source": f"files:{text}/b.txt", "dir": str(tmp_path / "none")}
    (other / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    long = tmp_path / "long.txt"
    long.write_text("def a():\n return (1,\n  2)\n", encoding="utf-8")
    for flags, message in {
        (): "The held-out text has no Python function: evaluate a run on code",
        (f"--reference=files:{long}",): "None of the 1 functions of the held-out text fits the "
        "model's 16 tokens, with a line to hide: train with a larger data.length",
        (f"--beside={other}",): f"{other} has other validation records than {ar}: compare runs",
        (f"--beside={ar}/.",): f"--workdir with --beside names {ar} 2 times",
        (f"--reference=files:{source}", "--temperature=-1"): "temperature must be 0 or more",
    }.items():
        assert evaluate.main([f"--workdir={ar}", "--code", *flags]) == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1
    assert math.isnan(code.row("m", Tasks([FUNCTION], []), {"parse": [""]}).scores["parse"].error)
