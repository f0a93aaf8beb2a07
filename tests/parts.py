"""The cases of a test that belong to a part of all tests (`--part K/N`)."""

from zlib import crc32


def part_of(cases, k, n):
    """The k-th of n parts of a test's cases. Some case that is not slow is in each of them."""
    slow = [item for item in cases if item.get_closest_marker("slow") is not None]
    quick = [item for item in cases if item not in slow]
    if len(slow) > 1 and not quick:
        return slow[k % len(slow) :: n]
    of_this_day = [item for item in slow if crc32(item.nodeid.encode()) % n == k]
    return of_this_day + (quick[k % len(quick) :: n] if quick else [])
