"""Likelihood of given texts as a rule writes them, from runs of the generation loop.

Each run takes the text's tokens in place of drawn ones, and adds up −log p of each at the step at
which it is revealed. Under an order (`orders.Order`) only one run leads to a text: its sum is the
exact −log p(text) (DUEL, arXiv 2603.01367). The ancestral rule of absorbing noise draws the
positions of each step whatever the tokens are: p(text) is the mean of e^−sum over its runs, and
−log of the mean over K of them is in expectation an upper bound of −log p, which falls with K
(importance weighting, arXiv 1509.00519); K = 1 is the bound in discrete time.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int, Key, PyTree

from hybrid_jax.errors import UserError
from hybrid_jax.method.adaptive import Adaptive
from hybrid_jax.sampling import loop, rules
from hybrid_jax.sampling.orders import Order
from hybrid_jax.sampling.prompts import Prompts
from hybrid_jax.sampling.speculative import Speculative
from hybrid_jax.sampling.state import Sampler
from hybrid_jax.sampling.update_rule import Rule


@dataclasses.dataclass(frozen=True, kw_only=True)
class PathLikelihood:
    """The likelihood under a rule of which one run is one way to write a text.

    Attributes:
      name: of the rule, with its settings.
      sampler: without `eos`: records go on behind the end of a document.

    Raises:
      UserError: for a rule or model to which this does not apply.
    """

    name: str
    sampler: Sampler
    rule: Rule

    def __post_init__(self) -> None:
        spec = self.sampler.spec
        if self.sampler.eos is not None or spec.layout.documents == "separate":
            raise UserError(
                f"{self.name} is the likelihood of records as one text, and separate documents, or "
                "texts that stop at the end of one, are none: leave it out."
            )
        loop.check(self.sampler, self.rule)
        if reason := self._ambiguous():
            orders = [name for name, named in rules.NAMED.items() if issubclass(named.kind, Order)]
            raise UserError(
                f"{self.name} has no likelihood from single runs, since {reason}: choose one of "
                f"{', '.join(orders)}."
            )
        if not self.rule.warp.idle:
            raise UserError(
                f"{self.name} is the likelihood of tokens drawn from the plain prediction: leave "
                "out temperature, top_k and top_p."
            )

    def _ambiguous(self) -> str:
        """The reason why a text comes about in ways that runs with its tokens do not tell."""
        spec = self.sampler.spec
        if isinstance(self.rule, Order):
            return ""
        if isinstance(self.rule, Speculative):
            return "it keeps what it drafted by chance; its law is that of --schedule=quenched_ar"
        if isinstance(self.rule, rules.Threshold):
            return "it chooses positions by the tokens drawn for all of them"
        if type(self.rule) is not rules.Ancestral:  # another `move` may mask shown tokens
            return "it draws which positions it changes, shown ones too"
        if spec.kernel.replaces:
            return f"under {spec.kernel.name} noise it changes shown tokens"
        scores = spec.objective.parameterisation == "score"
        return "it draws positions by the scores of their tokens" if scores else ""

    @property
    def exact(self) -> bool:
        """True if one run is the likelihood itself."""
        return isinstance(self.rule, Order) or self.sampler.spec.schedule.levels == 1

    @property
    def label(self) -> str:
        """The meaning of the nats, in words."""
        kind = "exact likelihood" if self.exact else "importance-weighted bound"
        schedule = self.sampler.spec.schedule
        adaptive = isinstance(schedule, Adaptive)
        how = f"on {schedule.name}" if adaptive else f"in {schedule.steps} steps"
        return f"{kind} of {self.name} {how}"


@functools.partial(jax.jit, static_argnums=0)
def nats(
    sampler: Sampler,
    rule: Rule,
    params: PyTree,
    texts: Int[Array, "B L"],
    given: Bool[Array, "B L"],
    keys: Key[Array, "B"],
) -> Float32[Array, "B"]:
    """−log p of the tokens of each text that are not given, along one run of the rule.

    Args:
      sampler, rule: of a `PathLikelihood`.
      keys: one for each text, of the positions that a step reveals; orders draw nothing.
    """
    stop = jnp.full(len(texts), texts.shape[1])
    state = loop.start(sampler, params, keys, Prompts(texts, given, stop))
    state = dataclasses.replace(state, text=texts, nats=jnp.zeros(len(texts)))
    found: Float32[Array, "B"] = loop.advance(sampler, rule, params, state).nats
    return found
