"""Scores of texts of any length: one way of reading them for every kind of scorer."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from hybrid_jax.errors import UserError
from hybrid_jax.runtime import sharding
from hybrid_jax.runtime.sharding import constrain

_WIDTHS = 128  # rows are padded to a multiple, so that few shapes are compiled
_CHUNK = 256  # positions whose logits exist at the same time

Function = Callable[[Any, Any, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Scorer:
    """A model that reads text from left to right: two pure functions, and what they need.

    Attributes:
      name: the name it was loaded by.
      network: its sizes, hashable.
      params: float32 arrays by name, on `mesh`.
      mesh: of the devices among which rows are divided.
      features: (network, params, rows) -> float32 [B, R, D], the input of the head; rows are
        int32 [B, R], R ≤ context, and no row of features depends on tokens behind it.
      logits: (network, params, features [D]) -> float32 [V].
      vocab_size: V, entries of its vocabulary.
      context: most tokens that it reads at once.
      width: D, of its features.
      needs_bos: whether a text must begin with the beginning-of-sequence token, as in training.
    """

    name: str
    network: Any
    params: Any = dataclasses.field(repr=False)
    mesh: Mesh = dataclasses.field(default_factory=sharding.one_device)
    features: Function
    logits: Function
    vocab_size: int
    context: int
    width: int
    needs_bos: bool = False

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256, hexadecimal, of all that its numbers depend on."""
        return fingerprint(self.network, self.params)


class Scores(NamedTuple):
    """Scores of texts.

    Attributes:
      nats: float32 [B, L − 1], −log p(token i + 1 | tokens up to i); 0 past the end of a text.
      features: float32 [B, D], at each text's last token.
    """

    nats: np.ndarray
    features: np.ndarray


def score(
    scorer: Scorer, tokens: np.ndarray, lengths: np.ndarray, *, batch_size: int = 8
) -> Scores:
    """Nats of every token but a text's first, and features of each text.

    A text longer than the scorer's context C is read in windows of C tokens: the first starts at
    its beginning, each next one C/2 later, and the last ends with it. A token is scored in the
    first window that holds it, so with at least C/2 tokens before it; the features are those of
    the last window.

    Args:
      tokens: int32 [B, L] in 0 … V − 1; tokens past a text's length are not read.
      lengths: int [B] in 1 … L.
      batch_size: windows at a time. The result depends on it, and on L, only by float32 rounding.

    Raises:
      UserError: for tokens outside the vocabulary, lengths outside 1 … L, or no texts.
    """
    return _scores(scorer, tokens, lengths, batch_size, nats=True)


def last_features(
    scorer: Scorer, tokens: np.ndarray, lengths: np.ndarray, *, batch_size: int = 8
) -> np.ndarray:
    """The features of `score` alone, float32 [B, D], which need no head. Raises as `score`."""
    return _scores(scorer, tokens, lengths, batch_size, nats=False).features


def fingerprint(described: Any, params: Any) -> str:
    """SHA-256, hexadecimal, of a description and of the names, shapes and values of parameters,
    however files pack them."""
    digest = hashlib.sha256(repr(described).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.shape}".encode())
        if not getattr(leaf, "is_fully_addressable", True):  # pieces are with other processes
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        digest.update(np.ascontiguousarray(leaf).data)
    return digest.hexdigest()


@functools.partial(jax.jit, static_argnames=("features", "logits", "network", "nats"))
def _read(
    features: Function,
    logits: Function,
    network: Any,
    params: Any,
    rows: jax.Array,
    lengths: jax.Array,
    *,
    nats: bool,
) -> tuple[jax.Array, jax.Array]:
    """Reads rows of at most a context.

    Args:
      rows: int32 [B, R]; tokens past a row's length do not matter.
      lengths: int32 [B] in 1 … R.
      nats: whether nats are wanted.

    Returns:
      Nats, float32 [B, R − 1], −log p(token i + 1 | tokens up to i), undefined past a row's length
      (zeros if not wanted); and float32 [B, D], features at each row's last token; whole on every
      device of a mesh in use.
    """
    rows = constrain(rows, "batch", "whole")
    found = features(network, params, rows)
    at_end = jnp.take_along_axis(found, (lengths - 1)[:, None, None], axis=1)[:, 0]
    at_end = constrain(at_end, "whole", "whole")
    batch, count = rows.shape[0], rows.shape[1] - 1
    if not nats:
        return jnp.zeros((batch, count)), at_end

    @jax.vmap
    def column(feature: jax.Array, target: jax.Array) -> jax.Array:
        scores = logits(network, params, feature)
        return jax.nn.logsumexp(scores) - scores[target]

    # The logits of a batch never exist together; columns, since rows are divided among devices.
    columns = (jnp.moveaxis(found[:, :-1], 1, 0), rows[:, 1:].T)
    at_once = max(1, _CHUNK // batch)
    each = jax.lax.map(lambda place: column(*place), columns, batch_size=at_once)
    return constrain(each.T, "whole", "whole"), at_end


class _Window(NamedTuple):
    text: int
    start: int
    length: int
    known: int  # tokens of the text that need no score here


def _windows(lengths: np.ndarray, context: int) -> list[_Window]:
    stride = max(1, context // 2)
    windows = []
    for text, length in enumerate(int(n) for n in lengths):
        known = 1
        for start in (*range(0, max(0, length - context), stride), max(0, length - context)):
            windows.append(_Window(text, start, min(context, length - start), known))
            known = start + context
    return windows


def _scores(
    scorer: Scorer, tokens: np.ndarray, lengths: np.ndarray, batch_size: int, *, nats: bool
) -> Scores:
    tokens, lengths = np.asarray(tokens), np.asarray(lengths)
    _check(scorer, tokens, lengths, batch_size)
    read = functools.partial(
        _read, scorer.features, scorer.logits, scorer.network, scorer.params, nats=nats
    )
    out = np.zeros((len(tokens), tokens.shape[1] - 1), np.float32)
    last = np.zeros((len(tokens), scorer.width), np.float32)
    # Windows of like lengths together, so that little is padded.
    windows = sorted(_windows(lengths, scorer.context), key=lambda w: (w.length, w.text))
    shards = sharding.batch_shards(scorer.mesh)
    batch_size = -(-batch_size // shards) * shards
    for first in range(0, len(windows), batch_size):
        batch = windows[first : first + batch_size]
        widest = min(-(-batch[-1].length // _WIDTHS) * _WIDTHS, scorer.context)
        rows = np.zeros((batch_size, max(2, widest)), np.int32)
        sizes = np.ones(batch_size, np.int32)
        for row, window in enumerate(batch):
            sizes[row] = window.length
            stop = window.start + window.length
            rows[row, : window.length] = tokens[window.text, window.start : stop]
            if scorer.needs_bos:  # a window begins as the text does
                rows[row, 0] = tokens[window.text, 0]
        with sharding.use(scorer.mesh):
            each, at_end = jax.device_get(read(rows, sizes))
        for row, window in enumerate(batch):
            stop = window.start + window.length
            known = window.known - window.start
            out[window.text, window.known - 1 : stop - 1] = each[row, known - 1 : window.length - 1]
            if stop == lengths[window.text]:
                last[window.text] = at_end[row]
    return Scores(out, last)


def _check(scorer: Scorer, tokens: np.ndarray, lengths: np.ndarray, batch_size: int) -> None:
    if tokens.ndim != 2 or lengths.shape != tokens.shape[:1]:
        raise ValueError(f"tokens {tokens.shape} and lengths {lengths.shape} must be [B, L], [B]")
    if not scorer.context > 1:
        raise UserError("A scorer with a context of one token cannot score texts.")
    if batch_size < 1:
        raise UserError(f"The scorer's batch_size must be at least 1, but is {batch_size}.")
    if not len(tokens):
        raise UserError("There are no texts to score.")
    if lengths.min() < 1 or lengths.max() > tokens.shape[1]:
        raise UserError(f"Lengths of scored texts must lie in 1 … {tokens.shape[1]}.")
    inside = np.arange(tokens.shape[1]) < lengths[:, None]
    wrong = tokens[inside & ((tokens < 0) | (tokens >= scorer.vocab_size))]
    if len(wrong):
        raise UserError(
            f"Token {wrong[0]} is outside the scorer's 0 … {scorer.vocab_size - 1}: it comes from "
            "another tokenizer."
        )
