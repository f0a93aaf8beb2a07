"""Which diffusion times are trained on, and which are visited in sampling.

A training time is u in [0, 1) for each row: independent uniforms, or one time in each of `rows`
equal strata, t = (stratum + u) / rows, which lowers the variance of a batch's loss (low-discrepancy
sampling). `u` is drawn for each row by itself, or once for the whole batch, whose times then are
equally spaced (VDM, arXiv:2107.00630 app. I.1). `restrict` maps [0, 1) to [t_min, 1). A sampling
grid runs exactly from 1 to 0.
"""

import abc
import math
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int, Key

from mdlm import keys

__all__ = ["IID", "Antithetic", "LowDiscrepancy", "TimeSampler"]
BELOW_ONE = float(np.nextafter(np.float32(1), np.float32(0)))


class TimeSampler(abc.ABC):
    """How the times of a global batch of `rows` rows are drawn."""

    @abc.abstractmethod
    def sample(
        self, key: Key[Array, ""], row: Int[Array, " b"], rows: Int[Array, ""]
    ) -> Float[Array, " b"]:
        """Times in [0, 1) of the rows `row`, each of 0..rows-1, of the global batch.

        A time depends on `key`, its `row` and `rows` alone, so any part of the batch can be drawn
        by itself. The row is the stratum: `balanced_order` says how to number rows so that
        devices and micro-batches each see all noise levels.
        """


@dataclass(frozen=True, kw_only=True)
class IID(TimeSampler):
    """Independent uniform times."""

    def sample(
        self, key: Key[Array, ""], row: Int[Array, " b"], rows: Int[Array, ""]
    ) -> Float[Array, " b"]:
        return _uniform(key, row)


@dataclass(frozen=True, kw_only=True)
class LowDiscrepancy(TimeSampler):
    """One uniform time in each of `rows` equal strata (MDLM's "antithetic" sampling).

    All rows move on by the same random number of strata, so that each row's time is uniform on
    [0, 1) by itself too: without it, data with a pattern along the batch would only ever meet
    some of the noise levels.
    """

    def sample(self, key, row, rows):
        shift = jax.random.randint(keys.stream(key, "shift"), (), 0, rows)
        return stratify(_uniform(keys.stream(key, "within"), row), (row + shift) % rows, rows)


@dataclass(frozen=True, kw_only=True)
class Antithetic(TimeSampler):
    """Equally spaced times moved on by one random offset, t = (row / rows + offset) mod 1 (VDM;
    MD4's "antithetic" and GIDD's "low discrepancy" sampling).

    All rows share the one rest, so their mean is noisier than under `LowDiscrepancy`.
    """

    def sample(self, key, row, rows):
        # The offset is drawn as whole strata and a rest: one float32 would leave large batches
        # few bits for the rest.
        shift = jax.random.randint(keys.stream(key, "shift"), (), 0, rows)
        within = jax.random.uniform(keys.stream(key, "within"))
        return stratify(jnp.broadcast_to(within, row.shape), (row + shift) % rows, rows)


def _uniform(key: Key[Array, ""], row: Int[Array, " b"]) -> Float[Array, " b"]:
    return jax.vmap(jax.random.uniform)(keys.by_row(key, row))


def stratify(
    u: Float[Array, " b"], stratum: Int[Array, " b"], rows: Int[Array, ""]
) -> Float[Array, " b"]:
    """`(stratum + u) / rows`, strictly below 1 in float32 too."""
    return jnp.minimum((stratum + u) / rows, BELOW_ONE)


def restrict(u: Float[Array, "*s"], t_min: float) -> Float[Array, "*s"]:
    """Maps [0, 1) to [t_min, 1): `t_min + (1 - t_min) u`."""
    return t_min + (1 - t_min) * u


def step_of_chain(
    u: Float[Array, "*s"], steps: int
) -> tuple[Float[Array, "*s"], Float[Array, "*s"]]:
    """s = k / steps and t = (k + 1) / steps for uniform `u`, all steps alike.

    Both from the integer, so that the first step's s is 0 itself.
    """
    k = jnp.clip(jnp.floor(u * steps), 0, steps - 1)
    return k / steps, (k + 1) / steps


def balanced_order(rows: int) -> np.ndarray:
    """The stratum of each row of a global batch: rank of the row's radical inverse in base 2.

    Of B consecutive rows, B a power of two that divides `rows` and the place of the first, exactly
    one lies in each B-th part of the strata: a device or micro-batch that holds such a block sees
    all noise levels evenly. The order depends on `rows` alone, not on how rows are dealt out.
    """
    if rows < 1:
        raise ValueError(f"rows={rows} is not positive")
    place = np.arange(rows, dtype=np.int64)
    inverse = np.zeros(rows, dtype=np.int64)
    for bit in range((rows - 1).bit_length()):
        inverse = 2 * inverse + (place >> bit) % 2
    stratum = np.empty(rows, dtype=np.int32)
    stratum[np.argsort(inverse)] = place
    return stratum


Grid = Literal["uniform", "cosine"]
"""Kinds of sampling grids."""


def grid_of(kind: Grid, steps: int) -> Float[Array, " n"]:
    """`steps + 1` times from exactly 1 to exactly 0."""
    return cosine_grid(steps) if kind == "cosine" else uniform_grid(steps)


def uniform_grid(steps: int) -> Float[Array, " n"]:
    """`steps + 1` equally spaced times, from exactly 1 to exactly 0."""
    if steps < 1:
        raise ValueError(f"steps={steps} is not positive")
    return jnp.asarray(np.arange(steps, -1, -1) / steps, jnp.float32)


def cosine_grid(steps: int) -> Float[Array, " n"]:
    """`steps + 1` times cos(pi (1 - t) / 2), t uniform: shorter steps near noise (MD4)."""
    if steps < 1:
        raise ValueError(f"steps={steps} is not positive")
    return jnp.asarray(np.sin(math.pi / 2 * np.arange(steps, -1, -1) / steps), jnp.float32)
