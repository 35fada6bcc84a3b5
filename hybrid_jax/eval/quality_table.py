"""A table of generated text: one line for each sampler, with all its numbers side by side."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from hybrid_jax.eval.statistics import Estimate, combined, markdown
from hybrid_jax.eval.text_quality import Quality


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """Measurements of one sampler, or of human text.

    Attributes:
      label: of the row.
      qualities: one for each seed.
      rho: ρ, tokens per NFE, where that is known.
      matched: the rule's perplexity at the entropy of held-out text, where it was generated at
        several temperatures (see `pareto.matched`).
    """

    label: str
    qualities: tuple[Quality, ...]
    rho: float | None = None
    matched: Estimate | None = None

    @property
    def rule(self) -> str:
        """The label without its temperature."""
        parts = self.label.split(":")
        return ":".join(part for part in parts if not part.startswith("temperature="))

    def mean(self, setting: str) -> float | None:
        """Mean over seeds of a number among the settings, such as "nfe"; None without it."""
        values = [quality.settings.get(setting) for quality in self.qualities]
        return None if None in values else float(np.mean(np.array(values, float)))

    def estimate(self, name: str, n: int | None = None) -> Estimate:
        """A number of `Quality` over seeds; `n` for those by length of n-grams."""
        found = [getattr(quality, name) for quality in self.qualities]
        return combined([value if n is None else value[n] for value in found])

    @property
    def mauve(self) -> tuple[float, float] | None:
        """Mean and standard deviation over seeds of sampling and of k-means."""
        values = [v for q in self.qualities if q.mauve is not None for v in q.mauve.by_seed]
        if not values:
            return None
        return float(np.mean(values)), float(np.std(values, ddof=1)) if values[1:] else math.nan


def as_markdown(rows: Sequence[Row]) -> str:
    """One line for each row. Perplexities at the entropy of held-out text if there are any."""
    swept = any(row.matched is not None for row in rows)

    def number(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    def matched(value: Estimate | None) -> str:
        if value is None:
            return "–"
        return "not reached" if math.isnan(value.value) else value.shown(2)

    def cells(row: Row) -> list[str]:
        return [
            row.label,
            number(row.rho, "g"),
            number(row.mean("nfe"), ".0f"),
            row.estimate("perplexity").shown(2),
            row.estimate("entropy").shown(3),
            *([matched(row.matched)] if swept else ()),
            row.estimate("repetition", 4).shown(4),
            "–" if row.mauve is None else f"{row.mauve[0]:.3f} ± {row.mauve[1]:.3f}",
            number(row.mean("corrections"), ".1f"),
        ]

    heads = ("texts", "tokens per NFE", "NFE", "scorer's perplexity", "entropy (nats)",
             *(["perplexity at held-out entropy"] if swept else ()), "repeated 4-grams", "MAUVE",
             "corrections per text")  # fmt: skip
    return markdown(heads, map(cells, rows))
