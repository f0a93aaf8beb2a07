"""Whether a schedule is one: alpha falls from 1 to 0, and its functions agree and are finite."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mdlm.schedules.base import Schedule

TIMES = 257
"""Number of times, both ends included, at which a schedule is checked."""
END = 0.05
"""Most that alpha may be below 1 at t = 0, or above 0 at t = 1. The bound has no term for what an
end leaves out, so it would not be one."""
SLACK = 1e-4
"""Rounding of float32 that is no fault."""


def fault_of(schedule: Schedule) -> str | None:
    """Says what is wrong with a schedule that is bound to a vocabulary; None if nothing is.

    A learned schedule is checked with its initial values, and one that noises tokens at different
    rates with token 0.
    """
    try:
        hash(schedule)
    except TypeError:  # it holds arrays
        return _fault_of(schedule)
    return _remembered(schedule)


def _fault_of(schedule: Schedule) -> str | None:
    t = np.linspace(0, 1, TIMES, dtype=np.float32)

    @jax.jit
    def values(t: Any) -> tuple[Any, ...]:
        bound = schedule.bind(schedule.init(jax.random.key(0)))
        x_0 = jnp.zeros(t.shape, jnp.int32)
        inside = slice(1, -1)
        return (
            bound.alpha(t, x_0),
            bound.one_minus_alpha(t, x_0),
            bound.weight(t[inside], x_0[inside]),
        )

    alpha, noised, weight = jax.device_get(values(t))
    at = lambda i: f"alpha({t[i]:.4g}) = {alpha[i]:.4g}"
    if not np.isfinite(alpha).all():
        return f"{at(np.flatnonzero(~np.isfinite(alpha))[0])}: must be finite"
    if alpha.min() < -SLACK or alpha.max() > 1 + SLACK:
        return f"{at(np.abs(alpha - 0.5).argmax())}: must be in [0, 1]"
    if alpha[0] < 1 - END:
        return f"{at(0)}: must be about 1, for all tokens are clean at t = 0"
    if alpha[-1] > END:
        return f"{at(-1)}: must be about 0, for all tokens are noised at t = 1"
    rises = np.diff(alpha)
    if rises.max() > SLACK:
        i = int(rises.argmax())
        return f"{at(i)} and {at(i + 1)}: must fall in t"
    if np.abs(alpha + noised - 1).max() > SLACK:
        i = int(np.abs(alpha + noised - 1).argmax())
        return f"{at(i)} and one_minus_alpha({t[i]:.4g}) = {noised[i]:.4g}: must add up to 1"
    wrong = ~(np.isfinite(weight) & (weight >= -SLACK))
    if wrong.any():
        i = int(np.flatnonzero(wrong)[0])
        return f"weight({t[i + 1]:.4g}) = {weight[i]:.4g}: must be finite and at least 0"
    return None


_remembered = functools.lru_cache(maxsize=64)(_fault_of)
