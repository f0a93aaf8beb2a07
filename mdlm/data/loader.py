"""Batches of rows: an endless shuffled order for training, every row once for evaluation.

Training takes rows in the order of `RowSet.order`, which is computed for any sample from its
number. So the state of a loader is one number, the samples consumed so far, and its memory does
not grow with the data. Batches continue across the end of an epoch. Each host process loads its
own rows of the global batch. The global batch does not depend on the number of host processes, so
a run may resume with another number of them.
"""

from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
from jaxtyping import Int64

from mdlm.data.prefetch import Prefetcher
from mdlm.data.rows.base import RowSet
from mdlm.errors import InputError

T = TypeVar("T")

HostBatch = dict[str, np.ndarray]
"""The fields of `types.Batch` by name: tokens, loss_mask, row, rows; is_valid if rows of the
split are padded (attention is cheaper without a mask); segment_ids if attention stays inside
documents; token_types and target if the rows have them."""


Indices = Int64[np.ndarray, " n"]
"""Indices of rows within a global batch, ascending."""


def process_part(batch_size: int, process_index: int, process_count: int) -> Indices:
    """Returns the row indices of one host process if all take equal, consecutive parts.

    Raises InputError if `batch_size` is not a positive multiple of `process_count`.
    """
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index={process_index}: must be in [0, {process_count})")
    if batch_size < 1 or batch_size % process_count:
        raise InputError(
            f"batch_size={batch_size}: must be a positive multiple of the number of processes, "
            f"{process_count}"
        )
    part = batch_size // process_count
    return np.arange(process_index * part, (process_index + 1) * part, dtype=np.int64)


def _indices(batch_size: int, here: Indices | None) -> Indices:
    return process_part(batch_size, 0, 1) if here is None else here


def check_rows(rows: RowSet) -> None:
    """Raises InputError if there are no rows."""
    if len(rows) == 0:
        raise InputError("no rows to make batches from: give more text")


def _fields(rows: RowSet, at: Int64[np.ndarray, " n"]) -> HostBatch:
    found = rows.take(at)
    fields = {"tokens": found.tokens.astype(np.int32), "loss_mask": found.loss_mask}
    if rows.is_padded:
        fields["is_valid"] = found.is_valid
    if found.segment_ids is not None:
        fields["segment_ids"] = found.segment_ids.astype(np.int32)
    if found.token_types is not None:
        fields["token_types"] = found.token_types.astype(np.int32)
    if found.target is not None:
        fields["target"] = found.target.astype(np.float32)
    return fields


class TrainLoader:
    """Batches of shuffled rows, addressed by the number of samples consumed before them.

    `here` are the indices of this host process's rows within a global batch (None: all).
    """

    def __init__(
        self,
        rows: RowSet,
        batch_size: int,
        seed: int,
        here: Indices | None = None,
    ):
        check_rows(rows)
        self.rows = rows
        self.batch_size = batch_size
        self.here = _indices(batch_size, here)
        self.order = rows.order(seed)

    def indices_at(self, position: int) -> Int64[np.ndarray, " n"]:
        """Returns the rows of the split in this process's part of the batch at `position`."""
        if position < 0:
            raise ValueError(f"position={position}: must be at least 0")
        return self.order.at(position + self.here)

    def batch_at(self, position: int) -> HostBatch:
        """Returns this process's part of the batch that starts at sample `position`."""
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
    ) -> Prefetcher[tuple[int, T]]:
        """Returns an endless iterator of `(position after the batch, prepare(batch))`.

        A background thread makes batches in advance and runs `prepare`, which can put them on
        devices. `is_idle` says whether waiting for a batch counts as stalled (see `Prefetcher`).
        The caller must close the iterator.
        """

        def made() -> Iterator[tuple[int, T]]:
            at = position
            while True:
                batch = prepare(self.batch_at(at))
                at += self.batch_size
                yield at, batch

        return Prefetcher(made(), is_idle)


def evaluation_batches(
    rows: RowSet, batch_size: int, here: Indices | None = None
) -> Iterator[HostBatch]:
    """Returns every row once, in order, in batches of one shape; `row` is its index in the split.

    Each batch has the rows with the indices `here` of the global batch (None: all).

    The last batch is filled with copies of the last row (with the same `row`) whose `loss_mask` is
    False everywhere. They do not count, but their tokens are valid, so a network never gets a row
    without a valid token. Raises InputError if there are no rows.
    """
    check_rows(rows)
    return _evaluation_batches(rows, batch_size, _indices(batch_size, here))


def _evaluation_batches(rows: RowSet, batch_size: int, here: Indices) -> Iterator[HostBatch]:
    last = len(rows) - 1
    for start in range(0, len(rows), batch_size):
        index = start + here
        at = np.minimum(index, last)
        fields = _fields(rows, at)
        yield {
            **fields,
            "loss_mask": fields["loss_mask"] & (index <= last)[:, None],
            "row": at.astype(np.int32),
            "rows": np.array(len(rows), np.int32),
        }
