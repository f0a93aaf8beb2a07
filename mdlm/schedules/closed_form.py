"""Schedules in closed form: alpha(t), the probability that a token is still clean at time t.

    alpha            falls from about 1 at t = 0 (clean) to about 0 at t = 1 (noise)
    one_minus_alpha  the probability that a token is noised by t
    alpha_gap        alpha(s) - alpha(t), s <= t: that it is noised between s and t
    dalpha           alpha' = d alpha / dt <= 0
    weight           -alpha' / (1 - alpha): the NELBO's weight of a masked token's cross-entropy
    log_snr          log(alpha / (1 - alpha))
    sigma            -log alpha, the total noise

A schedule must define `alpha` alone. It overrides those other functions for which float32
subtraction or autodiff loses digits: 1 - alpha near t = 0, alpha near t = 1, and gaps between
close times. `eps` keeps alpha away from 0 at t = 1: about a fraction eps of all tokens stays
clean there, and log-SNR and sigma stay finite.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp

from mdlm.schedules.base import Schedule, check_eps


@dataclass(frozen=True, kw_only=True)
class LogLinear(Schedule):
    """alpha = 1 - (1 - eps) t, "log-linear" in MDLM (arXiv:2406.07524), "linear" in others.

    The weight is 1 / t for every eps.
    """

    eps: float = 1e-3
    has_inverse: ClassVar[bool] = True

    def __post_init__(self):
        check_eps(self.eps, 1.0)

    def alpha(self, t, x_0=None):
        return (1 - t) + self.eps * t

    def one_minus_alpha(self, t, x_0=None):
        return (1 - self.eps) * t

    def alpha_gap(self, s, t, x_0=None):
        return (1 - self.eps) * (t - s)

    def time_of(self, one_minus_alpha):
        return jnp.clip(one_minus_alpha / (1 - self.eps), 0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """alpha = eps + (1 - eps) cos(pi t / 2) (MDLM). MD4's cosine is `OneMinusSine`."""

    eps: float = 1e-3
    has_inverse: ClassVar[bool] = True

    def __post_init__(self):
        check_eps(self.eps, 1.0)

    def alpha(self, t, x_0=None):
        return self.eps + (1 - self.eps) * jnp.sin(math.pi / 2 * (1 - t))

    def one_minus_alpha(self, t, x_0=None):
        return 2 * (1 - self.eps) * jnp.sin(math.pi / 4 * t) ** 2

    def alpha_gap(self, s, t, x_0=None):
        rise = jnp.sin(math.pi / 4 * (t + s)) * jnp.sin(math.pi / 4 * (t - s))
        return 2 * (1 - self.eps) * rise

    def dalpha(self, t, x_0=None):
        return -(1 - self.eps) * math.pi / 2 * jnp.sin(math.pi / 2 * t)

    def weight(self, t, x_0=None):
        return math.pi / 2 / jnp.tan(math.pi / 4 * t)

    def time_of(self, one_minus_alpha):
        square = jnp.clip(one_minus_alpha / (1 - self.eps), 0.0, 1.0) / 2
        return jnp.clip(4 / math.pi * jnp.arcsin(jnp.sqrt(square)), 0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class CosineSquared(Schedule):
    """alpha = eps + (1 - eps) cos^2(pi t / 2) (MDLM)."""

    eps: float = 1e-3
    has_inverse: ClassVar[bool] = True

    def __post_init__(self):
        check_eps(self.eps, 1.0)

    def alpha(self, t, x_0=None):
        return self.eps + (1 - self.eps) * jnp.sin(math.pi / 2 * (1 - t)) ** 2

    def one_minus_alpha(self, t, x_0=None):
        return (1 - self.eps) * jnp.sin(math.pi / 2 * t) ** 2

    def alpha_gap(self, s, t, x_0=None):
        # sin(pi x / 2) is the same at x and at 2 - x; the smaller argument keeps its digits.
        total = jnp.minimum(t + s, (1 - t) + (1 - s))
        rise = jnp.sin(math.pi / 2 * total) * jnp.sin(math.pi / 2 * (t - s))
        return (1 - self.eps) * rise

    def dalpha(self, t, x_0=None):
        product = jnp.sin(math.pi / 2 * t) * jnp.sin(math.pi / 2 * (1 - t))
        return -(1 - self.eps) * math.pi * product

    def weight(self, t, x_0=None):
        return math.pi * jnp.sin(math.pi / 2 * (1 - t)) / jnp.sin(math.pi / 2 * t)

    def time_of(self, one_minus_alpha):
        square = jnp.clip(one_minus_alpha / (1 - self.eps), 0.0, 1.0)
        return jnp.clip(2 / math.pi * jnp.arcsin(jnp.sqrt(square)), 0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class LinearSigma(Schedule):
    """sigma = (1 - t) sigma_min + t sigma_max (MDLM's "linear")."""

    sigma_min: float = 1e-3
    sigma_max: float = 7.0
    has_inverse: ClassVar[bool] = True

    def __post_init__(self):
        _check_sigma(self.sigma_min, self.sigma_max, lowest_allowed=True)

    def sigma(self, t, x_0=None):
        return (1 - t) * self.sigma_min + t * self.sigma_max

    def alpha(self, t, x_0=None):
        return jnp.exp(-self.sigma(t))

    def one_minus_alpha(self, t, x_0=None):
        return -jnp.expm1(-self.sigma(t))

    def alpha_gap(self, s, t, x_0=None):
        return -self.alpha(s) * jnp.expm1((self.sigma_min - self.sigma_max) * (t - s))

    def time_of(self, one_minus_alpha):
        sigma = -jnp.log1p(-one_minus_alpha)
        return jnp.clip((sigma - self.sigma_min) / (self.sigma_max - self.sigma_min), 0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Geometric(Schedule):
    """sigma = sigma_min^(1 - t) sigma_max^t ("geometric" in SEDD, arXiv:2310.16834, and MDLM)."""

    sigma_min: float = 1e-4
    sigma_max: float = 20.0
    has_inverse: ClassVar[bool] = True

    def __post_init__(self):
        _check_sigma(self.sigma_min, self.sigma_max)

    @property
    def _rate(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def sigma(self, t, x_0=None):
        return self.sigma_max * jnp.exp(-self._rate * (1 - t))

    def alpha(self, t, x_0=None):
        return jnp.exp(-self.sigma(t))

    def one_minus_alpha(self, t, x_0=None):
        return -jnp.expm1(-self.sigma(t))

    def alpha_gap(self, s, t, x_0=None):
        return -self.alpha(s) * jnp.expm1(self.sigma(t) * jnp.expm1(-self._rate * (t - s)))

    def time_of(self, one_minus_alpha):
        sigma = -jnp.log1p(-one_minus_alpha)
        return jnp.clip(1 + jnp.log(sigma / self.sigma_max) / self._rate, 0.0, 1.0)


def _check_sigma(sigma_min: float, sigma_max: float, lowest_allowed: bool = False) -> None:
    is_ok = 0 <= sigma_min if lowest_allowed else 0 < sigma_min
    if not (is_ok and sigma_min < sigma_max < math.inf):
        raise ValueError(
            f"sigma_min={sigma_min}, sigma_max={sigma_max}: must satisfy"
            f" 0 {'<=' if lowest_allowed else '<'} sigma_min < sigma_max < inf"
        )
