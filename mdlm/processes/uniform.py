"""Uniform-state noise: a token stays clean with probability alpha(t), else it is a uniform draw.

    q(z_t | x_0)     = alpha [z_t = x_0] + (1 - alpha) / K
    q(z_t | z_s)     = (alpha_t / alpha_s) [z_t = z_s] + (alpha_s - alpha_t) / (alpha_s K)
    rate of a jump   = -alpha' / (alpha K), to each other token

(D3PM, arXiv:2107.03006; UDLM, arXiv:2412.10193; Duo, arXiv:2506.10892.) The states are the K ids
below `vocab_size` other than the mask, which this process never produces. The uniform draw may
return the same token. Reversal: see `interpolating`.
"""

from dataclasses import dataclass

import jax.numpy as jnp

from mdlm.processes.interpolating import TINY, Interpolating
from mdlm.schedules.base import Schedule
from mdlm.schedules.closed_form import LogLinear


@dataclass(frozen=True, kw_only=True)
class Uniform(Interpolating):
    """Uniform noise on the tokens other than the mask. The prior is a uniform draw.

    By default the network's distribution is plugged into the posterior, as in the papers;
    `UniformNelbo` is the bound of that chain.
    """

    schedule: Schedule = LogLinear()

    def noise(self, t):
        token = self.schedule.one_minus_alpha(t) / self.tokens
        return token, jnp.zeros_like(token)

    def renewal(self, s, t):
        gap = self.schedule.alpha_gap(s, t)
        token = gap / jnp.maximum(self.schedule.alpha(s), TINY) / self.tokens
        return token, jnp.zeros_like(token)

    def rate(self, t):
        token = -self.schedule.dalpha(t) / jnp.maximum(self.schedule.alpha(t), TINY) / self.tokens
        return token, jnp.zeros_like(token)
