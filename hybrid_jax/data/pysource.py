"""The embedded code: the running interpreter's own standard library.

About 9 MB of Python that every installation has. Modules are parsed, never imported. Left out are
those that do not parse, tests and copies of other projects, and tables: modules more than half of
whose lines are assignments and calls of at least `_TABLE` lines.
"""

import ast
import functools
import importlib.util
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from hybrid_jax.data import content

_SKIPPED = {"test", "tests", "idlelib", "lib2to3", "turtledemo", "_vendor", "_bundled"}
_TABLE = 50


class Module(NamedTuple):
    """A module of the standard library: its qualified name, and its text as read and as parsed."""

    name: str
    text: str
    tree: ast.Module


@functools.cache  # parsing takes seconds, and preparation reads a source more than once
def documents() -> tuple[str, ...]:
    """One document a module; equal for equal interpreters, none twice."""
    texts = (module.text for module in modules() if not _is_table(module))
    return tuple(dict.fromkeys(text for text in texts if text.strip()))


def contents() -> dict[str, content.Content]:
    """The content of the code, which is another for each version of Python."""
    return {"Python's standard library": content.of_texts(sys.version, documents)}


def modules() -> Iterator[Module]:
    """The modules that parse and are neither tests nor copies of other projects, in order."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).parts):
        parts = path.relative_to(root).with_suffix("").parts
        # Files outside of packages (site-packages, config-…) are not part of the library.
        if not _SKIPPED.isdisjoint(parts) or not all(part.isidentifier() for part in parts):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escapes and the like in others' code
                text = importlib.util.decode_source(path.read_bytes())
                yield Module(".".join(parts).removesuffix(".__init__"), text, ast.parse(text))
        except (SyntaxError, ValueError):
            continue  # a template, or a sample of broken code


def _is_table(module: Module) -> bool:
    data = 0
    for node in module.tree.body:
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Expr)) and not is_text:
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            data += lines if lines >= _TABLE else 0
    return data > len(module.text.splitlines()) / 2
