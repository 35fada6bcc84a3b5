"""The embedded corpus: the running interpreter's own documentation.

About 2 MB of English that every installation has: the topics of `help()` and the docstrings of the
standard library. Sources are parsed, never imported.
"""

from __future__ import annotations

import ast
import functools
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

from hybrid_jax.data import content

# Tests and copies of other projects, whose docstrings are not documentation.
_SKIPPED = {"test", "tests", "idlelib", "lib2to3", "turtledemo", "_vendor", "_bundled"}


def documents() -> Iterator[str]:
    """Help topics, then one document a module; equal for equal interpreters, none twice."""
    return iter(_corpus())


def contents() -> dict[str, content.Content]:
    """The content of the corpus, which is another for each version of Python."""
    return {"Python's documentation": content.of_texts(sys.version, documents)}


@functools.cache  # parsing takes seconds, and preparation reads a source more than once
def _corpus() -> tuple[str, ...]:
    bodies: dict[str, None] = dict.fromkeys(topics[name] for name in sorted(topics))
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).parts):
        parts = path.relative_to(root).with_suffix("").parts
        # Files outside of packages (site-packages, config-…) are not part of the library.
        if _SKIPPED.isdisjoint(parts) and all(part.isidentifier() for part in parts):
            bodies[_module(path, ".".join(parts).removesuffix(".__init__"))] = None
    return tuple(body for body in bodies if body.strip())


def _module(path: Path, name: str) -> str:
    """The docstrings of one module, each under its qualified name; "" if there are none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes and the like in others' code
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return ""  # a template, or a sample of broken code
    return "\n\n\n".join(f"{title}\n\n{text}" for title, text in _docstrings(tree, name)) + "\n"


def _docstrings(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str
) -> Iterator[tuple[str, str]]:
    text = ast.get_docstring(node)
    if text:
        yield name, text
    if isinstance(node, (ast.Module, ast.ClassDef)):
        for child in node.body:
            if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                yield from _docstrings(child, f"{name}.{child.name}")
