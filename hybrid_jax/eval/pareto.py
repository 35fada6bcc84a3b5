"""Quality, diversity and NFE of one model under many update rules: the paper's Figure 3.

A point is a rule with its settings at a ρ, the number of tokens per NFE (ρ = ω/T: the steps T of a
window change, its width ω stays). For each point and seed texts are generated from nothing and
scored. A lower temperature makes texts likelier and less diverse, so a rule at several temperatures
is judged where its texts are as diverse as held-out text. The texts stay beside the table, one file
a point, as `hybrid_jax.generate` writes them and named by all that they depend on: texts that are
there already are not generated again.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from hybrid_jax.errors import UserError
from hybrid_jax.eval.quality_table import Row
from hybrid_jax.eval.statistics import Estimate
from hybrid_jax.generation import driver, generator, requests
from hybrid_jax.generation.generator import Generator
from hybrid_jax.generation.requests import Request, Samples
from hybrid_jax.runtime.json_text import file_name
from hybrid_jax.runtime.processes import of_process0, on_process0, raise_on_all
from hybrid_jax.sampling.settings import SamplingConfig
from hybrid_jax.training.pretrained import Pretrained

RULES = (
    "ancestral", "acs:eta=0", "acs:eta=0.25", "acs:eta=0.5", "acs:eta=1",
    "acs:eta=0.25:guidance=confidence", "acs:eta=0.5:guidance=confidence",
    "remdm:eta=0.1:strategy=rescale", "threshold:threshold=0.9", "entropy:bound=0.5",
)  # fmt: skip
TOKENS_PER_NFE = (8.0, 4.0, 2.0, 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """A rule at a number of tokens per NFE.

    Attributes:
      label: the rule with its settings, as on the command line.
      rho: ρ, tokens per NFE.
      generator: of the rule, with as many levels as ρ asks for.
    """

    label: str
    rho: float
    generator: Generator


def grid(model: Pretrained, rules: Sequence[str], rhos: Sequence[float]) -> list[Point]:
    """All points.

    Raises:
      UserError: for a rule that this model cannot use, or a ρ that does not divide the window.
    """
    if model.experiment.schedule.family == "quenched_ar":
        raise UserError("An autoregressive model has one token per NFE: there is no ρ to choose.")
    width = _width(model)
    points = []
    for rho in rhos:
        steps = width / rho if rho > 0 else math.nan
        levels = round(steps) if math.isfinite(steps) else 0
        if levels < 1 or not math.isclose(levels * rho, width):
            raise UserError(
                f"rho={rho:g} does not divide the window of {width} positions into steps."
            )
        for label in rules:
            points.append(Point(label=label, rho=rho, generator=_of(model, label, levels)))
    return points


def _of(model: Pretrained, label: str, levels: int | None = None) -> Generator:
    """A generator of a rule, for texts that end as the run's own do."""
    sampling = SamplingConfig.parse(label, eos=model.experiment.sampling.eos)
    return generator.build(model, sampling, levels=levels)


def tokens_per_nfe(model: Pretrained) -> list[float]:
    """Those of the paper's ρ that divide the model's window."""
    return [rho for rho in TOKENS_PER_NFE if _width(model) % rho == 0]


def _width(model: Pretrained) -> int:
    """Positions that have the steps of a window to be written in."""
    length = model.spec.schedule.length
    return model.experiment.schedule.resolved(length).width or length


def fitting(model: Pretrained, rules: Sequence[str]) -> tuple[list[str], list[str]]:
    """Those rules that the model can use, and why the others cannot be used."""
    fit, reasons = [], []
    for label in rules:
        try:
            _of(model, label)
        except UserError as error:
            reasons.append(f"{label}: {error}")
        else:
            fit.append(label)
    return fit, reasons


def texts_of(
    point: Point,
    folder: Path,
    *,
    workdir: str | Path,
    fingerprint: str,
    seed: int,
    count: int,
    batch_size: int,
    progress: Callable[[int], None] = lambda done: None,
) -> Samples:
    """Texts of a point, read from the folder or generated into it.

    Args:
      fingerprint: of the network and its parameters.
      progress: called with the number of texts done.

    Raises:
      UserError: if they cannot be read or written.
    """
    own = point.generator
    settings = own.settings(workdir, seed)
    # The folder's own place may change, and a step of the same number may be that of a new run.
    depends = {**settings, "workdir": fingerprint, "count": count}
    file = folder / f"{file_name(f'{point.label}-rho{point.rho:g}-seed{seed}', depends)}.jsonl"
    if of_process0("made" if file.exists() else ""):
        progress(count)
    else:
        wanted = [Request(prompt="", ids=[], stop=own.sampler.spec.schedule.length)] * count
        texts = driver.run(
            own, wanted, seed=seed, batch_size=batch_size,
            on_round=lambda round_: progress(round_.done),
        )  # fmt: skip
        on_process0(requests.write, file, texts, settings)
    return raise_on_all(requests.read, file, own.model.tokenizer)


def matched(rows: Sequence[Row]) -> list[Row]:
    """The rows, with the perplexity that their rule has at the entropy of held-out text (the row
    without ρ), where they are of a rule at several temperatures."""
    (entropy,) = (row.estimate("entropy").value for row in rows if row.rho is None)
    found = []
    for row in rows:
        own = [one for one in rows if (one.rule, one.rho) == (row.rule, row.rho)]
        points = [(one.estimate("entropy"), one.estimate("perplexity")) for one in own]
        at = at_entropy(points, entropy) if row.rho is not None and len(own) > 1 else None
        found.append(dataclasses.replace(row, matched=at))
    return found


def at_entropy(points: Sequence[tuple[Estimate, Estimate]], entropy: float) -> Estimate:
    """Perplexity at an entropy, from points of (entropy, perplexity) in any order: NaN outside of
    them (arXiv 2604.02718 compares such frontiers).

    Its logarithm is linear in the entropy between the two neighbours. The error is that of the
    neighbours, entropy and perplexity taken as independent: mostly too large, since texts of more
    entropy have more perplexity. `entropy` counts as exact, being the same for all rules.
    """
    rising = sorted(points, key=lambda point: (point[0].value, point[1].value))
    for low, high in itertools.pairwise(rising):
        width = high[0].value - low[0].value
        if width == 0 or not low[0].value <= entropy <= high[0].value:
            continue
        share = (entropy - low[0].value) / width
        slope = math.log(high[1].value / low[1].value) / width
        value = low[1].value * math.exp(slope * (entropy - low[0].value))
        parts = [
            weight * part
            for weight, (at, quality) in ((1.0 - share, low), (share, high))
            for part in (quality.error / quality.value, slope * at.error)
        ]
        texts = low[1].texts + high[1].texts
        return Estimate(value=value, error=value * math.hypot(*parts), texts=texts)
    return Estimate(value=math.nan, error=math.nan, texts=0)
