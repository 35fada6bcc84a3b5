"""Pictures of the table: error against calls, width and η, and its two parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oracle.cells import Cell, Found

from hybrid_jax.figures import canvas
from hybrid_jax.figures.palette import FAINT, INK

LOOKS = {
    "ancestral": ("#0072b2", "o"), "remdm": ("#56b4e9", "s"), "entropy": ("#009e73", "^"),
    "threshold": ("#d55e00", "v"), "greedy": ("#1a1a1a", "X"), "acs:eta=0": ("#cc79a7", "D"),
    "acs:eta=0.5": ("#e69f00", "P"), "acs:eta=0.5:guidance=confidence": ("#8c510a", "<"),
    "acs:eta=0.5:sweeps=2": ("#6a3d9a", ">"), "psi": ("#767676", "h"),
    "acs:eta=0.5:correction=remask": ("#b15928", "*"),
}  # fmt: skip
"""Colour and sign of a rule; of others, those that matplotlib takes in turn."""

KERNELS = {
    "absorbing": "masking", "uniform": "replacement", "gamma": "γ = 0.1", "epsilon": "ε = 0.1",
    "epsilon 0.01": "ε = 0.01",
}  # fmt: skip

Finds = Mapping[Cell, Found]


def draw(sets: Mapping[str, list[Cell]], found: Finds, floor: Found) -> dict[str, bytes]:
    """PNGs by name, of those sets that have a picture and were measured whole."""
    pictures = {"calls": _calls, "width": _width, "eta": _eta, "split": _split}
    return {
        f"sampler_{name}": pictures[name]([cell for cell in cells if cell in found], found, floor)
        for name, cells in sets.items()
        if name in pictures
    }


def _look(rule: str) -> dict[str, Any]:
    colour, marker = LOOKS.get(rule, (None, "*"))
    return {"color": colour, "marker": marker}


def _line(axes: Any, points: list[tuple[float, tuple[float, float]]], **look: Any) -> None:
    """Values with their errors, by rising x."""
    at, values = zip(*sorted(points), strict=True)
    shown, errors = zip(*values, strict=True)
    axes.errorbar(at, shown, errors, ms=4, lw=1.2, capsize=2, **look)


def _finish(axes: Any, title: str, xlabel: str) -> None:
    axes.set_title(title, fontsize=10, color=INK)
    axes.set_xlabel(xlabel)
    axes.grid(visible=True, alpha=0.25)


def _floor(axes: Any, level: float, label: str = "texts of the chain") -> None:
    axes.axhline(level, color=FAINT, ls="--", lw=1.2, label=label)


def _log_base_2(axes: Any, ticks: list[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.set_yscale("log")


def _calls(cells: list[Cell], found: Finds, floor: Found) -> bytes:
    figure = canvas.figure(11, 4.8, "")
    handles: dict[str, Any] = {}
    panels = zip(figure.subplots(1, 2, sharey=True), ("absorbing", "epsilon"), strict=True)
    for axes, kernel in panels:
        own = [cell for cell in cells if cell.kernel == kernel]
        for rule in dict.fromkeys(cell.rule for cell in own):
            of_rule = [found[cell] for cell in own if cell.rule == rule]
            points = [(one["calls"][0], one["kl"]) for one in of_rule]
            _line(axes, points, label=rule, **_look(rule))
        _floor(axes, floor["kl"][0])
        _log_base_2(axes, sorted({cell.calls for cell in own}))
        _finish(axes, f"{KERNELS[kernel]}, all positions together", "calls of the network (NFE)")
        handles |= dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    figure.axes[0].set_ylabel("KL from the chain (nats a letter)")
    figure.legend(
        handles.values(), handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False
    )
    return canvas.png(figure)


def _width(cells: list[Cell], found: Finds, floor: Found) -> bytes:
    figure = canvas.figure(7, 4.4, "")
    axes = figure.subplots()
    colours = {"block": "#0072b2", "slide": "#d55e00"}
    fewest = min(cell.calls for cell in cells)
    for line in dict.fromkeys((cell.kernel, cell.schedule, cell.calls) for cell in cells):
        of_line = [cell for cell in cells if (cell.kernel, cell.schedule, cell.calls) == line]
        points = [(cell.width, found[cell]["kl"]) for cell in of_line]
        kernel, schedule, calls = line
        _line(
            axes, points, label=f"{schedule}, at most {calls} calls, {KERNELS[kernel]}",
            color=colours[schedule] if kernel == "absorbing" else "#009e73",
            marker="o" if schedule == "block" else "s", ls="-" if calls == fewest else ":",
        )  # fmt: skip
    _floor(axes, floor["kl"][0])
    _log_base_2(axes, sorted({cell.width for cell in cells}))
    _finish(axes, "ancestral, by windows", "width of a window (letters)")
    axes.set_ylabel("KL from the chain (nats a letter)")
    axes.legend(fontsize=8)
    return canvas.png(figure)


def _eta(cells: list[Cell], found: Finds, floor: Found) -> bytes:
    figure = canvas.figure(11, 4.8, "")
    names = {"kl": "KL from the chain (nats a letter)", "entropy": "entropy of pairs (nats)"}
    for axes, (name, label) in zip(figure.subplots(1, 2), names.items(), strict=True):
        kernels = dict.fromkeys(cell.kernel for cell in cells)
        for kernel, colour in zip(kernels, ("#d55e00", "#e69f00", "#0072b2"), strict=False):
            for guidance, style, marker in (("uniform", "-", "o"), ("confidence", ":", "s")):
                points = [
                    (_eta_of(cell), found[cell][name]) for cell in cells if cell.kernel == kernel
                    and (("confidence" in cell.rule) == (style == ":") or _eta_of(cell) == 0)
                ]  # fmt: skip
                title = f"{KERNELS[kernel]}, guidance={guidance}"
                _line(axes, points, label=title, color=colour, ls=style, marker=marker)
        _floor(axes, floor[name][0])
        one = cells[0]
        _finish(axes, f"acs, {one.schedule} {one.width}, {one.calls} calls", "η")
        axes.set_ylabel(label)
    figure.axes[0].set_yscale("log")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return canvas.png(figure)


def _eta_of(cell: Cell) -> float:
    return float(cell.rule.split("eta=")[1].partition(":")[0])


def _split(cells: list[Cell], found: Finds, floor: Found) -> bytes:
    """For each rule its error and what is left of it when tokens are drawn jointly."""
    whole = [cell for cell in cells if cell._replace(jointly=True) in found and not cell.jointly]
    calls = sorted({cell.calls for cell in whole})
    figure = canvas.figure(11, 4.4, "")
    for axes, count in zip(figure.subplots(1, len(calls), sharey=True), calls, strict=True):
        shown = [cell for cell in whole if cell.calls == count]
        rows = range(len(shown))
        plain = [found[cell]["kl"][0] for cell in shown]
        together = [found[cell._replace(jointly=True)]["kl"][0] for cell in shown]
        axes.hlines(rows, together, plain, color="#b5b5b5", lw=2, zorder=1)
        axes.plot(plain, rows, "o", color="#0072b2", ms=6, label="as it is")
        axes.plot(together, rows, "D", color="#d55e00", ms=5, label="tokens drawn jointly")
        axes.axvline(floor["kl"][0], color=FAINT, ls="--", lw=1.2, label="texts of the chain")
        axes.set_yticks(
            rows, [f"{KERNELS[cell.kernel]}: {cell.rule}" for cell in shown], fontsize=7
        )
        axes.set_xscale("log")
        _finish(axes, f"{count} calls, all positions together", "KL from the chain (nats a letter)")
    figure.axes[0].invert_yaxis()
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return canvas.png(figure)
