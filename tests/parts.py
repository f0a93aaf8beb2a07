"""The cases of a test that belong to a part of all tests (`--part K/N`).

One of N parts is run each day, all of them in N days:

    slow cases      each in one part
    other cases     of the first test of a file in `DAILY`, some in each part;
                    of other tests, some in every ninth part
"""

from zlib import crc32

DAILY = ("exact", "objectives", "samplers")
"""Folders of which the first test of each file is in every part, as are all tests of no folder.
The first test of a file is that of the right numbers."""
DAYS = 9


def part_of(cases, k, n, is_first=True):
    """The k-th of n parts of a test's cases; `is_first` says if it is the first of its file."""
    slow = [item for item in cases if item.get_closest_marker("slow") is not None]
    quick = [item for item in cases if item not in slow]
    chosen = [item for item in slow if number_of(item.nodeid) % n == k]
    if not quick:
        return chosen
    if n % DAYS or is_daily(quick[0].nodeid, is_first):
        return chosen + quick[k % len(quick) :: n]
    turn, of_turn = n // DAYS, number_of(quick[0].nodeid.partition("[")[0]) % DAYS
    return chosen + (quick[k // DAYS % len(quick) :: turn] if k % DAYS == of_turn else [])


def is_daily(nodeid, is_first):
    """Whether a test is in every part."""
    folders = nodeid.partition("::")[0].split("/")[:-1]
    return folders in ([], ["tests"]) or (is_first and any(f in DAILY for f in folders))


def number_of(nodeid):
    """A number that belongs to the name of a test or case."""
    return crc32(nodeid.encode())
