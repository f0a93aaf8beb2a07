"""Noise that is partly the mask and partly uniform tokens (GIDD, arXiv:2503.04482).

In time, with u uniform on the K tokens and m the mask (`Hybrid`):

    c_t = B (t (1 - t))^(gamma / 2),   B = 2^gamma p / (1 - p),   C_t = 1 + c_t
    alpha_t = (1 - t) / C_t,   noise_t = (t m + c_t u) / C_t

so that at t = 1/2 a token has been drawn uniformly with probability p (the maximum over time if
gamma = 1), and at t = 1 every token is the mask. In the log-SNR lambda = log(alpha / (1 - alpha))
of any schedule (`LogSNRHybrid`, arXiv:2512.10858):

    noise_t = (1 - alpha_t) (xi u + (1 - xi) m),   xi = sigmoid(scale lambda + shift)

A large positive shift is uniform noise, a large negative one masking. Near t = 0 noise is mostly
uniform, near t = 1 mostly the mask. Reversal: see `interpolating`.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from mdlm.processes.interpolating import TINY, Interpolating
from mdlm.schedules.base import Schedule
from mdlm.schedules.closed_form import LogLinear

LOWEST = -20.0
"""B and p are at least exp(LOWEST), as in GIDD's code: with p_uniform = 0 about one token in
10^9 is still noised to another one, too few for float32 to tell from masking."""

LARGE = 200.0
"""A difference of log-SNRs that stands for an infinite one."""


@dataclass(frozen=True, kw_only=True)
class HybridSchedule(Schedule):
    """alpha of `Hybrid`. `p_uniform`, the paper's p_u, is the amount of uniform noise; `gamma`
    is how that noise is spread over time.

    gamma is at most 2: beyond, the share of uniform tokens would have to fall faster near t = 1
    than tokens turn into masks.
    """

    p_uniform: float = 0.1
    gamma: float = 1.0

    def __post_init__(self):
        if not 0 <= self.p_uniform < 1:
            raise ValueError(f"p_uniform={self.p_uniform}: must be in [0, 1)")
        if not 0 < self.gamma <= 2:
            raise ValueError(f"gamma={self.gamma}: must be in (0, 2]")

    @property
    def log_amplitude(self) -> float:
        """log B."""
        p = max(self.p_uniform, math.exp(LOWEST))
        return max(self.gamma * math.log(2) + math.log(p / (1 - p)), LOWEST)

    def uniform(self, t):
        """Returns c_t, uniform noise in units of 1 / C_t."""
        return math.exp(self.log_amplitude) * (t * (1 - t)) ** (self.gamma / 2)

    def uniform_slope(self, t):
        """c_t + (1 - t) c_t' = (1 - t)^2 (c_t / (1 - t))', which is not negative."""
        # t^(gamma / 2 - 1) is a factor of its own: near 0 this keeps the digits of c_t / t, which
        # grows without limit there.
        amplitude = math.exp(self.log_amplitude) * (1 - t) ** (self.gamma / 2)
        return amplitude * t ** (self.gamma / 2 - 1) * (self.gamma / 2 + (1 - self.gamma) * t)

    def uniform_gain(self, s, t):
        """c_t - (1 - t) / (1 - s) c_s, the part of uniform noise that was added since `s`."""
        rise = self.gamma / 2 * jnp.log1p((t - s) / jnp.maximum(s, TINY))
        if self.gamma < 2:
            rest = jnp.log1p(-(t - s) / jnp.maximum(1 - s, TINY))
            rise = rise - (1 - self.gamma / 2) * rest
        return self.uniform(t) * -jnp.expm1(-rise)

    def alpha(self, t, x_0=None):
        return (1 - t) / (1 + self.uniform(t))

    def one_minus_alpha(self, t, x_0=None):
        c = self.uniform(t)
        return (t + c) / (1 + c)

    def alpha_gap(self, s, t, x_0=None):
        gain = (t - s) + (1 - s) * self.uniform_gain(s, t)
        return gain / ((1 + self.uniform(s)) * (1 + self.uniform(t)))

    def dalpha(self, t, x_0=None):
        return -(1 + self.uniform_slope(t)) / (1 + self.uniform(t)) ** 2

    def log_snr(self, t, x_0=None):
        return jnp.log1p(-t) - jnp.log(t + self.uniform(t))


@dataclass(frozen=True, kw_only=True)
class Hybrid(Interpolating):
    """GIDD's process in its time form: `Hybrid(schedule=HybridSchedule(p_uniform=0.2))`.

    With p_uniform = 0 it is masking with 1 - alpha = t. The prior is all masks.
    """

    schedule: HybridSchedule = HybridSchedule()

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.schedule, HybridSchedule):
            kind = type(self.schedule).__name__
            raise ValueError(f"schedule={kind}(...): Hybrid needs schedule=HybridSchedule(...)")

    def is_noise(self, z_t):
        return z_t == self._known()[0]

    def noise(self, t):
        c = self.schedule.uniform(t)
        return c / (1 + c) / self.tokens, t / (1 + c)

    def renewal(self, s, t):
        total = 1 + self.schedule.uniform(t)
        token = self.schedule.uniform_gain(s, t) / total / self.tokens
        return token, (t - s) / jnp.maximum(1 - s, TINY) / total

    def rate(self, t):
        scale = (1 - t) * (1 + self.schedule.uniform(t))
        return self.schedule.uniform_slope(t) / scale / self.tokens, 1 / scale


@dataclass(frozen=True, kw_only=True)
class LogSNRHybrid(Interpolating):
    """GIDD's process in its log-SNR form, for any schedule of alpha.

    In the paper the log-SNR runs from 9 to -9, scale is 1, and shift is between -1000 (masking)
    and 1000 (uniform). With a scale above 1, noised tokens would become clean again. The prior is
    the noise at t = 1. If the schedule ends at alpha = 0 that is all masks for every shift, an
    input that a network trained with a large shift has never seen: give such a schedule an eps.
    """

    schedule: Schedule = LogLinear(eps=1e-4)
    scale: float = 1.0
    shift: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.scale <= 1:
            raise ValueError(f"scale={self.scale}: must be in (0, 1]")
        if not math.isfinite(self.shift):
            raise ValueError(f"shift={self.shift}: must be finite")

    def is_noise(self, z_t):
        return z_t == self._known()[0]

    def _logit(self, t):
        """The log-odds that a noised token is uniform and not the mask."""
        return self.scale * self.schedule.log_snr(t) + self.shift

    def noise(self, t):
        noised, logit = self.schedule.one_minus_alpha(t), self._logit(t)
        return noised * jax.nn.sigmoid(logit) / self.tokens, noised * jax.nn.sigmoid(-logit)

    def renewal(self, s, t):
        # n_t - kept n_s = n_t (1 - h_s / h_t) where h = n / alpha, and for the two kinds of noise
        # h is exp(-lambda) sigmoid(+-logit): the difference of two close numbers becomes a sum.
        fall = self._fall(s, t)
        uniform, mask = jax.nn.sigmoid(self._logit(s)), jax.nn.sigmoid(-self._logit(s))
        same = -jnp.expm1(-fall)
        token = uniform * same - mask * jnp.expm1((self.scale - 1) * fall)
        to_mask = mask * same - uniform * jnp.expm1((-self.scale - 1) * fall)
        token_t, mask_t = self.noise(t)
        return token_t * token, mask_t * to_mask

    def rate(self, t):
        token, mask = self.noise(t)
        logit = self._logit(t)
        # -d lambda / dt = -alpha' / (alpha (1 - alpha))
        fall = self.schedule.weight(t) / jnp.maximum(self.schedule.alpha(t), TINY)
        uniform, other = jax.nn.sigmoid(logit), jax.nn.sigmoid(-logit)
        # 1 - scale * other, which is small near t = 1 for a scale of 1.
        leaves = uniform + (1 - self.scale) * other
        return token * fall * leaves, mask * fall * (1 + self.scale * uniform)

    def _fall(self, s, t):
        """lambda_s - lambda_t, computed from the gap in alpha, at most `LARGE`."""
        gap = self.schedule.alpha_gap(s, t)
        noised = gap / jnp.maximum(self.schedule.one_minus_alpha(s), TINY)
        lost = gap / jnp.maximum(self.schedule.alpha(s), TINY)
        return jnp.minimum(jnp.log1p(noised) - jnp.log1p(-jnp.minimum(lost, 1.0)), LARGE)
