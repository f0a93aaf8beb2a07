"""Rows of several row sets, concatenated, or mixed by weights for training."""

import functools

import numpy as np
from jaxtyping import Int64

from mdlm.data.rows.base import Rows, RowSet
from mdlm.data.rows.shuffle import Mixed, Order


class JoinedRows(RowSet):
    """The rows of `parts`, one part after another. All have the same length."""

    def __init__(self, parts: tuple[RowSet, ...]):
        if len({part.length for part in parts}) != 1:
            raise ValueError(f"rows of lengths {[part.length for part in parts]} cannot be joined")
        self.parts, self.length = parts, parts[0].length
        self.starts = np.cumsum([0, *(len(part) for part in parts)], dtype=np.int64)

    @property
    def placed(self) -> int:
        return sum(part.placed for part in self.parts)

    @property
    def dropped(self) -> int:
        return sum(part.dropped for part in self.parts)

    @functools.cached_property
    def is_padded(self) -> bool:
        return any(part.is_padded for part in self.parts)

    @property
    def inserted(self) -> dict[int, int]:
        found: dict[int, int] = {}
        for part in self.parts:
            for token, n in part.inserted.items():
                found[token] = found.get(token, 0) + n
        return found

    def __len__(self) -> int:
        return int(self.starts[-1])

    def loss_tokens(self) -> int:
        return sum(part.loss_tokens() for part in self.parts)

    def take(self, at: Int64[np.ndarray, " n"]) -> Rows:
        self.check(at)
        part = np.searchsorted(self.starts, at, side="right") - 1
        # Rows are taken part by part, then put back into the requested order.
        by_part = np.argsort(part, kind="stable")
        used = np.unique(part).tolist() or [0]
        found = [self.parts[k].take(at[part == k] - self.starts[k]) for k in used]
        back = np.argsort(by_part)

        def joined(arrays: list[np.ndarray]) -> np.ndarray:
            return np.concatenate(arrays)[back] if len(arrays) > 1 else arrays[0]

        return Rows(
            tokens=joined([rows.tokens for rows in found]),
            loss_mask=joined([rows.loss_mask for rows in found]),
            is_valid=joined([rows.is_valid for rows in found]),
            segment_ids=None
            if found[0].segment_ids is None
            else joined([rows.segment_ids for rows in found]),
        )


class MixedRows(JoinedRows):
    """Joined rows; training takes `counts[k]` rows of part k in every `shuffle.PERIOD` samples."""

    def __init__(self, parts: tuple[RowSet, ...], counts: tuple[int, ...]):
        super().__init__(parts)
        self.counts = counts

    def order(self, seed: int) -> Order:
        return Mixed(tuple(len(part) for part in self.parts), self.counts, seed)
