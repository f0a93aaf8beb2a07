"""The loss of processes that interpolate between a token and noise (uniform, hybrid).

With q_t(. | x) and p_t = q_t(. | r), where r is the distribution of the clean token that the
reverse chain plugs in (see `mdlm.processes.interpolating`), the NELBO of the continuous-time chain
is, per token and unit of time,

    w (KL + IS),   w = rate_t(z) / q_t(z | x)
    KL = sum_k q_t(k | x) log(q_t(k | x) / p_t(k)),   IS = h - log h - 1 at h = q_t(z | x) / p_t(z)

(GIDD, arXiv:2503.04482; for uniform noise it equals that of UDLM, arXiv:2412.10193.) It
is the Bregman divergence, sum over j != z of a_j log(a_j / b_j) - a_j + b_j, between the rates of
jumps from z to j backwards in time, a_j = rate_t(z) q_t(j | x) / q_t(z | x) for known x and
b_j = rate_t(z) p_t(j) / p_t(z) under the model. The model's chain is the one that `process.reverse`
draws from, for either `process.posterior`. All positions count.

Let L(x) = log(1 + alpha r(x) / n_t(token)), and log_own the same with r = 1. The following form
subtracts no two close numbers where float32 would lose digits:

    KL = (alpha + n) (log_own - L(x)) - n sum over k != x of L(k),   log h = [z = x] log_own - L(z)
"""

import abc
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int, Key

from mdlm.diffusion import Diffusion
from mdlm.keys import stream
from mdlm.objectives.base import Objective, ask, noised, uniform_of_rows
from mdlm.parameterizations.base import Parameterization
from mdlm.parameterizations.mean import Mean
from mdlm.processes.interpolating import TINY, Interpolating, log
from mdlm.times import LowDiscrepancy, TimeSampler
from mdlm.types import Batch, LossTerms


@dataclass(frozen=True, kw_only=True)
class InterpolatingNelbo(Objective):
    """Base of the bounds of uniform and of hybrid noise. All tokens count, also clean ones.

    Args:
        times: how the uniform numbers that become times are drawn over the batch.
        t_min: the time at which the integral stops.
    """

    parameterizations: ClassVar[tuple[type[Parameterization], ...]] = (Mean,)
    times: TimeSampler = LowDiscrepancy()
    t_min: float = 1e-3

    @abc.abstractmethod
    def times_and_weights(
        self, u: Float[Array, "b 1"]
    ) -> tuple[Float[Array, "b 1"], Bool[Array, "b 1"]]:
        """Returns times for uniform `u`, and True at rows that are for the reconstruction."""

    def training_weight(
        self,
        process: Interpolating,
        z_t: Int[Array, "b l"],
        x_0: Int[Array, "b l"],
        t: Float[Array, "b l"],
    ) -> Float[Array, "b l"]:
        """Returns the weight of KL + IS in the loss; by default that of the bound."""
        return elbo_weight(process, z_t, x_0, t)

    def prior_term(self, process: Interpolating) -> Float[Array, ""] | float:
        """Returns the bound's prior term for each token: the divergence of z_1 from the prior."""
        return 0.0

    def incompatibility(self, process, parameterization, network=None):
        reason = super().incompatibility(process, parameterization, network)
        if reason is not None:
            return reason
        if isinstance(parameterization, Mean) and parameterization.mask_has_mass:
            return "a clean token is never the mask; use parameterization=Mean(mask_has_mass=False)"
        return None

    def __call__(
        self, key: Key[Array, ""], batch: Batch, diffusion: Diffusion[Interpolating]
    ) -> LossTerms:
        with jax.named_scope("noise"):
            t, is_last = self.times_and_weights(uniform_of_rows(self.times, key, batch))
            z_t = noised(diffusion.process, key, batch, t)
        return self.score_noised(
            batch,
            diffusion,
            z_t=z_t,
            t=t,
            is_last=is_last,
            key=stream(key, "dropout"),
        )

    def score_noised(
        self,
        batch: Batch,
        diffusion: Diffusion[Interpolating],
        *,
        z_t: Int[Array, "b l"],
        t: Float[Array, " b #l"],
        is_last: Bool[Array, " b #l"],
        key: Key[Array, ""] | None = None,
    ) -> LossTerms:
        """Returns the loss and the bound of given noised rows.

        The loss is the training weight times KL + IS, the bound its own weight times the same.
        Where `is_last`, both are 1 / t_min times the cross-entropy of the step to clean tokens.
        """
        process = diffusion.process
        count = batch.loss_mask.astype(jnp.float32)
        rows = {
            "x_0": batch.tokens,
            "z_t": z_t,
            "t": jnp.broadcast_to(t, z_t.shape),
            "is_last": jnp.broadcast_to(is_last, z_t.shape),
        }
        noised_rows = (process, z_t, batch.tokens, rows["t"])
        trained, bound_weight = (
            jnp.where(is_last, 1 / self.t_min, weight).astype(jnp.float32) * count
            for weight in (self.training_weight(*noised_rows), elbo_weight(*noised_rows))
        )

        def loss(logits, rows, _):
            z_t, t = rows["z_t"], rows["t"]
            log_p0 = diffusion.parameterization.log_p0(logits, z_t, t)
            kl, divergence, cross_entropy = divergences(process, log_p0, z_t, rows["x_0"], t)
            return jnp.where(rows["is_last"], cross_entropy, kl + divergence)

        prediction = ask(diffusion.denoise, batch, tokens=z_t, t=t, key=key)
        with jax.named_scope("head"):
            total, values = prediction.reduce_rows(loss, rows, trained)
        # Training weights are 0 only where the bound's are.
        ratio = jnp.where(trained > 0, bound_weight / jnp.where(trained > 0, trained, 1.0), 0.0)
        bound = values * ratio + count * self.prior_term(process)
        return LossTerms(
            total=total, values=values, bound=bound, count=count, scored=count, scalars={}, t=t
        )


def elbo_weight(
    process: Interpolating, z_t: Int[Array, "*s"], x_0: Int[Array, "*s"], t: Float[Array, "*s"]
) -> Float[Array, "*s"]:
    """Returns w, the weight of KL + IS in the bound, per unit of time."""
    token, mask = process.rate(t)
    rate = jnp.where(z_t == process.mask_id, mask, token)
    return rate / jnp.maximum(process.probability(z_t, x_0, t), TINY)


def divergences(
    process: Interpolating,
    log_p0: Float[Array, "n v"],
    z_t: Int[Array, " n"],
    x_0: Int[Array, " n"],
    t: Float[Array, " n"],
) -> tuple[Float[Array, " n"], Float[Array, " n"], Float[Array, " n"]]:
    """Returns KL, IS and the cross-entropy -log p(x_0 | z_t) of each token, in nats.

    `log_p0` is the distribution that `process.posterior` names, with all mass on clean tokens.
    """
    alpha = process.schedule.alpha(t)
    token, _ = process.noise(t)
    log_r = process.given_others(log_p0, z_t, t)
    gain = jnp.logaddexp(0.0, log_r + (log(alpha) - log(token))[:, None])  # L
    column = jax.lax.broadcasted_iota(jnp.int32, log_r.shape, 1)
    is_x = column == x_0[:, None]
    log_own = process.log_own(t)
    gain_x = _at(is_x, gain)
    kl = (alpha + token) * (log_own - gain_x) - token * jnp.where(is_x, 0.0, gain).sum(-1)
    # 0 at the mask, where q and p are the same: a clean token is never the mask, so its gain is 0.
    log_h = jnp.where(z_t == x_0, log_own, 0.0) - _at(column == z_t[:, None], gain)
    return kl, jnp.expm1(log_h) - log_h, -_at(is_x, log_r) - log_h


def _at(is_here: Bool[Array, "n v"], values: Float[Array, "n v"]) -> Float[Array, " n"]:
    # A comparison instead of a gather: the gradient of a gather is a scatter, but this fuses.
    return jnp.where(is_here, values, 0.0).sum(-1)
