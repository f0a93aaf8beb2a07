"""Rotary position embedding (arXiv:2104.09864).

    angle_i = position / 10000^(i / half),   half = head width / 2
    (x_i, x_(i + half))  <-  the pair rotated by angle_i

Some networks have another base than 10000, or rotate only the first entries of each head; some turn
more slowly, so as to read texts longer than those of their first training (`LinearScaling`,
`Llama3Scaling`). With this rotation q . k depends only on the difference of the two positions.
Cosines and sines are computed once for all layers and heads: inside each layer, XLA recomputes them
for every head of every sequence, which on a CPU costs more than the attention itself.

`rotate_pairs` rotates neighbours, (x_(2 i), x_(2 i + 1)), instead: the same with the entries of
each head in another order, for weights that were trained with it.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

ROTARY_BASE = 10000.0


@dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """All angles are divided by `factor`, at least 1 (position interpolation, arXiv:2306.15595)."""

    factor: float = 1.0

    def __post_init__(self):
        check_factor(self.factor)

    def scaled(self, frequency: Float[Array, " half"]) -> Float[Array, " half"]:
        """Returns the angle of each pair for one position, in radians, from the unscaled one."""
        return frequency / self.factor


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Slow angles are divided by `factor`, fast ones are kept; the defaults are LLaMA 3.1's.

    Args:
        factor: divisor of the angles with fewer than `low` turns over a text of `original` tokens.
        low, high: angles with more than `high` turns are kept; the frequencies of those between are
            interpolated by the number of turns.
        original: tokens of the longest texts of the first training.
    """

    factor: float = 8.0
    low: float = 1.0
    high: float = 4.0
    original: int = 8192

    def __post_init__(self):
        check_factor(self.factor)
        if not 0 < self.low < self.high < math.inf:
            raise ValueError(f"low={self.low}, high={self.high}: must be 0 < low < high")
        if self.original < 1:
            raise ValueError(f"original={self.original}: must be at least 1")

    def scaled(self, frequency: Float[Array, " half"]) -> Float[Array, " half"]:
        """Returns the angle of each pair for one position, in radians, from the unscaled one."""
        turns = self.original * frequency / (2 * math.pi)
        kept = jnp.clip((turns - self.low) / (self.high - self.low), 0, 1)
        return frequency * (kept + (1 - kept) / self.factor)


Scaling = LinearScaling | Llama3Scaling


class Rotary(NamedTuple):
    """How heads are rotated: how many of their first entries, and by which angles."""

    rotated: int
    base: float = ROTARY_BASE
    scaling: Scaling | None = None


def check_factor(factor: float) -> None:
    """Raises ValueError if a factor of a scaling is impossible."""
    if not 1 <= factor < math.inf:
        raise ValueError(f"factor={factor}: must be at least 1")


def rotary_table(
    positions: Int[Array, "b l"], rotary: Rotary
) -> tuple[Float[Array, "b l 1 half"], Float[Array, "b l 1 half"]]:
    """Returns cosine and sine of each pair's angle at each position, for all heads. Float32."""
    half = rotary.rotated // 2
    frequency = rotary.base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    frequency = frequency if rotary.scaling is None else rotary.scaling.scaled(frequency)
    angles = (positions[..., None].astype(jnp.float32) * frequency[None, None])[:, :, None]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    x: Float[Array, "b l h d"],
    table: tuple[Float[Array, "#b l 1 half"], Float[Array, "#b l 1 half"]],
) -> Float[Array, "b l h d"]:
    """Rotates the pairs of `x` by `table`, the first entries of each head only if the table is for
    fewer. Computes in float32, returns the dtype of `x`."""
    rotated = 2 * table[0].shape[-1]
    if rotated < x.shape[-1]:
        first = rotate(x[..., :rotated], table)
        return jnp.concatenate([first, x[..., rotated:]], axis=-1)
    halves = x.astype(jnp.float32).reshape(*x.shape[:-1], 2, -1)
    return _rotated(halves, table, axis=-2).reshape(x.shape).astype(x.dtype)


def rotate_pairs(
    x: Float[Array, "b l h d"],
    table: tuple[Float[Array, "#b l 1 half"], Float[Array, "#b l 1 half"]],
) -> Float[Array, "b l h d"]:
    """Rotates as `rotate` does, with neighbouring entries as pairs."""
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    return _rotated(pairs, table, axis=-1).reshape(x.shape).astype(x.dtype)


def _rotated(pairs, table, axis: int):
    """Rotates pairs along an axis of size 2. The axis is reversed, not split and concatenated: XLA
    on the CPU concatenates entry by entry, which costs 4 % of a network call."""
    cos, sin = table
    signed = jnp.stack([-sin, sin], axis)
    return pairs * jnp.expand_dims(cos, axis) + jnp.flip(pairs, axis) * signed
