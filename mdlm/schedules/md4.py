"""The schedules of MD4 (arXiv:2406.04329, table 1). Their eps keeps alpha away from 0 and 1.

    alpha = eps + (1 - 2 eps) a(t),    a = 1 - t^power  or  1 - sin(pi t / 2)

alpha falls from 1 - eps, which bounds the weight and log-SNR near t = 0, to eps. 1 - alpha is
computed from 1 - a in closed form, so that float32 keeps its digits there. MD4 has eps = 1e-4.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from mdlm.schedules.base import Schedule, check_eps


def relative_gap(
    s: Float[Array, "*s"], t: Float[Array, "*s"], power: Float[Array, "*#s"] | float
) -> Float[Array, "*s"]:
    """(s^power - t^power) / t^power for s <= t, accurate in float32 however close s is to t.

    It is expm1(power log(s / t)); near s = t the logarithm is computed from t - s.
    """
    later = jnp.where(t > 0, t, 1.0)
    ratio = s / later
    is_near = ratio > 0.5
    far = jnp.log(jnp.where(is_near, 0.5, ratio))
    near = jnp.log1p(jnp.where(is_near, -(t - s) / later, 0.0))
    return jnp.expm1(power * jnp.where(is_near, near, far))


@dataclass(frozen=True, kw_only=True)
class Polynomial(Schedule):
    """alpha = eps + (1 - 2 eps)(1 - t^power); `power` 1 is MD4's "linear". `eps` bounds alpha."""

    power: float
    eps: float = 0.0
    has_inverse: ClassVar[bool] = True

    def __post_init__(self):
        check_eps(self.eps, 0.5)
        if not self.power > 0:
            raise ValueError(f"power={self.power}: must be above 0")

    def alpha(self, t, x_0=None):
        return self.eps - (1 - 2 * self.eps) * jnp.expm1(self.power * jnp.log(t))

    def one_minus_alpha(self, t, x_0=None):
        return self.eps + (1 - 2 * self.eps) * t**self.power

    def alpha_gap(self, s, t, x_0=None):
        return -(1 - 2 * self.eps) * t**self.power * relative_gap(s, t, self.power)

    def dalpha(self, t, x_0=None):
        return -(1 - 2 * self.eps) * self.power * t ** (self.power - 1)

    def weight(self, t, x_0=None):
        if self.eps == 0:
            return self.power / t
        return -self.dalpha(t) / self.one_minus_alpha(t)

    def time_of(self, one_minus_alpha):
        bare = jnp.clip((one_minus_alpha - self.eps) / (1 - 2 * self.eps), 0.0, 1.0)
        return bare ** (1 / self.power)


@dataclass(frozen=True, kw_only=True)
class OneMinusSine(Schedule):
    """alpha = eps + (1 - 2 eps)(1 - sin(pi t / 2)), MD4's "cosine": 1 - cos(pi (1 - t) / 2).

    MDLM's "cosine" is another schedule, `Cosine`. This one is steepest at t = 0: the probability
    that a token is masked grows there by pi / 2 per unit of time, and stops growing at t = 1.
    """

    eps: float = 0.0
    has_inverse: ClassVar[bool] = True

    def __post_init__(self):
        check_eps(self.eps, 0.5)

    def alpha(self, t, x_0=None):
        # 1 - sin is cos^2 / (1 + sin): exactly 1 and 0 at the ends, and no subtraction between.
        cosine, sine = jnp.sin(math.pi / 2 * (1 - t)), jnp.sin(math.pi / 2 * t)
        return self.eps + (1 - 2 * self.eps) * cosine**2 / (1 + sine)

    def one_minus_alpha(self, t, x_0=None):
        return self.eps + (1 - 2 * self.eps) * jnp.sin(math.pi / 2 * t)

    def alpha_gap(self, s, t, x_0=None):
        # The cosine of pi (t + s) / 4, which loses its digits where t and s are near 1.
        cosine = jnp.sin(math.pi / 4 * ((1 - t) + (1 - s)))
        return 2 * (1 - 2 * self.eps) * cosine * jnp.sin(math.pi / 4 * (t - s))

    def dalpha(self, t, x_0=None):
        return -(1 - 2 * self.eps) * math.pi / 2 * jnp.sin(math.pi / 2 * (1 - t))

    def weight(self, t, x_0=None):
        return -self.dalpha(t) / self.one_minus_alpha(t)

    def time_of(self, one_minus_alpha):
        bare = jnp.clip((one_minus_alpha - self.eps) / (1 - 2 * self.eps), 0.0, 1.0)
        return jnp.clip(2 / math.pi * jnp.arcsin(bare), 0.0, 1.0)
