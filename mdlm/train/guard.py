"""Guards of a run: skipped updates that are not finite, loss by noise level, loss spikes.

On the devices, in the step: an update whose loss or gradient is not finite is skipped and counted.
The decision is one scalar, the same on all devices, and needs no transfer to the host. The
counters, and sums of the loss by noise level since the last line of the log, are part of the state,
so a resumed run keeps counting.

On the host, with each line of the log: the run ends (`Diverged`) if too many updates in a row were
skipped; a loss far above its running median is a spike, after which the run may rewind.
"""

import math
import statistics
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from mdlm.errors import InputError
from mdlm.experiment.experiment import Training
from mdlm.types import ArrayTree, LossTerms

BINS = 10
"""Number of bins of noise levels: equal parts of the times, [0, 0.1) and so on."""
WINDOW, ENOUGH = 50, 10
"""Most and fewest lines of the log that a running median is taken over."""

Counters = dict[str, Any]


def fresh() -> Counters:
    """Returns the counters before the first step."""
    return {
        "skipped": jnp.zeros((), jnp.int32),
        "in_a_row": jnp.zeros((), jnp.int32),
        "by_time": jnp.zeros((2, BINS)),
    }


def by_time(terms: LossTerms) -> Float[Array, "2 n"] | None:
    """Returns bound and count of tokens, summed by noise level; None if nothing is noised."""
    if terms.t is None:
        return None
    sums = jnp.stack([terms.bound, terms.count])
    if terms.t.shape[1] == 1:
        sums = sums.sum(-1, keepdims=True)
    index = jnp.clip((terms.t * BINS).astype(jnp.int32), 0, BINS - 1)
    is_here = index[..., None] == jnp.arange(BINS)[None, None]
    return jnp.where(is_here[None], sums[..., None], 0.0).sum((1, 2))


def all_finite(tree: ArrayTree) -> Bool[Array, ""]:
    """Whether all numbers of a tree are finite."""
    found = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]
    return jnp.stack(found).all()


def choose(is_sound: Bool[Array, ""], new: ArrayTree, old: ArrayTree) -> ArrayTree:
    """Returns the new values, or the old ones if the step is not finite.

    A select instead of a branch: XLA fuses it into the loops that write the values anyway.
    """
    return jax.tree.map(lambda n, o: jnp.where(is_sound, n, o), new, old)


def counted(
    counters: Counters,
    is_sound: Bool[Array, ""],
    sums: Float[Array, "2 n"] | None,
    is_first: Bool[Array, ""],
) -> Counters:
    """Returns the counters after a step, the first since a line of the log if `is_first`."""
    past = jnp.where(is_first, 0.0, counters["by_time"])
    if sums is not None:
        past = past + jnp.where(is_sound, sums, 0.0)
    return {
        "skipped": counters["skipped"] + ~is_sound,
        "in_a_row": jnp.where(is_sound, 0, counters["in_a_row"] + 1),
        "by_time": past,
    }


def figures(
    counters: Counters, sums: Float[Array, "2 n"] | None
) -> dict[str, Int[Array, ""] | Float[Array, " n"]]:
    """Returns the metrics for the log. Noise levels that were not drawn are NaN."""
    found = {"skipped": counters["skipped"], "skipped_in_a_row": counters["in_a_row"]}
    if sums is not None:
        total, count = counters["by_time"]
        found["loss_by_time"] = jnp.where(count > 0, total / jnp.maximum(count, 1), jnp.nan)
    return found


class Diverged(InputError):
    """The run no longer makes progress. Its checkpoints are intact."""

    exit_code = 3


@dataclass(frozen=True)
class Spike:
    """A loss far above the median of the lines before it. Nats per token, as `loss` in the log."""

    loss: float
    median: float


class Guard:
    """Decides from the lines of the log whether a run ends or rewinds.

    Args:
        settings: the run's settings.
        memory: the value of `memory` when the state was saved.
    """

    def __init__(self, settings: Training, memory: dict[str, Any]):
        self.settings = settings
        self.losses: list[float] = list(memory.get("losses", []))
        self.rewinds: int = memory.get("rewinds", 0)

    @property
    def memory(self) -> dict[str, Any]:
        """Values saved with the state, so that a resumed run decides the same."""
        if self.settings.spike is None:
            return {}
        return {"losses": self.losses, "rewinds": self.rewinds}

    @property
    def may_rewind(self) -> bool:
        return self.rewinds < self.settings.rewinds

    def has_given_up(self, metrics: dict[str, float]) -> bool:
        """Whether `max_skipped` updates in a row, or more, were skipped."""
        return metrics["skipped_in_a_row"] >= self.settings.max_skipped

    def spike(self, loss: float) -> Spike | None:
        """Adds the loss to the running median's window; returns a `Spike` if it is one."""
        if self.settings.spike is None or not math.isfinite(loss):
            return None
        before, self.losses = self.losses, [*self.losses, loss][-WINDOW:]
        if len(before) < ENOUGH:
            return None
        median = statistics.median(before)
        return Spike(loss, median) if loss > median + self.settings.spike else None
