"""Rows of tokens of one length, in memory or wherever they lie."""

import abc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64, Integer

from mdlm.data.rows.shuffle import Order, Shuffled

CHUNK = 2**22
"""Tokens at a time where all rows are gone through."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Rows in memory. `loss_mask`: scored and counted. `is_valid`: seen by the network.

    `segment_ids`, where several documents share a row and attention stays inside each, numbers
    them within the row from 0; else None.
    """

    tokens: Integer[np.ndarray, "n l"]
    loss_mask: Bool[np.ndarray, "n l"]
    is_valid: Bool[np.ndarray, "n l"]
    segment_ids: Any = None  # Int32[np.ndarray, "n l"]

    def __len__(self) -> int:
        return len(self.tokens)


class RowSet(abc.ABC):
    """The rows of a split by number, made when they are asked for."""

    length: int

    @property
    @abc.abstractmethod
    def placed(self) -> int:
        """How many of the documents' own tokens (no inserted special token) are in some row."""

    @property
    @abc.abstractmethod
    def dropped(self) -> int:
        """How many of the documents' own tokens are in no row."""

    @property
    @abc.abstractmethod
    def is_padded(self) -> bool:
        """Whether any row holds padding. Where none does, a network needs no mask."""

    @property
    @abc.abstractmethod
    def inserted(self) -> dict[int, int]:
        """How often the rows have a token beyond the stream's own: inserted special tokens, less
        the EOS of the stream that are in no row."""

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def take(self, at: Int64[np.ndarray, " n"]) -> Rows:
        """The rows of these numbers, in this order. IndexError for a number that has no row."""

    @abc.abstractmethod
    def scored(self) -> int:
        """How many tokens of all rows are scored, without making the rows."""

    def all(self) -> Rows:
        """All rows at once: for splits that fit into memory."""
        return self.take(np.arange(len(self), dtype=np.int64))

    def chunks(self) -> Iterator[Rows]:
        """All rows in order, a few at a time."""
        step = max(1, CHUNK // self.length)
        for start in range(0, len(self), step):
            yield self.take(np.arange(start, min(start + step, len(self)), dtype=np.int64))

    def order(self, seed: int) -> Order:
        """In which order training takes the rows, epoch after epoch."""
        return Shuffled(len(self), seed)

    def first(self, n: int) -> "RowSet":
        """The first `n` rows, for a quick look (`placed`, `dropped` and `inserted` still tell of
        all)."""
        return First(self, n)

    def check(self, at: Int64[np.ndarray, " n"]) -> None:
        """IndexError unless all numbers have a row."""
        if len(at) and not 0 <= at.min() <= at.max() < len(self):
            raise IndexError(f"rows {at.min()} to {at.max()} of {len(self)}")


class First(RowSet):
    """The first rows of others."""

    def __init__(self, rows: RowSet, n: int):
        self.rows, self.n, self.length = rows, min(n, len(rows)), rows.length

    @property
    def placed(self) -> int:
        return self.rows.placed

    @property
    def dropped(self) -> int:
        return self.rows.dropped

    @property
    def is_padded(self) -> bool:
        return self.rows.is_padded

    @property
    def inserted(self) -> dict[int, int]:
        return self.rows.inserted

    def __len__(self) -> int:
        return self.n

    def take(self, at: Int64[np.ndarray, " n"]) -> Rows:
        self.check(at)
        return self.rows.take(at)

    def scored(self) -> int:
        return sum(int(rows.loss_mask.sum()) for rows in self.chunks())
