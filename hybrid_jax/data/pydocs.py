"""The embedded corpus: the running interpreter's own documentation.

About 2 MB of English that every installation has: the topics of `help()` and the docstrings of the
standard library. Sources are parsed, never imported.
"""

import ast
import functools
import sys
from collections.abc import Iterator
from pydoc_data.topics import topics

from hybrid_jax.data import content, pysource


@functools.cache  # parsing takes seconds, and preparation reads a source more than once
def documents() -> tuple[str, ...]:
    """Help topics, then one document a module; equal for equal interpreters, none twice."""
    bodies: dict[str, None] = dict.fromkeys(topics[name] for name in sorted(topics))
    for module in pysource.modules():
        found = _docstrings(module.tree, module.name)
        bodies["\n\n\n".join(f"{title}\n\n{text}" for title, text in found) + "\n"] = None
    return tuple(body for body in bodies if body.strip())


def contents() -> dict[str, content.Content]:
    """The content of the corpus, which is another for each version of Python."""
    return {"Python's documentation": content.of_texts(sys.version, documents)}


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
