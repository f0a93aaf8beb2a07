"""The continuous-time negative evidence lower bound of uniform-state diffusion.

    NELBO = int_{t_min}^1  E sum_i w (KL + IS) dt                       (see `interpolating`)
          + E sum_i -log p(x_i | z_{t_min})  +  sum_i KL(q(z_1 | x_i) || uniform)

UDLM (arXiv:2412.10193), Duo (arXiv:2506.10892). Under the exact distribution the integral is
H(x | z_1) - H(x | z_{t_min}), the information that noise removes between the two times. The second
line adds at least the information left out at the two ends. As in masked diffusion (`nelbo`), the
reconstruction needs no network call of its own: rows with u < t_min are noised to t_min and have
weight 1 / t_min. The last term, the prior term, is the same number for every token:

    KL(q(z_1 | x) || uniform) = (alpha + n) log(1 + (K - 1) alpha) + (K - 1) n log(1 - alpha),
    n = (1 - alpha) / K
"""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from mdlm.objectives.base import nelbo_without
from mdlm.objectives.interpolating import InterpolatingNelbo
from mdlm.processes.base import Process
from mdlm.processes.interpolating import Interpolating
from mdlm.processes.uniform import Uniform
from mdlm.times import BELOW_ONE, restrict


@dataclass(frozen=True, kw_only=True)
class UniformNelbo(InterpolatingNelbo):
    """Trains and reports the NELBO of uniform-state diffusion, in nats. All tokens count.

    Args:
        times: how the uniform numbers that become times are drawn over the batch.
        t_min: the time at which the integral stops and the reconstruction begins.
        ends: whether the reconstruction and the prior term are part of the bound (the
            reconstruction is trained too). False is the published protocol: t uniform on
            [t_min, 1], the integral alone and not rescaled.
    """

    processes: ClassVar[tuple[type[Process], ...]] = (Uniform,)
    ends: bool = True

    def __post_init__(self):
        if not 0 < self.t_min < 1:
            raise ValueError(f"t_min={self.t_min}: must be between 0 and 1")

    @property
    def protocol(self) -> str:
        name = "NELBO"
        if not self.ends:
            name = nelbo_without("reconstruction", "prior", where=f"t >= {self.t_min:g}")
        return f"{name}, continuous time, uniform noise"

    def prior_term(self, process: Interpolating) -> Float[Array, ""] | float:
        return prior_divergence(process) if self.ends else 0.0

    def times_and_weights(
        self, u: Float[Array, "b 1"]
    ) -> tuple[Float[Array, "b 1"], Bool[Array, "b 1"]]:
        t = jnp.maximum(u, self.t_min) if self.ends else restrict(u, self.t_min)
        # At t = 1 a schedule with alpha = 0 has an infinite rate.
        return jnp.minimum(t, BELOW_ONE), (u < self.t_min) & self.ends


def prior_divergence(process: Interpolating) -> Float[Array, ""]:
    """KL(q(z_1 | x_0) || uniform) of one token, in nats; 0 where alpha(1) = 0."""
    t, k = jnp.ones(()), process.tokens
    alpha, noised = process.schedule.alpha(t), process.schedule.one_minus_alpha(t)
    stays = alpha + noised / k
    return stays * jnp.log1p(alpha * (k - 1)) + (1 - stays) * jnp.log1p(-alpha)
