"""Rows of tokens of one length, in memory or wherever they lie."""

import abc
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64, Integer


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
    """The rows of a split by number, made when they are asked for.

    `placed` and `dropped` count the documents' own tokens (no inserted special token) that are in
    some row, and those that are in none.
    """

    placed: int
    dropped: int
    is_padded: bool
    """Whether any row holds padding. Where none does, a network needs no mask."""
    length: int

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def take(self, at: Int64[np.ndarray, " n"]) -> Rows:
        """The rows of these numbers, in this order."""

    @abc.abstractmethod
    def scored(self) -> int:
        """How many tokens of all rows are scored, without making the rows."""

    def all(self) -> Rows:
        """All rows at once: for splits that fit into memory."""
        return self.take(np.arange(len(self), dtype=np.int64))

    def first(self, n: int) -> "RowSet":
        """The first `n` rows, for a quick look (`placed` and `dropped` still tell of all)."""
        return First(self, n)


class First(RowSet):
    """The first rows of others."""

    def __init__(self, rows: RowSet, n: int):
        self.rows, self.n = rows, min(n, len(rows))
        self.placed, self.dropped = rows.placed, rows.dropped
        self.is_padded, self.length = rows.is_padded, rows.length

    def __len__(self) -> int:
        return self.n

    def take(self, at: Int64[np.ndarray, " n"]) -> Rows:
        return self.rows.take(at)

    def scored(self) -> int:
        return int(self.all().loss_mask.sum())
