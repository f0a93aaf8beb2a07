"""The bound by counts of masked tokens: the mean over all orders of revealing them one by one.

    K uniform on {1..n}, then exactly K of a row's n counted tokens masked, a uniform subset:
    L = n E (1 / K) sum_{i masked} -log p(x_i | z)
      = E over orders s of  sum_k -log p(x_s(k) | x_s(1) .. x_s(k-1))  >=  -log p(x)

u-PMLM (arXiv:2004.11579), order-agnostic ARDM (arXiv:2110.02037). For a network that is
not conditioned on the time this is the NELBO of a masked process with any schedule: if
alpha = 1 - t and t is uniform, K is uniform on {0..n} and E[1 / t | K] = (n + 1) / K. It needs no
1 / t and no smallest t. LLaDA's likelihood estimate is the same (arXiv:2502.09992): l of the L
tokens of the answer masked, their cross-entropy times L / l.

Valid tokens outside the loss mask (a prompt) stay clean, so L bounds -log p(counted | the rest).
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int, Key

from mdlm.diffusion import Diffusion
from mdlm.keys import by_row, stream
from mdlm.objectives.base import Objective, score_masked, scored_tokens, uniform_of_rows
from mdlm.processes.masked import Masked
from mdlm.schedules.base import Schedule
from mdlm.times import LowDiscrepancy, TimeSampler
from mdlm.types import Batch, LossTerms


@dataclass(frozen=True, kw_only=True)
class OrderAgnostic(Objective):
    """Trains and reports the bound over all orders, in nats.

    Args:
        times: how the uniform u of a row's count, K = 1 + floor(u n), is drawn over the batch.
    """

    times: TimeSampler = LowDiscrepancy()
    protocol: ClassVar[str] = "NELBO, order-agnostic, by counts of masked tokens"

    def incompatibility(self, process, parameterization, network=None):
        reason = super().incompatibility(process, parameterization, network)
        return reason or refuse_without_inverse(process.schedule)

    def __call__(
        self, key: Key[Array, ""], batch: Batch, diffusion: Diffusion[Masked]
    ) -> LossTerms:
        process = diffusion.process
        with jax.named_scope("noise"):
            may_change = scored_tokens(batch)
            n = may_change.sum(-1, keepdims=True)
            count = count_of(uniform_of_rows(self.times, key, batch), n)
            keys = by_row(stream(key, "corrupt"), batch.row)
            is_chosen = choose(keys, may_change, count)
            weight = n / jnp.maximum(count, 1)
        return score_masked(
            batch,
            diffusion,
            z_t=jnp.where(is_chosen, process.prior(keys, is_chosen.shape[1]), batch.tokens),
            t=time_of_share(process.schedule, count, n),
            weight=jnp.where(is_chosen, weight, 0.0),
            key=stream(key, "dropout"),
        )


def count_of(u: Float[Array, "b 1"], n: Int[Array, "b 1"]) -> Int[Array, "b 1"]:
    """Returns a count uniform on {1..n} from a uniform number; 0 where n is 0."""
    # u n may round up to n.
    return jnp.minimum(1 + jnp.floor(u * n).astype(n.dtype), n)


def choose(
    keys: Key[Array, " b"], may_change: Bool[Array, "b l"], count: Int[Array, "b 1"]
) -> Bool[Array, "b l"]:
    """Draws `count` of the positions of each row where `may_change`, a uniform subset.

    `count` must be at most the number of those positions.
    """
    l = may_change.shape[1]
    # A permutation, because ties of float32 uniforms would favour some positions.
    order = jax.vmap(lambda key: jax.random.permutation(key, l))(keys)
    order = jnp.where(may_change, order, l)
    last = jnp.take_along_axis(jnp.sort(order, axis=-1), jnp.maximum(count - 1, 0), axis=-1)
    return may_change & (order <= last) & (count > 0)


def time_of_share(
    schedule: Schedule, count: Int[Array, "b 1"], n: Int[Array, "b 1"]
) -> Float[Array, "b 1"]:
    """Returns the time at which `count` of `n` tokens are masked in expectation.

    It is the time for networks that are conditioned on it.
    """
    return schedule.time_of(count / jnp.maximum(n, 1))


def refuse_without_inverse(schedule: Schedule) -> str | None:
    """Says why an objective that counts masked tokens does not fit a schedule; None if it does."""
    if schedule.per_token:
        return "needs a schedule with one rate for all tokens; this one has a rate for each"
    if not schedule.has_inverse:
        name = type(schedule).__name__
        return (
            f"needs a schedule with an inverse, for the time of a share of masks; {name} has none"
        )
    return None
