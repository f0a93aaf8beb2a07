"""The contract of objectives, and the weighted sums over tokens that they share.

Most of the family trains a weighted cross-entropy, `sum_i w_i * -log p(x_i | z)`. The weights are
computed before the head runs, and are 0 where a token does not count. Sums are not divided by the
number of tokens, so that those of micro-batches and devices can be added.
"""

import abc
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int, Key

from mdlm.diffusion import Diffusion, NetworkTraits, wrong_kind
from mdlm.keys import by_row, stream
from mdlm.parameterizations.base import Parameterization
from mdlm.parameterizations.subs import Subs
from mdlm.processes.base import Process
from mdlm.processes.masked import Masked
from mdlm.schedules.base import Schedule
from mdlm.times import TimeSampler
from mdlm.types import ArrayTree, Attends, Batch, Denoise, LossTerms, NetInput, Prediction, Vocab


@dataclass(frozen=True, kw_only=True)
class Objective(abc.ABC):
    """A loss: draws noise from `key`, calls the network, and returns sums in nats."""

    is_exact: ClassVar[bool] = False
    """True if the reported bound is the exact likelihood and nothing is random."""

    protocol: ClassVar[str] = ""
    """Short description of the reported bound, printed beside the number. It names every term of
    the bound that the objective leaves out."""

    processes: ClassVar[tuple[type[Process], ...]] = (Masked,)
    parameterizations: ClassVar[tuple[type[Parameterization], ...]] = (Subs,)
    attends: ClassVar[Attends] = "all"
    """The processes, parameterizations and attention of the network that the objective is defined
    for. An experiment with others is refused when it is composed."""

    rows_together: ClassVar[int] = 1
    """How many rows of a batch, one after another, are one example of the data."""

    @property
    def needs_reference(self) -> bool:
        """Whether the objective compares with the network that training began from. The run then
        keeps those parameters, and `Diffusion.reference` has them in training (in an evaluation it
        is None)."""
        return False

    def protocol_on(self, process: Process) -> str:
        """Returns `protocol`, with the terms that the schedule of this process leaves out."""
        return self.protocol

    def incompatibility(
        self,
        process: Process,
        parameterization: Parameterization,
        network: NetworkTraits | None = None,
    ) -> str | None:
        """Says why the objective does not fit these components; None if it does.

        Without a network, the network is not checked.
        """
        return wrong_kind(self, process, parameterization, network)

    @abc.abstractmethod
    def __call__(self, key: Key[Array, ""], batch: Batch, diffusion: Diffusion) -> LossTerms: ...

    def reported(self) -> "Objective":
        """Returns the objective that an evaluation reports by default."""
        return self

    def with_vocab(self, vocab: Vocab) -> Self:
        """Returns the objective for a vocabulary; most objectives do not depend on it."""
        return self


def nelbo_without(*terms: str, where: str) -> str:
    """Returns the name of a NELBO without these terms; `where` is the range of t that is left.

    >>> nelbo_without("reconstruction", "prior", where="t >= 0.001")
    'NELBO without the reconstruction and prior terms (t >= 0.001)'
    """
    noun = "term" if len(terms) == 1 else "terms"
    return f"NELBO without the {' and '.join(terms)} {noun} ({where})"


def without_start(process: Process, protocol: str) -> str:
    """Returns the protocol of a discrete chain on this process.

    If alpha(0) = 1, the step to t = 0 is the reconstruction. In other schedules no step reveals
    the tokens that are still masked at t = 0.
    """
    if not process.schedule.one_minus_alpha(jnp.zeros(())) > 0:
        return protocol
    return protocol.replace("NELBO", nelbo_without("reconstruction", where="alpha(0) < 1"), 1)


def ask(
    denoise: Denoise,
    batch: Batch,
    *,
    tokens: Int[Array, "b l"],
    t: Float[Array, " b #l"] | None,
    key: Key[Array, ""] | None,
) -> Prediction:
    """Returns the network's prediction for a batch whose tokens were replaced by `tokens`."""
    return denoise(
        NetInput(
            tokens=tokens,
            t=t,
            is_valid=batch.is_valid,
            segment_ids=batch.segment_ids,
            label=batch.label,
        ),
        key=key,
    )


def weighted_cross_entropy(
    prediction: Prediction,
    batch: Batch,
    *,
    parameterization: Parameterization,
    z_t: Int[Array, "b l"],
    t: Float[Array, " b #l"],
    weight: Float[Array, " b #l"],
) -> LossTerms:
    """Returns `sum w * -log p(x_0 | z_t)` over the loss mask; the bound is the same sum.

    Positions of weight 0 are never computed, so `weight` is 0 at all that should be left out.
    The loss mask is applied here.
    """
    rows = {
        "x_0": batch.tokens,
        "z_t": z_t,
        "t": jnp.broadcast_to(t, z_t.shape),
    }

    def cross_entropy(logits, rows, _):
        return -parameterization.log_p0_of(rows["x_0"], logits, rows["z_t"], rows["t"])

    terms = weighted_sum(prediction, batch, cross_entropy, rows, weight, t)
    return replace(terms, weight=jnp.broadcast_to(weight, z_t.shape))


def weighted_sum(
    prediction: Prediction,
    batch: Batch,
    loss: Callable[..., Float[Array, " n"]],
    rows: ArrayTree,
    weight: Float[Array, " b #l"],
    t: Float[Array, " b #l"],
) -> LossTerms:
    """Returns `sum w * loss(logits, rows, None)` over the loss mask; the bound is the same sum.

    `loss` and `rows` are arguments of `Prediction.reduce_rows`; `t` is recorded in the result.
    """
    count = batch.loss_mask.astype(jnp.float32)
    weight = jnp.broadcast_to(weight, count.shape).astype(jnp.float32) * count
    with jax.named_scope("head"):
        total, values = prediction.reduce_rows(loss, rows, weight)
    scored = (weight != 0).astype(jnp.float32)
    return LossTerms(
        total=total, values=values, bound=values, count=count, scored=scored, scalars={}, t=t
    )


TimesAndWeights = Callable[
    [Schedule, Float[Array, "b 1"]], tuple[Float[Array, "b 1"], Float[Array, "b 1"]]
]
"""From uniform numbers to times and loss weights whose weighted mean is the bound."""


def refuse_rates(schedule: Schedule) -> str | None:
    """Says why a schedule with a rate for each token needs more than a weighted cross-entropy;
    None for other schedules."""
    if not schedule.per_token:
        return None
    return (
        f"{type(schedule).__name__} has a rate for each token, for which a weighted cross-entropy"
        " is no bound; use GeneralizedNelbo() or GeneralizedDiscreteNelbo()"
    )


def scored_tokens(batch: Batch) -> Bool[Array, "b l"]:
    """Returns the valid tokens of the loss mask, for objectives that condition on the others."""
    return batch.loss_mask if batch.is_valid is None else batch.loss_mask & batch.is_valid


def uniform_of_rows(times: TimeSampler, key: Key[Array, ""], batch: Batch) -> Float[Array, "b 1"]:
    """Draws the uniform number that becomes each row's time, from the objective's key."""
    return times.sample(stream(key, "times"), batch.row, batch.rows)[:, None]


def noised(
    process: Process,
    key: Key[Array, ""],
    batch: Batch,
    t: Float[Array, " b #l"],
    may_change: Bool[Array, "b l"] | None = None,
) -> Int[Array, "b l"]:
    """Draws the rows noised to `t`, from the objective's key.

    Noise reaches the tokens where `may_change`, by default all valid ones.
    """
    keys = by_row(stream(key, "corrupt"), batch.row)
    return process.corrupt(
        keys, batch.tokens, t, batch.is_valid if may_change is None else may_change
    )


def noise_and_score(
    key: Key[Array, ""],
    batch: Batch,
    diffusion: Diffusion[Masked],
    *,
    times: TimeSampler,
    times_and_weights: TimesAndWeights,
    may_change: Bool[Array, "b l"] | None = None,
) -> LossTerms:
    """Draws a time for each row, masks its tokens, and returns the loss of the masked ones.

    Noise reaches the tokens where `may_change`, by default all valid ones.
    """
    with jax.named_scope("noise"):
        t, weight = times_and_weights(
            diffusion.process.schedule, uniform_of_rows(times, key, batch)
        )
        z_t = noised(diffusion.process, key, batch, t, may_change)
    return score_masked(
        batch,
        diffusion,
        z_t=z_t,
        t=t,
        weight=weight,
        key=stream(key, "dropout"),
    )


def score_masked(
    batch: Batch,
    diffusion: Diffusion[Masked],
    *,
    z_t: Int[Array, "b l"],
    t: Float[Array, " b #l"],
    weight: Float[Array, " b #l"],
    key: Key[Array, ""] | None = None,
) -> LossTerms:
    """Returns `weight` times the cross-entropy of the masked tokens of given noised rows."""
    return weighted_cross_entropy(
        ask(diffusion.denoise, batch, tokens=z_t, t=t, key=key),
        batch,
        parameterization=diffusion.parameterization,
        z_t=z_t,
        t=t,
        weight=jnp.where(diffusion.process.is_masked(z_t), weight, 0.0),
    )
