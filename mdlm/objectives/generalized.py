"""Bounds of absorbing diffusion where tokens are noised at different rates (GenMD4).

The reverse step reveals token k with probability mu_k r_k, where r_k is the probability that
token k was clean one step earlier (arXiv:2406.04329, section on generalized masking). Its
divergence from the true step has two terms, because the time at which a token is revealed carries
information about the token:

    continuous   w_x (-log mu_x) + sum_k mu_k (w_k - w_x),              w = -alpha' / (1 - alpha)
    discrete     r_x (-log mu_x) + (1 - r_x) log [(1 - r_x) / (1 - sum_k mu_k r_k)],
                 r = (alpha(s) - alpha(t)) / (1 - alpha(t))

for each masked token, with mu = p(. | z_t) and x the clean token. (The paper writes the first as
sum_k w_k [mu_k - (log mu_x + 1) 1[k = x]], which is the same if mu sums to 1.) At equal rates both
second terms are 0. The first terms alone are no bound: a network could lower them below the
entropy with mu_k proportional to p_k w_k.

If the schedule is learned, masks are drawn from a distribution that depends on its parameters.
Each row is noised twice at the same time, and the loss f of each copy is the baseline of the other
(REINFORCE, leave one out). The expected gradient of

    (f_1 + f_2) / 2 + (f_1 - f_2) (log q(z_1 | x) - log q(z_2 | x)) / 2,   (f_1 - f_2) held fixed

is the gradient of the bound. The second part adds its gradient and the value 0 to the total, so
the reported loss is the bound.
"""

import abc
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, Key

from mdlm.diffusion import Diffusion
from mdlm.keys import by_row, stream
from mdlm.objectives.base import Objective, ask, uniform_of_rows
from mdlm.processes.masked import Masked
from mdlm.schedules.per_token import PerToken
from mdlm.times import LowDiscrepancy, TimeSampler, restrict, step_of_chain
from mdlm.types import Batch, LossTerms, pytree


@pytree
class Moment:
    """The time of a row, the step that starts there, and the factor of its loss."""

    t: Any  # Float[Array, "b 1"]
    s: Any  # Float[Array, "b 1"], the earlier time at which the step ends (in discrete time)
    is_last: Any  # Bool[Array, "b 1"], True where the step reveals all masked tokens
    scale: Any  # Float[Array, "b 1"]


@dataclass(frozen=True, kw_only=True)
class PerTokenBound(Objective):
    """Base of the two bounds: the noising (twice if the schedule learns) and the surrogate loss."""

    times: TimeSampler = LowDiscrepancy()

    @abc.abstractmethod
    def moments(self, u: Float[Array, "b 1"]) -> Moment:
        """Returns the moments of rows with uniform `u`."""

    @abc.abstractmethod
    def divergence(
        self,
        schedule: PerToken,
        at: Moment,
        x_0: Int[Array, " n"],
        log_mu_x: Float[Array, " n"],
        mu: Float[Array, "n v"],
    ) -> Float[Array, " n"]:
        """Returns the unscaled loss of a masked token at a step that is not the last.

        The fields of `at` are `[n]`.
        """

    def by_rates(self, process: Masked, x_0: Int[Array, "b l"]) -> Float[Array, "b l"]:
        """Returns the part of the loss that needs no network."""
        return jnp.zeros(x_0.shape)

    def incompatibility(self, process, parameterization, network=None):
        reason = super().incompatibility(process, parameterization, network)
        if reason is not None:
            return reason
        if not isinstance(process.schedule, PerToken):
            name = type(process.schedule).__name__
            return (
                f"needs a schedule with a rate for each token; {name} has one for all: use Nelbo()"
            )
        return None

    def __call__(
        self, key: Key[Array, ""], batch: Batch, diffusion: Diffusion[Masked]
    ) -> LossTerms:
        process, schedule = diffusion.process, schedule_of(diffusion.process)
        with jax.named_scope("noise"):
            at = self.moments(uniform_of_rows(self.times, key, batch))
            z_t = []
            for copy in range(2 if schedule.learns else 1):
                noise = jax.random.fold_in(stream(key, "corrupt"), copy)
                keys = by_row(noise, batch.row)
                z_t.append(process.corrupt(keys, batch.tokens, at.t, batch.is_valid))
        return self.score(
            batch,
            diffusion,
            z_t=jnp.stack(z_t, axis=1),
            at=at,
            key=stream(key, "dropout"),
        )

    def score(
        self,
        batch: Batch,
        diffusion: Diffusion[Masked],
        *,
        z_t: Int[Array, "b n l"],
        at: Moment,
        key: Key[Array, ""] | None = None,
    ) -> LossTerms:
        """Returns the loss of given noised rows, `n` independent ones for each row of the batch.

        With n = 1 there is no baseline: the gradient in the schedule's parameters then lacks the
        part due to drawing the noise from the schedule.
        """
        process, schedule = diffusion.process, schedule_of(diffusion.process)
        b, n, l = z_t.shape
        count = batch.loss_mask.astype(jnp.float32)
        copy = lambda x: jnp.repeat(x, n, axis=0) if x.ndim else x
        copies, when = jax.tree.map(copy, (batch, at))
        tokens = z_t.reshape(b * n, l)
        rows = {"x_0": copies.tokens, "z_t": tokens}
        rows |= {name: jnp.broadcast_to(value, tokens.shape) for name, value in vars(when).items()}

        def loss(logits, rows, schedule):
            log_p0 = diffusion.parameterization.log_p0(logits, rows["z_t"], rows["t"])
            column = jax.lax.broadcasted_iota(jnp.int32, log_p0.shape, 1)
            log_mu_x = jnp.where(column == rows["x_0"][:, None], log_p0, 0.0).sum(-1)
            moment = Moment(**{name: rows[name] for name in vars(when)})
            step = self.divergence(schedule, moment, rows["x_0"], log_mu_x, jnp.exp(log_p0))
            return rows["scale"] * jnp.where(rows["is_last"], -log_mu_x, step)

        is_masked = process.is_masked(z_t)
        weight = jnp.where(is_masked, count[:, None], 0.0) / n
        prediction = ask(diffusion.denoise, copies, tokens=tokens, t=when.t, key=key)
        with jax.named_scope("head"):
            total, values = prediction.reduce_rows(loss, rows, weight.reshape(b * n, l), schedule)
        values = values.reshape(b, n, l)
        if n > 1:
            total += by_noise(n * values.sum(-1), process, batch, z_t, at.t)
        by_rates = count * self.by_rates(process, batch.tokens)
        reported = values.sum(1) + jax.lax.stop_gradient(by_rates)
        return LossTerms(
            total=total + by_rates.sum(),
            values=reported,
            bound=reported,
            count=count,
            scored=(weight != 0).astype(jnp.float32).sum(1),
            scalars=schedule.figures(),
            t=at.t,
        )


def schedule_of(process: Masked) -> PerToken:
    """Returns the schedule. Raises ValueError if it has not a rate for each token."""
    if not isinstance(process.schedule, PerToken):
        raise ValueError(f"{type(process.schedule).__name__} does not differ by token")
    return process.schedule


def log_q_of(
    process: Masked, batch: Batch, z_t: Int[Array, "b n l"], t: Float[Array, "b 1"]
) -> Float[Array, "b n"]:
    """Returns log q(z_t | x_0) of each noised row, nats, differentiable in the schedule.

    It covers all tokens that noise may change, also those outside the loss mask, because the
    network reads them too.
    """
    t = jnp.broadcast_to(t, batch.tokens.shape)
    noised = process.schedule.one_minus_alpha(t, batch.tokens)[:, None]
    alpha = process.schedule.alpha(t, batch.tokens)[:, None]
    q = jnp.where(process.is_masked(z_t), noised, alpha)
    if batch.is_valid is not None:
        # Before the logarithm, whose gradient at t = 1 is not finite at padding, which stays clean.
        q = jnp.where(batch.is_valid[:, None], q, 1.0)
    return jnp.log(q).sum(-1)


def by_noise(
    f: Float[Array, "b n"],
    process: Masked,
    batch: Batch,
    z_t: Int[Array, "b n l"],
    t: Float[Array, "b 1"],
) -> Float[Array, ""]:
    """Returns 0, with the part of the gradient that is due to drawing the noise from the schedule.

    `f` is the loss of each noised row; the mean of a row's others is its baseline.
    """
    n = f.shape[1]
    others = (f.sum(-1, keepdims=True) - f) / (n - 1)
    log_q = log_q_of(process, batch, z_t, t)
    return ((f - others) / n * (log_q - jax.lax.stop_gradient(log_q))).sum()


@dataclass(frozen=True, kw_only=True)
class GeneralizedNelbo(PerTokenBound):
    """GenMD4: the NELBO in continuous time, nats. It also trains the schedule's parameters.

    Args:
        times: how the uniform numbers that become times are drawn over the batch.
        t_min: the time at which the integral stops and the reconstruction begins.
        reconstruction: "network" predicts the tokens masked at t_min with the network: rows with
            u < t_min are noised to t_min and have weight 1 / t_min (as in `Nelbo`). "rates" is
            the published protocol: t uniform on [t_min, 1], the integral not rescaled, and tokens
            masked at t_min predicted from the rates alone, p(k) proportional to 1 - alpha_k. Both
            are bounds; the second is looser.
    """

    t_min: float = 1e-3
    reconstruction: Literal["network", "rates"] = "network"

    def __post_init__(self):
        if not 0 < self.t_min < 1:
            raise ValueError(f"t_min={self.t_min}: must be between 0 and 1")
        if self.reconstruction not in ("network", "rates"):
            raise ValueError(
                f'reconstruction={self.reconstruction!r}: must be "network" or "rates"'
            )

    @property
    def protocol(self) -> str:
        protocol = "NELBO, continuous time, rates by token"
        if self.reconstruction == "network":
            return protocol
        return f"{protocol}, tokens masked at t = {self.t_min:g} predicted from the rates alone"

    def moments(self, u: Float[Array, "b 1"]) -> Moment:
        if self.reconstruction == "rates":
            t, is_last = restrict(u, self.t_min), jnp.zeros_like(u, bool)
        else:
            t, is_last = jnp.maximum(u, self.t_min), u < self.t_min
        return Moment(t=t, s=t, is_last=is_last, scale=jnp.where(is_last, 1 / self.t_min, 1.0))

    def divergence(self, schedule, at, x_0, log_mu_x, mu):
        w_x = schedule.weight(at.t, x_0)
        w = schedule.of_all().weight(jnp.broadcast_to(at.t[:, None], mu.shape))
        return -w_x * log_mu_x + (mu * (w - w_x[:, None])).sum(-1)

    def by_rates(self, process: Masked, x_0: Int[Array, "b l"]) -> Float[Array, "b l"]:
        if self.reconstruction == "network":
            return super().by_rates(process, x_0)
        schedule, every = schedule_of(process), schedule_of(process).of_all()
        # log (1 - alpha) is finite in float32 even where 1 - alpha underflows.
        t, once = jnp.full(x_0.shape, self.t_min), jnp.full((1, schedule.size), self.t_min)
        log_noised = jnp.log(schedule.alpha(t, x_0)) - schedule.log_snr(t, x_0)
        log_all = jnp.log(every.alpha(once)) - every.log_snr(once)
        is_token = jnp.arange(schedule.size)[None] != process.mask_id
        log_total = jax.nn.logsumexp(jnp.where(is_token, log_all, -jnp.inf))
        return schedule.one_minus_alpha(t, x_0) * (log_total - log_noised)


@dataclass(frozen=True, kw_only=True)
class GeneralizedDiscreteNelbo(PerTokenBound):
    """The bound of the chain of `steps` steps, nats, the loss of DiffusionBERT (arXiv:2211.15029).

    The step to s = 0 is the reconstruction: there r = 1 for all tokens, since alpha(0) = 1.
    """

    steps: int = 1000

    @property
    def protocol(self) -> str:
        return f"NELBO, discrete time, {self.steps} steps, rates by token"

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"steps={self.steps}: must be at least 1")

    def moments(self, u: Float[Array, "b 1"]) -> Moment:
        s, t = step_of_chain(u, self.steps)
        return Moment(t=t, s=s, is_last=s == 0, scale=jnp.full_like(u, self.steps))

    def divergence(self, schedule, at, x_0, log_mu_x, mu):
        # The caller replaces the loss of the last step, but at s = 0 this gradient would be NaN.
        s = jnp.where(at.is_last, 0.5 * at.t, at.s)
        r_x = schedule.alpha_gap(s, at.t, x_0) / schedule.one_minus_alpha(at.t, x_0)
        t_all, s_all = (jnp.broadcast_to(a[:, None], mu.shape) for a in (at.t, s))
        every = schedule.of_all()
        r = (mu * every.alpha_gap(s_all, t_all) / every.one_minus_alpha(t_all)).sum(-1)
        return -r_x * log_mu_x + (1 - r_x) * (jnp.log1p(-r_x) - jnp.log1p(-r))
