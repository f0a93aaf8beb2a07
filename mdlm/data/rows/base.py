"""Rows of tokens of one length, in memory or read from a store."""

import abc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64, Integer

from mdlm.data.rows.shuffle import Order, Shuffled

CHUNK = 2**22
"""Tokens read at a time by `RowSet.chunks`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Rows in memory. `loss_mask`: counted in the loss. `is_valid`: attended to by the network.

    `segment_ids` numbers the documents of a row from 0 if attention stays inside each document;
    else None. `token_types` says which of the texts of a row each token is of, `target` what
    belongs to the row: the number of a class, or a number; None where rows have neither.
    """

    tokens: Integer[np.ndarray, "n l"]
    loss_mask: Bool[np.ndarray, "n l"]
    is_valid: Bool[np.ndarray, "n l"]
    segment_ids: Any = None  # Int32[np.ndarray, "n l"]
    token_types: Any = None  # Int32[np.ndarray, "n l"]
    target: Any = None  # Float32[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.tokens)


class RowSet(abc.ABC):
    """The rows of a split, numbered from 0 and made on demand."""

    length: int

    @property
    @abc.abstractmethod
    def placed(self) -> int:
        """Number of the documents' own tokens (without inserted special tokens) in the rows."""

    @property
    @abc.abstractmethod
    def dropped(self) -> int:
        """Number of the documents' own tokens that are in no row."""

    @property
    @abc.abstractmethod
    def is_padded(self) -> bool:
        """Whether any row has padding. If none has, a network needs no attention mask."""

    @property
    @abc.abstractmethod
    def inserted(self) -> dict[int, int]:
        """By token, how many more the rows have than the documents and their EOS: the inserted
        special tokens, minus the EOS of the stream that are in no row."""

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def take(self, at: Int64[np.ndarray, " n"]) -> Rows:
        """Returns the rows of these numbers, in this order.

        Raises IndexError if a number is out of range.
        """

    @abc.abstractmethod
    def loss_tokens(self) -> int:
        """Returns how many tokens of all rows count in the loss, without making the rows."""

    def all(self) -> Rows:
        """Returns all rows at once, for splits that fit into memory."""
        return self.take(np.arange(len(self), dtype=np.int64))

    def chunks(self) -> Iterator[Rows]:
        """Yields all rows in order, a few at a time."""
        step = max(1, CHUNK // self.length)
        for start in range(0, len(self), step):
            yield self.take(np.arange(start, min(start + step, len(self)), dtype=np.int64))

    def order(self, seed: int) -> Order:
        """Returns the order in which training takes the rows, over all epochs."""
        return Shuffled(len(self), seed)

    def first(self, n: int) -> "RowSet":
        """Returns the first `n` rows, for a quick evaluation. `placed`, `dropped` and `inserted`
        still count all rows."""
        return First(self, n)

    def check(self, at: Int64[np.ndarray, " n"]) -> None:
        """Raises IndexError if a number is out of range."""
        if len(at) and not 0 <= at.min() <= at.max() < len(self):
            raise IndexError(f"rows {at.min()} to {at.max()} of {len(self)}")


class First(RowSet):
    """The first rows of another row set."""

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

    def loss_tokens(self) -> int:
        return sum(int(rows.loss_mask.sum()) for rows in self.chunks())
