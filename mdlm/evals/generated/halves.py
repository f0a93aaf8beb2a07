"""Standard errors of any number that is computed from a set of texts, by resampling the texts.

The bootstrap draws n of n texts with replacement. A text that is drawn twice would be compared with
itself, which spoils what compares texts (distinct n-grams, self-BLEU). So this one draws random
halves, without replacement:

    m = floor(n / 2) of n,   error^2 = (variance of the number over the halves) m / (n - m)

For a mean this is the usual s^2 / n, in expectation exactly; for smooth functions of means it
agrees with the bootstrap.
"""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool

from mdlm.errors import InputError

HALVES = 200
"""Random halves: the error itself is then known to about 5 %."""

Chosen = Bool[np.ndarray, " n"]
Statistic = Callable[[Chosen], float]
"""From the texts that are chosen to a number, NaN where these are too few to have one."""


def halves(texts: int, *, count: int = HALVES, seed: int = 0) -> Bool[np.ndarray, "c n"]:
    """Returns random halves of `texts` texts. Raises InputError if there are fewer than two."""
    if texts < 2:
        raise InputError(f"{texts} text(s): at least 2 are needed for a standard error; give more")
    rank = np.random.default_rng(seed).random((count, texts)).argsort(axis=1)
    return rank < texts // 2


def spread(values: np.ndarray, texts: int) -> float | None:
    """Returns the standard error from the values of halves; None if one of them is not finite."""
    if not np.isfinite(values).all():
        return None
    m = texts // 2
    return float(values.std(ddof=1) * math.sqrt(m / (texts - m)))


def error(statistic: Statistic, texts: int) -> float | None:
    """Returns the standard error of a statistic of `texts` texts; None if halves have none."""
    return spread(np.array([statistic(half) for half in halves(texts)], np.float64), texts)
