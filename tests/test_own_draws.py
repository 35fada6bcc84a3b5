"""Replaced tokens that the network draws itself, in training alone."""

import dataclasses
import itertools
import types
from collections import Counter

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from enumeration import LENGTH, kernels, quick_jit, reader, spec_of

from hybrid_jax.config import Experiment, NoiseConfig, TrainConfig
from hybrid_jax.errors import UserError
from hybrid_jax.eval import code
from hybrid_jax.method import loss as estimator
from hybrid_jax.method.objective import Draw
from hybrid_jax.runtime import sharding
from hybrid_jax.training import flops
from hybrid_jax.training.train_step import TrainSetup

TOKENS, SHARE = 3, 0.4
TEXT, NOISY = (1, 0, 1), (2, 0, 0)  # the first and the last token were replaced
MESH = sharding.one_device()
BATCH = {"tokens": jnp.arange(8 * 16).reshape(8, 16) % 7, "index": jnp.arange(8)}


def test_replaced_tokens_are_a_mixture_of_noise_and_earlier_draws_of_the_network():
    """The joint law of the noisy tokens: quadrature over λ', sums over what is masked there."""
    spec = spec_of("flat", kernels(TOKENS)["epsilon"], "aligned", parameterisation="context")
    network, params = reader(TOKENS)
    schedule, step, bits = spec.schedule, 1, (False, True)
    level = float(schedule.level(step, 0)) / schedule.levels
    nodes, weights = (np.polynomial.legendre.leggauss(8) * np.array([[0.5], [0.5]])).tolist()
    law = Counter()
    every = list(itertools.product(bits, repeat=LENGTH))
    for node, weight in zip(np.array(nodes) + 0.5, weights, strict=True):
        states = jnp.asarray([[TOKENS if h else z for h, z in zip(m, NOISY, strict=True)]
                              for m in every])  # fmt: skip
        levels = jnp.full(states.shape, 1 - (1 - level) * (1 - node))
        seen = jnp.ones((1, LENGTH, LENGTH), bool)
        features = network.features(params, states, jnp.arange(LENGTH)[None], seen, levels)
        p = np.asarray(jax.nn.softmax(network.logits(params, features)[..., :TOKENS]), np.float64)
        for first, last, *forgotten in itertools.product(bits, repeat=2 + LENGTH):
            chosen = (first, False, last)
            hidden = tuple(a or b for a, b in zip(chosen, forgotten, strict=True))
            mine = p[every.index(hidden)]
            chance = weight * node ** sum(forgotten) * (1 - node) ** (LENGTH - sum(forgotten))
            chance *= np.prod([SHARE if own else 1 - SHARE for own in (first, last)])
            for new in itertools.product(range(TOKENS), repeat=LENGTH):
                drawn = [mine[i, new[i]] if own else float(new[i] == NOISY[i])
                         for i, own in enumerate(chosen)]  # fmt: skip
                law[new] += chance * np.prod(drawn)
    n = 40_000
    now, after = (schedule.level(s, jnp.arange(LENGTH)) / schedule.levels for s in (step, step + 1))
    draw = Draw(now, after, now - after, now != after)
    batch = estimator.Batch(
        jnp.broadcast_to(jnp.asarray(TEXT), (n, LENGTH)), jnp.arange(n), jax.random.key(3), size=n
    )
    noised = estimator.Noised(
        tokens=batch.tokens,
        noisy=jnp.broadcast_to(jnp.asarray(NOISY), (n, LENGTH)),
        phase=jnp.full((n, schedule.phase_groups), step),
        draw=jax.tree.map(lambda x: jnp.broadcast_to(x, (n, LENGTH)), draw),
    )
    found = quick_jit(
        lambda noised: estimator.with_own_draws(spec, network, params, batch, noised, SHARE)
    )(noised)
    seen = Counter(map(tuple, np.asarray(found.noisy).tolist()))
    assert sum(law.values()) == pytest.approx(1)
    assert sum(seen[state] for state in law) == n
    for state, chance in law.items():
        error = np.sqrt(max(chance * (1 - chance), 1e-9) / n)
        assert abs(seen[state] / n - chance) < 4.5 * error


def own(share=0.5, every=1, run="epsilon", **schedule):
    settings = dict(tiny.RUNS[run])
    if run == "epsilon":
        settings["noise"] = NoiseConfig(kernel="epsilon", epsilon=0.5)
    if schedule:
        settings["schedule"] = dataclasses.replace(settings["schedule"], **schedule)
    config = TrainConfig(batch_size=8, own_share=share, own_every=every)
    experiment = Experiment(name="own", train=config, **settings)
    experiment = dataclasses.replace(
        experiment, data=dataclasses.replace(experiment.data, length=16)
    )
    experiment.check()
    return TrainSetup.build(experiment, 258, bos=256, eos=257)


def test_updates_without_draws_are_those_of_a_run_without_the_setting():
    setup, plain = own(every=2), own(share=0.0)
    plain_again, drawn = setup.each
    state = plain.compile_init(MESH)
    expected, same, other = (
        one.compile_step(MESH)(state(), BATCH)[0] for one in (plain, plain_again, drawn)
    )
    chex.assert_trees_all_equal(expected, same)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_equal(expected, other)
    assert drawn.flops == 4 * flops.forward_flops(setup.network, setup.spec).total
    assert plain_again.flops == plain.flops == 0.75 * drawn.flops


def test_every_hyperschedule_has_its_share_of_draws():
    setup = own(every=3, also="quenched_ar,flat", weights="1/2,1/4,1/4")
    turns = Counter(setup.turn(step) for step in range(36))
    assert turns == {0: 12, 1: 6, 2: 6, 3: 6, 4: 3, 5: 3}
    each = setup.each
    assert [one.own for one in each] == [0.0] * 3 + [0.5] * 3
    turns = Counter(setup.turn(step) for step in range(35))
    model = types.SimpleNamespace(
        experiment=setup.experiment,
        tokenizer=types.SimpleNamespace(vocab_size=258, bos=256, eos=257),
        spec=setup.spec, network=setup.network, step=35,
    )  # fmt: skip
    work = 8 * sum(number * each[turn].flops for turn, number in turns.items())
    assert code.budget(model) == {"tokens": 35 * 8 * 16, "flops": pytest.approx(work)}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"share": 1.5}, "must lie in"),
        ({"share": 0.0, "every": 2}, "without train.own_share"),
        ({"run": "ar"}, "has no effect with absorbing"),
    ],
)
def test_shares_without_meaning_are_refused(settings, said):
    with pytest.raises(UserError, match=said):
        own(**settings)
