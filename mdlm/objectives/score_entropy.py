"""Denoising score entropy, the loss of SEDD (arXiv:2310.16834, theorems 3.4, 3.6).

    int_{t_min}^1 E sum_i sum over y != z of Q_t(z, y) (s_y - r_y log s_y + r_y (log r_y - 1)) dt

z is the noised token at position i, s the network's score, r_y = q(y | x_0) / q(z | x_0), and
Q_t(z, y) the rate at which noise turns y into z. With d_y = log s_y - log r_y the bracket is
r_y (exp(d_y) - 1 - d_y), which is at least 0, and 0 where s = r. It is computed in this form,
because the three terms above nearly cancel, and r grows as 1 / t.

    absorbing  Q_t = -alpha' / alpha from any y to the mask, so masks alone count. Only y = x_0 has
               r_y = 1 / expm1(sigma) > 0, and with l = log s + log expm1(sigma) the loss is
               w (sum_y exp(l_y) - 1 - l_{x_0}),  w = -alpha' / (1 - alpha)
    uniform    Q_t = -alpha' / (alpha K) between any two tokens; every position counts

If exp(l) is a distribution, the first is the integrand of masked diffusion's NELBO. In both cases
the integral under the true score is H(x | z_1) - H(x | z_{t_min}). It bounds the negative
log-likelihood up to the terms that it leaves out at the two ends: KL(q(z_1 | x) || prior), and
-log p(x | z_{t_min}).
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, Key

from mdlm.diffusion import Diffusion
from mdlm.keys import stream
from mdlm.objectives.base import Objective, ask, noised, uniform_of_rows, weighted_sum
from mdlm.parameterizations.base import Parameterization
from mdlm.parameterizations.score import Score, log_expm1
from mdlm.processes.base import Process
from mdlm.processes.masked import Masked
from mdlm.processes.uniform import Uniform
from mdlm.times import LowDiscrepancy, TimeSampler, restrict
from mdlm.types import ArrayTree, Batch, LossTerms


@dataclass(frozen=True, kw_only=True)
class ScoreEntropy(Objective):
    """Trains and reports the denoising score entropy, in nats, t uniform on `[t_min, 1]`.

    As published, the integral is not rescaled to all of [0, 1], and neither the prior term nor the
    reconstruction is added: `bound` is the score entropy alone.
    """

    processes: ClassVar[tuple[type[Process], ...]] = (Masked, Uniform)
    parameterizations: ClassVar[tuple[type[Parameterization], ...]] = (Score,)
    times: TimeSampler = LowDiscrepancy()
    t_min: float = 1e-3

    def __post_init__(self):
        if not 0 < self.t_min < 1:
            raise ValueError(f"t_min={self.t_min}: must be between 0 and 1")

    @property
    def protocol(self) -> str:
        return f"score entropy without the reconstruction and prior terms (t >= {self.t_min:g})"

    def incompatibility(self, process, parameterization, network=None):
        reason = super().incompatibility(process, parameterization, network)
        return reason or parameterization.incompatibility(process)

    def __call__(
        self, key: Key[Array, ""], batch: Batch, diffusion: Diffusion[Masked | Uniform]
    ) -> LossTerms:
        with jax.named_scope("noise"):
            t = restrict(uniform_of_rows(self.times, key, batch), self.t_min)
            z_t = noised(diffusion.process, key, batch, t)
        return score_noised(batch, diffusion, z_t=z_t, t=t, key=stream(key, "dropout"))


def score_noised(
    batch: Batch,
    diffusion: Diffusion[Masked | Uniform],
    *,
    z_t: Int[Array, "b l"],
    t: Float[Array, " b #l"],
    key: Key[Array, ""] | None = None,
) -> LossTerms:
    """Returns the score entropy of given noised rows, per unit of time."""
    process, parameterization = diffusion.process, diffusion.parameterization
    assert isinstance(parameterization, Score)  # `incompatibility` refuses others
    by_token = jnp.broadcast_to(t, z_t.shape)
    rows = {"x_0": batch.tokens, "z_t": z_t, "sigma": process.schedule.sigma(by_token)}
    if isinstance(process, Masked):
        weight = jnp.where(process.is_masked(z_t), process.schedule.weight(by_token), 0.0)
        entropy = _absorbing(parameterization, process)
    else:
        token, _ = process.noise(by_token)
        alpha = process.schedule.alpha(by_token)
        # log q(y | x_0) / q(x_0 | x_0) for any y != x_0: a changed token against an unchanged one
        rows["log_moved"] = jnp.log(token) - jnp.log(alpha + token)
        weight, _ = process.rate(by_token)
        entropy = _uniform(parameterization)
    prediction = ask(diffusion.denoise, batch, tokens=z_t, t=by_token, key=key)
    return weighted_sum(prediction, batch, entropy, rows, weight, t)


def _absorbing(parameterization: Score, process: Masked):
    def entropy(logits: Float[Array, "n v"], rows: ArrayTree, _: ArrayTree) -> Float[Array, " n"]:
        log_score = parameterization.log_score(logits, rows["z_t"], rows["sigma"])
        scaled = log_score + log_expm1(rows["sigma"])[:, None]
        column = jax.lax.broadcasted_iota(jnp.int32, scaled.shape, 1)
        is_other = column != process.mask_id
        at_x_0 = jnp.where(column == rows["x_0"][:, None], scaled, 0.0).sum(-1)
        return jnp.exp(jnp.where(is_other, scaled, -jnp.inf)).sum(-1) - 1 - at_x_0

    return entropy


def _uniform(parameterization: Score):
    def entropy(logits: Float[Array, "n v"], rows: ArrayTree, _: ArrayTree) -> Float[Array, " n"]:
        log_score = parameterization.log_score(logits, rows["z_t"], rows["sigma"])
        column = jax.lax.broadcasted_iota(jnp.int32, log_score.shape, 1)
        z_t, x_0 = rows["z_t"][:, None], rows["x_0"][:, None]
        log_moved = rows["log_moved"][:, None]
        log_q = jnp.where(column == x_0, 0.0, log_moved)
        log_ratio = log_q - jnp.where(z_t == x_0, 0.0, log_moved)
        is_other = (column != z_t) & jnp.isfinite(log_score)
        off = jnp.where(is_other, log_score - log_ratio, 0.0)
        terms = jnp.exp(log_ratio) * (jnp.expm1(off) - off)
        return jnp.where(is_other, terms, 0.0).sum(-1)

    return entropy
