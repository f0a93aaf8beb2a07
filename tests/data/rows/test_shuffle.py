"""Orders of training: complete epochs, exact mixtures, each sample computed from its number."""

import tracemalloc

import numpy as np
import pytest

from mdlm.data.rows.shuffle import PERIOD, Mixed, Shuffled, shares


def samples(n: int, first: int = 0) -> np.ndarray:
    return np.arange(first, first + n, dtype=np.int64)


@pytest.mark.parametrize("n", [1, 2, 5, 64, 1000])
def test_each_epoch_has_every_row_once(n):
    order = Shuffled(n, seed=3)
    epochs = order.at(samples(5 * n)).reshape(5, n)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(n), (5, 1)))
    if n > 2:
        assert len({tuple(epoch) for epoch in epochs.tolist()}) > 1
        assert (order.at(samples(5 * n)) != Shuffled(n, seed=4).at(samples(5 * n))).any()


@pytest.mark.parametrize("order", [Shuffled(1003, 1), Mixed((7, 1003), (2500, 7500), 1)])
def test_any_sample_is_computed_from_its_number(order):
    n = 3 * PERIOD
    whole = order.at(samples(n))
    for first in (0, 1, 999, PERIOD - 3, 2 * PERIOD - 1):
        np.testing.assert_array_equal(order.at(samples(17, first)), whole[first : first + 17])
    shuffled = np.random.default_rng(0).permutation(n)
    np.testing.assert_array_equal(order.at(shuffled), whole[shuffled])


@pytest.mark.parametrize(
    "weights, expected",
    [
        ((1.0,), (10_000,)),
        ((0.7, 0.2, 0.1), (7000, 2000, 1000)),
        ((3, 1), (7500, 2500)),
        ((1, 1, 1), (3334, 3333, 3333)),
        ((2, 2, 3), (2857, 2857, 4286)),
        ((0.29, 0.71), (2900, 7100)),
        ((9999, 1), (9999, 1)),
    ],
)
def test_shares_are_weights_as_integers(weights, expected):
    found = shares(weights)
    assert found == expected and sum(found) == PERIOD
    exact = np.array(weights) / sum(weights) * PERIOD
    assert np.abs(found - exact).max() < 1


def test_shares_of_many_random_weights():
    draw = np.random.default_rng(0)
    for _ in range(300):
        weights = tuple(draw.dirichlet(np.full(draw.integers(1, 12), 3.0)) + 1e-3)
        found = np.array(shares(weights))
        assert found.sum() == PERIOD
        assert np.abs(found - np.array(weights) / sum(weights) * PERIOD).max() < 1


def test_too_small_weight_is_refused():
    with pytest.raises(ValueError, match=r"1e-05 of 1\.00001 is less than one sample in 10,000"):
        shares((1.0, 1e-5))


def test_mixture_is_exact_in_each_period_and_even_within():
    sizes, counts = (7, 1003, 50_000), (1000, 2000, 7000)
    order = Mixed(sizes, counts, seed=2)
    part, _ = order.parts(samples(20 * PERIOD))
    by_period = part.reshape(20, PERIOD)
    for k, count in enumerate(counts):
        assert ((by_period == k).sum(axis=1) == count).all()
        # Drawn without replacement: each half of a period has about half of the samples.
        half = (by_period[:, : PERIOD // 2] == k).sum(axis=1)
        p = count / PERIOD
        error = np.sqrt(PERIOD / 4 * p * (1 - p))
        assert np.abs(half - count / 2).max() < 4.5 * error
        assert half.std() > error / 3
    assert (by_period[0] != by_period[1]).any()


def test_each_part_has_epochs_of_its_own():
    sizes, counts = (7, 1003, 2500), (1000, 2006, 6994)
    order = Mixed(sizes, counts, seed=2)
    rows = order.at(samples(5 * PERIOD))
    part, number = order.parts(samples(5 * PERIOD))
    starts = np.cumsum([0, *sizes])
    np.testing.assert_array_equal(np.searchsorted(starts, rows, side="right") - 1, part)
    for k, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        mine = rows[part == k] - starts[k]
        np.testing.assert_array_equal(number[part == k], np.arange(5 * count))
        np.testing.assert_array_equal(mine, order.orders[k].at(samples(5 * count)))
        seen = np.bincount(mine, minlength=size)
        assert seen.max() - seen.min() <= 1
    # Parts of equal size have different orders.
    twins = Mixed((500, 500), (5000, 5000), 0)
    first, second = (twins.orders[k].at(samples(500)) for k in (0, 1))
    assert (first == second).sum() < 10


def test_one_part_has_its_own_order():
    mixed, alone = Mixed((777,), (PERIOD,), 5), Shuffled(777, 5)
    np.testing.assert_array_equal(mixed.at(samples(30_000)), alone.at(samples(30_000)))


def test_memory_and_time_do_not_grow_with_the_data():
    """20 billion tokens in rows of 1024, and 200,000 times as many."""
    for n in (20_000_000, 2**42):
        tracemalloc.start()
        order = Mixed((n, 5 * n), (2000, 8000), seed=0)
        far = order.at(samples(512, first=2**50))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2_000_000 and 0 <= far.min() and far.max() < 6 * n


def test_the_order_never_changes():
    """See the test of the same name in test_permutation."""
    assert Shuffled(1000, 1).at(samples(4, 2998)).tolist() == GOLDEN[0]
    assert Mixed((10, 1000), (3000, 7000), 1).at(samples(8, PERIOD - 4)).tolist() == GOLDEN[1]


GOLDEN = [839, 874, 981, 490], [685, 2, 673, 738, 595, 2, 326, 237]


def test_errors():
    with pytest.raises(ValueError, match="n=0 rows: must be at least 1"):
        Shuffled(0, 0)
    with pytest.raises(ValueError, match="seed=-1"):
        Shuffled(3, -1)
    with pytest.raises(ValueError, match="do not sum to 10000"):
        Mixed((3, 4), (5000, 4999), 0)
    with pytest.raises(ValueError, match="of 3 parts"):
        Mixed((3, 4, 5), (5000, 5000), 0)
