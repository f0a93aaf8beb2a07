"""Which row is the n-th that training sees: computed, for any n, from nothing but a seed.

Training is an endless sequence of samples, numbered from 0. An order answers for any of them
without having gone through those before, in memory that does not grow with the data, and knows
nothing of batches or processes: the number of samples consumed is all there is to remember.
"""

import functools
from typing import Protocol

import numpy as np
from jaxtyping import Int64

from mdlm.data.rows.permutation import key, permuted

PERIOD = 10_000
"""Samples within which a mixture has each part as often as its weight says."""

PARTS, ROWS = 0, 1
"""Randomness of an order: which part a sample is from, and (one further for each further part)
which row of the part."""


class Order(Protocol):
    """An endless sequence of rows."""

    def at(self, samples: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """The rows, by number, that are the samples of these numbers."""
        ...


class Shuffled:
    """All `n` rows, again and again, each time in a new order."""

    def __init__(self, n: int, seed: int, stream: int = ROWS):
        if n < 1:
            raise ValueError(f"n={n}: there is nothing to put in order")
        self.n, self.seed, self.stream = n, seed, stream
        key(seed)  # refuses what is no seed

    def at(self, samples: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        epochs, places = np.divmod(samples, self.n)
        return permuted(places, self.n, key(self.seed, self.stream, epochs))


class Mixed:
    """Rows of several parts, so many of each in every `PERIOD` samples, in shuffled order.

    Parts follow one another in the numbers of the rows. Each part is gone through in the order
    that it would have alone, whatever the others do; a mixture of one part has the order of that.
    What is kept in memory are two periods.

    Args:
        sizes: rows of each part.
        counts: samples of each part in a period; they sum to `PERIOD`.
    """

    def __init__(self, sizes: tuple[int, ...], counts: tuple[int, ...], seed: int):
        if len(sizes) != len(counts) or sum(counts) != PERIOD:
            raise ValueError(f"counts={counts} of {len(sizes)} parts do not sum to {PERIOD}")
        self.seed, self.counts = seed, counts
        self.starts = np.cumsum([0, *sizes[:-1]], dtype=np.int64)
        self.orders = [Shuffled(n, seed, ROWS + part) for part, n in enumerate(sizes)]
        self._period = functools.lru_cache(maxsize=2)(self._dealt)

    def _dealt(self, period: int) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
        """Of the samples of a period: parts, and how many of the part the period had before."""
        places = np.arange(PERIOD, dtype=np.int64)
        dealt = permuted(places, PERIOD, key(self.seed, PARTS, period))
        part = np.searchsorted(np.cumsum(self.counts), dealt, side="right")
        before = np.empty(PERIOD, np.int64)
        for k, count in enumerate(self.counts):
            before[part == k] = np.arange(count)
        return part, before

    def parts(
        self, samples: Int64[np.ndarray, " n"]
    ) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
        """Which part each sample is from, and how many samples of that part come before it."""
        periods, places = np.divmod(samples, PERIOD)
        part, number = np.empty_like(samples), np.empty_like(samples)
        for period in np.unique(periods).tolist():
            here = periods == period
            its_parts, before = self._period(period)
            part[here] = its_parts[places[here]]
            number[here] = before[places[here]]
        return part, number + periods * np.array(self.counts, np.int64)[part]

    def at(self, samples: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        part, number = self.parts(samples)
        rows = self.starts[part]
        for i in np.unique(part).tolist():
            here = part == i
            rows[here] += self.orders[i].at(number[here])
        return rows


def shares(weights: tuple[float, ...], period: int = PERIOD) -> tuple[int, ...]:
    """Whole numbers that sum to `period` and are in proportion to `weights`, as far as they can.

    What rounding down leaves over goes to the largest remainders (the first of equal ones), so
    none is off by one or more. ValueError where a weight comes to none.
    """
    exact = np.array(weights, np.float64) / sum(weights) * period
    found = np.floor(exact).astype(np.int64)
    largest = np.argsort(-(exact - found), kind="stable")
    found[largest[: period - int(found.sum())]] += 1
    if not found.all():
        weight = weights[int(np.flatnonzero(found == 0)[0])]
        raise ValueError(
            f"weights={weights}: {weight} of {sum(weights):g} is not one sample in {period:,}"
        )
    return tuple(found.tolist())
