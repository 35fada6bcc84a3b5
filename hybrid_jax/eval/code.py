"""Evaluation on code: functions that parse, and hidden lines that are written again.

Functions are taken from held-out text, with the indentation that they have there.

- *Parse.* Given the header of a function (signature and docstring), a model writes on, to its L
  tokens. Its text ends before the first line that is not indented deeper than the header, or at the
  end of the document; an incomplete last line is left out. Counted are those that `ast.parse` reads
  as one function with a statement behind the header. Real functions are cut in the same way.
- *Lines.* One line is hidden, of at most `infill.LONGEST` tokens, with more of the body behind it.
  It is written again in three ways, and compared without the white space around it. So indentation,
  which is hidden too, counts only as tokens.
"""

import ast
import dataclasses
import itertools
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hybrid_jax.data.tokenizers.base import Tokenizer
from hybrid_jax.errors import UserError
from hybrid_jax.eval.statistics import Estimate, markdown, mean
from hybrid_jax.generation import infill
from hybrid_jax.generation.generator import Generator
from hybrid_jax.runtime.progress import Progress

# How a hidden line is written, and columns of the table.
WAYS = {
    "known": "line, sides and length given",
    "open": "line, sides given",
    "left": "line, left side given",
}
_HEADS = {"parse": "functions that parse (share)"}
for _way, _given in WAYS.items():
    _HEADS[f"{_way}_equal"] = f"{_given}: equal (share)"
    _HEADS[f"{_way}_distance"] = "edit distance (share)"


class Function(NamedTuple):
    """Whole lines of a function: the header (signature, docstring), and the rest."""

    header: str
    body: str


class Line(NamedTuple):
    """A line to hide, without its end, and the function around it."""

    before: str
    text: str
    behind: str


class Tasks(NamedTuple):
    """The work of every model: functions to write the bodies of, and lines to write."""

    functions: Sequence[Function]
    lines: Sequence[Line]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table.

    Attributes:
      label: of the model.
      settings: what its texts depend on, and the `tokens` and `flops` of its training.
      scores: "parse", and "equal" and "distance" in each of `WAYS`.
      written: bodies under "parse", and lines in each of `WAYS`.
    """

    label: str
    settings: Mapping[str, Any]
    scores: Mapping[str, Estimate]
    written: Mapping[str, Sequence[str]]


def functions(text: str) -> Iterator[Function]:
    """The functions of a text that may begin and end anywhere, none inside another."""
    lines, at = text.split("\n"), 0
    while at < len(lines):
        end = at + 1
        if re.match(r"[ \t]*(async )?def ", lines[at]):
            end += len(_inside(lines[at + 1 :], _depth(lines[at])))
            own = "\n".join(lines[at:end]).rstrip() + "\n"
            if (tree := _parsed(own)) is None:
                end = at + 1  # another may begin in it
            elif size := _header_lines(tree, own):
                *header, body = own.split("\n", size)
                yield Function("".join(f"{line}\n" for line in header), body)
        at = end


def _inside(lines: Sequence[str], depth: int) -> list[str]:
    """The lines behind `def`, with so many characters before it, that belong to its function."""

    def inside(line: str) -> bool:
        return not line.strip() or (not line[:depth].strip() and line[depth] in " \t)")

    return list(itertools.takewhile(inside, lines))


def _depth(text: str) -> int:
    return len(text) - len(text.lstrip())


def _parsed(text: str) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    """The function that a text is, indented or not; None if it is anything else."""
    if re.search(r"\r(?!\n)", text):  # ends a line for Python alone, whose numbers are other ones
        return None
    depth = _depth(text)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes and the like
            body = ast.parse("\n".join(line[depth:] for line in text.split("\n"))).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    first = body[0] if len(body) == 1 else None
    return first if isinstance(first, ast.FunctionDef | ast.AsyncFunctionDef) else None


def _header_lines(tree: ast.FunctionDef | ast.AsyncFunctionDef, text: str) -> int:
    """Lines above the first statement behind a docstring; 0 if it shares a line with them."""
    for node in tree.body[ast.get_docstring(tree, clean=False) is not None :][:1]:
        above = min(own.lineno for own in (node, *getattr(node, "decorator_list", ()))) - 1
        line = text.split("\n")[above]
        return 0 if line[: _depth(text) + node.col_offset].strip() else above
    return 0


def parses(own: Function) -> bool:
    """True if header and body are one function, with a statement behind the header."""
    tree = _parsed("".join(own))
    return tree is not None and tree.body[-1].lineno > own.header.count("\n")


def body_of(header: str, text: str) -> str:
    """The function's whole lines in a text that goes on behind its header."""
    body = "\n".join(_inside(text.split("\n")[:-1], _depth(header))).rstrip()
    return body and body + "\n"


def distance(a: str, b: str) -> float:
    """Levenshtein's edit distance over the length of the longer text, in [0, 1]."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (x != y)))
    return row[-1] / max(len(a), len(b), 1)


def tasks(
    records: Sequence[np.ndarray], tokenizer: Tokenizer, length: int, *, count: int, seed: int
) -> Tasks:
    """At most `count` functions whose header leaves a third of the L tokens, and at most `count`
    lines, each of another function that fits as a whole; drawn at random. Left out is text with two
    braces, which would be gaps of `infill`.

    Args:
      records: ids of held-out text in its order, int [L] each.
      length: L.

    Raises:
      UserError: if the text has no such function or no such line.
    """
    ids = np.concatenate(records)
    documents = np.split(ids, np.flatnonzero(ids == tokenizer.eos))
    texts = map(tokenizer.decode, documents)
    found = list(dict.fromkeys(own for text in texts for own in functions(text)))
    if not found:
        raise UserError(
            "The held-out text has no Python function: evaluate a run on code, such as that of "
            "configs/code.py, or name code with --reference."
        )
    draw = np.random.default_rng(seed)
    order = [found[number] for number in draw.permutation(len(found))]
    headers = (
        own
        for own in order
        if 3 * len(tokenizer.encode(own.header)) <= 2 * length and "{{" not in own.header
    )
    hidden = filter(None, (_hide(own, tokenizer, length, draw) for own in order))
    chosen = Tasks(*(list(itertools.islice(some, count)) for some in (headers, hidden)))
    if not all(chosen):
        raise UserError(
            f"None of the {len(found)} functions of the held-out text fits the model's {length} "
            "tokens, with a line to hide: train with a larger data.length, or name more code with "
            "--reference."
        )
    return chosen


def _hide(
    own: Function, tokenizer: Tokenizer, length: int, draw: np.random.Generator
) -> Line | None:
    """A line of a function to hide; None if there is none, or the function does not fit."""
    lines, fitting = "".join(own).split("\n"), []
    for at in range(own.header.count("\n"), len(lines) - 2):
        before = "".join(f"{line}\n" for line in lines[:at])
        line = Line(before, lines[at], "\n" + "\n".join(lines[at + 1 :]))
        sizes = [len(tokenizer.encode(part)) for part in line]
        if line.text.strip() and sizes[1] <= infill.LONGEST and sum(sizes) <= length:
            fitting.append(line)
    return fitting[draw.integers(len(fitting))] if fitting and "{{" not in "".join(own) else None


def write(
    generator: Generator, given: Tasks, *, seed: int, batch_size: int
) -> dict[str, list[str]]:
    """Texts of a model for the tasks, as `Row.written`; it must go on behind documents' ends."""
    tokenizer, length = generator.model.tokenizer, generator.sampler.spec.schedule.length

    def size(text: str) -> int:
        return len(tokenizer.encode(text))

    wanted: list[tuple[str, str, str, int | None]]  # way, both sides, most tokens between them
    wanted = [("parse", own.header, "", length) for own in given.functions]
    for before, line, behind in given.lines:
        wanted += [("known", before, behind, size(line)), ("open", before, behind, None),
                   ("left", before, "", infill.LONGEST + 1)]  # fmt: skip
    asked = []
    for _, before, behind, most in wanted:
        gap = "" if most is None else min(most, length - size(before))
        asked.append(infill.with_gaps(f"{before}{{{{{gap}}}}}{behind}", tokenizer, length))
    with Progress(total=sum(map(len, asked)), unit="text", interval=10.0) as bar:
        texts = infill.run(
            generator, asked, seed=seed, batch_size=batch_size,
            on_round=lambda now: bar.update(now.done, {}),
        )  # fmt: skip
    written: dict[str, list[str]] = {way: [] for way in ("parse", *WAYS)}
    for (way, before, behind, _), made in zip(wanted, texts, strict=True):
        ids = made.tokens[size(before) : len(made.tokens) - size(behind)]
        ended = tokenizer.eos in ids
        text = tokenizer.decode(ids[: ids.index(tokenizer.eos)] if ended else ids) + "\n" * ended
        if not behind:
            text = body_of(before, text) if way == "parse" else text.partition("\n")[0]
        written[way].append(text)
    return written


def row(label: str, given: Tasks, written: Mapping[str, Sequence[str]], **settings: Any) -> Row:
    """The numbers of bodies and lines that were written for the tasks."""
    scores = {}
    for way, texts in written.items():
        if way == "parse":
            whole = (Function(f.header, t) for f, t in zip(given.functions, texts, strict=True))
            scores[way] = mean([parses(own) for own in whole])
        else:
            real = [line.text.strip() for line in given.lines]
            pairs = list(zip(map(str.strip, texts), real, strict=True))
            scores[f"{way}_equal"] = mean([a == b for a, b in pairs])
            scores[f"{way}_distance"] = mean([distance(a, b) for a, b in pairs])
    return Row(label=label, settings=settings, scores=scores, written=written)


def limits(given: Tasks, tokenizer: Tokenizer, length: int) -> list[Row]:
    """Rows to compare with: real functions cut to L tokens, and each line in place of the next, if
    there are several."""
    bodies = []
    for header, body in given.functions:
        room = length - len(tokenizer.encode(header))
        bodies.append(body_of(header, tokenizer.decode(tokenizer.encode(body)[:room])))
    rows = [row("the real functions", given, {"parse": bodies})]
    if len(given.lines) > 1:
        others = [line.text for line in (given.lines[-1], *given.lines[:-1])]
        rows.append(row("lines of other functions", given, dict.fromkeys(WAYS, others)))
    return rows


def as_markdown(rows: Sequence[Row]) -> str:
    """One line for each row; ± standard errors over functions or lines."""

    def cells(row: Row) -> list[str]:
        spent = {"tokens": 1e6, "flops": 1e12}
        known = {name: f"{row.settings[name] / spent[name]:.2f}" for name in spent if row.settings}
        known |= {name: own.shown(3) for name, own in row.scores.items()}
        return [row.label, *(known.get(name, "–") for name in (*spent, *_HEADS))]

    heads = ("model", "training (10⁶ tokens)", "training (10¹² FLOPs)", *_HEADS.values())
    return markdown(heads, map(cells, rows))
