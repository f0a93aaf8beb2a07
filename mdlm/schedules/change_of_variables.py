"""A schedule in another time, in which the log-probability of noise is linear.

    1 - alpha(t) = exp((1 - t) f_0 + t f_1),    f = log(1 - alpha) at the two ends
    weight       = f_1 - f_0, a constant: all times count alike

The NELBO does not depend on how time is measured; only the variance of its estimate does (MDLM,
arXiv:2406.07524).
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from mdlm.schedules.base import Schedule


@dataclass(frozen=True, kw_only=True)
class ChangeOfVariables(Schedule):
    """The schedule `base`, with time measured by log(1 - alpha).

    f_1 is that of `base` at t = 1. f_0 = log(1 - exp(-sigma_min)), since time cannot start at
    alpha = 1, where f is -inf. MDLM's code has sigma_min = 1e-3 for log-linear noise, and its
    weight is -f_0 alone, without f_1 (about -eps, a fraction of 1.4e-4 of the weight).
    """

    base: Schedule
    sigma_min: float = 1e-3
    has_inverse: ClassVar[bool] = True

    def __post_init__(self):
        if not 0 < self.sigma_min < math.log(2):
            raise ValueError(f"sigma_min={self.sigma_min}: must be between 0 and log 2 = 0.693")

    @property
    def _f_0(self) -> float:
        return math.log(-math.expm1(-self.sigma_min))

    @property
    def _f_1(self) -> Float[Array, ""]:
        return jnp.log1p(-self.base.alpha(jnp.ones(())))

    def _log_noised(self, t):
        return (1 - t) * self._f_0 + t * self._f_1

    def alpha(self, t, x_0=None):
        return -jnp.expm1(self._log_noised(t))

    def one_minus_alpha(self, t, x_0=None):
        return jnp.exp(self._log_noised(t))

    def alpha_gap(self, s, t, x_0=None):
        return -self.one_minus_alpha(t) * jnp.expm1((self._f_0 - self._f_1) * (t - s))

    def dalpha(self, t, x_0=None):
        return (self._f_0 - self._f_1) * self.one_minus_alpha(t)

    def weight(self, t, x_0=None):
        return jnp.full_like(t, self._f_1 - self._f_0)

    def time_of(self, one_minus_alpha):
        distance = jnp.log(one_minus_alpha) - self._f_0
        return jnp.clip(distance / (self._f_1 - self._f_0), 0.0, 1.0)

    def base_time(self, t: Float[Array, "*s"]) -> Float[Array, "*s"]:
        """Returns the time of `base` that is `t` in this schedule; `base` must have an inverse.

        Uniform `t` give the times of MDLM's importance sampling: density proportional to weight.
        """
        return self.base.time_of(self.one_minus_alpha(t))
