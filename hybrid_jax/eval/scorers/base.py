"""Scores of texts of any length: one way of reading them for every kind of scorer."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from hybrid_jax.errors import UserError, check_count
from hybrid_jax.models.transformer import Params, Transformer
from hybrid_jax.runtime import sharding
from hybrid_jax.runtime.sharding import constrain

_WIDTHS = 128  # rows are padded to a multiple, so that few shapes are compiled
_CHUNK = 256  # positions whose logits exist at the same time


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Scorer:
    """A network that reads text from left to right.

    Attributes:
      name: the name it was loaded by.
      network: reads the beginning-of-sequence token, or the first of a text, at position −1.
      params: on `mesh`.
      mesh: of the devices among which rows are divided.
      context: most tokens that it reads at once.
      needs_bos: whether a text must begin with the beginning-of-sequence token, as in training.
    """

    name: str
    network: Transformer
    params: Params = dataclasses.field(repr=False)
    mesh: Mesh = dataclasses.field(default_factory=sharding.one_device)
    context: int
    needs_bos: bool = False

    @property
    def vocab_size(self) -> int:
        """V, entries of its vocabulary."""
        return self.network.vocab_size

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256, hexadecimal, of all that its numbers depend on."""
        return fingerprint(self.network, self.params)


class Scores(NamedTuple):
    """Scores of texts.

    Attributes:
      nats: of each text float32 [n − 1], −log p(token i + 1 | tokens up to i).
      features: float32 [B, D], at each text's last token.
    """

    nats: list[np.ndarray]
    features: np.ndarray


def score(
    scorer: Scorer, texts: Sequence[np.ndarray], *, batch_size: int = 8, nats: bool = True
) -> Scores:
    """Nats of every token but a text's first, and features of each text.

    A text longer than the scorer's context C is read in windows of C tokens: the first starts at
    its beginning, each next one C/2 later, and the last ends with it. A token is scored in the
    first window that holds it, so with at least C/2 tokens before it; the features are those of
    the last window.

    Args:
      texts: B texts, int32 [n] each in 0 … V − 1, n ≥ 1.
      batch_size: windows at a time. The result depends on it only by float32 rounding.
      nats: False where features alone are wanted, which need no head: all nats are 0 then.

    Raises:
      UserError: for tokens outside the vocabulary, a text without tokens, or no texts.
    """
    _check(scorer, texts, batch_size)
    read = functools.partial(_read, scorer.network, scorer.params, nats=nats)
    out = [np.zeros(len(text) - 1, np.float32) for text in texts]
    last = np.zeros((len(texts), scorer.network.width), np.float32)
    windows = [window for i, text in enumerate(texts) for window in _windows(i, text, scorer)]
    # Windows of like lengths together, so that little is padded.
    windows.sort(key=lambda w: (w.length, w.text))
    shards = sharding.batch_shards(scorer.mesh)
    batch_size = -(-batch_size // shards) * shards
    for first in range(0, len(windows), batch_size):
        batch = windows[first : first + batch_size]
        widest = min(-(-batch[-1].length // _WIDTHS) * _WIDTHS, scorer.context)
        rows = np.zeros((batch_size, max(2, widest)), np.int32)
        sizes = np.ones(batch_size, np.int32)
        for row, window in enumerate(batch):
            sizes[row] = window.length
            rows[row, : window.length] = texts[window.text][window.start : window.stop]
            if scorer.needs_bos:  # a window begins as the text does
                rows[row, 0] = texts[window.text][0]
        with sharding.use(scorer.mesh):
            each, at_end = jax.device_get(read(rows, sizes))
        for row, (text, start, stop, known) in enumerate(batch):
            out[text][known - 1 : stop - 1] = each[row, known - start - 1 : stop - start - 1]
            if stop == len(texts[text]):
                last[text] = at_end[row]
    return Scores(out, last)


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


@functools.partial(jax.jit, static_argnames=("network", "nats"))
def _read(
    network: Transformer, params: Params, rows: jax.Array, lengths: jax.Array, *, nats: bool
) -> tuple[jax.Array, jax.Array]:
    """Reads rows of at most a context.

    A scorer's number must not depend on where it was computed: products are taken in full float32,
    also where accelerators round by default, and rows are padded on the right only, where causal
    attention cannot see it. The order of float32 sums remains (1e-5 nats).

    Args:
      rows: int32 [B, R]; tokens past a row's length do not matter.
      lengths: int32 [B] in 1 … R.
      nats: whether nats are wanted.

    Returns:
      Nats, float32 [B, R − 1], −log p(token i + 1 | tokens up to i), undefined past a row's length
      (zeros if not wanted); and float32 [B, D], the input of the head at each row's last token;
      whole on every device of a mesh in use.
    """
    with jax.default_matmul_precision("highest"):
        rows = constrain(rows, "batch", "whole")
        found = features(network, params, rows)
        at_end = jnp.take_along_axis(found, (lengths - 1)[:, None, None], axis=1)[:, 0]
        at_end = constrain(at_end, "whole", "whole")
        batch, count = rows.shape[0], rows.shape[1] - 1
        if not nats:
            return jnp.zeros((batch, count)), at_end
        head = network.head(params)

        @jax.vmap
        def column(feature: jax.Array, target: jax.Array) -> jax.Array:
            scores = network.logits(head, feature)[: network.vocab_size]
            return jax.nn.logsumexp(scores) - scores[target]

        # The logits of a batch never exist together; columns, as rows are divided among devices.
        columns = (jnp.moveaxis(found[:, :-1], 1, 0), rows[:, 1:].T)
        at_once = max(1, _CHUNK // batch)
        each = jax.lax.map(lambda place: column(*place), columns, batch_size=at_once)
        return constrain(each.T, "whole", "whole"), at_end


def features(network: Transformer, params: Params, rows: jax.Array) -> jax.Array:
    """Inputs of the head, float32 [B, R, D], that depend on no token behind them."""
    position = jnp.arange(-1, rows.shape[1] - 1)
    causal = position[:, None] >= position
    level = jnp.zeros(rows.shape, jnp.float32)
    found = network.features(params, rows, position[None], causal[None], level)
    return found.astype(jnp.float32)


class _Window(NamedTuple):
    text: int
    start: int
    stop: int
    known: int  # tokens of the text that need no score here

    @property
    def length(self) -> int:
        return self.stop - self.start


def _windows(number: int, text: np.ndarray, scorer: Scorer) -> Iterator[_Window]:
    context, known = scorer.context, 1
    final = max(0, len(text) - context)
    for start in (*range(0, final, max(1, context // 2)), final):
        yield _Window(number, start, min(start + context, len(text)), known)
        known = start + context


def _check(scorer: Scorer, texts: Sequence[np.ndarray], batch_size: int) -> None:
    if not scorer.context > 1:
        raise UserError("A scorer with a context of one token cannot score texts.")
    check_count(batch_size, "The scorer's batch_size")
    if not len(texts):
        raise UserError("There are no texts to score.")
    for number, text in enumerate(texts):
        if not len(text):
            raise UserError(f"Text {number} has no token to score.")
        wrong = text[(text < 0) | (text >= scorer.vocab_size)]
        if len(wrong):
            raise UserError(
                f"Token {wrong[0]} is outside the scorer's 0 … {scorer.vocab_size - 1}: it comes "
                "from another tokenizer."
            )
