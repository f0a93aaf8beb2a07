"""The bound of uniform-state diffusion against enumerated truth, and the chain it belongs to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from distribution import Distribution
from noised_distribution import (
    NoisedDistribution,
    drawn_rows,
    enumerated,
    nodes,
    sampled_frequencies,
)

from mdlm.diffusion import Diffusion
from mdlm.objectives.uniform import UniformNelbo
from mdlm.processes.uniform import Uniform
from mdlm.schedules.closed_form import Cosine, LogLinear
from mdlm.types import Vocab

DATA = Distribution()
SCHEDULES = [LogLinear(eps=0.0), LogLinear(eps=0.05), Cosine()]
schedules = pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
posteriors = pytest.mark.parametrize("posterior", ["plug_in", "mixture"])


@schedules
@posteriors
def test_integral_is_the_information_that_noise_removes(schedule, posterior):
    noisy = NoisedDistribution(DATA, Uniform(schedule=schedule, posterior=posterior))
    t, dt = nodes(1e-3, 1.0)
    term = (dt * enumerated(noisy, UniformNelbo(ends=False), t, noisy.denoise)).sum()
    # I(x; z_{t_min}) - I(x; z_1) = H(x | z_1) - H(x | z_{t_min})
    expected = noisy.remaining(1.0) - noisy.remaining(1e-3)
    assert term == pytest.approx(expected, abs=3e-6)
    assert DATA.entropy - expected > 0.01 or schedule == Cosine()


@pytest.mark.parametrize(
    ("schedule", "t_min"), [(SCHEDULES[0], 1e-3), (SCHEDULES[0], 0.05), (SCHEDULES[1], 1e-3)]
)
def test_bound_with_its_ends(schedule, t_min):
    """It exceeds the entropy by what its ends treat as independent: the tokens of the last step,
    and those of the noise at t = 1."""
    noisy, objective = (
        NoisedDistribution(DATA, Uniform(schedule=schedule)),
        UniformNelbo(t_min=t_min),
    )
    t, dt = nodes(t_min, 1.0)
    total = (dt * enumerated(noisy, objective, t, noisy.denoise)).sum()
    prior = enumerated(noisy, objective, np.array([0.5]), noisy.denoise)
    prior -= enumerated(noisy, UniformNelbo(ends=False), np.array([0.5]), noisy.denoise)
    last = enumerated(noisy, objective, np.array([t_min]), noisy.denoise, is_last=True)
    # The share t_min of all rows is at the last step; every row has the prior's term.
    total += t_min * last[0]
    at_noise = DATA.p @ noisy.row_transition(1.0)
    at_noise = at_noise[at_noise > 0]
    expected = DATA.entropy + noisy.remaining_by_token(t_min) - noisy.remaining(t_min)
    expected += (at_noise * np.log(at_noise * DATA.symbols**DATA.length)).sum()
    assert total == pytest.approx(expected, abs=1e-5)
    assert expected > DATA.entropy
    assert (prior[0] > 1e-3) == (schedule == LogLinear(eps=0.05))


def test_places():
    u = jnp.array([[0.0], [0.009], [0.5], [0.99999994]])
    t, is_last = UniformNelbo(t_min=0.01).times_and_weights(u)
    np.testing.assert_allclose(t, jnp.maximum(u, 0.01), rtol=1e-6)
    assert is_last.ravel().tolist() == [True, True, False, False]
    t, is_last = UniformNelbo(t_min=0.01, ends=False).times_and_weights(u)
    np.testing.assert_allclose(t, 0.01 + 0.99 * u, rtol=1e-6)
    assert not is_last.any() and (t < 1).all()


@pytest.mark.parametrize(("schedule", "t"), [(SCHEDULES[0], 0.1), (SCHEDULES[1], 0.9)])
@posteriors
def test_bound_of_a_wrong_network_is_that_of_its_chain(schedule, posterior, t):
    """Against the chain's divergence in ever shorter steps, with the posterior as it is defined."""
    noisy = NoisedDistribution(DATA, Uniform(schedule=schedule, posterior=posterior))
    objective = UniformNelbo(ends=False)
    rate = enumerated(noisy, objective, np.array([t]), noisy.wrong_denoise)[0]
    far, near = (noisy.step_divergence(t - h, t) / h - rate for h in (1e-2, 1e-4))
    assert abs(near) < 2e-3 * rate
    assert abs(near) < 0.05 * abs(far)


def test_the_two_readings_of_a_network_differ():
    rates = []
    for posterior in ("plug_in", "mixture"):
        noisy = NoisedDistribution(DATA, Uniform(posterior=posterior))
        t = np.array([0.3])
        rates.append(enumerated(noisy, UniformNelbo(ends=False), t, noisy.wrong_denoise)[0])
    assert abs(rates[0] - rates[1]) > 0.5


def test_expected_loss():
    """The whole objective, its own draws included, within four standard errors."""
    noisy = NoisedDistribution(DATA, Uniform(schedule=LogLinear(eps=0.0)))
    gap = drawn_rows(noisy, UniformNelbo(t_min=0.05), repeats=40)
    slack = noisy.remaining_by_token(0.05) - noisy.remaining(0.05)
    error = gap.std(ddof=1) / np.sqrt(len(gap))
    assert error < 0.02
    assert abs(gap.mean() - slack) < 4 * error


@posteriors
def test_samples_tend_to_the_distribution(posterior):
    """10,000 samples of the distribution itself are at a distance of about 0.02."""
    noisy = NoisedDistribution(DATA, Uniform(schedule=LogLinear(eps=0.0), posterior=posterior))
    few, many = sampled_frequencies(noisy, 2), sampled_frequencies(noisy, 48)
    distance = [np.abs(p - DATA.p).sum() / 2 for p in (few, many)]
    assert distance[1] < 0.035
    assert distance[0] > distance[1] + 0.05


def test_padding_and_what_is_not_counted(key):
    """Padding stays clean and adds nothing."""
    process = Uniform(schedule=LogLinear(eps=0.0)).with_vocab(Vocab(size=4, mask_id=3))
    noisy = NoisedDistribution(DATA, process)
    batch = DATA.batch(np.zeros((64, 3), int))
    valid = jnp.broadcast_to(jnp.array([True, True, False]), (64, 3))
    batch = type(batch)(**{**vars(batch), "is_valid": valid, "loss_mask": valid})
    seen = []

    def denoise(inputs, *, key=None):
        seen.append(inputs.tokens)
        return noisy.denoise(inputs)

    terms, z_t = jax.jit(
        lambda: (
            UniformNelbo()(
                key,
                batch,
                diffusion=Diffusion(process=process, parameterization=noisy.mean, denoise=denoise),
            ),
            seen[0],
        )
    )()
    assert (z_t[:, 2] == 0).all() and (z_t[:, :2] != 0).any()
    for part in (terms.values, terms.bound, terms.count, terms.scored):
        assert (part[:, 2] == 0).all() and (part[:, :2] != 0).all()
    np.testing.assert_allclose(terms.total, terms.values.sum(), rtol=1e-5)
    # What is reported is what is trained: with alpha(1) = 0 the prior has no term.
    np.testing.assert_array_equal(terms.values, terms.bound)
    assert jax.tree.all(jax.tree.map(lambda x: jnp.isfinite(x).all(), terms))
