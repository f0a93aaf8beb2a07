"""Bounds of a row's likelihood from both sides, from its probability in random orders.

A masked process that reveals a row token by token writes x in the order s (and at the times) of a
path, drawn before and independent of x, with probability p(x | s) by the chain rule. What it writes
at all has p(x) = E_s p(x | s): a mixture over paths. With l_k = log p(x | s_k) of K paths,

    NELBO       -E mean_k l_k                          >= -log p(x)
    K paths     -E log mean_k exp(l_k)                 >= -log p(x), and falls to it as K grows
    TUBE        -E [log psi + p(x | s) / psi - 1]      <= -log p(x), for any psi > 0 that is
                                                          independent of the path s

The second is the importance-weighted bound (arXiv:1509.00519) with the paths' own distribution as
proposal. The third is the tangent of the logarithm at psi, which lies above it (Tangent Upper Bound
on Evidence, arXiv:2605.24292); it is tight at psi = p(x). psi is ours: each path is once s, and

    log psi = m + v / 2,    m the mean of the other l,  v the variance of l - m in *other* blocks,

the mean of a log-normal distribution; its form decides how tight the bound is, not whether it is
one. A network that is the true posterior of a distribution has the same l in all orders, and all
three are equal.

Each is a bound in expectation over the paths, not in every draw, and p(x | s) / psi has a long
tail. If the log-probabilities of a block differ by several nats between orders, its mean is in
orders that are much likelier and rarer than 1 in K: TUBE then depends on what was not drawn, and
its standard error does not know. `effective` says how many of the K paths carry the mean; where it
is below half of them (`ENOUGH`), the third is not given.

Block diffusion writes block after block: p(x) is a product over blocks, each is bounded by itself,
and all are computed together. Tokens outside the loss mask are read clean, so that p is that of the
scored tokens given the others.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

HALVES = 2
"""Parts of the blocks; the variance that psi has in one is that of the other."""
ENOUGH = 0.5
"""The least part of the paths that must carry the mean for TUBE to be told."""


@dataclass(frozen=True)
class Sides:
    """Estimates for each block, in nats: the bound by single paths, by the mean of all, and TUBE.

    `effective` is the number of paths that count in the mean: 1 over the sum of the squares of
    their shares in it.
    """

    single: Float[np.ndarray, " n"]
    mean: Float[np.ndarray, " n"]
    tube: Float[np.ndarray, " n"]
    effective: Float[np.ndarray, " n"]


def sides(log_p: Float[np.ndarray, "n k"]) -> Sides:
    """Returns the estimates from the log-probabilities of n blocks on k paths each."""
    log_psi = log_surrogate(log_p)
    ratio = np.exp(np.minimum(log_p - log_psi, 700.0))  # exp(700) is finite
    total = log_mean_exp(log_p)
    share = np.exp(log_p - total[:, None]) / log_p.shape[1]
    return Sides(
        single=-log_p.mean(axis=1),
        mean=-total,
        tube=-(log_psi + ratio - 1).mean(axis=1),
        effective=1 / np.square(share).sum(axis=1),
    )


def log_surrogate(log_p: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
    """Returns log psi for each path, from the other paths of its block and from the blocks of the
    other half; without other blocks their variance counts as 0."""
    n, k = log_p.shape
    others = (log_p.sum(axis=1, keepdims=True) - log_p) / (k - 1)
    # A path differs from the mean of k - 1 others by the variance of both.
    variance = log_p.var(axis=1, ddof=1) * k / (k - 1)
    half = np.arange(n) % HALVES
    spread = [variance[half != h].mean() if n > 1 else 0.0 for h in range(HALVES)]
    return others + np.array(spread)[half][:, None] / 2


def log_mean_exp(x: Float[np.ndarray, "*s k"]) -> Float[np.ndarray, "*s"]:
    """Returns the logarithm of the mean of exp(x) over the last axis."""
    top = x.max(axis=-1)
    return top + np.log(np.exp(x - top[..., None]).mean(axis=-1))


def noise(log_p: Float[np.ndarray, "n k"]) -> dict[str, float]:
    """Returns the standard error of the sum over all blocks of each estimate, by its name, from
    the paths: by the jackknife, which leaves out each path in turn."""
    k = log_p.shape[1]
    if k < 3:
        return {}
    left = [sides(np.delete(log_p, one, axis=1)) for one in range(k)]
    found = {}
    for name in ("single", "mean", "tube"):
        by_path = np.stack([getattr(one, name) for one in left])
        spread = np.square(by_path - by_path.mean(axis=0)).sum(axis=0)
        # Blocks have paths of their own, so that their variances add up.
        found[name] = float(np.sqrt((k - 1) / k * spread.sum()))
    return found
