"""Rows to batches: an endless shuffled order for training, every row once for evaluation.

Training walks through the rows in a new order each epoch, `permutation(seed, epoch)`. The whole
order is known beforehand, so that the loader's state is one number: the samples consumed so far.
Batches run on over the end of an epoch. A process takes its contiguous part of each global batch,
which is the same however many processes there are.
"""

import functools
import queue
import threading
from collections.abc import Generator, Iterator

import numpy as np

from mdlm.data.rows import RowSet
from mdlm.types import InputError

HostBatch = dict[str, np.ndarray]
"""The fields of `types.Batch` by name: tokens, loss_mask, row, rows; is_valid where rows of the
split are padded, for attention costs less without a mask; segment_ids where documents are to be
kept apart."""

AHEAD = 2
"""Batches prepared in advance."""


def process_part(batch_size: int, process_index: int, process_count: int) -> slice:
    """The places in a global batch that belong to a process."""
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index={process_index} of process_count={process_count}")
    if batch_size < 1 or batch_size % process_count:
        raise InputError(f"batch_size={batch_size} does not divide among {process_count} processes")
    part = batch_size // process_count
    return slice(process_index * part, (process_index + 1) * part)


def check_rows(rows: RowSet) -> None:
    if len(rows) == 0:
        raise InputError("there are no rows to make batches of")


def _fields(rows: RowSet, at: np.ndarray) -> HostBatch:
    found = rows.take(at)
    fields = {"tokens": found.tokens.astype(np.int32), "loss_mask": found.loss_mask}
    if rows.is_padded:
        fields["is_valid"] = found.is_valid
    if found.segment_ids is not None:
        fields["segment_ids"] = found.segment_ids
    return fields


class TrainLoader:
    """Batches of shuffled rows by position, the number of samples consumed before them."""

    def __init__(
        self,
        rows: RowSet,
        batch_size: int,
        seed: int,
        process_index: int = 0,
        process_count: int = 1,
    ):
        check_rows(rows)
        if seed < 0:
            raise ValueError(f"seed={seed} is negative")
        self.rows = rows
        self.batch_size = batch_size
        self.seed = seed
        self.part = process_part(batch_size, process_index, process_count)
        self._order = functools.lru_cache(maxsize=2)(self._shuffled)

    def _shuffled(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.seed, epoch)).permutation(len(self.rows))

    def indices_at(self, position: int) -> np.ndarray:
        """Which rows of the split this process's part of the batch at `position` consists of."""
        if position < 0:
            raise ValueError(f"position={position} is negative")
        place = np.arange(self.batch_size, dtype=np.int64)[self.part]
        epochs, offsets = np.divmod(position + place, len(self.rows))
        indices = np.empty(len(place), np.int64)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            indices[here] = self._order(epoch)[offsets[here]]
        return indices

    def batch_at(self, position: int) -> HostBatch:
        """This process's part of the batch that starts at sample `position`."""
        indices = self.indices_at(position)
        return {
            **_fields(self.rows, indices),
            "row": np.arange(self.batch_size, dtype=np.int32)[self.part],
            "rows": np.array(self.batch_size, np.int32),
        }

    def iterate(self, position: int) -> Generator[tuple[int, HostBatch], None, None]:
        """Endless `(position after the batch, batch)`, made ahead by a thread of its own.

        Closing the iterator ends the thread; what fails in the thread is raised here.
        """
        ready: queue.Queue[tuple[int, HostBatch] | Exception] = queue.Queue(maxsize=AHEAD)
        closed = threading.Event()

        def put(item: tuple[int, HostBatch] | Exception):
            while not closed.is_set():
                try:
                    return ready.put(item, timeout=0.1)
                except queue.Full:
                    continue

        def work():
            at = position
            try:
                while not closed.is_set():
                    batch = self.batch_at(at)
                    at += self.batch_size
                    put((at, batch))
            except Exception as error:
                put(error)

        thread = threading.Thread(target=work, name="batches", daemon=True)
        thread.start()
        try:
            while True:
                item = ready.get()
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            closed.set()
            thread.join()


def evaluation_batches(
    rows: RowSet, batch_size: int, process_index: int = 0, process_count: int = 1
) -> Iterator[HostBatch]:
    """Every row once, in order, in batches of one shape; `row` is the place in the split.

    The last batch is filled up with copies of the last row (its place too) whose `loss_mask` is
    False throughout: they weigh nothing, and are otherwise ordinary rows, so that no network ever
    meets a row without a valid token.
    """
    check_rows(rows)
    part = process_part(batch_size, process_index, process_count)
    return _evaluation_batches(rows, batch_size, part)


def _evaluation_batches(rows: RowSet, batch_size: int, part: slice) -> Iterator[HostBatch]:
    last = len(rows) - 1
    for start in range(0, len(rows), batch_size):
        place = np.arange(start, start + batch_size, dtype=np.int64)[part]
        at = np.minimum(place, last)
        fields = _fields(rows, at)
        yield {
            **fields,
            "loss_mask": fields["loss_mask"] & (place <= last)[:, None],
            "row": at.astype(np.int32),
            "rows": np.array(len(rows), np.int32),
        }
