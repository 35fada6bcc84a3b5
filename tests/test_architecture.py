"""Every import of the package against the layers and owners that docs/architecture.md states."""

import ast
import graphlib
import re
import sys

import pytest
from conftest import REPOSITORY

DOCUMENT = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
PACKAGE = "hybrid_jax"
PURE = ("method", "cache", "network", "sampling")
FREE = {"jax", "numpy"}


def name_of(path):
    """Of a module as the document writes it; of the package itself, its name."""
    parts = path.relative_to(REPOSITORY / PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or PACKAGE


TREES = {
    name_of(path): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted((REPOSITORY / PACKAGE).rglob("*.py"))
}
PACKAGES = {name_of(path) for path in (REPOSITORY / PACKAGE).rglob("__init__.py")}


def imports_of(tree):
    """Dotted names of all that a module imports, at any depth, also through importlib."""
    lazy = {"import_module"} | {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and node.args.args
        and any(is_call(call, {"import_module"}, node.args.args[0].arg) for call in ast.walk(node))
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            assert node.names[0].name != "*", "imports are of names"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and called(node) in lazy:
            first = node.args[0]
            assert isinstance(first, ast.Constant | ast.Name), "a name that can be read here"
            if isinstance(first, ast.Constant):
                yield first.value


def called(call):
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def is_call(node, functions, argument):
    return (
        isinstance(node, ast.Call)
        and called(node) in functions
        and isinstance(node.args[0], ast.Name)
        and node.args[0].id == argument
    )


def inner(name):
    """The modules of this package that an import of these trees needs."""
    found = set()
    for imported in imports_of(TREES[name]):
        top, _, rest = imported.partition(".")
        if top != PACKAGE:
            continue
        # What is imported is a module, or something in one.
        found.add(next(m for m in (rest, rest.rpartition(".")[0], PACKAGE) if m in TREES))
    return found - {PACKAGE}


def outer(name):
    """The other packages that a module needs."""
    return {imported.partition(".")[0] for imported in imports_of(TREES[name])} - {PACKAGE}


def table(heading):
    """The rows of the table whose first column has this heading."""
    lines = DOCUMENT.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            return
        yield [cell.strip() for cell in line.strip("|").split("|")]


def ticked(cell):
    return re.findall(r"`([^`]+)`", cell)


LAYERS = {name: ticked(modules) for name, modules, _ in table("layer")}
ALLOWED = {
    name: [layer.strip() for layer in cell.split(",") if layer.strip()]
    for name, _, cell in table("layer")
}
LAYER_OF = {module: layer for layer, modules in LAYERS.items() for module in modules}
MODULES = sorted(set(TREES) - PACKAGES)


def test_the_document_names_each_module_once():
    named = [module for modules in LAYERS.values() for module in modules]
    assert sorted(named) == MODULES


def test_packages_hold_nothing_but_their_modules():
    for name in PACKAGES:
        assert not inner(name), name


def test_layers_stand_in_order():
    above = []
    for layer, allowed in ALLOWED.items():
        assert set(allowed) <= set(above), layer
        assert allowed == [name for name in above if name in allowed], f"{layer}: order"
        above.append(layer)


@pytest.mark.parametrize("layer", LAYERS)
def test_modules_import_what_their_layer_may(layer):
    may = {layer, *ALLOWED[layer]}
    wrong = {
        f"{module} imports {other}, of layer {LAYER_OF[other]}"
        for module in LAYERS[layer]
        for other in inner(module)
        if LAYER_OF[other] not in may
    }
    assert not wrong


@pytest.mark.parametrize("layer", LAYERS)
def test_no_layer_is_allowed_what_it_does_not_need(layer):
    needs = {LAYER_OF[other] for module in LAYERS[layer] for other in inner(module)}
    assert set(ALLOWED[layer]) <= needs


def test_nothing_imports_in_circles():
    graph = graphlib.TopologicalSorter({module: inner(module) for module in MODULES})
    graph.prepare()  # raises CycleError


def test_pure_layers_know_nothing_of_files_and_commands():
    sentence = re.search(r"Of the standard library they import only ([^.]*)\.", DOCUMENT)
    allowed = set(ticked(sentence[1]))
    for module in (module for layer in PURE for module in LAYERS[layer]):
        standard = outer(module) & set(sys.stdlib_module_names)
        assert standard <= allowed, module
        nfe = {called(node) for node in ast.walk(TREES[module]) if isinstance(node, ast.Call)}
        assert not nfe & {"open", "print", "input", "exec", "eval"}, module


def test_packages_from_outside_stay_with_their_owners():
    owners = {p: set(ticked(modules)) for row, modules in table("package") for p in ticked(row)}
    used = {}
    for module in TREES:
        for package in outer(module) - set(sys.stdlib_module_names) - FREE:
            used.setdefault(package, set()).add(module)
    assert used == owners
