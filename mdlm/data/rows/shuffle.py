"""The order in which training takes rows: computed for any sample from its number and a seed.

Training is an endless sequence of samples, numbered from 0. An order gives the row of any sample
without going through those before it, in memory that does not grow with the data. It does not
depend on batches or host processes, so the number of samples consumed is the whole state.
"""

import functools
from typing import Protocol

import numpy as np
from jaxtyping import Int64

from mdlm.data.rows.permutation import key, permuted

PERIOD = 10_000
"""Consecutive samples in which a mixture matches its weights exactly."""

PARTS, ROWS = 0, 1
"""Random streams of an order: the part that a sample is from, and, at `ROWS` plus the number of
the part, the rows of that part."""


class Order(Protocol):
    """An endless sequence of rows."""

    def at(self, samples: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """Returns the row numbers of the given samples."""
        ...


class Shuffled:
    """All `n` rows in every epoch, in a new order each time."""

    def __init__(self, n: int, seed: int, stream: int = ROWS):
        if n < 1:
            raise ValueError(f"n={n} rows: must be at least 1")
        self.n, self.seed, self.stream = n, seed, stream
        key(seed)  # raises ValueError if the seed is out of range

    def at(self, samples: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        epochs, positions = np.divmod(samples, self.n)
        return permuted(positions, self.n, key(self.seed, self.stream, epochs))


class Together:
    """The rows of examples that have `each` rows one after another, in an order of examples."""

    def __init__(self, examples: Order, each: int):
        self.examples, self.each = examples, each

    def at(self, samples: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        examples, within = np.divmod(samples, self.each)
        return self.each * self.examples.at(examples) + within


class Mixed:
    """Rows of several parts, so many of each in every `PERIOD` samples, in shuffled order.

    Rows are numbered part after part. Each part has the order that it would have alone, so a
    mixture of one part has the order of that part. Two periods are kept in memory.

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
        """Returns, for each sample of a period, its part and how many samples of that part come
        before it in the period."""
        positions = np.arange(PERIOD, dtype=np.int64)
        dealt = permuted(positions, PERIOD, key(self.seed, PARTS, period))
        part = np.searchsorted(np.cumsum(self.counts), dealt, side="right")
        before = np.empty(PERIOD, np.int64)
        for k, count in enumerate(self.counts):
            before[part == k] = np.arange(count)
        return part, before

    def parts(
        self, samples: Int64[np.ndarray, " n"]
    ) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
        """Returns the part of each sample, and how many samples of that part come before it."""
        periods, positions = np.divmod(samples, PERIOD)
        part, number = np.empty_like(samples), np.empty_like(samples)
        for period in np.unique(periods).tolist():
            here = periods == period
            its_parts, before = self._period(period)
            part[here] = its_parts[positions[here]]
            number[here] = before[positions[here]]
        return part, number + periods * np.array(self.counts, np.int64)[part]

    def at(self, samples: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        part, number = self.parts(samples)
        rows = self.starts[part]
        for i in np.unique(part).tolist():
            here = part == i
            rows[here] += self.orders[i].at(number[here])
        return rows


def shares(weights: tuple[float, ...], period: int = PERIOD) -> tuple[int, ...]:
    """Returns integers that sum to `period`, as nearly as possible in proportion to `weights`.

    All are rounded down, then the largest remainders (the first of equal ones) are rounded up, so
    each error is below 1. Raises ValueError if an integer would be 0.
    """
    exact = np.array(weights, np.float64) / sum(weights) * period
    found = np.floor(exact).astype(np.int64)
    largest = np.argsort(-(exact - found), kind="stable")
    found[largest[: period - int(found.sum())]] += 1
    if not found.all():
        weight = weights[int(np.flatnonzero(found == 0)[0])]
        raise ValueError(
            f"weights={weights}: {weight} of {sum(weights):g} is less than one sample in "
            f"{period:,}: raise it"
        )
    return tuple(found.tolist())
