"""Training times: strata, independence of how the batch is cut, float32 ends; sampling grids."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm.times import (
    IID,
    Antithetic,
    LowDiscrepancy,
    balanced_order,
    cosine_grid,
    restrict,
    stratify,
    uniform_grid,
)

SAMPLERS = [IID(), LowDiscrepancy(), Antithetic()]


def sample(sampler, key, row, rows):
    return np.asarray(sampler.sample(key, jnp.asarray(row, jnp.int32), jnp.int32(rows)))


@pytest.mark.parametrize("rows", [1, 2, 12, 100, 4096])
def test_low_discrepancy_has_one_time_in_each_stratum(key, rows):
    row = balanced_order(rows)
    t = sample(LowDiscrepancy(), key, row, rows)
    scaled = t.astype(np.float64) * rows
    shift = np.bincount((np.floor(scaled).astype(int) - row) % rows).argmax()  # one for all rows
    inside = scaled - (row + shift) % rows
    assert (inside >= -1e-7 * rows).all() and (inside <= 1 + 1e-7 * rows).all()
    assert (t >= 0).all() and (t < 1).all()
    assert rows < 100 or abs(inside.mean() - 0.5) < 4 / np.sqrt(12 * rows)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_times_are_uniform(key, sampler):
    """Kolmogorov-Smirnov at the 0.1 % level, one row at a time over many keys."""
    keys = jax.random.split(key, 4000)
    one = lambda key, row: sampler.sample(key, jnp.array([row]), jnp.int32(3))[0]
    for row in range(3):
        t = np.sort(jax.vmap(one, in_axes=(0, None))(keys, row))
        distance = np.abs(t - (np.arange(len(t)) + 0.5) / len(t)).max()
        assert distance < 1.95 / np.sqrt(len(t))


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_a_row_draws_the_same_however_the_batch_is_cut(key, sampler):
    row = balanced_order(24)
    whole = sample(sampler, key, row, 24)
    for parts in (2, 3, 8):
        cut = [sample(sampler, key, part, 24) for part in np.split(row, parts)]
        np.testing.assert_array_equal(np.concatenate(cut), whole)
    np.testing.assert_array_equal(sample(sampler, key, row[::-1], 24), whole[::-1])


def test_independent_times_do_not_depend_on_the_batch_size(key):
    np.testing.assert_array_equal(sample(IID(), key, [3, 7], 8), sample(IID(), key, [3, 7], 800))


def test_rows_and_keys_draw_differently(key):
    first = sample(IID(), key, np.arange(100), 100)
    other = sample(IID(), jax.random.fold_in(key, 1), np.arange(100), 100)
    assert len(np.unique(first)) == 100
    assert abs(np.corrcoef(first, other)[0, 1]) < 0.5


def test_low_discrepancy_lowers_the_variance(key):
    keys = jax.random.split(key, 500)
    row = jnp.arange(16)
    spread = [
        float(jax.vmap(lambda key, s=s: s.sample(key, row, jnp.int32(16)).mean())(keys).std())
        for s in SAMPLERS
    ]
    assert spread[1] < 0.1 * spread[0]
    # A common offset moves the mean of all: 1 / rows of the spread of one, not rows^-1.5 of it.
    np.testing.assert_allclose(spread[2], 1 / 16 / np.sqrt(12), rtol=0.1)


@pytest.mark.parametrize("rows", [1, 6, 100, 1_000_000])
def test_antithetic_times_are_equally_spaced_by_row(key, rows):
    row = np.arange(rows)
    first, *others = (sample(Antithetic(), k, row, rows) for k in jax.random.split(key, 3))
    apart = (first.astype(np.float64) - first[0]) % 1
    off = np.abs(apart - row / rows)
    assert np.minimum(off, 1 - off).max() < 2e-7
    assert all(abs(other[0] - first[0]) > 1e-3 for other in others)


def test_antithetic_times_fill_their_strata(key):
    """The one offset is uniform within a stratum too, by the Kolmogorov-Smirnov distance."""
    rows = 1000
    draw = lambda key: Antithetic().sample(key, jnp.arange(1), jnp.int32(rows))[0]
    t = np.asarray(jax.vmap(draw)(jax.random.split(key, 4000)), np.float64)
    within = np.sort(t * rows % 1)
    distance = np.abs(within - (np.arange(4000) + 0.5) / 4000).max()
    assert distance < 1.95 / np.sqrt(4000)


@pytest.mark.parametrize("rows", [1, 7, 1000, 999_983, 1_000_000])
def test_times_stay_below_one_in_float32(rows):
    largest = jnp.float32(1 - 2.0**-24)
    u = jnp.array([0.0, 0.5, largest, largest])
    stratum = jnp.array([0, 0, rows // 2, rows - 1])
    t = stratify(u, stratum, jnp.int32(rows))
    assert t[0] == 0 and (t >= 0).all() and (t < 1).all()
    assert t[3] > 1 - 1.5 / rows if rows > 1 else t[3] > 0.99
    assert (restrict(t, 1e-3) >= np.float32(1e-3)).all() and (restrict(t, 1e-3) <= 1).all()


def test_restrict_is_the_affine_map():
    u = jnp.array([0.0, 0.25, 1.0])
    np.testing.assert_allclose(restrict(u, 0.2), [0.2, 0.4, 1.0], rtol=1e-6)
    np.testing.assert_array_equal(restrict(u, 0.0), u)


@pytest.mark.parametrize("rows", [1, 2, 3, 8, 24, 100, 1024, 10_007])
def test_balanced_order_is_a_permutation(rows):
    order = balanced_order(rows)
    assert order.dtype == np.int32
    np.testing.assert_array_equal(np.sort(order), np.arange(rows))


def test_balanced_order_of_eight_rows():
    np.testing.assert_array_equal(balanced_order(8), [0, 4, 2, 6, 1, 5, 3, 7])


def test_balanced_order_ranks_the_radical_inverse():
    inverse = [int(f"{r:07b}"[::-1], 2) / 128 for r in range(100)]
    np.testing.assert_array_equal(balanced_order(100), np.argsort(np.argsort(inverse)))


@pytest.mark.parametrize(
    ("rows", "blocks"), [(8, 1), (8, 2), (8, 8), (64, 4), (96, 3), (96, 12), (96, 48), (1000, 125)]
)
def test_every_block_of_rows_sees_all_noise_levels(rows, blocks):
    size = rows // blocks
    for block in balanced_order(rows).reshape(blocks, size):
        np.testing.assert_array_equal(np.sort(block // blocks), np.arange(size))


@pytest.mark.parametrize(("rows", "blocks"), [(12, 4), (96, 8), (100, 10), (1000, 8)])
def test_blocks_of_other_sizes_are_nearly_balanced(rows, blocks):
    """A block of n rows is off by about log n / n at most, where random ones are by 1 / sqrt n."""
    size = rows // blocks
    means = balanced_order(rows).reshape(blocks, size).mean(1) / rows
    assert np.abs(means - 0.5).max() < np.log2(size) / size / 2


@pytest.mark.parametrize("grid", [uniform_grid, cosine_grid])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 128, 1000, 4096])
def test_grids_fall_from_exactly_one_to_exactly_zero(grid, steps):
    t = grid(steps)
    assert t.shape == (steps + 1,) and t.dtype == jnp.float32
    assert t[0] == 1 and t[-1] == 0 and (jnp.diff(t) < 0).all()


def test_grids_follow_their_formulas():
    u = np.linspace(1, 0, 11)
    np.testing.assert_allclose(uniform_grid(10), u, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(cosine_grid(10), np.cos(np.pi / 2 * (1 - u)), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("make", [balanced_order, uniform_grid, cosine_grid])
def test_sizes_are_positive(make):
    with pytest.raises(ValueError, match="=0: must be at least 1"):
        make(0)
