"""The NELBO of a masked process in which each position has a time of its own.

    NELBO = sum_i int_0^1  w(t_i) dt_i/dt E_{z_t} [i masked] -log p(x_i | z_t) dt

with the times t_i of `mdlm.schedules.positions`, functions of one time t of the row. The masks of
positions are independent given their times, so the sum telescopes as it does for one time. With one
time it is `Nelbo`; with positions one after another the exact likelihood in that order.

A position with 0 < t_i < t_min is noised to t_min, at a weight that makes it the reconstruction.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Key

from mdlm.diffusion import Diffusion, wrong_kind
from mdlm.keys import by_row, stream
from mdlm.objectives.base import Objective, noised, refuse_rates, score_masked, uniform_of_rows
from mdlm.objectives.nelbo import Nelbo
from mdlm.processes.masked import Masked
from mdlm.schedules.positions import PositionTimes
from mdlm.times import LowDiscrepancy, TimeSampler
from mdlm.types import Batch, LossTerms


@dataclass(frozen=True, kw_only=True)
class Positional(Objective):
    """Trains and reports the NELBO with a time for each position, in nats.

    The network may attend to everything, or be causal: it is then fed noised tokens.

    Args:
        by: the time of each position.
        times: how the uniform numbers that become the times of rows are drawn over the batch.
        t_min: the time of a position below which the reconstruction begins.
    """

    by: PositionTimes
    times: TimeSampler = LowDiscrepancy()
    t_min: float = 1e-3

    def __post_init__(self):
        if not 0 < self.t_min < 1:
            raise ValueError(f"t_min={self.t_min}: must be between 0 and 1")

    @property
    def protocol(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        if not self.by.is_path:
            return "loss at independent times of positions (no bound)"
        return f"NELBO, continuous time, times of positions by {type(self.by).__name__}"

    def reported(self) -> Objective:
        return self if self.by.is_path else Nelbo()

    def incompatibility(self, process: Any, parameterization: Any, network: Any = None):
        # A causal network predicts a position from those before it, which may be noised.
        is_causal = network is not None and network.attends == "causal"
        reason = wrong_kind(self, process, parameterization, None if is_causal else network)
        return reason or refuse_rates(process.schedule)

    def __call__(
        self, key: Key[Array, ""], batch: Batch, diffusion: Diffusion[Masked]
    ) -> LossTerms:
        process = diffusion.process
        with jax.named_scope("noise"):
            u = uniform_of_rows(self.times, key, batch)
            keys = by_row(stream(key, "positions"), batch.row)
            own, rate = self.by.with_rates(keys, u, batch.tokens.shape[1])
            is_early = (own > 0) & (own < self.t_min)
            t = jnp.where(is_early, self.t_min, own)
            weight = jnp.where(is_early, 1 / self.t_min, process.schedule.weight(t))
            weight = jnp.where((rate > 0) & (own > 0), rate * weight, 0.0)
            z_t = noised(process, key, batch, t)
        return score_masked(
            batch, diffusion, z_t=z_t, t=t, weight=weight, key=stream(key, "dropout")
        )
