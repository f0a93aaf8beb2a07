"""The negative evidence lower bound of a diffusion with `steps` equal time steps.

    NELBO = sum_{k=1}^T  (alpha_s - alpha_t) / (1 - alpha_t) E sum_{i masked} -log p(x_i | z_t),
            t = k / T,  s = (k - 1) / T

(MDLM eq. 8, MD4 eq. 6, with SUBS.) One k is drawn per row and its term multiplied by T. The step to
s = 0 is the reconstruction, which is complete if alpha(0) = 1. s and t are computed from the
integer k and nothing is divided by s, so the step to s = 0 needs no special case.
"""

from dataclasses import dataclass

from jax import Array
from jaxtyping import Float, Key

from mdlm.diffusion import Diffusion
from mdlm.objectives.base import Objective, noise_and_score, refuse_rates, without_start
from mdlm.processes.base import Process
from mdlm.processes.masked import Masked
from mdlm.schedules.base import Schedule
from mdlm.times import LowDiscrepancy, TimeSampler, step_of_chain
from mdlm.types import Batch, LossTerms


@dataclass(frozen=True, kw_only=True)
class DiscreteNelbo(Objective):
    """Trains and reports the bound of the chain of `steps` steps, in nats."""

    steps: int = 1000
    times: TimeSampler = LowDiscrepancy()

    @property
    def protocol(self) -> str:
        return f"NELBO, discrete time, {self.steps} steps"

    def protocol_on(self, process: Process) -> str:
        return without_start(process, self.protocol)

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"steps={self.steps}: must be at least 1")

    def __call__(
        self, key: Key[Array, ""], batch: Batch, diffusion: Diffusion[Masked]
    ) -> LossTerms:
        return noise_and_score(
            key, batch, diffusion, times=self.times, times_and_weights=self.times_and_weights
        )

    def incompatibility(self, process, parameterization, network=None):
        reason = super().incompatibility(process, parameterization, network)
        return reason or refuse_rates(process.schedule)

    def times_and_weights(
        self, schedule: Schedule, u: Float[Array, "b 1"]
    ) -> tuple[Float[Array, "b 1"], Float[Array, "b 1"]]:
        """Returns times k / T, weights T (alpha_s - alpha_t) / (1 - alpha_t) for uniform `u`."""
        s, t = step_of_chain(u, self.steps)
        return t, self.steps * schedule.alpha_gap(s, t) / schedule.one_minus_alpha(t)
