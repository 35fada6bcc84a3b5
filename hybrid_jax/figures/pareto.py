"""The picture of a sweep: quality against NFE, and quality against diversity."""

import io
from collections.abc import Sequence
from pathlib import Path

from hybrid_jax.errors import require
from hybrid_jax.eval.quality_table import Row
from hybrid_jax.runtime.files import write_atomic


def draw(rows: Sequence[Row], file: Path, *, title: str) -> None:
    """Writes the picture, in the format of the file's ending.

    Raises:
      UserError: if matplotlib is missing, or the file cannot be written.
    """
    figures, ticker = (require(f"matplotlib.{name}", "eval") for name in ("figure", "ticker"))
    figure = figures.Figure(figsize=(11, 4.6), facecolor="white", layout="constrained")
    by_calls, by_entropy = figure.subplots(1, 2)
    figure.suptitle(title, fontsize=10)
    labels = list(dict.fromkeys(row.label for row in rows if row.rho is not None))
    for number, label in enumerate(labels):
        own = sorted((row for row in rows if row.label == label), key=_calls)
        quality = [row.estimate("perplexity") for row in own]
        entropy = [row.estimate("entropy") for row in own]
        # Ten colours, and markers that tell them apart without colour.
        style = {"color": f"C{number % 10}", "marker": "osD^v<>PX*"[number % 10], "markersize": 5,
                 "linewidth": 1, "linestyle": "-" if number < 10 else "--",
                 "label": label}  # fmt: skip
        values = [estimate.value for estimate in quality]
        errors = [estimate.error for estimate in quality]
        by_calls.errorbar([_calls(row) for row in own], values, errors, **style)
        by_entropy.errorbar(
            [e.value for e in entropy], values, errors, [e.error for e in entropy], **style
        )
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
    for axes in (by_calls, by_entropy):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(ticker.LogFormatter(labelOnlyBase=False))
        axes.set_ylabel("perplexity under the scorer; less is better")
        axes.grid(visible=True, which="both", alpha=0.25)
    by_entropy.legend(fontsize=7, loc="best")
    picture = io.BytesIO()
    figure.savefig(picture, dpi=130, format=file.suffix[1:])
    write_atomic(file, picture.getvalue())


def _calls(row: Row) -> float:
    nfe = row.mean("nfe")
    assert nfe is not None  # every generated text carries them
    return nfe
