"""Static description of a sampler, and the state of the generation loop."""

import dataclasses
import functools
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, Key, PyTree, Shaped

from hybrid_jax.method import layout as layouts
from hybrid_jax.method.adaptive import Adaptive
from hybrid_jax.method.loss import Network, Spec
from hybrid_jax.models.cache import AXES as CACHE_AXES
from hybrid_jax.sampling.path import FreePath, Path


@runtime_checkable
class CachingNetwork(Network, Protocol):
    """A network that can be fed a part of the rows (see `models.transformer.Transformer`)."""

    def empty_cache(self, batch: int, slots: int) -> PyTree: ...

    def extend(
        self,
        params: PyTree,
        cache: PyTree,
        tokens: Int[Array, "B R"],
        position: Int[Array, "#B R"],
        mask: Bool[Array, "#B R M"],
        level: Float32[Array, "B R"],
    ) -> tuple[Float[Array, "B R D"], PyTree]: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
    """Static part of generation: what the loop is compiled for.

    Attributes:
      spec: schedule, noise, layout and objective; the schedule may differ in its levels from
        the one trained on.
      eos: a text ends where this token has settled behind the last given one; None: texts go on.
      cached: False computes every row anew in every round: the same result, at the cost of the
        whole text. For comparison.
      prefill: most prompt tokens fed at a time before the loop starts.
    """

    spec: Spec
    network: CachingNetwork
    eos: int | None = None
    cached: bool = True
    prefill: int = 256

    @functools.cached_property
    def slots(self) -> int:
        """Cache slots of a text."""
        return layouts.context_slots(self.spec.layout, self.spec.schedule)

    @functools.cached_property
    def capacity(self) -> int:
        """Settled tokens that a round can feed beside the window: those of one step."""
        return min(max(self.path.most_settled, 1), self.slots)

    @property
    def path(self) -> Path:
        """The path of a text through the steps."""
        schedule = self.spec.schedule
        return FreePath(schedule) if isinstance(schedule, Adaptive) else Path(schedule)

    def prefills(self, given: int) -> bool:
        """True if a text may begin with more settled rows than a round can feed.

        Args:
          given: number of its given tokens.
        """
        return self.cached and given + self.spec.layout.shift > self.capacity


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation:
    """State of the loop.

    Attributes:
      tokens: int32 [B, L], MASK where nothing is shown yet.
      frozen: bool [B, L], given tokens.
      stop: int32 [B], tokens wanted.
      keys: typed keys [B].
      confidence: float32 [B, L], see `rules.Window`.
      step: int32 [B], the step to do next; S when the text is done.
      sweep: int32 [B], closing sweeps done at this step, plus one; 0 before its update.
      filled: int32 [B], slots filled in the cache.
      cache: of the network.
      following: int32 [B, F], see `path.following`.
      nfe: int32 [B], rounds of the network that the text took part in.
      corrections: int32 [B], shown tokens that were replaced or masked again.
      text: int32 [B, L], tokens to take in place of drawn ones (see `likelihood`); None to draw.
      nats: float32 [B], −log p of those taken so far; None where they are drawn.
    """

    tokens: Int32[Array, "B L"]
    frozen: Bool[Array, "B L"]
    stop: Int32[Array, "B"]
    keys: Key[Array, "B"]
    confidence: Float32[Array, "B L"]
    step: Int32[Array, "B"]
    sweep: Int32[Array, "B"]
    filled: Int32[Array, "B"]
    cache: PyTree
    following: Int32[Array, "B F"]
    nfe: Int32[Array, "B"]
    corrections: Int32[Array, "B"]
    text: Int32[Array, "B L"] | None = None
    nats: Float32[Array, "B"] | None = None


def axes_of(leaf: Any) -> tuple[str, ...]:
    """Logical axes of a leaf of a `Generation` (see `sharding`)."""
    return CACHE_AXES if leaf.ndim == len(CACHE_AXES) else ("batch", *("whole",) * (leaf.ndim - 1))


class Place(NamedTuple):
    """The window of each text in one round of the loop.

    Attributes:
      position: positions, of which those outside the window are clipped.
      inside: positions of the window.
      changes: positions inside whose level changes.
      level, level_next: λ before and after the step.
      active: positions that may move now: their level changes, and they are not given.
    """

    position: Int[Array, "B W"]
    inside: Bool[Array, "B W"]
    changes: Bool[Array, "B W"]
    level: Float32[Array, "B W"]
    level_next: Float32[Array, "B W"]
    active: Bool[Array, "B W"]


def put(
    old: Shaped[Array, "B L"],
    position: Int[Array, "B W"],
    new: Shaped[Array, "B W"],
    where: Bool[Array, "B W"],
) -> Shaped[Array, "B L"]:
    """Values of texts, with new ones at those of the positions that `where` names."""
    row = jnp.arange(len(old))[:, None]
    nowhere = old.shape[1]
    return old.at[row, jnp.where(where, position, nowhere)].set(new, mode="drop")


class Generated(NamedTuple):
    """Texts.

    Attributes:
      tokens: int32 [B, L] without MASK; behind `length` the beginning-of-sequence token.
      length: int32 [B], tokens of each text, an ending eos included.
      step: int32 [B], see `Generation`: S if the text is done; of others, the rest means nothing.
      nfe, corrections: int32 [B], see `Generation`.
    """

    tokens: Int32[Array, "B L"]
    length: Int32[Array, "B"]
    step: Int32[Array, "B"]
    nfe: Int32[Array, "B"]
    corrections: Int32[Array, "B"]
