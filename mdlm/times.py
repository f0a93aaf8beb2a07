"""The diffusion times of training, and the time grids of sampling.

Each row of a batch gets a training time u in [0, 1). The times are independent and uniform, or one
falls into each of `rows` equal strata, t = (stratum + u) / rows, which lowers the variance of the
batch's loss (low-discrepancy sampling). `u` is drawn for each row, or once for the whole batch,
whose times are then equally spaced (VDM, arXiv:2107.00630 app. I.1). `restrict` maps [0, 1) to
[t_min, 1). A sampling grid runs exactly from 1 to 0.
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
    """Draws the times of a global batch of `rows` rows."""

    @abc.abstractmethod
    def sample(
        self, key: Key[Array, ""], row: Int[Array, " b"], rows: Int[Array, ""]
    ) -> Float[Array, " b"]:
        """Times in [0, 1) of the rows `row`, each of 0..rows-1, of the global batch.

        A time depends only on `key`, `row` and `rows`, so each part of the batch can be drawn
        separately. The row number is the stratum: `balanced_order` numbers the rows so that every
        device and micro-batch gets all noise levels.
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

    All rows are shifted by the same random number of strata, so that the time of each single row
    is uniform on [0, 1) too. Otherwise data with a pattern along the batch would always get the
    same few noise levels.
    """

    def sample(self, key, row, rows):
        shift = jax.random.randint(keys.stream(key, "shift"), (), 0, rows)
        return stratify(_uniform(keys.stream(key, "within"), row), (row + shift) % rows, rows)


@dataclass(frozen=True, kw_only=True)
class Antithetic(TimeSampler):
    """Equally spaced times shifted by one random offset, t = (row / rows + offset) mod 1 (VDM;
    MD4's "antithetic" and GIDD's "low discrepancy" sampling).

    All rows share one offset, so the mean of their losses is noisier than with `LowDiscrepancy`.
    """

    def sample(self, key, row, rows):
        # The offset is drawn as whole strata and a remainder: in a single float32 a large batch
        # would leave few bits for the remainder.
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
    """s = k / steps and t = (k + 1) / steps for uniform `u`; all steps are equally likely.

    Both are computed from the integer k, so that s of the first step is exactly 0.
    """
    k = jnp.clip(jnp.floor(u * steps), 0, steps - 1)
    return k / steps, (k + 1) / steps


def balanced_order(rows: int) -> np.ndarray:
    """The stratum of each row of a global batch: rank of the row's radical inverse in base 2.

    Take B consecutive rows, where B is a power of two that divides `rows` and the index of the
    first. Exactly one of them lies in each B-th part of the strata: a device or micro-batch that
    holds these rows gets all noise levels evenly. The order depends only on `rows`, not on how
    rows are distributed.
    """
    if rows < 1:
        raise ValueError(f"rows={rows}: must be at least 1")
    index = np.arange(rows, dtype=np.int64)
    inverse = np.zeros(rows, dtype=np.int64)
    for bit in range((rows - 1).bit_length()):
        inverse = 2 * inverse + (index >> bit) % 2
    stratum = np.empty(rows, dtype=np.int32)
    stratum[np.argsort(inverse)] = index
    return stratum


Grid = Literal["uniform", "cosine"]
"""Kinds of sampling grids."""


def grid_of(kind: Grid, steps: int) -> Float[Array, " n"]:
    """`steps + 1` times from exactly 1 to exactly 0."""
    return cosine_grid(steps) if kind == "cosine" else uniform_grid(steps)


def uniform_grid(steps: int) -> Float[Array, " n"]:
    """`steps + 1` equally spaced times, from exactly 1 to exactly 0."""
    if steps < 1:
        raise ValueError(f"steps={steps}: must be at least 1")
    return jnp.asarray(np.arange(steps, -1, -1) / steps, jnp.float32)


def cosine_grid(steps: int) -> Float[Array, " n"]:
    """`steps + 1` times cos(pi (1 - t) / 2) for uniform t: shorter steps near t = 1 (MD4)."""
    if steps < 1:
        raise ValueError(f"steps={steps}: must be at least 1")
    return jnp.asarray(np.sin(math.pi / 2 * np.arange(steps, -1, -1) / steps), jnp.float32)
