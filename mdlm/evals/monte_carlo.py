"""Means of stratified draws with their standard errors, for many quantities at once.

A round draws each quantity 2 S times: twice in each of S strata of equal probability, a_s and b_s.

    mean = 1/S sum_s (a_s + b_s) / 2        variance of the mean = 1/S^2 sum_s (a_s - b_s)^2 / 4

Both are unbiased. Strata remove the variance between them from the mean, and the second draw shows
what is left.

`until_sure` repeats rounds until the error is small. To stop when the draws themselves agree would
bias their mean, since draws that miss a rare large value agree. So there are two sequences of
rounds, and the error of each decides how much of the other is used: the mean of the first N rounds
of one is unbiased, as N depends on the other alone.
"""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

Draw = Callable[[int, Int[np.ndarray, " m"]], Float[np.ndarray, "m d"]]
"""From the number of a round and the numbers of quantities to draws of these, one in each column.
Columns s and s + S are of the same stratum."""

Estimate = tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"], Int[np.ndarray, " n"]]
"""By quantity: the mean, its standard error, and the number of draws."""


def moments(draws: Float[np.ndarray, "m d"]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean of each quantity in a round, and the variance of that mean."""
    a, b = np.split(np.asarray(draws, np.float64), 2, axis=1)
    return ((a + b) / 2).mean(axis=1), np.square(a - b).sum(axis=1) / (4 * a.shape[1] ** 2)


def once(draw: Draw, count: int) -> Estimate:
    """Returns estimates of `count` quantities from one round."""
    draws = draw(0, np.arange(count))
    mean, variance = moments(draws)
    return mean, np.sqrt(variance), np.full(count, draws.shape[1])


def until_sure(draw: Draw, count: int, *, error: float, most: int) -> Estimate:
    """Returns estimates with standard errors of at most `error`, or from at least `most` draws."""
    sums, variances = np.zeros((2, count)), np.zeros((2, count))
    used = np.zeros((2, count), int)
    means, errors = np.zeros((2, count)), np.zeros((2, count))
    done = np.zeros(count, int)
    still, rounds = np.arange(count), 0
    while len(still):
        rounds += 1
        for one in range(2):
            draws = draw(2 * rounds - 2 + one, still)
            mean, variance = moments(draws)
            sums[one, still] += mean
            variances[one, still] += variance
            done[still] += draws.shape[1]
        of_mean = np.sqrt(variances) / rounds
        is_last = done >= most
        for one, other in ((0, 1), (1, 0)):
            # The mean of two such sequences has 1 / sqrt(2) of their error.
            stops = (of_mean[other] <= error * math.sqrt(2)) | is_last
            now = still[(used[one, still] == 0) & stops[still]]
            used[one, now] = rounds
            means[one, now], errors[one, now] = sums[one, now] / rounds, of_mean[other, now]
        still = np.flatnonzero((used == 0).any(axis=0))
    return means.mean(axis=0), np.sqrt(np.square(errors).sum(axis=0)) / 2, done
