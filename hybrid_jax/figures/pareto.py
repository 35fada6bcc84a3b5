"""The picture of a sweep: quality against NFE, and quality against diversity.

Where rules have several temperatures, quality is that at the entropy of held-out text, and lines of
diversity join temperatures.
"""

from collections.abc import Sequence

from hybrid_jax.eval.quality_table import Row
from hybrid_jax.eval.statistics import Estimate
from hybrid_jax.figures import canvas


def draw(rows: Sequence[Row], *, title: str) -> bytes:
    """The picture, a PNG. Raises UserError if matplotlib is missing."""
    ticker = canvas.module("matplotlib.ticker")
    figure = canvas.figure(11, 4.6, title)
    by_calls, by_entropy = figure.subplots(1, 2)
    swept = any(row.matched is not None for row in rows)
    curves: dict[str, list[Row]] = {}
    for row in rows:
        if row.rho is not None:
            curves.setdefault(row.rule if swept else row.label, []).append(row)
    for number, (label, own) in enumerate(curves.items()):
        own.sort(key=_calls)
        # Ten colours, and markers that tell them apart without colour.
        style = {"color": f"C{number % 10}", "marker": "osD^v<>PX*"[number % 10], "markersize": 5,
                 "linewidth": 1, "linestyle": "-" if number < 10 else "--",
                 "label": label}  # fmt: skip
        quality = [row.matched if swept else row.estimate("perplexity") for row in own]
        known = [(_calls(row), e) for row, e in zip(own, quality, strict=True) if e and e.texts]
        if known:  # an axis of nothing finite has no scale
            values, errors = _split([e for _, e in known])
            by_calls.errorbar([calls for calls, _ in known], values, errors, **style)
        for rho in {row.rho if swept else None for row in own}:
            line = [row for row in own if rho in (None, row.rho)]
            if swept:
                line.sort(key=lambda row: row.estimate("entropy").value)
            values, errors = _split([row.estimate("perplexity") for row in line])
            across, spread = _split([row.estimate("entropy") for row in line])
            by_entropy.errorbar(across, values, errors, spread, **style)
            style["label"] = "_"  # once in the legend
    for row in rows:
        if row.rho is None:
            level = row.estimate("perplexity").value
            by_calls.axhline(level, color="black", linestyle=":", linewidth=1)
            by_entropy.plot(
                row.estimate("entropy").value, level, "k*", markersize=12, label=row.label
            )
    by_calls.set_xscale("log", base=2)
    by_calls.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
    by_calls.set_xlabel("NFE per text")
    by_entropy.set_xlabel("entropy of the tokens inside a text (nats); more is more diverse")
    if swept:
        by_calls.set_title("at the entropy of held-out text, where it is reached", fontsize=9)
    for axes in (by_calls, by_entropy):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(ticker.LogFormatter(labelOnlyBase=False))
        axes.set_ylabel("perplexity under the scorer; less is better")
        axes.grid(visible=True, which="both", alpha=0.25)
    by_entropy.legend(fontsize=7, loc="best")
    return canvas.png(figure)


def _split(estimates: Sequence[Estimate]) -> tuple[list[float], list[float]]:
    return [one.value for one in estimates], [one.error for one in estimates]


def _calls(row: Row) -> float:
    nfe = row.mean("nfe")
    assert nfe is not None  # every generated text carries them
    return nfe
