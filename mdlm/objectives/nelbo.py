"""The continuous-time negative evidence lower bound of absorbing diffusion.

    NELBO = int_{t_min}^1  w(t) E_{z_t} sum_{i masked} -log p(x_i | z_t) dt
          + E_{z_{t_min}} sum_{i masked} -log p(x_i | z_{t_min}),        w = -alpha' / (1 - alpha)

MDLM eq. 10 (arXiv:2406.07524), MD4 eq. 4 (arXiv:2406.04329): a mixture of masked-LM losses. The
second line is the reconstruction term. It needs no network call of its own: rows with u < t_min
are noised to t_min and have weight 1 / t_min, which for a log-linear schedule is just
t = max(u, t_min). The prior term is zero if alpha(1) = 0. A schedule that ends at alpha(1) = eps
leaves about a fraction eps of the tokens readable at t = 1, and the bound is short by the
information in them.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Key

from mdlm.diffusion import Diffusion
from mdlm.objectives.base import Objective, nelbo_without, noise_and_score, refuse_rates
from mdlm.processes.masked import Masked
from mdlm.schedules.base import Schedule
from mdlm.times import LowDiscrepancy, TimeSampler, restrict
from mdlm.types import Batch, LossTerms


@dataclass(frozen=True, kw_only=True)
class Nelbo(Objective):
    """Trains and reports the NELBO of a masked process, in nats.

    Args:
        times: how the uniform numbers that become times are drawn over the batch.
        t_min: the time at which the integral stops and the reconstruction begins.
        reconstruction: whether that last term is part of the loss. False is the published
            protocol: t uniform on [t_min, 1], the term dropped, the integral not rescaled.
        importance: draw t with density proportional to w(t), so that all rows have the same
            weight (MDLM appendix; the schedule must have an inverse).
    """

    times: TimeSampler = LowDiscrepancy()
    t_min: float = 1e-3
    reconstruction: bool = True
    importance: bool = False
    given: ClassVar[str] = ""
    """The tokens that the bound is conditioned on, for `protocol`."""

    def __post_init__(self):
        if not 0 < self.t_min < 1:
            raise ValueError(f"t_min={self.t_min}: must be between 0 and 1")

    @property
    def protocol(self) -> str:
        name = "NELBO"
        if not self.reconstruction:
            name = nelbo_without("reconstruction", where=f"t >= {self.t_min:g}")
        return f"{name}, continuous time{self.given}"

    def __call__(
        self, key: Key[Array, ""], batch: Batch, diffusion: Diffusion[Masked]
    ) -> LossTerms:
        return noise_and_score(
            key,
            batch,
            diffusion,
            times=self.times,
            times_and_weights=self.times_and_weights,
            may_change=self.may_change(batch),
        )

    def may_change(self, batch: Batch) -> Bool[Array, "b l"] | None:
        """Returns the tokens that noise may change; None for all valid ones."""
        return None

    def incompatibility(self, process, parameterization, network=None):
        reason = super().incompatibility(process, parameterization, network)
        if reason is not None:
            return reason
        if self.importance and not process.schedule.has_inverse:
            name = type(process.schedule).__name__
            return f"importance sampling of times needs a schedule with an inverse; {name} has none"
        return refuse_rates(process.schedule)

    def times_and_weights(
        self, schedule: Schedule, u: Float[Array, "b 1"]
    ) -> tuple[Float[Array, "b 1"], Float[Array, "b 1"]]:
        """Returns times and loss weights for uniform `u`: E[weight * CE(t)] over u is the bound."""
        if self.importance:
            return self._by_importance(schedule, u)
        if not self.reconstruction:
            t = restrict(u, self.t_min)
            return t, schedule.weight(t)
        t = jnp.maximum(u, self.t_min)
        return t, jnp.where(u < self.t_min, 1 / self.t_min, schedule.weight(t))

    def _by_importance(self, schedule, u):
        # f = log(1 - alpha) is the integral of w, so t uniform in f has a density proportional
        # to w. A share 1 / (1 + range of f) of the rows is for the reconstruction, whose weight is
        # then the same constant as that of all other rows.
        t_min = jnp.full_like(u, self.t_min)
        low = jnp.log(schedule.one_minus_alpha(t_min))
        high = jnp.log(schedule.one_minus_alpha(jnp.ones_like(u)))
        share = 1 / (1 + high - low) if self.reconstruction else jnp.zeros_like(u)
        v = jnp.maximum((u - share) / (1 - share), 0.0)
        t = schedule.time_of(jnp.exp(low + v * (high - low)))
        return jnp.clip(t, self.t_min, 1.0), (high - low) / (1 - share)
