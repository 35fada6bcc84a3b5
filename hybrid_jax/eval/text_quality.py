"""Quality of generated text: generative perplexity, entropy, repetition and MAUVE, in one result.

None of these numbers stands alone: a sampler that repeats itself has a low perplexity under any
scorer, and a low entropy. A `protocols.GenEvalProtocol`, named and versioned, defines each number
and is written beside it.

Errors are standard errors over texts, as if these were independent.
"""

import dataclasses
import functools
import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hybrid_jax.data.tokenizers.base import Tokenizer
from hybrid_jax.errors import UserError
from hybrid_jax.eval import mauve as mauves
from hybrid_jax.eval.mauve import Mauve
from hybrid_jax.eval.protocols import GenEvalProtocol
from hybrid_jax.eval.scorers import base as scoring
from hybrid_jax.eval.scorers.base import Scorer
from hybrid_jax.eval.statistics import Estimate, distinct, entropy, mean, repetition
from hybrid_jax.runtime.json_text import digest
from hybrid_jax.training.statistics import perplexity

END = "<|endoftext|>"  # the end-of-document mark in a text given as a string
_PACKAGES = ("hybrid_jax", "jax", "numpy", "safetensors", "scikit-learn", "tiktoken")

_NGRAMS = (1, 2, 3, 4)  # lengths for distinct-n and repetition

Texts = Sequence[str] | Sequence[np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quality:
    """Quality of a set of generated texts, with everything that the numbers depend on.

    Attributes:
      protocol: defines them.
      scorer, scorer_fingerprint: name and SHA-256 of the scorer.
      tokenizer_fingerprint: of the scorer's tokenizer.
      sha256, reference_sha256: of the tokens that were read, generated and of reference.
      texts: number of texts, including empty ones.
      tokens: number of scored tokens.
      perplexity: generative perplexity, as the protocol averages it.
      nats: per scored token, under the scorer.
      entropy: in nats, of the token frequencies within a text, mean over texts.
      distinct: by n, different n-grams of all texts over all their n-grams (arXiv 1510.03055); it
        falls with the number of texts. Its error is that of the jackknife.
      repetition: by n, share of a text's n-grams that repeat an earlier one, 1 − different/all
        (seq-rep of arXiv 1908.04319), mean over texts.
      mauve: against reference texts, if there were any; a single text has none.
      mauve_tokens: mean tokens of the generated and of the reference texts that MAUVE read.
      settings: of the sampler, as given.
      versions: of packages.
    """

    protocol: GenEvalProtocol
    scorer: str
    scorer_fingerprint: str
    tokenizer_fingerprint: str
    sha256: str
    reference_sha256: str | None
    texts: int
    tokens: int
    perplexity: Estimate
    nats: Estimate
    entropy: Estimate
    distinct: Mapping[int, Estimate]
    repetition: Mapping[int, Estimate]
    mauve: Mauve | None
    mauve_tokens: tuple[float, float] | None
    settings: Mapping[str, Any]
    versions: Mapping[str, str]


# ---------------------------------------------------------------------------------------------
# Texts.


def _parts(texts: Texts, tokenizer: Tokenizer | None, what: str) -> list[list[str]]:
    """Each text as its documents, which lie between end-of-document marks."""
    if not len(texts):
        raise UserError(f"There are no {what} texts.")
    strings = [text for text in texts if isinstance(text, str)]
    if len(strings) == len(texts):
        return [text.split(END) for text in strings]
    if strings:
        raise UserError(f"The {what} texts are strings and token ids mixed: give one kind.")
    if tokenizer is None:
        raise UserError(f"The {what} texts are token ids, and need the tokenizer that made them.")
    found = []
    for number, text in enumerate(texts):
        ids = _ids(np.asarray(text), tokenizer, number)
        cuts = np.flatnonzero(ids == tokenizer.eos)
        runs = np.split(ids, np.sort(np.concatenate([cuts, cuts + 1])))
        # Every second run is an end mark alone.
        found.append([tokenizer.decode(run) for run in runs[::2]])
    return found


def _ids(text: np.ndarray, tokenizer: Tokenizer, number: int) -> np.ndarray:
    ids = np.asarray(text, np.int32)
    wrong = ids[(ids < 0) | (ids >= tokenizer.vocab_size)]
    if len(wrong):
        what = "MASK" if wrong[0] == tokenizer.vocab_size else f"token {wrong[0]}"
        raise UserError(
            f"Text {number} holds {what}, which is no token of a finished text: check its sampler "
            "and its tokenizer."
        )
    return ids


def _scored_rows(
    texts: Texts,
    parts: list[list[str]],
    tokenizer: Tokenizer | None,
    scorer_tokenizer: Tokenizer,
    protocol: GenEvalProtocol,
) -> list[np.ndarray]:
    """Tokens to score of each text, without a beginning-of-sequence token."""
    if not protocol.retokenised:
        own = tokenizer is not None and tokenizer.fingerprint == scorer_tokenizer.fingerprint
        if isinstance(texts[0], str) or not own:
            raise UserError(
                f"Protocol {protocol.name} scores token ids as they were generated: it needs token "
                "ids of the scorer's own tokenizer; choose standard or mdlm for other texts."
            )
        rows = [_ids(np.asarray(text), scorer_tokenizer, n) for n, text in enumerate(texts)]
    else:
        flat = iter(scorer_tokenizer.encode_batch([d for documents in parts for d in documents]))
        mark = np.array([scorer_tokenizer.eos], np.int32)
        rows = []
        for documents in parts:
            pieces = [x for _ in documents for x in (next(flat), mark)]
            rows.append(np.concatenate(pieces[:-1]))
    return [row[: protocol.max_tokens] for row in rows]


# ---------------------------------------------------------------------------------------------
# The scorer.


def _perplexity(
    scorer: Scorer,
    rows: Sequence[np.ndarray],
    scorer_tokenizer: Tokenizer,
    protocol: GenEvalProtocol,
    batch_size: int,
) -> tuple[Estimate, Estimate, int]:
    """Perplexity, nats per token, and the number of scored tokens."""
    ends = [_counted(row, scorer_tokenizer.eos, protocol) for row in rows]
    if protocol.bos:
        front = np.array([scorer_tokenizer.bos], np.int32)
        rows = [np.concatenate([front, row]) for row in rows]
    else:
        ends = [counted[1:] for counted in ends]  # nothing predicts a first token
    kept = [i for i, counted in enumerate(ends) if counted.any()]
    if not kept:
        raise UserError(
            "No text has a token that the scorer could score: all are empty or too short."
        )
    nats = scoring.score(scorer, [rows[i] for i in kept], batch_size=batch_size).nats
    counts = np.array([ends[i].sum() for i in kept])
    scored = [row[ends[i]] for row, i in zip(nats, kept, strict=True)]
    means = np.array([row.sum(dtype=np.float64) for row in scored]) / counts
    per_token = mean(means, counts)
    if protocol.average == "texts":
        with np.errstate(over="ignore"):  # infinite past what a float64 holds
            return mean(np.exp(means)), per_token, int(counts.sum())
    value, error = perplexity(per_token.value, per_token.error)
    return Estimate(value=value, error=error, texts=len(kept)), per_token, int(counts.sum())


def _counted(row: np.ndarray, end: int, protocol: GenEvalProtocol) -> np.ndarray:
    """Mask of the tokens of a text that count towards perplexity, bool [n]."""
    is_end = row == end
    if protocol.ends_scored == "all":
        return np.ones(len(row), bool)
    return np.asarray(~is_end | (np.cumsum(is_end) == 1))


def _mauve(
    scorer: Scorer,
    generated: Sequence[np.ndarray],
    reference: Sequence[np.ndarray],
    protocol: GenEvalProtocol,
    batch_size: int,
) -> tuple[Mauve, tuple[float, float]]:
    # Sets of one size, because the number of buckets follows the smaller one.
    count = min(len(generated), len(reference), protocol.mauve_texts or len(generated))
    if count < 2:
        raise UserError(
            f"MAUVE needs at least two texts that are not empty in each set, but got "
            f"{len(generated)} generated and {len(reference)} of reference."
        )
    sets = [
        [row[: protocol.mauve_tokens] for row in rows[:count]] for rows in (generated, reference)
    ]
    features = functools.partial(scoring.score, scorer, batch_size=batch_size, nats=False)
    found = [features(rows).features for rows in sets]
    lengths = [float(np.mean([len(row) for row in rows])) for rows in sets]
    return mauves.mauve(*found), (lengths[0], lengths[1])


def evaluate(
    scorer: Scorer,
    scorer_tokenizer: Tokenizer,
    generated: Texts,
    protocol: GenEvalProtocol,
    *,
    tokenizer: Tokenizer | None = None,
    reference: Texts | None = None,
    settings: Mapping[str, Any] | None = None,
    batch_size: int = 8,
) -> Quality:
    """Scores generated texts.

    Args:
      scorer_tokenizer: the scorer's, of as many tokens as it has.
      generated: strings, in which "<|endoftext|>" marks the end of a document, or arrays of token
        ids, int [n] each.
      protocol: see `protocols`.
      tokenizer: of texts given as token ids, whose `eos` marks the end of a document.
      reference: human texts for MAUVE, strings or ids like `generated`; the larger set is cut to
        the size of the smaller.
      settings: of the sampler, stored with the numbers.
      batch_size: texts that the scorer reads at a time; numbers depend on it only by rounding.

    Returns:
      The numbers. Entropy, n-grams and MAUVE are those of the texts without end marks, in the
      scorer's tokens. Empty texts are left out there; see `Estimate.texts`.

    Raises:
      UserError: for no texts, texts that the protocol cannot score, a tokenizer that is not the
        scorer's, MASK left in a text, or missing packages.
    """
    if scorer_tokenizer.vocab_size != scorer.vocab_size:
        raise UserError(
            f"The scorer {scorer.name} reads {scorer.vocab_size} tokens, and its tokenizer has "
            f"{scorer_tokenizer.vocab_size}: name the tokenizer that belongs to it."
        )
    if scorer.needs_bos and not protocol.bos:
        raise UserError(
            f"Protocol {protocol.name} puts nothing in front of a text, and the scorer "
            f"{scorer.name} has only learnt to read behind a beginning-of-sequence token: choose "
            "standard."
        )
    parts = _parts(generated, tokenizer, "generated")
    rows = _scored_rows(generated, parts, tokenizer, scorer_tokenizer, protocol)
    plain = _without_marks(parts, scorer_tokenizer, protocol)
    found = lengths = human = None
    if reference is not None:
        of_reference = _parts(reference, tokenizer, "reference")
        human = _without_marks(of_reference, scorer_tokenizer, protocol)
        if len(plain) > 1:
            found, lengths = _mauve(scorer, plain, human, protocol, batch_size)
    perplexities, nats, scored = _perplexity(scorer, rows, scorer_tokenizer, protocol, batch_size)
    return Quality(
        protocol=protocol, scorer=scorer.name, scorer_fingerprint=scorer.fingerprint,
        tokenizer_fingerprint=scorer_tokenizer.fingerprint, sha256=_digest(rows),
        reference_sha256=None if human is None else _digest(human), texts=len(generated),
        tokens=scored, perplexity=perplexities, nats=nats,
        entropy=mean([entropy(row) for row in plain]),
        distinct={n: distinct(plain, n) for n in _NGRAMS},
        repetition={n: repetition(plain, n) for n in _NGRAMS},
        mauve=found, mauve_tokens=lengths, settings=dict(settings or {}), versions=_versions(),
    )  # fmt: skip


def _without_marks(
    parts: list[list[str]], scorer_tokenizer: Tokenizer, protocol: GenEvalProtocol
) -> list[np.ndarray]:
    """Texts that are not empty, without end marks, in the scorer's tokens."""
    rows = scorer_tokenizer.encode_batch(["".join(documents) for documents in parts])
    return [row[: protocol.max_tokens] for row in rows if len(row)]


def _digest(rows: Sequence[np.ndarray]) -> str:
    return digest([row.tolist() for row in rows])


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
