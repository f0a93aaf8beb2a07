"""What every objective shares: its contract, and the one place where tokens are weighed.

A weighted cross-entropy over rows of logits is all that most of the family trains on:
`sum_i w_i * -log p(x_i | z)`. Weights are made here, before the head runs, and are zero wherever
a token is not to be scored; sums are left undivided, so that micro-batches and devices add up.
"""

import abc
from collections.abc import Callable
from dataclasses import dataclass
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
    """A loss: draws what it needs from `key`, asks the network, and returns sums in nats."""

    is_exact: ClassVar[bool] = False
    """True where the reported bound is the likelihood itself and nothing is drawn."""

    protocol: ClassVar[str] = ""
    """What the reported bound is, in words, for the line in which the number is given. It names
    every term of the bound that the objective leaves out."""

    processes: ClassVar[tuple[type[Process], ...]] = (Masked,)
    parameterizations: ClassVar[tuple[type[Parameterization], ...]] = (Subs,)
    attends: ClassVar[Attends] = "all"
    """What it is defined for; anything else is refused when the experiment is composed."""

    def protocol_on(self, process: Process) -> str:
        """`protocol`, and what is left out with the schedule of this process besides."""
        return self.protocol

    def incompatibility(
        self,
        process: Process,
        parameterization: Parameterization,
        network: NetworkTraits | None = None,
    ) -> str | None:
        """Why it cannot be trained or reported with these; None if it can. Without a network,
        nothing is asked of one."""
        return wrong_kind(self, process, parameterization, network)

    @abc.abstractmethod
    def __call__(self, key: Key[Array, ""], batch: Batch, diffusion: Diffusion) -> LossTerms: ...

    def reported(self) -> "Objective":
        """What an evaluation reports, unless it is told otherwise."""
        return self

    def with_vocab(self, vocab: Vocab) -> Self:
        """The objective for a known vocabulary (most need not know it)."""
        return self


def nelbo_without(*terms: str, where: str) -> str:
    """The name of a NELBO that lacks these of its terms; `where` says what is left of it.

    >>> nelbo_without("reconstruction", "prior", where="t >= 0.001")
    'NELBO without the reconstruction and prior terms (t >= 0.001)'
    """
    noun = "term" if len(terms) == 1 else "terms"
    return f"NELBO without the {' and '.join(terms)} {noun} ({where})"


def without_start(process: Process, protocol: str) -> str:
    """The protocol of a chain of steps on this process. The step to t = 0 is the reconstruction
    where alpha(0) = 1; of other schedules nothing reveals what is still masked at t = 0."""
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
    """The network's prediction about a batch whose tokens were replaced by `tokens`."""
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
    """`sum w * -log p(x_0 | z_t)` over the scored tokens; the bound is the same sum.

    Rows of weight 0 are never computed, so `weight` carries all masks but the loss mask.
    """
    rows = {
        "x_0": batch.tokens,
        "z_t": z_t,
        "t": jnp.broadcast_to(t, z_t.shape),
    }

    def cross_entropy(logits, rows, _):
        return -parameterization.log_p0_of(rows["x_0"], logits, rows["z_t"], rows["t"])

    return weighted_sum(prediction, batch, cross_entropy, rows, weight, t)


def weighted_sum(
    prediction: Prediction,
    batch: Batch,
    loss: Callable[..., Float[Array, " n"]],
    rows: ArrayTree,
    weight: Float[Array, " b #l"],
    t: Float[Array, " b #l"],
) -> LossTerms:
    """`sum w * loss(logits, rows, None)` over the scored tokens; the bound is the same sum.

    As in `Prediction.reduce_rows`, of which `loss` and `rows` are the arguments; `t` is noted.
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
    """Why a weighted cross-entropy alone cannot go with a schedule that noises tokens at
    different rates; None for the others."""
    if not schedule.per_token:
        return None
    return (
        f"{type(schedule).__name__} has a rate for each token, and a weighted cross-entropy alone"
        " is no bound then; use GeneralizedNelbo() or GeneralizedDiscreteNelbo()"
    )


def scored_tokens(batch: Batch) -> Bool[Array, "b l"]:
    """The valid tokens that are scored: where nothing else may change, the others are given."""
    return batch.loss_mask if batch.is_valid is None else batch.loss_mask & batch.is_valid


def uniform_of_rows(times: TimeSampler, key: Key[Array, ""], batch: Batch) -> Float[Array, "b 1"]:
    """The u that becomes each row's time, from the objective's key."""
    return times.sample(stream(key, "times"), batch.row, batch.rows)[:, None]


def noised(
    process: Process,
    key: Key[Array, ""],
    batch: Batch,
    t: Float[Array, " b #l"],
    may_change: Bool[Array, "b l"] | None = None,
) -> Int[Array, "b l"]:
    """The rows noised to `t`, from the objective's key: the tokens that `may_change`, by default
    all valid ones."""
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
    """Draws a time for each row, masks its tokens, and scores the masked ones.

    Noise reaches the tokens that `may_change`, by default all valid ones.
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
    """`weight` times the cross-entropy of the masked tokens of given noised rows."""
    return weighted_cross_entropy(
        ask(diffusion.denoise, batch, tokens=z_t, t=t, key=key),
        batch,
        parameterization=diffusion.parameterization,
        z_t=z_t,
        t=t,
        weight=jnp.where(diffusion.process.is_masked(z_t), weight, 0.0),
    )
