"""The variational bound of D3PM with absorbing noise, whose network may give the mask mass.

    NELBO = sum_{k=1}^T E sum_{i masked} KL(q(z_s | z_t, x_i) || p(z_s | z_t)),
            t = k / T,  s = (k - 1) / T

(D3PM, arXiv:2107.03006 eq. 1; MDLM, arXiv:2406.07524 app. A.2.) The network's step plugs its
distribution p in for x_0 in the posterior q(z_t | z_s) q(z_s | x_0) / q(z_t | x_0): with
p_m = p(mask)

    p(z_s = v | z_t = mask)    = (alpha_s - alpha_t) p(v) / (1 - alpha_t + alpha_t p_m)
    p(z_s = mask | z_t = mask) = (1 - alpha_s + alpha_s p_m) / (1 - alpha_t + alpha_t p_m)

and with r = (alpha_s - alpha_t) / (1 - alpha_t), the true probability of revealing, the
divergence is

    KL = r (log(1 + alpha_t p_m / (1 - alpha_t)) - log p(x_0))
       + (1 - r) log(1 - r p_m / (1 - alpha_s + alpha_s p_m))

whose last logarithm stands for the difference of two that nearly cancel. A token that is not masked
stays the same, in the noise and in the model, and costs nothing. At p_m = 0 this is
`DiscreteNelbo`. Otherwise p_m is wasted mass: the same network with p(v) / (1 - p_m) instead of p
reveals at the true rate and saves KL(Bernoulli(r) || Bernoulli(r')) per step, where r' is the
model's probability of revealing. `Reverse` samples from that one: `Masked.reverse` drops the
mask's mass.

If alpha(0) = 1, the step to s = 0 reveals all tokens that are left and is the reconstruction: the
second term is absent there, and the bound is complete. D3PM as published in MDLM adds one more
term, -log p(x_0) of every token when the network reads the clean row at t = 0
(`reconstruction=True`). A network that does not carry tokens over must be trained for that. It is
the bound of a chain that ends in a draw from p, and so a looser one.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, Key

from mdlm.diffusion import Diffusion
from mdlm.keys import stream
from mdlm.objectives.base import (
    Objective,
    ask,
    noised,
    uniform_of_rows,
    weighted_cross_entropy,
    weighted_sum,
    without_start,
)
from mdlm.parameterizations.base import Parameterization
from mdlm.parameterizations.mean import Mean
from mdlm.processes.base import Process
from mdlm.processes.masked import Masked
from mdlm.times import LowDiscrepancy, TimeSampler, step_of_chain
from mdlm.types import Batch, LossTerms


@dataclass(frozen=True, kw_only=True)
class D3PM(Objective):
    """Trains and reports the bound of the chain of `steps` steps, in nats.

    `reconstruction` adds the published last term, -log p(x_0) at t = 0 with the clean row as
    input, for every token. It costs one more network call.
    """

    parameterizations: ClassVar[tuple[type[Parameterization], ...]] = (Mean,)
    steps: int = 1000
    times: TimeSampler = LowDiscrepancy()
    reconstruction: bool = False

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"steps={self.steps}: must be at least 1")

    @property
    def protocol(self) -> str:
        added = ", with the loss of the clean row at t = 0" if self.reconstruction else ""
        return f"NELBO, discrete time, {self.steps} steps, D3PM{added}"

    def protocol_on(self, process: Process) -> str:
        return without_start(process, self.protocol)

    def incompatibility(self, process, parameterization, network=None):
        reason = super().incompatibility(process, parameterization, network)
        if reason is not None:
            return reason
        name = type(process.schedule).__name__
        if process.schedule.per_token:
            return f"needs a schedule with one rate for all tokens; {name} has one for each"
        if self.reconstruction and process.schedule.one_minus_alpha(jnp.zeros(())) > 0:
            return f"reconstruction=True needs alpha(0) = 1; {name} masks tokens at t = 0"
        return None

    def __call__(
        self, key: Key[Array, ""], batch: Batch, diffusion: Diffusion[Masked]
    ) -> LossTerms:
        with jax.named_scope("noise"):
            s, t = self.times_and_weights(uniform_of_rows(self.times, key, batch))
            z_t = noised(diffusion.process, key, batch, t)
        terms = score_step(
            batch, diffusion, z_t=z_t, s=s, t=t, scale=self.steps, key=stream(key, "dropout")
        )
        if not self.reconstruction:
            return terms
        last = score_clean(batch, diffusion, key=stream(key, "dropout at 0"))
        return replace(
            terms,
            total=terms.total + last.total,
            values=terms.values + last.values,
            bound=terms.bound + last.bound,
            scored=last.scored,
        )

    def times_and_weights(
        self, u: Float[Array, "b 1"]
    ) -> tuple[Float[Array, "b 1"], Float[Array, "b 1"]]:
        """Returns the step's times s = k / T and t = (k + 1) / T for uniform `u`."""
        return step_of_chain(u, self.steps)


def score_step(
    batch: Batch,
    diffusion: Diffusion[Masked],
    *,
    z_t: Int[Array, "b l"],
    s: Float[Array, "b 1"],
    t: Float[Array, "b 1"],
    scale: float,
    key: Key[Array, ""] | None = None,
) -> LossTerms:
    """Returns `scale` times the divergence of the step from `t` to `s` at the masked tokens."""
    process, parameterization = diffusion.process, diffusion.parameterization
    schedule = process.schedule
    alpha_s, alpha_t = schedule.alpha(s), schedule.alpha(t)
    noised_s, noised_t = schedule.one_minus_alpha(s), schedule.one_minus_alpha(t)
    gap = schedule.alpha_gap(s, t)
    ends_clean = noised_s == 0
    row_values = {
        "t": t,
        "odds": alpha_t / noised_t,
        "reveal": gap / noised_t,
        "stay_over_reveal": noised_s / gap,
        "alpha_s": alpha_s,
        "noised_s": jnp.where(ends_clean, 1.0, noised_s),
    }
    shape = batch.tokens.shape
    rows = {name: jnp.broadcast_to(value, shape) for name, value in row_values.items()}
    rows |= {"x_0": batch.tokens, "z_t": z_t}

    def divergence(logits, rows, _):
        """Returns KL / r, so that its weight is that of a cross-entropy."""
        z_t, t = rows["z_t"], rows["t"]
        log_p = parameterization.log_p0_of(rows["x_0"], logits, z_t, t)
        # At a masked token z_t is the mask.
        p_mask = jnp.exp(parameterization.log_p0_of(z_t, logits, z_t, t))
        share = p_mask / (rows["noised_s"] + rows["alpha_s"] * p_mask)
        return (
            jnp.log1p(rows["odds"] * p_mask)
            - log_p
            + rows["stay_over_reveal"] * jnp.log1p(-rows["reveal"] * share)
        )

    weight = jnp.where(process.is_masked(z_t), scale * gap / noised_t, 0.0)
    prediction = ask(diffusion.denoise, batch, tokens=z_t, t=t, key=key)
    return weighted_sum(prediction, batch, divergence, rows, weight, t)


def score_clean(
    batch: Batch, diffusion: Diffusion[Masked], *, key: Key[Array, ""] | None = None
) -> LossTerms:
    """Returns -log p(x_0) of every token when the network reads the clean row at t = 0."""
    t = jnp.zeros((batch.tokens.shape[0], 1))
    return weighted_cross_entropy(
        ask(diffusion.denoise, batch, tokens=batch.tokens, t=t, key=key),
        batch,
        parameterization=diffusion.parameterization,
        z_t=batch.tokens,
        t=t,
        weight=jnp.ones_like(t),
    )
