"""Items made in advance by a background thread, with the time that the consumer waited for them."""

import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

AHEAD = 2
"""Maximum number of items that are ready; one more is being made."""
LOOK = 1e-3
"""Seconds between two calls of `is_idle`."""


class Prefetcher(Iterator[T], Generic[T]):
    """Yields `items`, which a background thread makes in advance. The first `next` starts it.

    `stalled` counts the seconds in which no item was ready and `is_idle()` was true. A consumer
    that only dispatches work to a device loses no time while the device is still busy. `close`
    ends the thread. An exception in the thread is raised by `next`.
    """

    def __init__(self, items: Iterator[T], is_idle: Callable[[], bool] = lambda: True):
        self.stalled = 0.0
        self._items, self._is_idle = items, is_idle
        self._ready: queue.Queue[T | _Failed] = queue.Queue(maxsize=AHEAD)
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        # The thread has no reference to this object, so garbage collection ends the thread too.
        weakref.finalize(self, self._closed.set)

    def __next__(self) -> T:
        if self._closed.is_set():
            raise StopIteration
        if self._thread is None:
            self._thread = threading.Thread(
                target=_work,
                args=(self._items, self._ready, self._closed),
                name="prefetch",
                daemon=True,
            )
            self._thread.start()
        item = self._wait()
        if isinstance(item, _Failed):
            self.close()
            raise item.error
        return item

    def _wait(self) -> "T | _Failed":
        idle_since = None
        while True:
            if idle_since is None and self._is_idle():
                idle_since = time.perf_counter()
            try:
                item = self._ready.get(timeout=LOOK if idle_since is None else None)
                break
            except queue.Empty:
                continue
        if idle_since is not None:
            self.stalled += time.perf_counter() - idle_since
        return item

    def close(self) -> None:
        """Stops the thread and waits until it has ended."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()


class _Failed:
    """The exception with which the thread ended; StopIteration after the last item."""

    def __init__(self, error: Exception):
        self.error = error


def _work(items: Iterator, ready: queue.Queue, closed: threading.Event) -> None:
    def put(item) -> None:
        while not closed.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    try:
        for item in items:
            put(item)
            if closed.is_set():
                return
        put(_Failed(StopIteration()))
    except Exception as error:
        put(_Failed(error))
