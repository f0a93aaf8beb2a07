"""MAUVE: how much two sets of texts overlap (Pillutla et al. 2021, arXiv:2102.01454; JMLR 2023).

Each text is a feature vector of a language model. The vectors of both sets, of length 1, projected
to the principal components with 90 % of the variance, are divided into clusters by k-means, a tenth
as many as texts in a set. The shares of the clusters in the two sets are histograms p and q; for a
mixture r = w p + (1 - w) q,

    x(w) = exp(-c KL(q | r)),   y(w) = exp(-c KL(p | r)),   c = 5

is a curve from (1, 0) to (0, 1), and MAUVE the area below it: 1 where p = q, near 0 where the sets
have no cluster in common.

The value depends on the features, on the number of texts and on their length. It rises with fewer
clusters; only values of equal settings can be compared.
"""

import numpy as np
from jaxtyping import Float, Int

from mdlm.evals.generated.halves import halves, spread

SCALE = 5.0
WEIGHTS = np.linspace(1e-6, 1 - 1e-6, 25)
VARIANCE = 0.9
TEXTS_PER_CLUSTER = 10
STARTS, ROUNDS = 5, 500
"""k-means: the best of so many starts, each of at most so many rounds."""

Features = Float[np.ndarray, "n d"]


class Mauve:
    """MAUVE of two sets of texts, from a feature vector of each text."""

    def __init__(self, ours: np.ndarray, real: np.ndarray, *, seed: int = 0):
        self.clusters = clusters_of(min(len(ours), len(real)))
        both = projected(np.concatenate([ours, real]))
        found = k_means(both, min(self.clusters, len(both)), seed=seed)
        self.ours, self.real = found[: len(ours)], found[len(ours) :]

    @property
    def value(self) -> float:
        return area(*(self._histogram(own) for own in (self.ours, self.real)))

    def stderr(self) -> float | None:
        """Returns the standard error over halves of both sets, in the same clusters."""
        if min(len(self.ours), len(self.real)) < 2:
            return None
        parts = zip(halves(len(self.ours)), halves(len(self.real), seed=1), strict=True)
        found = [
            area(self._histogram(self.ours[a]), self._histogram(self.real[b])) for a, b in parts
        ]
        return spread(np.array(found), min(len(self.ours), len(self.real)))

    def _histogram(self, own: np.ndarray) -> Float[np.ndarray, " k"]:
        return np.bincount(own, minlength=self.clusters) / len(own)


def clusters_of(texts: int) -> int:
    """Returns the number of clusters for sets of so many texts."""
    return max(2, round(texts / TEXTS_PER_CLUSTER))


def area(p: Float[np.ndarray, " k"], q: Float[np.ndarray, " k"]) -> float:
    """Returns the area below the curve of divergences of two histograms."""
    mixtures = WEIGHTS[:, None] * p + (1 - WEIGHTS[:, None]) * q
    x, y = (np.exp(-SCALE * _kl(h, mixtures)) for h in (q, p))
    return float(-np.trapezoid(np.r_[0, y, 1], np.r_[1, x, 0]))  # x falls as w rises


def _kl(p: Float[np.ndarray, " k"], r: Float[np.ndarray, "w k"]) -> Float[np.ndarray, " w"]:
    """Returns KL(p | r) for each row of r; 0 log 0 is 0."""
    used = p > 0
    return (p[used] * np.log(p[used] / r[:, used])).sum(axis=1)


def projected(features: np.ndarray) -> Features:
    """Returns the features scaled to length 1, in their first principal components, as many as it
    takes for 90 % of the variance."""
    features = np.asarray(features, np.float64)
    length = np.linalg.norm(features, axis=1, keepdims=True)
    unit = features / np.where(length > 0, length, 1)
    centred = unit - unit.mean(axis=0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    share = np.cumsum(sizes**2)
    if share[-1] == 0:  # all features are the same
        return np.zeros((len(features), 1))
    kept = int(np.argmax(share >= VARIANCE * share[-1])) + 1
    return left[:, :kept] * sizes[:kept]


def k_means(points: Features, clusters: int, *, seed: int = 0) -> Int[np.ndarray, " n"]:
    """Returns the cluster of each point: of several starts (k-means++), the one with the smallest
    squared distance to the centres."""
    rng = np.random.default_rng(seed)
    tries = [_lloyd(points, _first_centres(points, clusters, rng)) for _ in range(STARTS)]
    return min(tries, key=lambda found: found[0])[1]


def _lloyd(points: Features, centres: np.ndarray) -> tuple[float, np.ndarray]:
    """Returns the squared distance of all points to the nearest centre, and its number."""
    nearest, distance = np.full(len(points), -1), np.zeros(len(points))
    for _ in range(ROUNDS):
        apart = _squares(points, centres)
        found = apart.argmin(axis=1)
        distance = apart[np.arange(len(points)), found]
        if np.array_equal(found, nearest):
            break
        nearest = found
        count = np.bincount(found, minlength=len(centres))
        sums = np.zeros_like(centres)
        np.add.at(sums, found, points)
        used = count > 0
        centres = np.where(used[:, None], sums / np.maximum(count, 1)[:, None], centres)
    return float(distance.sum()), nearest


def _first_centres(points: Features, clusters: int, rng: np.random.Generator) -> np.ndarray:
    """Returns points as centres, each drawn in proportion to the squared distance to those
    before."""
    chosen = [int(rng.integers(len(points)))]
    apart = _squares(points, points[chosen])[:, 0]
    for _ in range(clusters - 1):
        total = apart.sum()
        p = apart / total if total > 0 else np.full(len(points), 1 / len(points))
        chosen.append(int(rng.choice(len(points), p=p)))
        apart = np.minimum(apart, _squares(points, points[chosen[-1:]])[:, 0])
    return points[chosen].copy()


def _squares(points: np.ndarray, centres: np.ndarray) -> Float[np.ndarray, "n k"]:
    """Returns the squared distances of points to centres."""
    both = (points**2).sum(1)[:, None] + (centres**2).sum(1) - 2 * points @ centres.T
    return np.maximum(both, 0)
