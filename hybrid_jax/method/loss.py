"""One forward pass over a batch: a term of the bound or of the loss for every position.

This is where schedule, noise, layout, network and objective meet; training and evaluation share it.
"""

import dataclasses
import functools
from typing import NamedTuple, Protocol, runtime_checkable

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, Key, PyTree

from hybrid_jax.errors import UserError, check_count
from hybrid_jax.method import chunked_loss, noising, objective
from hybrid_jax.method import layout as layouts
from hybrid_jax.method.hyperschedule import Hyperschedule
from hybrid_jax.method.layout import Layout
from hybrid_jax.method.mask_blocks import Pattern
from hybrid_jax.method.noising import NoiseKernel
from hybrid_jax.method.objective import Bound, Draw, Objective


@runtime_checkable
class Network(Protocol):
    """Interface of a network (see `models.transformer.Transformer`)."""

    def features(
        self,
        params: PyTree,
        tokens: Int[Array, "B R"],
        position: Int[Array, "#B R"],
        mask: Bool[Array, "#B R R"] | Pattern,
        level: Float32[Array, "B R"],
        dropout_keys: Key[Array, "B"] | None = None,
    ) -> Float[Array, "B R D"]: ...

    def head(self, params: PyTree) -> PyTree: ...

    def logits(self, params: PyTree, features: Float[Array, "*B D"]) -> Float[Array, "*B V"]: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
    """A hyperschedule, a noise kernel, a layout and an objective that go together.

    Attributes:
      bos: id of the beginning-of-sequence token (shifted layouts).
      eos: id of the token that ends a document (separate documents).
      chunk: positions of an example whose logits exist at the same time.
    """

    schedule: Hyperschedule
    kernel: NoiseKernel
    layout: Layout
    objective: Objective
    bos: int = 0
    eos: int | None = None
    chunk: int = 128

    def __post_init__(self) -> None:
        self.layout.check(self.schedule)
        self.objective.check(self.kernel)
        if self.layout.documents == "separate" and self.eos is None:
            raise UserError("Separate documents are told by the token that ends them: give `eos`.")
        check_count(self.chunk, "chunk")

    def for_bound(self, bound: Bound) -> "Spec":
        """The same network evaluated by a bound: with its noise, its time and no training loss."""
        objective = dataclasses.replace(
            self.objective, loss="bound", time=bound.time, levels="uniform", shown_weight=None
        )
        return dataclasses.replace(self, kernel=bound.kernel, objective=objective)


class Batch(NamedTuple):
    """Examples, and all that determines the levels and the noise drawn for them.

    Attributes:
      tokens: records of the schedule's length L.
      places: of the examples in the global batch of `size`. What is drawn is a function of (key,
        place): it does not depend on devices, processes or accumulation.
      key: one for the whole batch.
      given: tokens that are known, as those of a prompt are when sampling: they are never corrupted
        and have no term. None for none.
      length: of each example; positions from there on do not exist. None for L.
    """

    tokens: Int[Array, "b L"]
    places: Int[Array, "b"]
    key: Key[Array, ""]
    size: int
    given: Bool[Array, "b L"] | None = None
    length: Int[Array, "b"] | None = None

    @property
    def predicted_tokens(self) -> Int[ArrayLike, ""]:
        """Number of tokens that have a term."""
        if self.given is None and self.length is None:
            return self.tokens.size
        return jnp.sum(predicted(self.tokens, self.given, self.length))


def predicted(
    tokens: Int[ArrayLike, "b L"],
    given: Bool[ArrayLike, "b L"] | None,
    length: Int[ArrayLike, "b"] | None,
) -> Bool[Array, "b L"]:
    """True for tokens that have a term: those that exist and are not given (see `Batch`)."""
    place = jnp.arange(jnp.shape(tokens)[1])[None]
    found = jnp.ones(jnp.shape(tokens), bool)
    if given is not None:
        found &= ~jnp.asarray(given)
    return found if length is None else found & (place < jnp.asarray(length)[:, None])


class Noised(NamedTuple):
    """Examples with the levels and the noise drawn for them.

    Attributes:
      tokens, noisy: x and z.
      phase: of the tiling of each example (see `hyperschedule.Hyperschedule.tile`).
      draw: levels, fields [b, L].
      length: see `Batch`.
    """

    tokens: Int[Array, "b L"]
    noisy: Int[Array, "b L"]
    phase: Int32[Array, "b groups"]
    draw: Draw
    length: Int[Array, "b"] | None = None


def batch_terms(
    spec: Spec, network: Network, params: PyTree, batch: Batch
) -> Float32[Array, "b {spec.schedule.length}"]:
    """Terms of the objective's loss for every position of a batch, in nats.

    The sum over an example has the loss (or bound, see `Spec.for_bound`) on −log p(x) as its mean,
    or on −log p(x | given tokens) of the sampler that keeps these.
    """
    return drawn_terms(spec, network, params, corrupt_batch(spec, batch))


def batch_loss(
    spec: Spec,
    network: Network,
    params: PyTree,
    batch: Batch,
    *,
    count: Float[ArrayLike, ""] | None = None,
    dropout_key: Key[Array, ""] | None = None,
) -> Float32[Array, ""]:
    """The mean of `batch_terms`, nats per predicted token, to be differentiated.

    Args:
      count: tokens that the sum is divided by; None for those of the batch.
      dropout_key: one for the whole batch; None for no dropout.
    """
    noised = corrupt_batch(spec, batch)
    keys = None if dropout_key is None else _of_examples(dropout_key, batch.places)
    features, positions = _predicting(spec, network, params, noised, keys)
    term = functools.partial(spec.objective.term, spec.kernel)
    head = network.head(params)
    total = chunked_loss.summed_terms(
        term, network.logits, head, features, *positions, chunk=spec.chunk
    )
    return total * (spec.schedule.phases / (batch.predicted_tokens if count is None else count))


def corrupt_batch(spec: Spec, batch: Batch) -> Noised:
    """Draws levels and noise. Raises AssertionError for records of another length."""
    schedule, kernel, time = spec.schedule, spec.kernel, spec.objective.time
    tokens, places, key, size, given, length = batch
    records = f"tokens must be int [batch, {schedule.length}]: records of the schedule's length"
    chex.assert_shape(tokens, (None, schedule.length), custom_message=records)
    chex.assert_shape(
        places, (tokens.shape[0],), custom_message="places must hold one place for each record"
    )
    key_level, key_noise = jax.random.split(key)
    uniforms = objective.draw_uniforms(key_level, schedule, time, size, places)
    levels = spec.objective.levels
    phase, draw = jax.vmap(lambda u: objective.draw(schedule, kernel, time, u, levels))(uniforms)
    noisy = jax.vmap(functools.partial(noising.corrupt, kernel))(
        _of_examples(key_noise, places), tokens, draw.level
    )
    if given is not None:
        noisy = jnp.where(given, tokens, noisy)
    draw = draw._replace(active=draw.active & predicted(tokens, given, length))
    return Noised(tokens, noisy, phase, draw, length)


def drawn_terms(
    spec: Spec, network: Network, params: PyTree, noised: Noised
) -> Float32[Array, "b {spec.schedule.length}"]:
    """`batch_terms` for the draws of `corrupt_batch`."""
    features, positions = _predicting(spec, network, params, noised)
    term = functools.partial(spec.objective.term, spec.kernel)
    terms: Array = chunked_loss.position_terms(
        term, network.logits, params, features, *positions, chunk=spec.chunk
    )
    return terms * spec.schedule.phases


def _predicting(
    spec: Spec,
    network: Network,
    params: PyTree,
    noised: Noised,
    dropout_keys: Key[Array, "b"] | None = None,
) -> tuple[Float[Array, "b L D"], tuple[Int[Array, "b L"], Int[Array, "b L"], Draw]]:
    """Features of the row that predicts each position, and what else the position's term reads.

    Positions that no row predicts are not active.
    """
    schedule, layout = spec.schedule, spec.layout
    tokens, noisy, phase, draw, length = noised
    rows = jax.vmap(lambda p: layouts.training_rows(layout, schedule, p))(phase)
    whole = length is None
    shown, level = (noisy, tokens), draw.level
    if layout.documents == "separate":
        assert spec.eos is not None
        whole, eos = False, spec.eos
        rows = jax.vmap(lambda r, x: layouts.separated(layout, r, x, eos))(rows, tokens)
        if layout.shift:
            # In front of a document is bos, as in front of a text: nothing shows the one before.
            begins = tokens == eos
            shown = jnp.where(begins, spec.bos, noisy), jnp.where(begins, spec.bos, tokens)
            level = jnp.where(begins, 0.0, level)
    held = jax.vmap(lambda r, z, x: layouts.row_tokens(r, z, x, spec.bos))(rows, *shown)
    level = jax.vmap(layouts.row_levels)(rows, level)
    # Windows that settle whole do not move with the phase: one pattern serves the whole batch.
    shared = jax.tree.map(lambda x: x[:1], rows) if whole and schedule.settles_whole else rows
    if length is not None:
        shared = shared._replace(valid=shared.valid & (shared.position < length[:, None]))
    pattern = Pattern(layout, schedule, shared, whole)
    features = network.features(params, held, shared.position, pattern, level, dropout_keys)
    source, exists = jax.vmap(lambda r: layouts.predictors(r, schedule.length))(rows)
    draw = draw._replace(active=draw.active & exists)
    return jnp.take_along_axis(features, source[..., None], axis=1), (tokens, noisy, draw)


def _of_examples(key: Key[Array, ""], places: Int[Array, "b"]) -> Key[Array, "b"]:
    """One key for each example of a batch."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(places)
