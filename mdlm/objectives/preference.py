"""Preferences between two responses to a prompt: DPO, and VRPO, which is DPO on bounds.

    L = -log sigmoid( beta [ (B(y_w) - B_ref(y_w)) - (B(y_l) - B_ref(y_l)) ] )

y_w is the chosen response, y_l the rejected one, B the log-likelihood of a response given its
prompt, B_ref that of the network that training began from (DPO, arXiv:2305.18290, eq. 7). For
preferences that follow sigmoid(r(y_w) - r(y_l)), the minimum over all distributions is
p(y) proportional to p_ref(y) exp(r(y) / beta).

The likelihood of a masked diffusion is not known. VRPO (arXiv:2505.19223) estimates its bound, the
NELBO, with `samples` draws for each response: one noise level each, and one mask for each noise
level. Policy and reference are scored on the same draws, so that what is noise in both cancels. The
estimate inside the sigmoid is unbiased; the loss, which is convex in it, is too large by about
beta^2 var / 8, which falls as 1 / samples.

Rows come in twos, the chosen response and the rejected one. Both have the same noise levels, one in
each of `samples` strata, and masks of their own.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, Key

from mdlm.diffusion import Diffusion
from mdlm.keys import by_row, stream
from mdlm.objectives.autoregressive import Autoregressive
from mdlm.objectives.base import Objective, ask, noised, weighted_cross_entropy
from mdlm.objectives.nelbo import Nelbo
from mdlm.processes.masked import Masked
from mdlm.types import Attends, Batch, LossTerms, Prediction


@dataclass(frozen=True, kw_only=True)
class Preference(Objective):
    """Trains preferences by bounds of likelihoods (VRPO); reports the bound of chosen responses.

    Dropout is off, so that policy and reference are the same network at first. The log has, in
    nats: `chosen` and `rejected`, the mean of B - B_ref of either response; `margin`, their
    difference; and `preferred`, the share of pairs whose margin is above 0.

    Args:
        beta: how much the likelihood must differ from the reference's for a preference; the larger,
            the closer the policy stays.
        samples: draws of the noise for each response.
        bound: the bound whose estimate is compared, and that evaluations report.
    """

    rows_together: ClassVar[int] = 2

    beta: float = 0.1
    samples: int = 8
    bound: Nelbo = Nelbo()

    def __post_init__(self):
        check_beta(self.beta)
        if self.samples < 1:
            raise ValueError(f"samples={self.samples}: must be at least 1")

    @property
    def needs_reference(self) -> bool:
        return True

    def incompatibility(self, process, parameterization, network=None):
        own = super().incompatibility(process, parameterization, network)
        return own or self.bound.incompatibility(process, parameterization, network)

    def reported(self) -> Nelbo:
        return self.bound

    def on_data(self) -> Nelbo:
        return self.bound

    def __call__(
        self, key: Key[Array, ""], batch: Batch, diffusion: Diffusion[Masked]
    ) -> LossTerms:
        process, n = diffusion.process, self.samples
        copies = repeated(batch, n)
        with jax.named_scope("noise"):
            # A pair has one key for its times, that of its first row.
            keys, strata = by_row(stream(key, "times"), batch.row[::2]), jnp.arange(n)
            draw = jax.vmap(lambda key: self.bound.times.sample(key, strata, jnp.asarray(n)))
            u = jnp.repeat(draw(keys), 2, axis=0).reshape(-1, 1)
            t, weight = self.bound.times_and_weights(process.schedule, u)
            z_t = noised(process, key, copies, t, self.bound.may_change(copies))
        return compared(
            copies,
            diffusion,
            lambda own: ask(own.denoise, copies, tokens=z_t, t=t, key=None),
            z_t=z_t,
            t=t,
            weight=jnp.where(process.is_masked(z_t), weight, 0.0) / n,
            beta=self.beta,
            samples=n,
        )


@dataclass(frozen=True, kw_only=True)
class CausalPreference(Objective):
    """Trains preferences by exact likelihoods (DPO), of a network that goes from left to right;
    reports these, as `Autoregressive` does. `beta` and the log are those of `Preference`."""

    rows_together: ClassVar[int] = 2
    attends: ClassVar[Attends] = "causal"

    beta: float = 0.1

    def __post_init__(self):
        check_beta(self.beta)

    @property
    def needs_reference(self) -> bool:
        return True

    def reported(self) -> Autoregressive:
        return Autoregressive()

    def on_data(self) -> Autoregressive:
        return self.reported()

    def __call__(self, key: Key[Array, ""], batch: Batch, diffusion: Diffusion) -> LossTerms:
        rows, length = batch.tokens.shape
        first = jnp.zeros_like(batch.loss_mask).at[:, 0].set(True)
        scored = replace(batch, loss_mask=batch.loss_mask & ~first)
        return compared(
            scored,
            diffusion,
            lambda own: ask(own.denoise, scored, tokens=batch.tokens, t=None, key=None),
            z_t=diffusion.process.prior(by_row(stream(key, "prior"), batch.row), length),
            t=jnp.ones((rows, 1)),
            weight=jnp.ones((rows, length)),
            beta=self.beta,
            samples=1,
        )


def check_beta(beta: float) -> None:
    """Raises ValueError if this is no strength of a preference."""
    if not 0 < beta < float("inf"):
        raise ValueError(f"beta={beta}: must be a number above 0")


def repeated(batch: Batch, copies: int) -> Batch:
    """Returns a batch with copies of each row, one after another, each with an index of its own."""
    many = jax.tree.map(lambda a: jnp.repeat(a, copies, axis=0) if a.ndim else a, batch)
    row = batch.row[:, None] * copies + jnp.arange(copies)[None]
    return replace(many, row=row.reshape(-1), rows=copies * batch.rows)


def compared(
    batch: Batch,
    diffusion: Diffusion,
    ask_of: Callable[[Diffusion], Prediction],
    *,
    z_t: Int[Array, "b l"],
    t: Float[Array, " b #l"],
    weight: Float[Array, " b #l"],
    beta: float,
    samples: int,
) -> LossTerms:
    """Returns the loss of pairs: a chosen response, `samples` rows, then a rejected one.

    `ask_of` asks the network of a diffusion about `batch`, and B of a response is minus the sum
    over its rows of `weight` times the cross-entropy.
    """
    if diffusion.reference is None:
        raise ValueError("the objective needs a reference: Model.loss(..., reference=...)")

    def scored(prediction: Prediction, weight: Float[Array, " b #l"]) -> LossTerms:
        return weighted_cross_entropy(
            prediction,
            batch,
            parameterization=diffusion.parameterization,
            z_t=z_t,
            t=t,
            weight=weight,
        )

    def by_response(values: Float[Array, "b l"]) -> Float[Array, "n 2"]:
        return values.reshape(-1, 2, samples * values.shape[1]).sum(-1)

    own = ask_of(diffusion.without_dropout())
    terms = scored(own, weight)
    reference = scored(ask_of(diffusion.reference), weight)
    gain = by_response(reference.values - terms.values)  # B - B_ref
    margin = gain[:, 0] - gain[:, 1]
    loss = jax.nn.softplus(-beta * margin)
    # The gradient by a cross-entropy is its weight times -+ beta sigmoid(-beta margin), which is
    # known only now: the head runs a second time, with these as weights.
    slope = beta * jax.nn.sigmoid(-beta * margin)
    signed = jnp.repeat(jnp.stack([slope, -slope], axis=1).reshape(-1), samples)[:, None]
    pulled = scored(own, weight * signed).total
    is_chosen = jnp.repeat(jnp.arange(2 * len(margin)) % 2 == 0, samples)[:, None]
    count = terms.count * is_chosen / samples
    return LossTerms(
        total=pulled + jax.lax.stop_gradient(loss.sum() - pulled),
        values=terms.values,
        bound=terms.bound * is_chosen,
        count=count,
        scored=terms.scored,
        examples=jnp.asarray(len(margin), jnp.float32),
        scalars={
            "margin": margin.mean(),
            "preferred": (margin > 0).mean(),
            "chosen": gain[:, 0].mean(),
            "rejected": gain[:, 1].mean(),
        },
    )
