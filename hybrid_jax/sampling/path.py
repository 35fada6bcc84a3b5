"""The path of a text through the steps: the next one that has anything to do."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int32

from hybrid_jax.method import layout as layouts
from hybrid_jax.method.adaptive import Adaptive
from hybrid_jax.method.hyperschedule import Hyperschedule


@dataclasses.dataclass(frozen=True)
class Path:
    """The path through a table: one step after the other, but for those that do nothing."""

    schedule: Hyperschedule

    @property
    def most_settled(self) -> int:
        """The most positions that settle in one step."""
        with jax.ensure_compile_time_eval():
            settled = np.asarray(self.schedule.settled(np.arange(self.schedule.steps)))
        return int(np.diff(settled).max(initial=0))

    def following(self, open_: Bool[Array, "B L"]) -> Int32[Array, "B F"]:
        """The first step from each on at which an open position is active; S where there is none.

        For adaptive windows, whose steps are many, the first open position from each position on.
        """
        schedule = self.schedule
        steps = jnp.arange(schedule.steps)
        active = layouts.is_active(schedule, steps[:, None], jnp.arange(schedule.length)[None])
        useful = jnp.einsum("sl,bl->bs", active.astype(jnp.float32), open_.astype(jnp.float32)) > 0
        ends = jnp.full((open_.shape[0], 1), schedule.steps)
        own = jnp.concatenate([jnp.where(useful, steps[None], schedule.steps), ends], axis=1)
        return jax.lax.cummin(own, axis=1, reverse=True).astype(jnp.int32)

    def onward(self, following: Int32[Array, "B F"], step: Int32[Array, "B"]) -> Int32[Array, "B"]:
        """The first step from `step` on that has anything to do (see `following`)."""
        return jnp.take_along_axis(following, step[:, None], axis=1)[:, 0]

    def next_opening(self, step: Int32[Array, "B"]) -> Int32[Array, "B"]:
        """The next step that shows a new position; S where none does."""
        schedule = self.schedule
        with jax.ensure_compile_time_eval():
            steps = jnp.arange(schedule.steps)
            grows = schedule.frontier(steps + 1) > schedule.frontier(steps)
            own = jnp.append(jnp.where(grows, steps, schedule.steps), schedule.steps)
            opening = jax.lax.cummin(own, reverse=True)[1:].astype(jnp.int32)
        return opening[step]

    def draw(self, step: Int32[Array, "B"]) -> Int32[Array, "B"]:
        """The number of a step for random draws."""
        return step


@dataclasses.dataclass(frozen=True)
class FreePath(Path):
    """The path through windows whose widths are chosen on the way."""

    schedule: Adaptive

    @property
    def most_settled(self) -> int:
        return self.schedule.width

    def following(self, open_: Bool[Array, "B L"]) -> Int32[Array, "B L+1"]:
        length = open_.shape[1]
        own = jnp.where(open_, jnp.arange(length)[None], length)
        own = jnp.pad(own, ((0, 0), (0, 1)), constant_values=length)
        return jax.lax.cummin(own, axis=1, reverse=True).astype(jnp.int32)

    def onward(self, following: Int32[Array, "B F"], step: Int32[Array, "B"]) -> Int32[Array, "B"]:
        """The step itself while its window is worked on, or else that at which the next one opens.

        Windows of the greatest width in which nothing is open are left out, as blocks are.
        """
        schedule = self.schedule
        first, width, done = schedule.at(step)
        end = jnp.where(done == schedule.levels, first + width, first)
        found = jnp.take_along_axis(following, end[:, None], axis=1)[:, 0]
        opens = end + (found - end) // schedule.width * schedule.width
        opens = schedule.number(jnp.where(found < schedule.length, opens, schedule.length))
        return jnp.where((done > 0) & (done < schedule.levels), step, opens)

    def next_opening(self, step: Int32[Array, "B"]) -> Int32[Array, "B"]:
        return self.schedule.closed(step)

    def draw(self, step: Int32[Array, "B"]) -> Int32[Array, "B"]:
        return self.schedule.block_step(step)
