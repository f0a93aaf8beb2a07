"""Schedules at their ends, between their own methods, and under JAX's transformations."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm.schedules.base import Schedule
from mdlm.schedules.change_of_variables import ChangeOfVariables
from mdlm.schedules.closed_form import Cosine, CosineSquared, Geometric, LinearSigma, LogLinear
from mdlm.schedules.md4 import OneMinusSine, Polynomial

EPS = 1e-4
QUANTITIES = ("alpha", "one_minus_alpha", "dalpha", "weight", "log_snr", "sigma")
SCHEDULES = [
    LogLinear(),
    LogLinear(eps=0.0),
    Cosine(),
    Cosine(eps=0.0),
    CosineSquared(),
    CosineSquared(eps=0.0),
    Polynomial(power=0.5),
    Polynomial(power=0.5, eps=1e-4),
    Polynomial(power=2, eps=1e-4),
    Polynomial(power=3),
    Polynomial(power=5, eps=1e-2),
    OneMinusSine(),
    OneMinusSine(eps=1e-4),
    LinearSigma(),
    LinearSigma(sigma_min=0.0),
    Geometric(),
    ChangeOfVariables(base=LogLinear()),
    ChangeOfVariables(base=LogLinear(eps=0.0)),
    ChangeOfVariables(base=Geometric(), sigma_min=1e-4),
]

schedules = pytest.mark.parametrize("schedule", SCHEDULES, ids=str)

ZERO, ONE = jnp.zeros(()), jnp.ones(())


@pytest.mark.parametrize(
    "schedule",
    [
        LogLinear(),
        LogLinear(eps=0.0),
        Cosine(),
        CosineSquared(),
        Polynomial(power=0.5),
        Polynomial(power=1),
        Polynomial(power=2),
        OneMinusSine(),
    ],
    ids=str,
)
def test_clean_end_is_exact(schedule):
    assert schedule.alpha(ZERO) == 1
    assert schedule.one_minus_alpha(ZERO) == 0
    assert schedule.log_snr(ZERO) == jnp.inf
    assert schedule.sigma(ZERO) == 0
    assert schedule.weight(ZERO) == jnp.inf


@schedules
def test_ends_hold_no_nan(schedule):
    t = jnp.array([0.0, 1.0])
    for name in QUANTITIES:
        assert not jnp.isnan(getattr(schedule, name)(t)).any(), name
    gaps = schedule.alpha_gap(jnp.array([0.0, 0.0, 1.0]), jnp.array([0.0, 1.0, 1.0]))
    assert gaps[0] == 0 and gaps[2] == 0 and gaps[1] > 0.5


@pytest.mark.parametrize("make", [LogLinear, Cosine, CosineSquared])
@pytest.mark.parametrize("eps", [0.0, 1e-4, 1e-3])
def test_noise_end_is_eps_exactly(make, eps):
    schedule = make(eps=eps)
    assert schedule.alpha(ONE) == np.float32(eps)
    assert jnp.isposinf(schedule.sigma(ONE)) == (eps == 0)


@pytest.mark.parametrize(
    "make",
    [partial(Polynomial, power=0.5), partial(Polynomial, power=1), partial(Polynomial, power=3)]
    + [OneMinusSine],
)
def test_md4_keeps_eps_from_both_ends(make):
    schedule = make(eps=1e-3)
    assert schedule.alpha(ONE) == np.float32(1e-3)
    assert schedule.one_minus_alpha(ZERO) == np.float32(1e-3)
    assert jnp.isfinite(schedule.log_snr(ZERO)) and jnp.isfinite(schedule.sigma(ONE))
    assert make().alpha(ONE) == 0


def test_sigma_schedules_end_at_their_sigmas():
    for schedule in (LinearSigma(), Geometric()):
        np.testing.assert_allclose(schedule.sigma(ZERO), schedule.sigma_min, rtol=1e-6)
        assert schedule.sigma(ONE) == schedule.sigma_max


@schedules
def test_alpha_falls(schedule):
    t = jnp.linspace(0, 1, 1001)
    alpha = schedule.alpha(t)
    assert (jnp.diff(alpha) <= 0).all() and alpha[0] - alpha[-1] > 0.5
    assert ((alpha >= 0) & (alpha <= 1)).all()
    assert (jnp.diff(schedule.one_minus_alpha(t)) >= 0).all()
    assert (schedule.alpha_gap(t[:-1], t[1:]) > 0).all()
    assert (schedule.weight(t) >= 0).all()


@schedules
def test_derived_quantities_agree_with_the_base_class(schedule):
    """Closed forms equal what autodiff and subtraction make of `alpha`, in float64."""
    with jax.enable_x64(True):
        t = jnp.linspace(0.05, 0.95, 41, dtype=jnp.float64)
        s = 0.7 * t
        for name in ("one_minus_alpha", "dalpha", "weight", "log_snr", "sigma"):
            ours, base = getattr(schedule, name)(t), getattr(Schedule, name)(schedule, t)
            np.testing.assert_allclose(ours, base, rtol=1e-8, err_msg=name)
        np.testing.assert_allclose(
            schedule.alpha_gap(s, t), Schedule.alpha_gap(schedule, s, t), rtol=1e-8
        )


@schedules
def test_derivative_is_the_finite_difference(schedule):
    with jax.enable_x64(True):
        t = jnp.linspace(0.05, 0.95, 41, dtype=jnp.float64)
        h = 1e-5
        slope = (schedule.alpha(t + h) - schedule.alpha(t - h)) / (2 * h)
        np.testing.assert_allclose(schedule.dalpha(t), slope, rtol=1e-5, atol=1e-9)


@schedules
def test_inverse_undoes_the_schedule(schedule):
    assert schedule.has_inverse
    with jax.enable_x64(True):
        t = jnp.linspace(0, 1, 101, dtype=jnp.float64)[1:-1]
        np.testing.assert_allclose(schedule.time_of(schedule.one_minus_alpha(t)), t, rtol=1e-6)
    t = jnp.linspace(EPS, 1, 101)
    noised = schedule.one_minus_alpha(t)
    again = schedule.time_of(noised)
    assert ((again >= 0) & (again <= 1)).all()
    np.testing.assert_allclose(schedule.one_minus_alpha(again), noised, rtol=1e-5)


@schedules
def test_inverse_stays_inside_for_values_beyond_the_ends(schedule):
    times = schedule.time_of(jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(times, [0.0, 1.0], atol=2e-3)
    assert times[0] >= 0 and times[1] <= 1


@schedules
def test_jit_vmap_and_gradients(schedule):
    t = jnp.array([EPS, 0.1, 0.5, 0.9, 0.9999])

    @jax.jit
    def values_and_slopes(t):
        values = {name: getattr(schedule, name)(t) for name in QUANTITIES}
        slopes = [jax.vmap(jax.grad(getattr(schedule, name)))(t) for name in QUANTITIES]
        slopes.append(jax.vmap(jax.grad(schedule.time_of))(t[1:4]))
        for s in (0.5 * EPS + 0 * t, 0.5 * t, 0.999 * t, t):
            slopes += jax.vmap(jax.grad(schedule.alpha_gap, argnums=(0, 1)))(s, t)
        return values, slopes

    values, slopes = values_and_slopes(t)
    for name in QUANTITIES:
        eager = getattr(schedule, name)(t)
        np.testing.assert_allclose(values[name], eager, rtol=1e-5, atol=1e-6, err_msg=name)
    assert all(jnp.isfinite(slope).all() for slope in slopes)


@schedules
def test_clean_tokens_are_ignored(schedule):
    t, x_0 = jnp.full((2, 3), 0.3), jnp.arange(6).reshape(2, 3)
    for name in QUANTITIES:
        fn = getattr(schedule, name)
        np.testing.assert_array_equal(fn(t, x_0), fn(t))
    np.testing.assert_array_equal(
        schedule.alpha_gap(0.5 * t, t, x_0), schedule.alpha_gap(0.5 * t, t)
    )


def test_a_schedule_is_one_method():
    class Quadratic(Schedule):
        def alpha(self, t, x_0=None):
            return (1 - t) ** 2

    schedule, t = Quadratic(), jnp.array([0.3, 0.6])
    np.testing.assert_allclose(schedule.dalpha(t), -2 * (1 - t), rtol=1e-6)
    np.testing.assert_allclose(schedule.weight(t), 2 * (1 - t) / (1 - (1 - t) ** 2), rtol=1e-5)
    np.testing.assert_allclose(schedule.sigma(t), -2 * jnp.log(1 - t), rtol=1e-5)
    with pytest.raises(ValueError, match="Quadratic has no inverse"):
        schedule.time_of(t)


def test_change_of_variables_is_the_same_process_on_another_clock():
    base = LogLinear()
    changed = ChangeOfVariables(base=base)
    with jax.enable_x64(True):
        t = jnp.linspace(0, 1, 41, dtype=jnp.float64)
        there = changed.base_time(t)
        np.testing.assert_allclose(base.alpha(there), changed.alpha(t), rtol=1e-9)
        # d/dt log(1 - alpha) is the weight: constant on this clock.
        np.testing.assert_allclose(
            jnp.diff(jnp.log(base.one_minus_alpha(there))), 6.90725 / 40, 1e-5
        )
        np.testing.assert_allclose(there[-1], 1, rtol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LogLinear(eps=1.0), "eps=1.0"),
        (lambda: Cosine(eps=-0.1), "eps=-0.1"),
        (lambda: CosineSquared(eps=math.nan), "eps=nan"),
        (lambda: Polynomial(power=0.0), "power=0.0"),
        (lambda: Polynomial(power=2, eps=0.5), "eps=0.5"),
        (lambda: OneMinusSine(eps=0.5), "eps=0.5"),
        (lambda: LinearSigma(sigma_min=3.0, sigma_max=2.0), "sigma_min=3.0"),
        (lambda: LinearSigma(sigma_min=-1.0), "sigma_min=-1.0"),
        (lambda: Geometric(sigma_min=0.0), "sigma_min=0.0"),
        (lambda: ChangeOfVariables(base=LogLinear(), sigma_min=0.0), "sigma_min=0.0"),
        (lambda: ChangeOfVariables(base=LogLinear(), sigma_min=2.0), "sigma_min=2.0"),
    ],
)
def test_impossible_values_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_schedules_are_hashable_configurations():
    assert {LogLinear(), LogLinear(eps=1e-3), Cosine()} == {LogLinear(), Cosine()}
    assert ChangeOfVariables(base=Cosine()) != ChangeOfVariables(base=LogLinear())
