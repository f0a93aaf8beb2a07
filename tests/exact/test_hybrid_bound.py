"""GIDD's bound against enumerated truth, and the chain it belongs to."""

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

from mdlm.objectives.hybrid import HybridNelbo
from mdlm.objectives.nelbo import Nelbo
from mdlm.objectives.uniform import UniformNelbo
from mdlm.processes.hybrid import Hybrid, HybridSchedule, LogSNRHybrid
from mdlm.processes.uniform import Uniform
from mdlm.schedules.closed_form import Cosine, LogLinear

DATA = Distribution()
PROCESSES = {
    "p 0.1": Hybrid(),
    "p 0.5, gamma 0.5": Hybrid(schedule=HybridSchedule(p_uniform=0.5, gamma=0.5)),
    "p 0.2, gamma 2": Hybrid(schedule=HybridSchedule(p_uniform=0.2, gamma=2)),
    "p 0": Hybrid(schedule=HybridSchedule(p_uniform=0.0)),
    "log-SNR, shift 1": LogSNRHybrid(shift=1.0),
    "log-SNR, shift -2, scale 0.5": LogSNRHybrid(shift=-2.0, scale=0.5, schedule=Cosine()),
    "p 0.1, mixture": Hybrid(posterior="mixture"),
    "log-SNR, mixture": LogSNRHybrid(posterior="mixture"),
}


def objective(process, **changes):
    weights = "dynamic_as_in_paper" if isinstance(process, Hybrid) else "log_snr"
    return HybridNelbo(weights=weights, **changes)


@pytest.mark.parametrize("name", PROCESSES)
def test_integral_is_the_information_that_noise_removes(name):
    """Of the reported bound, whatever the trained weights are."""
    noisy = NoisedDistribution(DATA, PROCESSES[name])
    t, dt = nodes(1e-4, 1 - 1e-4)
    term = (dt * enumerated(noisy, objective(noisy.process), t, noisy.denoise)).sum()
    expected = noisy.remaining(1 - 1e-4) - noisy.remaining(1e-4)
    assert term == pytest.approx(expected, abs=5e-6)


@pytest.mark.parametrize("name", ["p 0.1", "p 0.5, gamma 0.5", "log-SNR, shift 1"])
def test_bound_with_the_reconstruction(name):
    """It exceeds the entropy, up to what z_1 tells, by what the last step treats as independent."""
    noisy, t_min = NoisedDistribution(DATA, PROCESSES[name]), 0.01
    whole = objective(noisy.process, reconstruction=True, t_min=t_min)
    # Most of GIDD's noise below t_min is uniform and grows like t^(gamma / 2).
    t, dt = nodes(t_min, 1.0)
    total = (dt * enumerated(noisy, whole, t, noisy.denoise)).sum()
    last = enumerated(noisy, whole, np.array([t_min]), noisy.denoise, is_last=True)
    total += t_min * last[0]
    expected = noisy.remaining(1.0) + noisy.remaining_by_token(t_min) - noisy.remaining(t_min)
    assert total == pytest.approx(expected, abs=2e-5)
    assert expected > DATA.entropy - 1e-4


def test_places():
    u = jnp.array([[0.0], [0.009], [0.5], [0.99999994]])
    t, is_last = HybridNelbo(t_min=0.01).times_and_weights(u)
    np.testing.assert_allclose(t, 0.01 + 0.98 * u, rtol=1e-6)
    assert not is_last.any()
    t, is_last = HybridNelbo(t_min=0.01, reconstruction=True).times_and_weights(u)
    np.testing.assert_allclose(t, jnp.maximum(u, 0.01), rtol=1e-6)
    assert is_last.ravel().tolist() == [True, True, False, False] and (t < 1).all()


@pytest.mark.parametrize("name", [name for name in PROCESSES if name != "p 0"])
def test_bound_of_a_wrong_network_is_that_of_its_chain(name):
    """Against the chain's divergence in ever shorter steps, with the posterior as it is defined."""
    noisy = NoisedDistribution(DATA, PROCESSES[name])
    rate = enumerated(noisy, objective(noisy.process), np.array([0.3]), noisy.wrong_denoise)[0]
    far, near = (noisy.step_divergence(0.3 - h, 0.3) / h - rate for h in (1e-2, 1e-4))
    assert abs(near) < 2e-3 * rate
    assert abs(near) < 0.05 * abs(far)


def test_expected_loss():
    """The whole objective, its own draws included, within four standard errors."""
    noisy = NoisedDistribution(DATA, Hybrid())
    gap = drawn_rows(noisy, objective(noisy.process, reconstruction=True, t_min=0.05), repeats=40)
    slack = noisy.remaining_by_token(0.05) - noisy.remaining(0.05)
    error = gap.std(ddof=1) / np.sqrt(len(gap))
    assert error < 0.02
    assert abs(gap.mean() - slack) < 4 * error


@pytest.mark.parametrize("name", ["p 0.1", "log-SNR, mixture"])
def test_samples_tend_to_the_distribution(name):
    """10,000 samples of the distribution itself are at a distance of about 0.02."""
    noisy = NoisedDistribution(DATA, PROCESSES[name])
    few, many = sampled_frequencies(noisy, 2), sampled_frequencies(noisy, 48)
    distance = [np.abs(p - DATA.p).sum() / 2 for p in (few, many)]
    assert distance[1] < 0.035
    assert distance[0] > distance[1] + 0.05


@pytest.mark.parametrize("shift", [-1000.0, 1000.0])
def test_the_ends_of_the_log_snr_form(shift):
    """All noise the mask: the NELBO of masked diffusion. All noise uniform: that of UDLM."""
    schedule, t = LogLinear(eps=0.0), np.array([0.02, 0.4, 0.97])
    noisy = NoisedDistribution(DATA, LogSNRHybrid(schedule=schedule, shift=shift))
    ours = enumerated(noisy, objective(noisy.process), t, noisy.wrong_denoise)
    if shift > 0:
        same = NoisedDistribution(DATA, Uniform(schedule=schedule))
        theirs = enumerated(same, UniformNelbo(ends=False), t, same.wrong_denoise)
    else:
        theirs = masked_nelbo(noisy, t)
    np.testing.assert_allclose(ours, theirs, rtol=2e-5)


def test_without_uniform_noise_it_is_masked_diffusion():
    noisy, t = NoisedDistribution(DATA, PROCESSES["p 0"]), np.array([0.02, 0.4, 0.97])
    ours = enumerated(noisy, objective(noisy.process), t, noisy.wrong_denoise)
    np.testing.assert_allclose(ours, masked_nelbo(noisy, t), rtol=2e-5)


def masked_nelbo(noisy, t):
    """1 / t times the mean cross-entropy of the masked tokens, from `Nelbo`'s weight."""
    _, weight = Nelbo().times_and_weights(LogLinear(eps=0.0), jnp.asarray(t, jnp.float32)[:, None])
    wrong, z, x = noisy.wrong_posterior(), noisy.noised, DATA.sequences
    out = []
    for a, w in zip(t, np.asarray(weight, np.float64)[:, 0], strict=True):
        q = np.where(z[None] == DATA.mask_id, a, (1 - a) * (z[None] == x[:, None])).prod(-1)
        loss = np.array([-np.log(wrong[:, range(DATA.length), row]) for row in x])
        loss = (loss * (z == DATA.mask_id)[None]).sum(-1)
        out.append(w * (DATA.p[:, None] * q * loss).sum())
    return np.array(out)
