"""Stratified means with their errors: against distributions whose moments are known."""

import numpy as np
import pytest

from mdlm.evals import monte_carlo

MEAN = 3.0
"""The mean of a draw: s + x over four strata s, x rare and large."""


def drawing(count, seed, d=8):
    """Draws with a mean by stratum of 0..3, plus 10 with probability 0.15 (mean 1.5)."""
    random = np.random.default_rng(seed)

    def draw(number, at):
        strata = np.tile(np.arange(d // 2) % 4, 2)
        return strata + 10.0 * (random.random((len(at), d)) < 0.15)

    return draw


def test_the_variance_is_that_within_strata():
    draws = drawing(20_000, 1)(0, np.arange(20_000))
    mean, variance = monte_carlo.moments(draws)
    within = 100 * 0.15 * 0.85 / 8
    assert mean.mean() == pytest.approx(MEAN, abs=0.03)
    assert mean.var() == pytest.approx(within, rel=0.05)
    assert variance.mean() == pytest.approx(within, rel=0.05)


@pytest.mark.parametrize("error", [0.8, 0.4])
def test_passes_are_added_until_the_error_is_small_without_bias(error):
    n = 6000
    mean, stderr, draws = monte_carlo.until_sure(drawing(n, 2), n, error=error, most=4096)
    assert (stderr <= error).all()
    # One sequence alone, which stops when its own draws agree, is far off: many stop at no 10.
    assert mean.mean() == pytest.approx(MEAN, abs=4 * mean.std() / np.sqrt(n))
    assert mean.std() < 2 * error and (draws % 16 == 0).all()


def test_more_is_not_drawn_than_allowed():
    n = 50
    noise, rare = np.random.default_rng(4), drawing(n, 3)
    draw = lambda number, at: rare(number, at) + noise.normal(size=(len(at), 8))
    mean, stderr, draws = monte_carlo.until_sure(draw, n, error=1e-9, most=64)
    assert (draws == 64).sum() == n and (stderr > 1e-9).all()
    assert mean.mean() == pytest.approx(MEAN, abs=0.5)


def test_what_has_no_noise_is_drawn_once_in_each_sequence():
    def draw(number, at):
        return np.repeat(at[:, None].astype(float), 4, axis=1)

    mean, stderr, draws = monte_carlo.until_sure(draw, 5, error=0.01, most=64)
    np.testing.assert_array_equal(mean, np.arange(5))
    assert (stderr == 0).all() and (draws == 8).all()
    mean, stderr, draws = monte_carlo.once(draw, 5)
    np.testing.assert_array_equal(mean, np.arange(5))
    assert (stderr == 0).all() and (draws == 4).all()
