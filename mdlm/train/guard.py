"""What a run is watched by: updates that are not finite, loss by noise level, loss that jumps.

On the devices, in the step: an update whose loss or gradient is not finite is not made, and is
counted. The decision is one number, the same on all devices, and the host is not asked. The
counters, and sums of the loss by noise level since the last line of the log, are part of the state,
so a continued run counts on.

On the host, with each line of the log: the run ends (`Diverged`) where too many updates in a row
were left out; a loss far above its running median is a spike, from which the run may go back.
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
"""Noise levels that are told apart: equal parts of the times, [0, 0.1) and so on."""
WINDOW, ENOUGH = 50, 10
"""Lines of the log that a median is over: at most, and at least."""

Counters = dict[str, Any]


def fresh() -> Counters:
    """The counters before the first step."""
    return {
        "skipped": jnp.zeros((), jnp.int32),
        "in_a_row": jnp.zeros((), jnp.int32),
        "by_time": jnp.zeros((2, BINS)),
    }


def by_time(terms: LossTerms) -> Float[Array, "2 n"] | None:
    """The bound and the count of tokens, summed by noise level; None where nothing is noised."""
    if terms.t is None:
        return None
    sums = jnp.stack([terms.bound, terms.count])
    if terms.t.shape[1] == 1:
        sums = sums.sum(-1, keepdims=True)
    place = jnp.clip((terms.t * BINS).astype(jnp.int32), 0, BINS - 1)
    is_here = place[..., None] == jnp.arange(BINS)[None, None]
    return jnp.where(is_here[None], sums[..., None], 0.0).sum((1, 2))


def choose(is_sound: Bool[Array, ""], new: ArrayTree, old: ArrayTree) -> ArrayTree:
    """The new values, or where the step is not sound, the old ones.

    A selection and no branch: it becomes part of the loops that write the values anyway.
    """
    return jax.tree.map(lambda n, o: jnp.where(is_sound, n, o), new, old)


def counted(
    counters: Counters,
    is_sound: Bool[Array, ""],
    sums: Float[Array, "2 n"] | None,
    is_first: Bool[Array, ""],
) -> Counters:
    """The counters after a step, which `is_first` of those that the next line is about."""
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
    """What the log has of them. Noise levels that were not met are no number."""
    found = {"skipped": counters["skipped"], "skipped_in_a_row": counters["in_a_row"]}
    if sums is not None:
        total, count = counters["by_time"]
        found["loss_by_time"] = jnp.where(count > 0, total / jnp.maximum(count, 1), jnp.nan)
    return found


class Diverged(InputError):
    """The run makes no progress any more. Its checkpoints are intact."""

    exit_code = 3


@dataclass(frozen=True)
class Spike:
    """A loss far above the median of the lines before it. Nats per token, as `loss` in the log."""

    loss: float
    median: float


class Guard:
    """Reads the lines of the log.

    Args:
        settings: the run's.
        memory: what `memory` was when the state was saved.
    """

    def __init__(self, settings: Training, memory: dict[str, Any]):
        self.settings = settings
        self.losses: list[float] = list(memory.get("losses", []))
        self.rewinds: int = memory.get("rewinds", 0)

    @property
    def memory(self) -> dict[str, Any]:
        """What is to be saved with the state, so that a continued run judges alike."""
        if self.settings.spike is None:
            return {}
        return {"losses": self.losses, "rewinds": self.rewinds}

    @property
    def may_rewind(self) -> bool:
        return self.rewinds < self.settings.rewinds

    def has_given_up(self, metrics: dict[str, float]) -> bool:
        """Whether so many updates in a row were left out that no more are to be tried."""
        return metrics["skipped_in_a_row"] >= self.settings.max_skipped

    def spike(self, loss: float) -> Spike | None:
        """Notes the loss; tells whether it is a spike."""
        if self.settings.spike is None or not math.isfinite(loss):
            return None
        before, self.losses = self.losses, [*self.losses, loss][-WINDOW:]
        if len(before) < ENOUGH:
            return None
        median = statistics.median(before)
        return Spike(loss, median) if loss > median + self.settings.spike else None
