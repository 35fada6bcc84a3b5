"""Draws the folders of the package, their layers and their imports: figures/architecture.svg.

    python docs/draw_architecture.py

Rows are the layers of the import-linter contract in pyproject.toml. Arrows are the imports in the
code, without those that follow from others.
"""

import ast
import graphlib
import html
import textwrap
import tomllib
from pathlib import Path

import grimp

REPOSITORY = Path(__file__).resolve().parents[1]
PICTURE = REPOSITORY / "docs" / "figures" / "architecture.svg"
PACKAGE = "hybrid_jax"
PURE = {"method", "models", "sampling"}
WIDTH, GAP, LINE = 880, 16, 13  # pixels
COLUMNS = 4  # a row of one or two boxes gives each the width of two columns


def layers() -> list[list[str]]:
    """The layers from the top."""
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    found = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [[name.strip() for name in layer.split("|")] for layer in found]


def arrows(graph: grimp.ImportGraph, names: list[str]) -> set[tuple[str, str]]:
    """Imports between folders, as (importer, imported), that no chain of others implies."""
    imported = {
        name: {
            other
            for other in names
            if other != name
            and graph.direct_import_exists(
                importer=f"{PACKAGE}.{name}", imported=f"{PACKAGE}.{other}", as_packages=True
            )
        }
        for name in names
    }
    reached: dict[str, set[str]] = {}
    for name in graphlib.TopologicalSorter(imported).static_order():
        reached[name] = imported[name].union(*(reached[other] for other in imported[name]))
    return {
        (name, other)
        for name in names
        for other in imported[name]
        if not any(other in reached[between] for between in imported[name])
    }


def contents(graph: grimp.ImportGraph, name: str) -> str:
    """The modules of a folder; of a module, the first sentence of its docstring."""
    children = graph.find_children(f"{PACKAGE}.{name}")
    if children:
        modules = sorted(child.rpartition(".")[2] for child in children)
        return ", ".join(module for module in modules if module != "__main__")
    path = REPOSITORY / PACKAGE / name
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    source = path.read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(source)) or ""
    return docstring.partition(".\n")[0].partition("\n\n")[0].replace("`", "").removesuffix(".")


def picture() -> str:
    """The picture as SVG, readable on light and on dark pages."""
    graph = grimp.build_graph(PACKAGE, cache_dir=None)
    rows = layers()
    boxes: dict[str, tuple[float, float, float, float]] = {}  # left, top, width, height
    texts: dict[str, list[str]] = {}
    top = GAP
    for row in rows:
        wide = len(row) <= COLUMNS // 2
        width = (WIDTH - GAP) / (COLUMNS // 2 if wide else COLUMNS) - GAP
        for name in row:
            texts[name] = textwrap.wrap(html.escape(contents(graph, name)), int(width / 5.6))
        height = 26 + LINE * max(len(texts[name]) for name in row)
        for place, name in enumerate(row):
            boxes[name] = (GAP + place * (width + GAP), top, width, height)
        top += height + 34
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top - 34 + GAP}" '
        'font-family="sans-serif" text-anchor="middle">',
        "<title>Folders of hybrid_jax: what stands higher imports what stands lower</title>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" '
        'markerHeight="8" orient="auto"><path d="M0 0 8 4 0 8z" fill="#888"/></marker></defs>',
    ]
    for name, other in sorted(arrows(graph, [name for row in rows for name in row])):
        (x, y, width, height), (to_x, to_y, to_width, _) = boxes[name], boxes[other]
        start, end = x + width / 2, to_x + to_width / 2
        # Arrows to another column leave and arrive towards each other, far ones from the corner.
        start += width * max(-0.3, min(0.3, (end - start) / WIDTH))
        end -= to_width * max(-0.3, min(0.3, (end - start) / WIDTH))
        y += height
        if to_y - y > 100:
            path = f"M{x + width - 20:.0f} {y:.0f}Q{end:.0f} {y + 17:.0f} "
        else:
            path = f"M{start:.0f} {y:.0f}C{start:.0f} {y + 26:.0f} {end:.0f} {to_y - 26:.0f} "
        lines.append(
            f'<path d="{path}{end:.0f} {to_y:.0f}" fill="none" stroke="#888" stroke-width="1.5" '
            'marker-end="url(#head)"/>'
        )
    for name, (x, y, width, height) in boxes.items():
        colour = "#fdf0d5" if name in PURE else "#e3edf7"
        lines.append(
            f'<rect x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{height:.0f}" rx="6" '
            f'fill="{colour}" stroke="#888"/>'
        )
        middle = x + width / 2
        words = [(name, 17, 13, "bold")]
        words += [(text, 33 + LINE * i, 10.5, "normal") for i, text in enumerate(texts[name])]
        lines += [
            f'<text x="{middle:.0f}" y="{y + down:.0f}" font-size="{size}" font-weight="{weight}" '
            f'fill="#222">{text}</text>'
            for text, down, size, weight in words
        ]
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
