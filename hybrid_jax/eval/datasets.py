"""Data sets on which papers report perplexities, by their usual names."""

import dataclasses

from hybrid_jax.config import Experiment
from hybrid_jax.errors import UserError
from hybrid_jax.runtime.decode import nearest


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """Text to evaluate on.

    Attributes:
      name: as it appears in tables.
      source: see `data.sources.documents`.
      detokenizer: one of `eval.detokenize.NAMES`.
    """

    name: str
    source: str
    detokenizer: str = "none"


_SETS = {
    name: EvaluationSet(name=name, source=source, detokenizer=detokenizer)
    for name, source, detokenizer in (
        ("wikitext", "hf:Salesforce/wikitext/wikitext-103-v1:test", "wikitext"),
        ("lambada", "tfds:lambada:test:passage", "lambada"),
        ("pubmed", "tfds:scientific_papers/pubmed:test:article", "scientific_papers"),
        ("arxiv", "tfds:scientific_papers/arxiv:test:article", "scientific_papers"),
        ("ptb", "hf:ptb-text-only/ptb_text_only:test:sentence", "ptb"),
        ("lm1b", "tfds:lm1b:test:text", "lm1b"),
        ("ag_news", "tfds:ag_news_subset:test:description", "none"),
    )
}
NAMES = tuple(_SETS)


def validation_set(experiment: Experiment) -> EvaluationSet:
    """The validation text of a run; without a source where it was held out of the training text."""
    return EvaluationSet(name="valid", source=experiment.data.valid_source)


def parse(text: str, *, validation: EvaluationSet) -> EvaluationSet:
    """A set from the command line.

    Args:
      text: a name ("lambada"), a name and a source ("lambada=files:lambada/test.jsonl", with the
        name's detokeniser), "valid", or a source ("files:books/*.txt").
      validation: the set that "valid" names.

    Raises:
      UserError: for an unknown name, or none.
    """
    name, equals, source = text.partition("=")
    known = {**_SETS, validation.name: validation}.get(name)
    if known is not None:
        return dataclasses.replace(known, source=source) if equals else known
    if ":" in name:  # a source, in which "=" may stand too
        return EvaluationSet(name=text, source=text)
    if name and equals:  # of the user's own
        return EvaluationSet(name=name, source=source)
    raise UserError(
        f"There is no data set {name!r}: {nearest(name, (*_SETS, validation.name))} Write other "
        "text as NAME=SOURCE, for example books=files:books/*.txt."
    )
