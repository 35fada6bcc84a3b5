"""A network that knows the data: exact predictions for texts of a Markov chain.

It predicts p(x_i | all that is shown) by forward–backward over the positions, in float32.
A shown token z at noise level λ is evidence q(z | x, λ); what has settled has level 0 and is
certain; what is not shown tells nothing. Errors of generated texts are the sampler's alone then.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int, Int32
from oracle.chain import Chain

from hybrid_jax.errors import UserError
from hybrid_jax.method.loss import Spec
from hybrid_jax.method.mask_blocks import Pattern
from hybrid_jax.method.noising import NoiseKernel
from hybrid_jax.sampling.state import Sampler

Params = dict[str, Float32[Array, "..."]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Oracle:
    """The interface of `models.transformer.Transformer`; parameters are those of a chain.

    Rows of a text that any row may see are seen by all: so it is in generation wherever windows
    see themselves whole. Features are log-probabilities.

    Attributes:
      length: L, positions of a text.
      shift: positions from the token that a row holds to the one that it predicts.
      ahead: whether features also have, behind log p(x_i | all that is shown), the log-weights
        that position i and all behind it give x_i, for draws of neighbours together.
    """

    kernel: NoiseKernel
    length: int
    shift: int = 0
    ahead: bool = False

    def features(
        self,
        params: Params,
        tokens: Int[Array, "B R"],
        position: Int[Array, "#B R"],
        mask: Bool[Array, "#B R R"] | Pattern,
        level: Float32[Array, "B R"],
        dropout_keys: None = None,
    ) -> Float32[Array, "B R V"]:
        empty = self.empty_cache(len(tokens), 0)
        sees = mask.mask() if isinstance(mask, Pattern) else mask
        return self.extend(params, empty, tokens, position, sees, level)[0]

    def empty_cache(self, batch: int, slots: int) -> Int32[Array, "1 B 1 M 2"]:
        """Positions and tokens."""
        return jnp.zeros((1, batch, 1, slots, 2), jnp.int32)

    def extend(
        self,
        params: Params,
        cache: Int32[Array, "1 B 1 M 2"],
        tokens: Int[Array, "B R"],
        position: Int[Array, "#B R"],
        mask: Bool[Array, "#B R M+R"],
        level: Float32[Array, "B R"],
    ) -> tuple[Float32[Array, "B R V"], Int32[Array, "1 B 1 R 2"]]:
        position = jnp.broadcast_to(position, tokens.shape)
        new = jnp.stack([position, tokens], axis=-1).astype(jnp.int32)
        rows = jnp.concatenate([cache[0, :, 0], new], axis=1)
        levels = jnp.pad(level, ((0, 0), (cache.shape[3], 0)))  # what is cached has settled
        seen = jnp.broadcast_to(mask.any(1), levels.shape) & (rows[..., 0] >= 0)
        put = jnp.where(seen, rows[..., 0], self.length)  # the others go nowhere
        told = jnp.zeros((len(tokens), self.length, self.kernel.vocab_size))
        text = jnp.arange(len(tokens))[:, None]
        told = told.at[text, put].set(self._evidence(rows[..., 1], levels), mode="drop")
        log_p, ahead = posterior(params, told)
        found = jnp.concatenate([log_p, ahead], axis=-1) if self.ahead else log_p
        wanted = jnp.clip(position + self.shift, 0, self.length - 1)
        return jnp.take_along_axis(found, wanted[..., None], axis=1), new[None, :, None]

    def _evidence(
        self, tokens: Int[Array, "B R"], level: Float32[Array, "B R"]
    ) -> Float32[Array, "B R V"]:
        """log q(z | x, λ) of each x, up to a constant: MASK comes from all of them alike."""
        survival = self.kernel.survival(level)
        same = jax.nn.one_hot(tokens, self.kernel.vocab_size)
        noise = survival.replaced / self.kernel.vocab_size
        chance = same * survival.kept[..., None] + noise[..., None]
        return jnp.where((tokens == self.kernel.mask)[..., None], 0.0, jnp.log(chance))

    def head(self, params: Params) -> Params:
        return {}

    def logits(self, params: Params, features: Float32[Array, "*B V"]) -> Float32[Array, "*B V"]:
        return features


def posterior(
    params: Params, evidence: Float32[Array, "B L V"]
) -> tuple[Float32[Array, "B L V"], Float32[Array, "B L V"]]:
    """log p(x_i | evidence) of every position, and its part from i on, up to a constant."""
    told = jnp.exp(jnp.moveaxis(evidence, 1, 0))
    start = jnp.exp(params["log_start"])
    before = _messages(start, params["step"], told)
    after = _messages(jnp.ones_like(start), params["step"].T, told, reverse=True)
    ahead = jnp.log(told * after)
    return tuple(
        jnp.moveaxis(part, 0, 1) for part in (jax.nn.log_softmax(ahead + jnp.log(before)), ahead)
    )


def _messages(
    start: Float32[Array, " V"],
    step: Float32[Array, "V V"],
    evidence: Float32[Array, "L B V"],
    *,
    reverse: bool = False,
) -> Float32[Array, "L B V"]:
    """For each position the weights that the evidence on one side of it gives its tokens.

    No weight falls below the least entry of `step`, so that no logs are needed in between.
    """

    def move(message: Array, told: Array) -> tuple[Array, Array]:
        weight = message * told
        weight /= weight.sum(-1, keepdims=True)
        return jnp.dot(weight, step, precision="highest"), message

    first = jnp.broadcast_to(start, evidence.shape[1:])
    return jax.lax.scan(move, first, evidence, reverse=reverse)[1]


def params_of(chain: Chain) -> Params:
    """Parameters of an `Oracle`."""
    return {
        "log_start": jnp.log(jnp.asarray(chain.start, jnp.float32)),
        "step": jnp.asarray(chain.step, jnp.float32),
    }


def sampler_of(spec: Spec, *, ahead: bool = False, **settings: bool) -> Sampler:
    """A sampler with the oracle in place of the network, which looks ahead if asked to.

    Raises:
      UserError: for specs whose predictions it does not make.
    """
    if spec.layout.causal_window:
        raise UserError(
            "The oracle predicts all positions from the same rows, which a causal window shows to "
            "none but its last: choose causal_window=False."
        )
    if spec.layout.documents == "separate":
        raise UserError("The chain knows no documents: choose documents=joined.")
    if spec.objective.parameterisation != "mean":
        raise UserError("The oracle predicts clean tokens: choose parameterisation=mean.")
    oracle = Oracle(
        kernel=spec.kernel, length=spec.schedule.length, shift=spec.layout.shift, ahead=ahead
    )
    return Sampler(spec=spec, network=oracle, **settings)
