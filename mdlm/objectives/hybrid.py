"""GIDD's bound and its training weights (arXiv:2503.04482; log-SNR form, arXiv:2512.10858).

    NELBO = int E sum_i w (KL + IS) dt  over [t_min, 1 - t_min]          (see `interpolating`)
    loss  = the same with another weight v instead of w

    elbo                 v = w
    clip                 v = min(w, max_weight)
    dynamic_as_in_paper  v = 2 at masks, 1 at replaced tokens, (B / K) exp(-lambda / 2) at others
    dynamic_as_in_code   the same, but (B / (K + 1)) exp(gamma sigmoid(-t) / 2) at others
    log_snr              v = w / |d lambda / dt|

All but the first are limited to max_weight. lambda is the log-SNR, B the amplitude of the process.
The dynamic weights follow w of likely tokens, without its growth at either end of time. The public
code of GIDD has the sigmoid of -t where the paper has the log-SNR: its weight at unchanged tokens
hardly changes over time. log_snr is the scaling study's loss, an integral over
lambda with density alpha (1 - alpha), which is uniform t where alpha = 1 - t.

Under the exact distribution the integral is H(x | z_{1 - t_min}) - H(x | z_{t_min}). As in the
papers it leaves out the information that noise at t_min hides, and the little that is readable at
1 - t_min. With `reconstruction` the integral ends at t = 1, and the first part is added, as in
`nelbo`.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from mdlm.objectives.base import nelbo_without
from mdlm.objectives.interpolating import InterpolatingNelbo, elbo_weight
from mdlm.processes.base import Process
from mdlm.processes.hybrid import Hybrid, LogSNRHybrid
from mdlm.processes.interpolating import TINY, Interpolating
from mdlm.times import BELOW_ONE, Antithetic, TimeSampler

Weights = Literal["elbo", "clip", "dynamic_as_in_paper", "dynamic_as_in_code", "log_snr"]


@dataclass(frozen=True, kw_only=True)
class HybridNelbo(InterpolatingNelbo):
    """Trains KL + IS with `weights` and reports the NELBO, in nats. All tokens count.

    Args:
        weights: the weights of the training loss.
        max_weight: their upper limit ("elbo" has none). GIDD has 2, the scaling study 1000.
        times: how the uniform numbers that become times are drawn over the batch.
        t_min: smallest distance of times from 0 and 1.
        reconstruction: whether the step from t_min to clean tokens is part of loss and bound.
    """

    processes: ClassVar[tuple[type[Process], ...]] = (Hybrid, LogSNRHybrid)
    weights: Weights = "dynamic_as_in_paper"
    max_weight: float = 2.0
    times: TimeSampler = Antithetic()
    t_min: float = 1e-4
    reconstruction: bool = False

    def __post_init__(self):
        if self.weights not in get_args(Weights):
            raise ValueError(
                f"weights={self.weights!r}: must be one of {', '.join(get_args(Weights))}"
            )
        if not self.max_weight > 0:
            raise ValueError(f"max_weight={self.max_weight}: must be above 0")
        if not 0 < self.t_min < 0.5:
            raise ValueError(f"t_min={self.t_min}: must be between 0 and 1/2")

    @property
    def protocol(self) -> str:
        name = "NELBO"
        if not self.reconstruction:
            between = f"{self.t_min:g} <= t <= {1 - self.t_min:g}"
            name = nelbo_without("reconstruction", "prior", where=between)
        return f"{name}, continuous time, hybrid noise"

    def protocol_on(self, process: Process) -> str:
        if not self.reconstruction or not process.schedule.alpha(jnp.ones(())) > 0:
            return self.protocol
        left_out = nelbo_without("prior", where="alpha(1) > 0")
        return self.protocol.replace("NELBO", left_out, 1)

    def incompatibility(self, process, parameterization, network=None):
        reason = super().incompatibility(process, parameterization, network)
        if reason is not None:
            return reason
        if self.weights.startswith("dynamic") and not isinstance(process, Hybrid):
            name = type(process).__name__
            return f"dynamic weights need process=Hybrid(...), not {name}(...)"
        return None

    def times_and_weights(
        self, u: Float[Array, "b 1"]
    ) -> tuple[Float[Array, "b 1"], Bool[Array, "b 1"]]:
        if self.reconstruction:
            return jnp.clip(u, self.t_min, BELOW_ONE), u < self.t_min
        return self.t_min + (1 - 2 * self.t_min) * u, jnp.zeros_like(u, bool)

    def training_weight(
        self,
        process: Interpolating,
        z_t: Int[Array, "b l"],
        x_0: Int[Array, "b l"],
        t: Float[Array, "b l"],
    ) -> Float[Array, "b l"]:
        """Returns v, the weight of KL + IS in the loss."""
        if isinstance(process, Hybrid) and self.weights.startswith("dynamic"):
            schedule = process.schedule
            if self.weights == "dynamic_as_in_code":
                rise = schedule.gamma / 2 * jax.nn.sigmoid(-t) - jnp.log(process.tokens + 1)
            else:
                rise = -schedule.log_snr(t) / 2 - jnp.log(process.tokens)
            same = jnp.exp(schedule.log_amplitude + rise)
            weight = jnp.where(process.is_noise(z_t), 2.0, jnp.where(z_t == x_0, same, 1.0))
            return jnp.minimum(weight, self.max_weight)
        weight = elbo_weight(process, z_t, x_0, t)
        if self.weights == "elbo":
            return weight
        if self.weights == "log_snr":
            schedule = process.schedule
            weight = weight * schedule.alpha(t) / jnp.maximum(schedule.weight(t), TINY)
        return jnp.minimum(weight, self.max_weight)
