"""Search for the interval of times to train block diffusion on (BD3-LM, arXiv:2503.09573 sec. 5.3).

The loss of a block (the mean over its tokens) varies more on some intervals of masking rates than
on others, and so does the gradient. The best interval to train on next is the one with the lowest
variance under the present network:

    spread(low, high) = sum over batches of the unbiased variance of the blocks' mean losses

`Run.clip_search` searches for the network of a run folder.
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
    """Returns the intervals of the published search: the whole, and five widths in steps of 0.05.

    For blocks of one token they are the whole interval, and t = 1 alone.
    """
    if block_size == 1:
        return [(t_min, 1.0), (1.0, 1.0)]
    found = [(t_min, 1.0)]
    for width in (10, 12, 14, 16, 18):  # in twentieths
        found += [(max(i / 20, t_min), (i + width) / 20) for i in range(21 - width)]
    return found


def spread(
    values: Float[np.ndarray, "b l"], count: Float[np.ndarray, "b l"], block_size: int
) -> float:
    """Returns the unbiased variance of the blocks' mean losses by counted token, in one batch."""
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
    """Returns the intervals (by default `candidates`), sorted from the lowest spread.

    Each is measured on the same batches with draws of its own. The network is compiled once.

    Raises ValueError if one is not an interval for `objective`.
    """
    if intervals is None:
        intervals = candidates(objective.block_size, objective.t_min)
    whole = replace(objective, low=0.0, high=1.0)
    for low, high in intervals:
        replace(objective, low=low, high=high)  # raises if it is no interval

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
