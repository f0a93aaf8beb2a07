"""Computed permutations: bijections of every size, statistically like random ones."""

import itertools
import math

import numpy as np
import pytest

from mdlm.data.rows.permutation import LIMIT, key, permuted


def seeds(n: int) -> np.ndarray:
    return key(7, np.arange(n, dtype=np.int64))[:, None]


def whole(n: int, keys: np.ndarray) -> np.ndarray:
    return permuted(np.arange(n, dtype=np.int64), n, keys)


def deviation(counts: np.ndarray, expected: float) -> float:
    """Chi-square as a standard normal variable (Wilson and Hilferty's cube root)."""
    freedom = counts.size - 1
    part = 2 / (9 * freedom)
    square = ((counts - expected) ** 2).sum() / expected
    return float(((square / freedom) ** (1 / 3) - 1 + part) / math.sqrt(part))


@pytest.mark.parametrize("sizes", [range(1, 400), (997, 1000, 1024, 4096, 65536, 100_003)])
def test_every_size_is_a_bijection(sizes):
    for n in sizes:
        for found in whole(n, seeds(2)):
            np.testing.assert_array_equal(np.sort(found), np.arange(n))


@pytest.mark.parametrize("n", [2**31 + 11, 10**12, 2**62 - 57, LIMIT])
def test_large_sizes_repeat_nothing(n):
    first, last = np.arange(50_000, dtype=np.int64), np.arange(n - 50_000, n, dtype=np.int64)
    found = permuted(np.concatenate([first, last]), n, key(3, 0))
    assert len(np.unique(found)) == 100_000
    assert found.min() >= 0 and found.max() < n
    tenths = np.bincount((found // (n // 10)).clip(0, 9), minlength=10)
    assert abs(deviation(tenths, 10_000)) < 4


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
def test_small_sizes_have_all_permutations_equally_often(n):
    draws = 40_000
    found = whole(n, seeds(draws)) @ n ** np.arange(n)
    codes = [int(np.dot(p, n ** np.arange(n))) for p in itertools.permutations(range(n))]
    counts = np.array([(found == code).sum() for code in codes])
    assert counts.sum() == draws
    assert abs(deviation(counts, draws / math.factorial(n))) < 4


@pytest.mark.parametrize("n", [2, 7, 9, 25, 81])
def test_half_of_the_permutations_are_odd(n):
    draws = 1000
    found = whole(n, seeds(draws))
    inverted = sum((found[:, i] > found[:, j]) for i in range(n) for j in range(i + 1, n)) % 2
    assert abs(inverted.mean() - 0.5) < 4 * 0.5 / math.sqrt(draws)


@pytest.mark.parametrize("n", [7, 9, 24, 64, 65, 100])
def test_any_two_positions_go_to_any_two_equally_often(n):
    draws = 20_000
    found = whole(n, seeds(draws))
    alone = [deviation(np.bincount(found[:, i], minlength=n), draws / n) for i in range(n)]
    assert max(alone) < 5 and min(alone) > -5
    both = []
    for i, j in [(0, 1), (1, 2), (0, n - 1), (n - 2, n - 1), (n // 2, n // 2 + 1), (1, n // 2)]:
        counts = np.bincount(found[:, i] * n + found[:, j], minlength=n * n).reshape(n, n)
        off = counts[~np.eye(n, dtype=bool)]
        both.append(deviation(off, draws / off.size))
    assert max(both) < 4 and min(both) > -4, both


@pytest.mark.parametrize("n", [1000, 1_000_003])
def test_images_of_neighbours_are_independent(n):
    """Within one permutation, the images of neighbouring positions are independent."""
    found = whole(n, key(5, 0))
    for step in (1, 2, 31):
        ahead = (found[step:] - found[:-step]) % n
        bins = np.bincount(ahead * 20 // n, minlength=20)
        assert deviation(bins, len(ahead) / 20) < 5
        assert abs(np.corrcoef(found[step:], found[:-step])[0, 1]) < 4 / math.sqrt(n)
    # The half of the range is independent of the parity of the position.
    upper = found >= n // 2
    assert abs(upper[::2].mean() - 0.5) < 4 / math.sqrt(2 * n)


def test_epochs_and_seeds_are_independent():
    n = 100_000
    some = [whole(n, key(seed, epoch)) for seed in (0, 1, 2**40) for epoch in (0, 1, 2)]
    for a, b in itertools.combinations(some, 2):
        # Independent permutations agree at about one position.
        assert (a == b).sum() < 8
        assert abs(np.corrcoef(a, b)[0, 1]) < 4 / math.sqrt(n)
    swapped = key(1, 2), key(2, 1), key(1), key(1, 2, 0)
    assert len({int(k) for k in swapped}) == 4


def test_each_position_may_have_its_own_key():
    epochs = np.array([0, 3, 3, 1], np.int64)
    positions = np.array([5, 0, 9, 5], np.int64)
    found = permuted(positions, 10, key(2, epochs))
    for position, epoch, one in zip(positions, epochs, found, strict=True):
        assert whole(10, key(2, int(epoch)))[position] == one
    assert permuted(np.zeros(0, np.int64), 10, key(0)).shape == (0,)


def test_the_order_never_changes():
    """A run resumes with the order that it began with, whatever version of this code resumes it.

    Where this fails, the order of every run has changed: undo that.
    """
    assert int(key(0)) == 16294208416658607535  # SplitMix64's first output for seed 0
    assert whole(10, key(0, 1, 0)).tolist() == GOLDEN[10]
    assert whole(1000, key(1, 2, 3))[:8].tolist() == GOLDEN[1000]
    far = np.array([0, 1, 10**9, 2**62 - 1], np.int64)
    assert permuted(far, LIMIT, key(2**63 - 1, 5)).tolist() == GOLDEN[LIMIT]


GOLDEN = {
    10: [8, 9, 7, 2, 4, 6, 5, 3, 1, 0],
    1000: [697, 617, 761, 574, 455, 185, 109, 111],
    LIMIT: [447872182435184986, 3090996259228291981, 2317651811790622600, 4115638938021876647],
}


def test_errors():
    positions = np.arange(4, dtype=np.int64)
    for n in (0, LIMIT + 1):
        with pytest.raises(ValueError, match=f"n={n}: must be in"):
            permuted(positions, n, key(0))
    with pytest.raises(ValueError, match=r"outside \[0, 3\)"):
        permuted(positions, 3, key(0))
    with pytest.raises(ValueError, match=r"outside \[0, 3\)"):
        permuted(positions[:1] - 1, 3, key(0))
    for seed in (-1, 2**63):
        with pytest.raises(ValueError, match=f"seed={seed}: must be in"):
            key(seed)
