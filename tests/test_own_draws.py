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
from enumeration import LENGTH, all_logits, all_sequences, kernels, quick_jit, reader, spec_of

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


@pytest.mark.parametrize("kernel", ["epsilon", "gamma .1"])
def test_replaced_tokens_are_a_mixture_of_noise_and_draws_of_the_network(kernel):
    """The joint law of the noisy tokens, by enumeration of the places that are drawn anew."""
    spec = spec_of("flat", kernels(TOKENS)[kernel], "aligned", parameterisation="context")
    network, params = reader(TOKENS)
    step = 1
    states = all_sequences(TOKENS + 1, LENGTH)
    logits = np.asarray(all_logits(spec, network, params), np.float64)[step, ..., :TOKENS]
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    law = dict.fromkeys(map(tuple, states.tolist()), 0.0)
    for chosen in itertools.product([False, True], repeat=2):
        hidden = [TOKENS if chosen[0] else NOISY[0], NOISY[1], TOKENS if chosen[1] else NOISY[2]]
        mine = p[states.tolist().index(hidden)]
        for first, last in itertools.product(range(TOKENS), repeat=2):
            chance = 1.0
            for is_own, old, new, place in ((chosen[0], NOISY[0], first, 0),
                                            (chosen[1], NOISY[2], last, 2)):  # fmt: skip
                chance *= SHARE * mine[place, new] if is_own else (1 - SHARE) * (old == new)
            law[first, NOISY[1], last] += chance
    n = 40_000
    schedule = spec.schedule
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
