"""Schedules in float32 against their formulas in float64, up to both ends and for close times."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm.schedules.change_of_variables import ChangeOfVariables
from mdlm.schedules.closed_form import Cosine, CosineSquared, Geometric, LinearSigma, LogLinear
from mdlm.schedules.md4 import OneMinusSine, Polynomial

EPS = 1e-4
QUANTITIES = ("alpha", "one_minus_alpha", "dalpha", "weight", "log_snr", "sigma")
TOLERANCE = 1e-5


def log_linear(eps):
    return lambda t: (1 - t) + eps * t, lambda t: (1 - eps) * t, lambda t: 0 * t - (1 - eps)


def cosine(eps):
    half, quarter = np.pi / 2, np.pi / 4
    return (
        lambda t: eps + (1 - eps) * np.sin(half * (1 - t)),
        lambda t: 2 * (1 - eps) * np.sin(quarter * t) ** 2,
        lambda t: -(1 - eps) * half * np.sin(half * t),
    )


def cosine_squared(eps):
    half = np.pi / 2
    return (
        lambda t: eps + (1 - eps) * np.sin(half * (1 - t)) ** 2,
        lambda t: (1 - eps) * np.sin(half * t) ** 2,
        lambda t: -(1 - eps) * 2 * half * np.sin(half * t) * np.sin(half * (1 - t)),
    )


def polynomial(power, eps):
    share = 1 - 2 * eps
    return (
        lambda t: eps - share * np.expm1(power * np.log(t)),
        lambda t: eps + share * t**power,
        lambda t: -share * power * t ** (power - 1),
    )


def one_minus_sine(eps):
    share, half = 1 - 2 * eps, np.pi / 2
    return (
        lambda t: eps + share * 2 * np.sin(half / 2 * (1 - t)) ** 2,
        lambda t: eps + share * np.sin(half * t),
        lambda t: -share * half * np.sin(half * (1 - t)),
    )


def linear_sigma(low, high):
    sigma = lambda t: low + t * (high - low)
    return (
        lambda t: np.exp(-sigma(t)),
        lambda t: -np.expm1(-sigma(t)),
        lambda t: -(high - low) * np.exp(-sigma(t)),
    )


def geometric(low, high):
    sigma = lambda t: low ** (1 - t) * high**t
    return (
        lambda t: np.exp(-sigma(t)),
        lambda t: -np.expm1(-sigma(t)),
        lambda t: -math.log(high / low) * sigma(t) * np.exp(-sigma(t)),
    )


def change_of_variables(alpha_1, sigma_min):
    f_0, f_1 = math.log(-math.expm1(-sigma_min)), math.log1p(-alpha_1)
    log_noised = lambda t: (1 - t) * f_0 + t * f_1
    return (
        lambda t: -np.expm1(log_noised(t)),
        lambda t: np.exp(log_noised(t)),
        lambda t: (f_0 - f_1) * np.exp(log_noised(t)),
    )


# Each schedule with alpha, 1 - alpha and alpha' in forms that float64 evaluates without loss.
CASES = [
    (LogLinear(), log_linear(1e-3)),
    (LogLinear(eps=0.0), log_linear(0.0)),
    (Cosine(), cosine(1e-3)),
    (Cosine(eps=0.0), cosine(0.0)),
    (CosineSquared(), cosine_squared(1e-3)),
    (CosineSquared(eps=0.0), cosine_squared(0.0)),
    (Polynomial(power=0.5), polynomial(0.5, 0.0)),
    (Polynomial(power=0.5, eps=1e-4), polynomial(0.5, 1e-4)),
    (Polynomial(power=2, eps=1e-4), polynomial(2.0, 1e-4)),
    (Polynomial(power=3), polynomial(3.0, 0.0)),
    (Polynomial(power=5, eps=1e-2), polynomial(5.0, 1e-2)),
    (OneMinusSine(), one_minus_sine(0.0)),
    (OneMinusSine(eps=1e-4), one_minus_sine(1e-4)),
    (LinearSigma(), linear_sigma(1e-3, 7.0)),
    (LinearSigma(sigma_min=0.0), linear_sigma(0.0, 7.0)),
    (Geometric(), geometric(1e-4, 20.0)),
    (ChangeOfVariables(base=LogLinear()), change_of_variables(1e-3, 1e-3)),
    (ChangeOfVariables(base=LogLinear(eps=0.0)), change_of_variables(0.0, 1e-3)),
    (ChangeOfVariables(base=Geometric(), sigma_min=1e-4), change_of_variables(math.exp(-20), 1e-4)),
]
cases = pytest.mark.parametrize(
    ("schedule", "formulas"), CASES, ids=[str(schedule) for schedule, _ in CASES]
)


def grid() -> np.ndarray:
    """Float32 times in [EPS, 1], crowded at both ends."""
    even = np.linspace(EPS, 1, 501)
    ends = np.geomspace(EPS, 0.5, 200)
    near_noise = 1 - np.geomspace(2.0**-24, 0.5, 200)
    return np.unique(np.concatenate([even, ends, near_noise]).astype(np.float32))


def assert_close(ours, reference, *, floor=0.0):
    """Relative to the reference, or to `floor` where the reference is smaller."""
    ours, reference = np.asarray(ours, np.float64), np.asarray(reference)
    assert not np.isnan(ours).any()
    finite = np.isfinite(reference)
    np.testing.assert_array_equal(ours[~finite], reference[~finite])
    ours, reference = ours[finite], reference[finite]
    scale = np.maximum(np.abs(reference), floor)
    worst = np.argmax(np.abs(ours - reference) - TOLERANCE * scale)
    assert abs(ours[worst] - reference[worst]) <= TOLERANCE * scale[worst], (
        f"{ours[worst]!r}, not {reference[worst]!r}"
    )


def test_grid_reaches_the_neighbours_of_one():
    assert grid()[0] == np.float32(EPS) and grid()[-1] == 1
    assert np.nextafter(np.float32(1), np.float32(0)) in grid()


@cases
def test_float32_values(schedule, formulas):
    alpha, noised, dalpha = formulas
    t = jnp.asarray(grid())
    exact = np.asarray(t, np.float64)
    with np.errstate(divide="ignore"):
        low = np.minimum(noised(exact), 0.5)
        log_alpha = np.where(low < 0.5, np.log1p(-low), np.log(alpha(exact)))
        log_snr = log_alpha - np.log(noised(exact))
    ours = jax.jit(lambda t: {name: getattr(schedule, name)(t) for name in QUANTITIES})(t)
    assert_close(ours["alpha"], alpha(exact))
    assert_close(ours["one_minus_alpha"], noised(exact))
    assert_close(ours["dalpha"], dalpha(exact))
    assert_close(ours["weight"], -dalpha(exact) / noised(exact))
    assert_close(ours["sigma"], -log_alpha)
    # log-SNR crosses 0, where only its absolute size is meaningful.
    assert_close(ours["log_snr"], log_snr, floor=1.0)


@cases
def test_float32_gaps(schedule, formulas):
    """Against the integral of -alpha' in float64, which cancels nothing where s is near t."""
    t = grid()
    near = [(t.view(np.int32) - ulps).view(np.float32) for ulps in (1, 2, 7, 1000, 10**6)]
    far = [np.float32(share) * t for share in (1e-6, 0.01, 0.3, 0.49, 0.51, 0.9, 0.999)]
    s, t = np.concatenate(near + far), np.tile(t, len(near + far))
    reference = integral(formulas[2], s.astype(np.float64), t.astype(np.float64))
    assert_close(schedule.alpha_gap(jnp.asarray(s), jnp.asarray(t)), reference)
    from_clean = schedule.alpha_gap(jnp.zeros(len(t)), jnp.asarray(t))
    reference = integral(formulas[2], np.full(len(t), 1e-30), t.astype(np.float64))
    assert_close(from_clean, reference)


def integral(dalpha, s, t):
    """Integral of -alpha' from s to t: Gauss-Legendre in log time where t / s is large."""
    nodes, weights = np.polynomial.legendre.leggauss(60)
    panels = 8
    total = 0
    for i in range(panels):
        log_low, step = np.log(s) + i / panels * np.log(t / s), np.log1p((t - s) / s) / panels
        for x, w in zip(nodes, weights, strict=True):
            # time = low * exp(u), u in (0, step)
            time = np.exp(log_low + (1 + x) / 2 * step)
            total = total - w * step / 2 * time * dalpha(np.minimum(time, 1.0))
    return total
