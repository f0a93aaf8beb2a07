"""What only hybrid noise has: its own schedule, its two ends, its masks.

What all processes that mix tokens and the mask share is in `test_interpolating`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from mdlm.keys import by_row
from mdlm.processes.hybrid import Hybrid, HybridSchedule, LogSNRHybrid
from mdlm.processes.masked import Masked
from mdlm.processes.uniform import Uniform
from mdlm.schedules.base import Schedule
from mdlm.schedules.closed_form import LogLinear
from mdlm.types import Vocab

MASK, V = 2, 6
VOCAB = Vocab(size=V, mask_id=MASK)
SCHEDULES = [
    HybridSchedule(),
    HybridSchedule(p_uniform=0.0),
    HybridSchedule(p_uniform=0.9, gamma=0.3),
    HybridSchedule(p_uniform=0.5, gamma=2),
]
schedules = pytest.mark.parametrize("schedule", SCHEDULES, ids=str)


@pytest.mark.parametrize(
    ("make", "value"),
    [
        (lambda: HybridSchedule(p_uniform=1.0), "p_uniform=1.0"),
        (lambda: HybridSchedule(p_uniform=-0.1), "p_uniform=-0.1"),
        (lambda: HybridSchedule(gamma=0.0), "gamma=0.0"),
        (lambda: HybridSchedule(gamma=2.5), "gamma=2.5"),
        (lambda: Hybrid(schedule=LogLinear()), "LogLinear"),
        (lambda: LogSNRHybrid(scale=0.0), "scale=0.0"),
        (lambda: LogSNRHybrid(scale=1.5), "scale=1.5"),
        (lambda: LogSNRHybrid(shift=float("inf")), "shift=inf"),
    ],
)
def test_what_makes_no_sense_is_refused(make, value):
    with pytest.raises((ValueError, TypeCheckError), match=value):
        make()


@schedules
def test_the_schedule_is_consistent(schedule):
    """Closed forms against what any schedule derives from alpha alone, in float64."""

    class Plain(Schedule):
        def alpha(self, t, x_0=None):
            return schedule.alpha(t)

    with jax.enable_x64(True):
        t = jnp.concatenate([jnp.geomspace(1e-6, 0.5, 20), 1 - jnp.geomspace(1e-6, 0.4, 20)])
        s = 0.7 * t
        for name in ("one_minus_alpha", "dalpha", "weight", "log_snr", "sigma"):
            ours, derived = (getattr(a, name)(t) for a in (schedule, Plain()))
            np.testing.assert_allclose(ours, derived, rtol=1e-8, atol=1e-14, err_msg=name)
        ours, derived = schedule.alpha_gap(s, t), Plain().alpha_gap(s, t)
        np.testing.assert_allclose(ours, derived, rtol=1e-8)
        assert (schedule.dalpha(t) < 0).all()


@schedules
def test_the_schedule_in_float32(schedule):
    t = np.concatenate([np.geomspace(1e-6, 0.5, 20), 1 - np.geomspace(1e-6, 0.4, 20)])
    t = t.astype(np.float32)
    s = (t * np.float32(0.999)).astype(np.float32)
    names = ("alpha", "one_minus_alpha", "dalpha", "weight", "log_snr")
    ours = [getattr(schedule, name)(jnp.asarray(t)) for name in names]
    ours.append(schedule.alpha_gap(jnp.asarray(s), jnp.asarray(t)))
    with jax.enable_x64(True):
        t_64, s_64 = jnp.asarray(t, jnp.float64), jnp.asarray(s, jnp.float64)
        exact = [getattr(schedule, name)(t_64) for name in names]
        exact.append(schedule.alpha_gap(s_64, t_64))
    for mine, true in zip(ours, exact, strict=True):
        np.testing.assert_allclose(mine, true, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("p", [0.1, 0.5])
@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_p_uniform_is_the_noise_in_the_middle(p, gamma):
    """At t = 1/2 a token has been drawn uniformly with probability p_uniform."""
    process = Hybrid(schedule=HybridSchedule(p_uniform=p, gamma=gamma)).with_vocab(VOCAB)
    token, mask = process.noise(jnp.float32(0.5))
    assert 5 * token == pytest.approx(p, rel=1e-5)
    assert mask == pytest.approx((1 - p) / 2, rel=1e-5)


def test_masks_are_noise_and_the_prior_is_all_mask(key):
    keys = by_row(key, jnp.arange(3))
    process = Hybrid().with_vocab(VOCAB)
    assert (process.prior(keys, 7) == MASK).all()
    z = jnp.array([0, MASK, 5])
    assert process.is_noise(z).tolist() == [False, True, False]
    assert LogSNRHybrid().with_vocab(VOCAB).is_noise(z).tolist() == [False, True, False]
    assert not Uniform().with_vocab(VOCAB).is_noise(z).any()


TWINS = {
    "no uniform noise": (Hybrid(schedule=HybridSchedule(p_uniform=0.0)), "masked"),
    "log-SNR, far down": (LogSNRHybrid(schedule=LogLinear(eps=0.0), shift=-1000.0), "masked"),
    "log-SNR, far up": (LogSNRHybrid(schedule=LogLinear(eps=0.0), shift=1000.0), "uniform"),
}


@pytest.mark.parametrize("name", TWINS)
def test_the_ends_are_processes_of_their_own(key, name):
    """Same reverse chain; same noise, up to what is drawn."""
    process, twin = TWINS[name][0].with_vocab(VOCAB), TWINS[name][1]
    other = (Masked if twin == "masked" else Uniform)(schedule=LogLinear(eps=0.0)).with_vocab(VOCAB)
    assert isinstance(other, Masked | Uniform)
    p = jnp.array([0.5, 0.2, 0.0, 0.05, 0.25, 0.0])
    log_p0 = jnp.broadcast_to(jnp.log(p), (2, V, V))
    z_t = jnp.broadcast_to(jnp.arange(V), (2, V))
    if twin == "uniform":
        z_t = jnp.where(z_t == MASK, 0, z_t)
    for t, s in ((1.0 if twin == "masked" else 0.99, 0.5), (0.6, 0.55), (0.3, 0.0)):
        # What masking cannot have noised stays, here but for one token in a billion.
        times = [jnp.full((2, 1), a) for a in (t, s)]
        ours = process.reverse_probabilities(log_p0, z_t, *times)
        theirs = other.reverse_probabilities(log_p0, z_t, *times)
        possible = np.asarray((p[z_t] > 0) & (t < 1)) | np.asarray(process.is_noise(z_t))
        if twin == "uniform":
            possible[:] = True
        np.testing.assert_allclose(
            np.asarray(ours)[possible], np.asarray(theirs)[possible], rtol=1e-5, atol=1e-6
        )
        assert possible.any()
    x_0, keys = jnp.zeros((4, 4000), jnp.int32), by_row(key, jnp.arange(4))
    ours, theirs = (a.corrupt(keys, x_0, jnp.full((4, 1), 0.4)) for a in (process, other))
    counts = [np.bincount(np.ravel(z), minlength=V) / z.size for z in (ours, theirs)]
    np.testing.assert_allclose(*counts, atol=4.5 * np.sqrt(2 * 0.24 / ours.size))
    assert ((counts[0] > 0) == (counts[1] > 0)).all()
