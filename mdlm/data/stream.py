"""A split as one stream of tokens with documents marked in it: what packings cut rows from."""

from typing import Protocol

import numpy as np
from jaxtyping import Int32, Int64, Integer


class TokenStream(Protocol):
    """The documents of a split, one after the other, `eos` after each (None: nothing between).

    `total` counts all tokens. `ends` says where each document ends: just behind its EOS, or its
    last token where there is none. It may be mapped from a file: index it, do not copy it.
    """

    eos: int | None

    @property
    def total(self) -> int: ...

    @property
    def documents(self) -> int: ...

    def ends(self, first: int, last: int) -> Int64[np.ndarray, " n"]:
        """The ends of the documents number `first` to `last` (excluded)."""
        ...

    def read(self, starts: Int64[np.ndarray, " n"], length: int) -> Integer[np.ndarray, "n l"]:
        """`length` tokens from each start. All must lie inside the stream."""
        ...


class ArrayStream:
    """A stream held in memory."""

    def __init__(
        self, documents: list[Int32[np.ndarray, "..."]], eos: int | None, dtype: type[np.integer]
    ):
        stop = np.array([] if eos is None else [eos], np.int32)
        sizes = np.array([len(document) + len(stop) for document in documents], np.int64)
        self.eos = eos
        self._ends = np.cumsum(sizes)
        self.tokens = np.empty(self._ends[-1] if len(documents) else 0, dtype)
        parts = [part for document in documents for part in (document, stop)]
        if parts:
            np.concatenate(parts, out=self.tokens, casting="unsafe")

    @property
    def total(self) -> int:
        return len(self.tokens)

    @property
    def documents(self) -> int:
        return len(self._ends)

    def ends(self, first: int, last: int) -> Int64[np.ndarray, " n"]:
        return self._ends[first:last]

    def read(self, starts: Int64[np.ndarray, " n"], length: int) -> Integer[np.ndarray, "n l"]:
        return self.tokens[starts[:, None] + np.arange(length, dtype=np.int64)]
