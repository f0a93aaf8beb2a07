"""Prefetching: items made in advance, errors of the thread, and time stalled."""

import itertools
import threading
import time

import pytest

from mdlm.data.prefetch import AHEAD, Prefetcher


def slowly(n: int, seconds: float):
    for i in range(n):
        time.sleep(seconds)
        yield i


def threads() -> int:
    return sum(thread.name == "prefetch" for thread in threading.enumerate())


def test_yields_all_items_in_order_and_ends():
    assert list(Prefetcher(iter(range(100)))) == list(range(100))
    prefetcher = Prefetcher(iter(range(3)))
    assert [*prefetcher] == [0, 1, 2] and [*prefetcher] == [] and threads() == 0


def test_items_are_made_in_advance_up_to_a_limit():
    made = []

    def items():
        for i in itertools.count():
            made.append(i)
            yield i

    prefetcher = Prefetcher(items())
    assert made == [] and threads() == 0
    assert next(prefetcher) == 0
    until = time.monotonic() + 5
    while len(made) < AHEAD + 2 and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.05)
    assert len(made) == AHEAD + 2  # the one taken, those ready, and one being made
    prefetcher.close()
    assert threads() == 0
    with pytest.raises(StopIteration):
        next(prefetcher)


def test_garbage_collection_ends_the_thread():
    prefetcher = Prefetcher(itertools.count())
    next(prefetcher)
    assert threads() == 1
    del prefetcher
    until = time.monotonic() + 5
    while threads() and time.monotonic() < until:
        time.sleep(0.01)
    assert threads() == 0


def test_waiting_counts_only_while_idle():
    seconds, n = 0.03, 8
    idle = Prefetcher(slowly(n, seconds))
    assert list(idle) == list(range(n))
    assert 0.8 * n * seconds < idle.stalled < 2 * n * seconds + 0.2
    busy = Prefetcher(slowly(n, seconds), lambda: False)
    assert list(busy) == list(range(n))
    assert busy.stalled == 0
    # The consumer becomes idle halfway through each wait.
    asked = [0.0]
    half = Prefetcher(slowly(n, seconds), lambda: time.perf_counter() > asked[0] + seconds / 2)
    for _ in range(n):
        asked[0] = time.perf_counter()
        next(half)
    assert 0 < half.stalled < 0.75 * idle.stalled
    half.close()


def test_ready_items_do_not_count_as_stalled():
    prefetcher = Prefetcher(iter(range(8)))
    next(prefetcher)
    before = prefetcher.stalled
    for _ in range(5):
        time.sleep(0.02)  # the consumer's own work
        next(prefetcher)
    assert prefetcher.stalled - before < 0.01
    prefetcher.close()


def test_errors_come_after_the_items_before_them():
    def failing():
        yield 1
        raise OSError("disk gone")

    prefetcher = Prefetcher(failing())
    assert next(prefetcher) == 1
    with pytest.raises(OSError, match="disk gone"):
        next(prefetcher)
    assert threads() == 0
