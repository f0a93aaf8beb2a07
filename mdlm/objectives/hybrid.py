"""GIDD's bound and its training weights (arXiv:2503.04482; log-SNR form, arXiv:2512.10858).

    NELBO = int E sum_i w (KL + IS) dt  over [t_min, 1 - t_min]          (see `interpolating`)
    loss  = the same with another weight v in place of w

    elbo                 v = w
    clip                 v = min(w, max_weight)
    dynamic_as_in_paper  v = 2 at masks, 1 at replaced tokens, (B / K) exp(-lambda / 2) at others
    dynamic_as_in_code   the same, but (B / (K + 1)) exp(gamma sigmoid(-t) / 2) at others
    log_snr              v = w / |d lambda / dt|

all but the first limited to max_weight. lambda is the log-SNR and B the process's amplitude. The
dynamic weights follow w as it is for likely tokens, without its growth at either end of time. The
public code of GIDD takes the sigmoid of -t where the paper has the log-SNR: its weight at
unchanged tokens hardly moves in time. log_snr is the scaling study's loss, an integral over
lambda with density alpha (1 - alpha), which is uniform t where alpha = 1 - t.

Under the exact law the integral is H(x | z_{1 - t_min}) - H(x | z_{t_min}): what noise at t_min
hides, and what little is still to be read at 1 - t_min, are not counted, as in the papers. With
`reconstruction` the integral ends at 1, and the first is, as in `nelbo`.
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
    """Trains KL + IS by `weights` and reports the NELBO, in nats. All tokens are scored.

    Args:
        weights: the weights that are trained with.
        max_weight: their upper limit ("elbo" has none). GIDD has 2, the scaling study 1000.
        times: how u is drawn over the batch, before it becomes a time.
        t_min: distance that times keep from both ends.
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
            raise ValueError(f"weights={self.weights!r} is none of {', '.join(get_args(Weights))}")
        if not self.max_weight > 0:
            raise ValueError(f"max_weight={self.max_weight} is not positive")
        if not 0 < self.t_min < 0.5:
            raise ValueError(f"t_min={self.t_min} is not between 0 and 1/2")

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
            return f"dynamic weights are those of process=Hybrid(...), not of {name}(...)"
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
        """v, the weight of KL + IS in the loss."""
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
