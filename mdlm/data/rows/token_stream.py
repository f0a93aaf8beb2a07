"""A split as one stream of tokens with the ends of its documents; packings cut rows from it."""

import abc
import functools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int32, Int64, Integer

CHUNK = 2**20
"""Documents read at a time by `TokenStream.sizes`."""


class TokenStream(abc.ABC):
    """The documents of a split, concatenated, with `eos` after each (None: nothing between).

    `total` counts all tokens, `documents` all documents, of which `filled` have tokens besides
    their EOS. Documents are numbered from 0. Each method reads a small part of the stream; only
    `sizes` reads the ends of all documents.
    """

    eos: int | None
    total: int
    documents: int
    filled: int

    @abc.abstractmethod
    def ends(self, numbers: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """Returns where documents end: the position after their EOS, or after their last token if
        there is no EOS."""

    @abc.abstractmethod
    def ended(self, positions: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """Returns how many documents end at or before each position of the stream."""

    @abc.abstractmethod
    def with_tokens(self, at: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """Returns the numbers of the `at`-th documents, counting from 0 those with tokens only."""

    @abc.abstractmethod
    def read(self, starts: Int64[np.ndarray, " n"], length: int) -> Integer[np.ndarray, "n l"]:
        """Returns `length` tokens from each start. All must be inside the stream."""

    def spans(
        self, numbers: Int64[np.ndarray, " n"]
    ) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
        """Returns where the documents' own tokens (without EOS) begin and end."""
        starts = np.where(numbers > 0, self.ends(np.maximum(numbers - 1, 0)), 0)
        return starts, self.ends(numbers) - (self.eos is not None)

    def sizes(self) -> Iterator[Int64[np.ndarray, " n"]]:
        """Yields the lengths of all documents (without EOS), in order, `CHUNK` at a time."""
        for first in range(0, self.documents, CHUNK):
            last = min(first + CHUNK, self.documents)
            starts, stops = self.spans(np.arange(first, last, dtype=np.int64))
            yield stops - starts


class ArrayStream(TokenStream):
    """A stream held in memory."""

    def __init__(
        self, documents: list[Int32[np.ndarray, "..."]], eos: int | None, dtype: type[np.integer]
    ):
        stop = np.array([] if eos is None else [eos], np.int32)
        sizes = np.array([len(document) for document in documents], np.int64)
        self.eos = eos
        self.documents, self.filled = len(sizes), int(np.count_nonzero(sizes))
        self._ends = np.cumsum(sizes + len(stop))
        self._with_tokens = functools.cache(lambda: np.flatnonzero(sizes))
        self.total = int(self._ends[-1]) if len(sizes) else 0
        self.tokens = np.empty(self.total, dtype)
        parts = [part for document in documents for part in (document, stop)]
        if parts:
            np.concatenate(parts, out=self.tokens, casting="unsafe")

    def ends(self, numbers: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        return self._ends[numbers]

    def ended(self, positions: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        return np.searchsorted(self._ends, positions, side="right")

    def with_tokens(self, at: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        return at if self.filled == self.documents else self._with_tokens()[at]

    def read(self, starts: Int64[np.ndarray, " n"], length: int) -> Integer[np.ndarray, "n l"]:
        return windows(self.tokens, starts, length)


def windows(
    tokens: Integer[np.ndarray, " m"], starts: Int64[np.ndarray, " n"], length: int
) -> Integer[np.ndarray, "n l"]:
    """Returns a copy of `length` tokens from each start."""
    if not len(starts):
        return np.empty((0, length), tokens.dtype)
    return np.lib.stride_tricks.sliding_window_view(tokens, length)[starts]
