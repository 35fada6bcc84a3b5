"""Generated text follows the sampler's exact distribution, not only its shape."""

import jax
import numpy as np
import pytest
from enumeration import LENGTH, all_sequences, kernels, reader, sampler_distribution, spec_of
from scipy.stats import chisquare

from hybrid_jax.sampling import prompts
from hybrid_jax.sampling.loop import generate
from hybrid_jax.sampling.rules import Ancestral
from hybrid_jax.sampling.state import Sampler

pytestmark = pytest.mark.usefixtures("strict_promotion")

DRAWS = 30_000


def generated(spec, network, params, *, row=(), count=DRAWS, seed=5):
    given = prompts.build([row] * count, length=LENGTH, vocab_size=spec.kernel.vocab_size)
    keys = jax.random.split(jax.random.key(seed), count)
    sampler = Sampler(spec=spec, network=network)
    return np.asarray(generate(sampler, Ancestral(), params, keys, given).tokens)


@pytest.mark.parametrize(
    ("schedule_name", "kernel_name", "alignment", "parameterisation"),
    [
        ("quenched AR", "absorbing", "shifted", "mean"),
        ("flat", "gamma .1", "aligned", "mean"),
        ("block", "epsilon", "aligned", "context"),
        ("slide", "gamma .7", "shifted", "context"),
        ("custom", "uniform", "aligned", "mean"),
        ("slow slide", "absorbing", "aligned", "mean"),
        ("block", "absorbing", "shifted", "score"),
        ("flat", "gamma .1", "aligned", "score"),
    ],
)
def test_generated_text_has_the_enumerated_distribution(
    schedule_name, kernel_name, alignment, parameterisation
):
    spec = spec_of(
        schedule_name, kernels(2)[kernel_name], alignment, parameterisation=parameterisation
    )
    network, params = reader(2)
    exact = sampler_distribution(spec, network, params)
    data = all_sequences(2, LENGTH)
    expected = exact[tuple(data.T)] * DRAWS
    drawn = generated(spec, network, params)
    assert drawn.max() < 2, "MASK is left"
    counts = np.bincount(drawn @ (1 << np.arange(LENGTH)[::-1]), minlength=2**LENGTH)
    likely = expected > 5
    assert counts[~likely].sum() <= expected[~likely].sum() + 20
    scale = counts[likely].sum() / expected[likely].sum()
    assert chisquare(counts[likely], expected[likely] * scale).pvalue > 1e-5


@pytest.mark.parametrize("kernel_name", ["absorbing", "gamma .7", "uniform"])
def test_frozen_tokens_never_change(kernel_name):
    spec = spec_of("slide", kernels(2)[kernel_name], "aligned")
    network, params = reader(2)
    drawn = generated(spec, network, params, row=[prompts.GAP, 1], count=500)
    assert (drawn[:, 1] == 1).all()
    assert drawn[:, 0].std() > 0
    assert drawn.max() < 2
