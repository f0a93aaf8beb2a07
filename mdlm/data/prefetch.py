"""Things made ahead of time by a thread, and how long whoever uses them stood still for want."""

import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

AHEAD = 2
"""Things that wait, ready, at most; one more is in the making."""
LOOK = 1e-3
"""Seconds between two looks whether the consumer has run out of work."""


class Feed(Iterator[T], Generic[T]):
    """What `items` yields, made ahead by a thread of its own, which the first `next` starts.

    `stalled` counts the seconds in which nothing was ready and `is_idle()`: a consumer that hands
    work to a device and comes back at once has lost nothing while the device still works.
    `close` ends the thread; what fails in the thread is raised here.
    """

    def __init__(self, items: Iterator[T], is_idle: Callable[[], bool] = lambda: True):
        self.stalled = 0.0
        self._items, self._is_idle = items, is_idle
        self._ready: queue.Queue[T | _Failed] = queue.Queue(maxsize=AHEAD)
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        # The thread holds no reference to the feed, so that one that is dropped ends it too.
        weakref.finalize(self, self._closed.set)

    def __next__(self) -> T:
        if self._closed.is_set():
            raise StopIteration
        if self._thread is None:
            self._thread = threading.Thread(
                target=_work,
                args=(self._items, self._ready, self._closed),
                name="feed",
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
        """Ends the thread and waits for that."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()


class _Failed:
    """How the making of items ended."""

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
