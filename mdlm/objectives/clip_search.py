"""Which interval of times to train block diffusion on (BD3-LM, arXiv:2503.09573 sec. 5.3).

The loss of a block, a mean over its tokens, spreads more on some intervals of masking rates than
on others, and the gradient with it. Of all candidates the one whose loss spreads least, measured
with the present network, is the one to train on next:

    spread(low, high) = sum over batches of the unbiased variance of the blocks' mean losses

`Run.clip_search` does so for a run folder.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np
from jax import Array
from jaxtyping import Float, Key

from mdlm.diffusion import Diffusion
from mdlm.objectives.block import BlockNelbo
from mdlm.types import ArrayTree, Batch


@dataclass(frozen=True)
class Interval:
    """A candidate and the spread of its loss."""

    low: float
    high: float
    spread: float


def candidates(block_size: int, t_min: float = 1e-3) -> list[tuple[float, float]]:
    """The intervals that the published search compares: all, and five widths in steps of 0.05.
    Blocks of one token have all times, or the last alone."""
    if block_size == 1:
        return [(t_min, 1.0), (1.0, 1.0)]
    found = [(t_min, 1.0)]
    for width in (10, 12, 14, 16, 18):  # of twenty
        found += [(max(i / 20, t_min), (i + width) / 20) for i in range(21 - width)]
    return found


def spread(
    values: Float[np.ndarray, "b l"], count: Float[np.ndarray, "b l"], block_size: int
) -> float:
    """Unbiased variance of the blocks' mean losses over their counted tokens, in one batch."""
    total = np.asarray(values, np.float64).reshape(-1, block_size).sum(-1)
    tokens = np.asarray(count, np.float64).reshape(-1, block_size).sum(-1)
    return float((total[tokens > 0] / tokens[tokens > 0]).var(ddof=1))


def search(
    objective: BlockNelbo,
    key: Key[Array, ""],
    batches: Iterable[Batch],
    *,
    diffusion: Callable[[ArrayTree], Diffusion],
    params: ArrayTree,
    intervals: Sequence[tuple[float, float]] | None = None,
) -> list[Interval]:
    """The intervals (by default `candidates`), the one whose loss spreads least first.

    All see the same batches, each with its own draws. The network is compiled once.
    """
    if intervals is None:
        intervals = candidates(objective.block_size, objective.t_min)
    whole = replace(objective, low=0.0, high=1.0)
    for low, high in intervals:
        replace(objective, low=low, high=high)  # refuses what is none

    @jax.jit
    def values(params, low, high, key, batch):
        terms = whole.on(
            low,
            high,
            key,
            batch,
            diffusion(params),
        )
        return terms.values, terms.count

    sums = np.zeros(len(intervals))
    for number, batch in enumerate(batches):
        for i, (low, high) in enumerate(intervals):
            draw = jax.random.fold_in(jax.random.fold_in(key, number), i)
            loss, count = values(params, low, high, draw, batch)
            sums[i] += spread(np.asarray(loss), np.asarray(count), whole.block_size)
    found = [Interval(*ends, float(total)) for ends, total in zip(intervals, sums, strict=True)]
    return sorted(found, key=lambda interval: interval.spread)
