"""Rows to batches: an endless shuffled order for training, every row once for evaluation.

Training takes the rows in their order (`RowSet.order`), which is computed for any sample by its
number: the state of a loader is one number, the samples consumed so far, and what it holds does
not grow with the data. Batches run on over the end of an epoch. A process takes its own rows of
each global batch, which is the same however many processes there are, so a run may go on with
another number of them.
"""

from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
from jaxtyping import Int64

from mdlm.data.prefetch import Feed
from mdlm.data.rows.base import RowSet
from mdlm.errors import InputError

T = TypeVar("T")

HostBatch = dict[str, np.ndarray]
"""The fields of `types.Batch` by name: tokens, loss_mask, row, rows; is_valid where rows of the
split are padded, for attention costs less without a mask; segment_ids where documents are to be
kept apart."""


Places = Int64[np.ndarray, " n"]
"""Of rows in a global batch, ascending."""


def process_part(batch_size: int, process_index: int, process_count: int) -> Places:
    """The places of one of so many processes that take equal parts, one after another."""
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index={process_index} of process_count={process_count}")
    if batch_size < 1 or batch_size % process_count:
        raise InputError(f"batch_size={batch_size} does not divide among {process_count} processes")
    part = batch_size // process_count
    return np.arange(process_index * part, (process_index + 1) * part, dtype=np.int64)


def _places(batch_size: int, here: Places | None) -> Places:
    return process_part(batch_size, 0, 1) if here is None else here


def check_rows(rows: RowSet) -> None:
    if len(rows) == 0:
        raise InputError("there are no rows to make batches of")


def _fields(rows: RowSet, at: Int64[np.ndarray, " n"]) -> HostBatch:
    found = rows.take(at)
    fields = {"tokens": found.tokens.astype(np.int32), "loss_mask": found.loss_mask}
    if rows.is_padded:
        fields["is_valid"] = found.is_valid
    if found.segment_ids is not None:
        fields["segment_ids"] = found.segment_ids.astype(np.int32)
    return fields


class TrainLoader:
    """Batches of shuffled rows by position, the number of samples consumed before them.

    `here` are the places of this process's rows in a batch (None: all).
    """

    def __init__(
        self,
        rows: RowSet,
        batch_size: int,
        seed: int,
        here: Places | None = None,
    ):
        check_rows(rows)
        self.rows = rows
        self.batch_size = batch_size
        self.here = _places(batch_size, here)
        self.order = rows.order(seed)

    def indices_at(self, position: int) -> Int64[np.ndarray, " n"]:
        """Which rows of the split this process's part of the batch at `position` consists of."""
        if position < 0:
            raise ValueError(f"position={position} is negative")
        return self.order.at(position + self.here)

    def batch_at(self, position: int) -> HostBatch:
        """This process's part of the batch that starts at sample `position`."""
        indices = self.indices_at(position)
        return {
            **_fields(self.rows, indices),
            "row": self.here.astype(np.int32),
            "rows": np.array(self.batch_size, np.int32),
        }

    def iterate(
        self,
        position: int,
        prepare: Callable[[HostBatch], T] = lambda batch: batch,
        is_idle: Callable[[], bool] = lambda: True,
    ) -> Feed[tuple[int, T]]:
        """Endless `(position after the batch, prepare(batch))`, made ahead by a thread of its own.

        `prepare` runs in that thread: placing a batch on devices belongs there. `is_idle` tells
        whether a batch that is waited for is missed (see `Feed`). Close what this returns.
        """

        def made() -> Iterator[tuple[int, T]]:
            at = position
            while True:
                batch = prepare(self.batch_at(at))
                at += self.batch_size
                yield at, batch

        return Feed(made(), is_idle)


def evaluation_batches(
    rows: RowSet, batch_size: int, here: Places | None = None
) -> Iterator[HostBatch]:
    """Every row once, in order, in batches of one shape; `row` is the place in the split.

    Of each batch, the rows at the places `here` (None: all).

    The last batch is filled up with copies of the last row (its place too) whose `loss_mask` is
    False throughout: they weigh nothing, and are otherwise ordinary rows, so that no network ever
    meets a row without a valid token.
    """
    check_rows(rows)
    return _evaluation_batches(rows, batch_size, _places(batch_size, here))


def _evaluation_batches(rows: RowSet, batch_size: int, here: Places) -> Iterator[HostBatch]:
    last = len(rows) - 1
    for start in range(0, len(rows), batch_size):
        place = start + here
        at = np.minimum(place, last)
        fields = _fields(rows, at)
        yield {
            **fields,
            "loss_mask": fields["loss_mask"] & (place <= last)[:, None],
            "row": at.astype(np.int32),
            "rows": np.array(len(rows), np.int32),
        }
