"""Brute force shared by the tests: dense rate matrices, Bayes by enumeration, a tiny network.

Everything here is written from the definitions, in float64 and with no regard for cost, so that it
has nothing in common with the closed forms of the package. Distributions have N + 1 entries, MASK
last; matrices are [from, to].
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from hybrid_jax.method import hyperschedule, layout, noising
from hybrid_jax.method.layout import Layout
from hybrid_jax.method.loss import Spec
from hybrid_jax.method.mask_blocks import Pattern
from hybrid_jax.method.objective import Objective

# Many small programs, each run once or twice: compiling them is most of the time they take.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": "0"})


def kernels(tokens):
    """One kernel of each kind, and γ on both sides of one half."""
    return {
        "absorbing": noising.absorbing(vocab_size=tokens),
        "uniform": noising.uniform(vocab_size=tokens),
        "gamma .1": noising.gamma_hybrid(vocab_size=tokens, gamma=0.1),
        "gamma .7": noising.gamma_hybrid(vocab_size=tokens, gamma=0.7),
        "epsilon": noising.epsilon_hybrid(vocab_size=tokens, epsilon=0.2),
    }


def all_sequences(symbols, length):
    """Every sequence of ids below `symbols`, int32 [symbols ** length, length]."""
    return np.array(list(itertools.product(range(symbols), repeat=length)), np.int32)


def among_others(rows, keys):
    """Some texts of a batch at other places, and others between them, in the same program.

    Returns rows and keys of the new batch; where the texts are in it; where they were.
    """
    were = np.arange(len(rows))[::-1]
    same = were % 2 == 1
    rows = [rows[i] if kept else [1, 2] for i, kept in zip(were, same, strict=True)]
    keys = jnp.where(same, keys[::-1], jax.random.split(jax.random.key(99), len(rows)))
    return rows, keys, np.flatnonzero(same), were[same]


def all_logits(spec, network, params):
    """Logits of the network at every step of every state, seen whole: [S, states, L, V].

    States are all sequences of tokens and MASK, in the order of `all_sequences`.
    """
    return _all_logits(
        spec.schedule, spec.layout, spec.kernel.vocab_size, spec.bos, network, params
    )


@functools.partial(quick_jit, static_argnums=(0, 1, 2, 3, 4))
def _all_logits(schedule, how, tokens, bos, network, params):
    position = jnp.arange(schedule.length)
    states = jnp.asarray(all_sequences(tokens + 1, schedule.length))

    def at(step):
        rows = layout.generation_rows(how, schedule, step)
        level = schedule.level(step, position) / schedule.levels
        held = jax.vmap(lambda z: layout.row_tokens(rows, z, z, bos))(states)
        row_level = jnp.broadcast_to(layout.row_levels(rows, level), held.shape)
        mask = layout.attention_mask(how, rows)[None]
        features = network.features(params, held, rows.position[None], mask, row_level)
        source, _ = layout.predictors(rows, schedule.length)
        return network.logits(params, features[:, source])

    return jax.vmap(at)(jnp.arange(schedule.steps))


@functools.cache
def dense_transition(kernel, level_t, level_s):
    """q(z_t | z_s) as the exponential of the kernel's rate matrix, [N + 1, N + 1]."""
    n = kernel.vocab_size
    absorb = np.zeros((n + 1, n + 1))
    absorb[:n, :n] -= np.eye(n)
    absorb[:n, n] = 1.0
    replace = np.zeros((n + 1, n + 1))
    replace[:n, :n] = np.full((n, n), 1.0 / n) - np.eye(n)
    sigma = noise_time(level_s) - noise_time(level_t)
    rate = (1.0 - kernel.gamma) * absorb + kernel.gamma * replace
    move = scipy.linalg.expm(sigma * rate)
    if kernel.epsilon and level_t == 0 and level_s > 0:
        jump = np.eye(n + 1)
        jump[:n, :n] = (1.0 - kernel.epsilon) * np.eye(n) + kernel.epsilon / n
        move = jump @ move
    return move


def noise_time(level):
    """σ = −log(1 − λ), with a stand-in for infinity at which every power of e^−σ has vanished."""
    return -np.log(max(1.0 - level, 1e-300))


def dense_posterior(kernel, level_s, level_t):
    """q(z_s | z_t, x) by Bayes' rule, [x, z_t, z_s]; nan where z_t cannot come from x."""
    before = dense_transition(kernel, 0.0, level_s)[: kernel.vocab_size]
    step = dense_transition(kernel, level_s, level_t)
    joint = np.einsum("xs,st->xts", before, step)
    total = joint.sum(-1, keepdims=True)
    return np.where(total > 1e-25, joint / np.where(total > 0, total, 1.0), np.nan)


def data_posterior(kernel, data, level):
    """p(x | z) for data distribution [N], [z, x]; nan where z is impossible."""
    joint = (data[:, None] * dense_transition(kernel, 0.0, level)[: kernel.vocab_size]).T
    total = joint.sum(-1, keepdims=True)
    return np.where(total > 1e-25, joint / np.where(total > 0, total, 1.0), np.nan)


@dataclasses.dataclass(frozen=True)
class Reader:
    """A small network whose output is an arbitrary function of what each row is shown.

    Two rounds of averaging over the rows that the mask lets a row see, each from its token, its
    position and its noise level: a wrong mask, position or level changes the output, also when
    only a row that is seen by a seen row is wrong.
    """

    vocab_size: int
    length: int
    width: int = 8
    strength: float = 1.0

    def init(self, seed):
        draw = np.random.default_rng(seed).normal
        w = self.width
        shapes = {
            "token": (self.vocab_size + 1, w),
            "position": (self.length + 1, w),
            "level": (w,),
            "gather": (w, w),
            "again": (w, w),
            "head": (w, self.vocab_size + 1),
        }
        return {
            name: np.float32(self.strength * draw(size=shape)) for name, shape in shapes.items()
        }

    def features(self, params, tokens, position, mask, level, dropout_keys=None):
        params = jax.tree.map(jnp.asarray, params)
        held = self._held(params, tokens, position, level)
        seen = _shares(mask.mask() if isinstance(mask, Pattern) else mask)
        once = jnp.tanh(held + seen @ held @ params["gather"])
        return jnp.tanh(once + seen @ once @ params["again"])

    def _held(self, params, tokens, position, level):
        held = params["token"][tokens] + params["position"][position + 1]
        return jnp.tanh(held + level[..., None] * params["level"][None, None])

    def empty_cache(self, batch, slots):
        """The marks that seen rows are read by, before each of the two rounds."""
        return jnp.zeros((2, batch, 1, slots, self.width))

    def extend(self, params, cache, tokens, position, mask, level):
        params = jax.tree.map(jnp.asarray, params)
        seen = _shares(mask)
        held = self._held(params, tokens, position, level)
        first = jnp.concatenate([cache[0, :, 0], held], axis=1)
        once = jnp.tanh(held + seen @ first @ params["gather"])
        second = jnp.concatenate([cache[1, :, 0], once], axis=1)
        new = jnp.stack([held, once])[:, :, None]
        return jnp.tanh(once + seen @ second @ params["again"]), new

    def head(self, params):
        return {"head": params["head"]}

    def logits(self, params, features):
        return features @ params["head"]


def _shares(mask):
    """The mean of what each row may see."""
    seen = mask.astype(jnp.float32)
    return seen / jnp.maximum(seen.sum(-1, keepdims=True), 1.0)


# ---------------------------------------------------------------------------------------------
# Every schedule for three positions, and what the sampler makes of it.

LENGTH = 3
POSITIONS = jnp.arange(LENGTH)

SCHEDULES = {
    "quenched AR": hyperschedule.quenched_ar(length=LENGTH),
    "flat": hyperschedule.flat(length=LENGTH, levels=3),
    "block": hyperschedule.block(length=LENGTH, width=2, levels=2),
    "slide": hyperschedule.slide(length=LENGTH, width=2, levels=2),
    "slow slide": hyperschedule.slide(length=LENGTH, width=2, levels=4),
    "custom": hyperschedule.custom(  # the middle last
        [[4, 4, 4], [2, 4, 3], [2, 4, 0], [0, 3, 0], [0, 1, 0], [0, 0, 0]]
    ),
}


@functools.cache
def reader(tokens):
    network = Reader(vocab_size=tokens, length=LENGTH)
    return network, network.init(seed=8)


def spec_of(schedule_name, kernel, alignment, *, context="causal", **objective_settings):
    return Spec(
        schedule=SCHEDULES[schedule_name],
        kernel=kernel,
        layout=Layout(alignment=alignment, context=context),
        objective=Objective(**objective_settings),
        bos=1,
        chunk=2,
    )


def sampler_distribution(spec, network, params, given=(-1,) * LENGTH):
    """Exact distribution of the ancestral sampler after the last step, [N + 1] * L.

    `given`: tokens that it keeps, −1 where there is none.
    """
    kernel = spec.kernel
    chances = _moves(spec, all_logits(spec, network, params), jnp.asarray(given) < 0)
    start = np.exp(np.asarray(noising.marginal(kernel, 0, 1.0), np.float64))
    starts = [start if token < 0 else np.eye(kernel.vocab_size + 1)[token] for token in given]
    mass = np.einsum("a,b,c->abc", *starts)
    for chance in np.asarray(chances, np.float64):
        weight = mass.reshape(-1)
        now = weight > 0  # impossible states have no reverse step
        mass = np.einsum("s,sa,sb,sc->abc", weight[now], *np.moveaxis(chance[now], 1, 0))
    return mass


@functools.partial(quick_jit, static_argnums=0)
def _moves(spec, logits, free):
    """P(next token | state) for every step, state and position: [S, states, L, N + 1]."""
    schedule, kernel = spec.schedule, spec.kernel
    states = jnp.asarray(all_sequences(kernel.vocab_size + 1, LENGTH))

    def at(step, logits):
        level = schedule.level(step, POSITIONS) / schedule.levels
        after = schedule.level(step + 1, POSITIONS) / schedule.levels
        active = (level != after) & free
        one = functools.partial(spec.objective.reverse_step, kernel)
        log_next = jax.vmap(jax.vmap(one), (0, 0, None, None))(
            logits, states, jnp.where(active, after, 0.0), jnp.where(active, level, 0.5)
        )
        stay = jax.nn.one_hot(states, kernel.vocab_size + 1)
        return jnp.where(active[None, :, None], jnp.exp(log_next), stay)

    return jax.vmap(at)(jnp.arange(schedule.steps), logits)
