"""The bound by noise level: what each part of the times adds to it, and how hard its tokens are.

    contribution of times (low, high]   sum of the bound of rows noised to these / evaluated tokens
    cross-entropy there                 sum of -log p(x_i | z_t) / masked tokens of those rows

The contributions add up to the bound: they are parts of the same sums of the same draws. The
reconstruction of `Nelbo`, at t_min, belongs to the level that t_min is in.

Errors are of ratios of sums, as in `nll`: over the passes (noise) and over the rows (sequences).
"""

import math
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from mdlm.errors import InputError
from mdlm.evals.nll import Metric
from mdlm.types import LossTerms

EDGE = 1e-4
"""Part of a level by which a time at its upper end may be rounded up."""
SUMS = ("bound", "cross_entropy", "scored", "count")
"""The last axis of `by_level`."""


@dataclass(frozen=True)
class Ratio:
    """A ratio of sums with its standard errors: of the noise (None for one pass), and over rows
    (None for one row). `n` is the sum below, in one pass."""

    value: float
    stderr: float | None
    stderr_rows: float | None
    n: float


@dataclass(frozen=True)
class Level:
    """The part of a bound from times in (low, high].

    `nats` is per evaluated token, whatever its level. `masked` is the share of tokens masked at
    these times, `cross_entropy` the nats per masked token there; None if the bound is no weighted
    cross-entropy, or no token was masked.
    """

    low: float
    high: float
    nats: Ratio
    masked: float
    cross_entropy: Ratio | None

    def as_json(self) -> dict[str, Any]:
        entropy = self.cross_entropy
        ratios = {"nats": vars(self.nats), "cross_entropy": entropy and vars(entropy)}
        return {**vars(self), **ratios}


def by_level(terms: LossTerms, levels: int) -> Float[Array, "b n 4"]:
    """Returns the sums over each row, by level: `SUMS`. All are 0 if no times are drawn."""
    if terms.t is None:
        return jnp.zeros((len(terms.bound), levels, len(SUMS)))
    shape = terms.bound.shape
    at = jnp.ceil(jnp.broadcast_to(terms.t, shape) * levels - EDGE) - 1
    level = jnp.clip(at, 0, levels - 1).astype(jnp.int32)
    is_in = (level[..., None] == jnp.arange(levels)[None, None]).astype(jnp.float32)
    if terms.weight is None:
        entropy = jnp.full(shape, jnp.nan)
    else:
        used = terms.weight != 0
        entropy = jnp.where(used, terms.bound / jnp.where(used, terms.weight, 1.0), 0.0)
    parts = jnp.stack([terms.bound, entropy, terms.scored, terms.count], axis=-1)
    # No matmul: on accelerators its products are rounded.
    return (is_in[..., None] * parts[:, :, None]).sum(axis=1)


def levels_of(sums: Float[np.ndarray, "p r n 4"]) -> list[Level]:
    """Returns the levels from the sums by pass and row. Raises InputError if nothing was noised."""
    bound, entropy, scored, count = np.moveaxis(np.asarray(sums, np.float64), -1, 0)
    if not count.sum():
        raise InputError("this run reports a likelihood without noise: it has no noise levels")
    tokens, n = count.sum(axis=-1), count.shape[-1]
    found = []
    for i in range(n):
        here = count[..., i].sum()
        has_entropy = scored[..., i].sum() > 0 and np.isfinite(entropy[..., i]).all()
        found.append(
            Level(
                low=i / n,
                high=(i + 1) / n,
                nats=ratio(bound[..., i], tokens),
                masked=float(scored[..., i].sum() / here) if here else 0.0,
                cross_entropy=ratio(entropy[..., i], scored[..., i]) if has_entropy else None,
            )
        )
    return found


def ratio(above: Float[np.ndarray, "p r"], below: Float[np.ndarray, "p r"]) -> Ratio:
    """Returns the sum of one over the sum of the other, over passes and rows."""
    value = above.sum() / below.sum()
    residual, size = above - value * below, below.sum() / len(below)

    def error(parts: np.ndarray) -> float | None:
        n = len(parts)
        return float(math.sqrt(n / (n - 1) * np.square(parts).sum()) / size) if n > 1 else None

    used = below.any(axis=0)
    return Ratio(
        float(value),
        error(residual.sum(axis=1) / len(residual)),
        error(residual.mean(axis=0)[used]),
        float(size),
    )


def metrics_of(levels: list[Level], protocol: str) -> list[Metric]:
    """Returns the numbers of the levels as metrics, to be kept beside those of the whole bound."""
    out = []
    for one in levels:
        parts = {"nats per token added": one.nats, "nats per masked token": one.cross_entropy}
        for name, ratio in parts.items():
            if ratio is not None:
                title = f"times ({one.low:.4g}, {one.high:.4g}]: {name}"
                out.append(Metric(title, **vars(ratio), protocol=protocol))
    return out


def table_of(levels: list[Level]) -> str:
    """Returns the levels as text; "+-" are the standard errors of the noise and over sequences."""
    lines = [
        "                 share   nats per token                 nats per masked token",
        "  times         masked     added  +- noise  +- seq.     there  +- noise  +- seq.",
    ]
    for one in levels:
        cells = [*_cells(one.nats), *_cells(one.cross_entropy)]
        value, noise, rows, there, *errors = cells
        lines.append(
            f"  ({one.low:.3g}, {one.high:.3g}]".ljust(16)
            + f"{one.masked:6.3f}{value:>10}{noise:>10}{rows:>9}"
            + f"{there:>10}{errors[0]:>10}{errors[1]:>9}"
        )
    total = sum(one.nats.value for one in levels)
    lines.append("  all".ljust(22) + f"{total:10.4f}")
    return "\n".join(line.rstrip() for line in lines)


def _cells(found: Ratio | None) -> list[str]:
    values = (None,) * 3 if found is None else (found.value, found.stderr, found.stderr_rows)
    return ["" if x is None else f"{x:.4f}" for x in values]
