"""The loss of processes that interpolate between a token and noise (uniform, hybrid).

With q_t(. | x) and p_t = q_t(. | r), where r is the law of the clean token that the reverse chain
plugs in (see `mdlm.processes.interpolating`), the NELBO of the continuous-time chain is, per token
and unit of time,

    w (KL + IS),   w = rate_t(z) / q_t(z | x)
    KL = sum_k q_t(k | x) log(q_t(k | x) / p_t(k)),   IS = h - log h - 1 at h = q_t(z | x) / p_t(z)

(GIDD, arXiv:2503.04482; for uniform noise it equals that of UDLM, arXiv:2412.10193.) It
is the Bregman divergence, sum over j != z of a_j log(a_j / b_j) - a_j + b_j, between the rates at
which z is left for j backwards in time, a_j = rate_t(z) q_t(j | x) / q_t(z | x) if x were known
and b_j = rate_t(z) p_t(j) / p_t(z) under the model. The model's chain is what `process.reverse`
draws, whichever coordinates `process.posterior` names. All positions count.

In float32, with L(x) = log(1 + alpha r(x) / n_t(token)) for the law r and log_own the same for
r = 1, no two near numbers are subtracted where it would matter:

    KL = (alpha + n) (log_own - L(x)) - n sum over k != x of L(k),   log h = [z = x] log_own - L(z)
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int, Key

from mdlm.objectives.base import ask
from mdlm.parameterizations.base import Parameterization
from mdlm.processes.interpolating import TINY, Interpolating, log
from mdlm.types import Batch, Denoise, LossTerms


def elbo_weight(
    process: Interpolating, z_t: Int[Array, "*s"], x_0: Int[Array, "*s"], t: Float[Array, "*s"]
) -> Float[Array, "*s"]:
    """w, the weight of KL + IS in the bound; per unit of time."""
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
    """KL, IS and the cross-entropy -log p(x_0 | z_t) of each token, in nats.

    `log_p0` is what `process.posterior` says, with all mass on clean tokens.
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
    # 0 at the mask, where q and p are the same: no law gives it mass, so its gain is 0.
    log_h = jnp.where(z_t == x_0, log_own, 0.0) - _at(column == z_t[:, None], gain)
    return kl, jnp.expm1(log_h) - log_h, -_at(is_x, log_r) - log_h


def score(
    batch: Batch,
    *,
    z_t: Int[Array, "b l"],
    t: Float[Array, "b #l"],
    weight: Float[Array, "b l"] | None,
    is_last: Bool[Array, "b #l"],
    last_weight: float,
    process: Interpolating,
    parameterization: Parameterization,
    denoise: Denoise,
    key: Key[Array, ""] | None = None,
) -> LossTerms:
    """The loss of given noised rows: `weight` times KL + IS, of which the bound is reported.

    None stands for the weight of the bound. Where `is_last`, loss and bound are `last_weight`
    times the cross-entropy: that of the step that makes clean tokens.
    """
    count = batch.loss_mask.astype(jnp.float32)
    rows = {
        "x_0": batch.tokens,
        "z_t": z_t,
        "t": jnp.broadcast_to(t, z_t.shape),
        "is_last": jnp.broadcast_to(is_last, z_t.shape),
    }
    bound_weight = elbo_weight(process, z_t, batch.tokens, rows["t"])
    trained = bound_weight if weight is None else weight
    trained = (jnp.where(is_last, last_weight, trained) * count).astype(jnp.float32)
    bound_weight = jnp.where(is_last, last_weight, bound_weight) * count

    def loss(logits, rows, _):
        z_t, t = rows["z_t"], rows["t"]
        log_p0 = parameterization.log_p0(logits, z_t, t)
        kl, divergence, cross_entropy = divergences(process, log_p0, z_t, rows["x_0"], t)
        return jnp.where(rows["is_last"], cross_entropy, kl + divergence)

    prediction = ask(denoise, batch, tokens=z_t, t=t, key=key)
    with jax.named_scope("head"):
        total, values = prediction.reduce_rows(loss, rows, trained)
    # Training weights are 0 only where the bound's are.
    ratio = jnp.where(trained > 0, bound_weight / jnp.where(trained > 0, trained, 1.0), 0.0)
    return LossTerms(
        total=total, values=values, bound=values * ratio, count=count, scored=count, scalars={}
    )


def _at(is_here: Bool[Array, "n v"], values: Float[Array, "n v"]) -> Float[Array, " n"]:
    # A comparison and not a gather, whose gradient would be a scatter: this fuses.
    return jnp.where(is_here, values, 0.0).sum(-1)


def refuse_mask_mass(parameterization: Parameterization) -> str | None:
    """Why a law that gives the mask mass cannot be plugged in; None where it gives none."""
    if getattr(parameterization, "mask_has_mass", False):
        return "a clean token is never the mask; use parameterization=Mean(mask_has_mass=False)"
    return None
