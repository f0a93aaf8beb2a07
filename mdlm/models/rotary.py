"""The rotary position code (arXiv:2104.09864).

    angle_i = position / 10000^(i / half),   half = head width / 2
    (x_i, x_(i + half))  <-  the pair turned by angle_i

Turned like this, q . k depends on the difference of the two positions only. Cosines and sines are
made once for all layers and heads: left to each layer, XLA computes them anew for every head of
every sequence, which on a CPU costs more than the attention itself.

`rotate_pairs` turns neighbours, (x_(2 i), x_(2 i + 1)), instead: the same with the entries of each
head in another order, for weights that were trained so.
"""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

ROTARY_BASE = 10000.0


def rotary_table(
    positions: Int[Array, "b l"], head_width: int
) -> tuple[Float[Array, "b l 1 half"], Float[Array, "b l 1 half"]]:
    """Cosine and sine of each pair's angle at each position, the same for all heads. Float32."""
    half = head_width // 2
    frequency = ROTARY_BASE ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = (positions[..., None].astype(jnp.float32) * frequency[None, None])[:, :, None]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    x: Float[Array, "b l h d"],
    table: tuple[Float[Array, "#b l 1 half"], Float[Array, "#b l 1 half"]],
) -> Float[Array, "b l h d"]:
    """`x` with its pairs turned as `rotary_table` says, in float32, given in the dtype of `x`."""
    halves = x.astype(jnp.float32).reshape(*x.shape[:-1], 2, -1)
    return _turned(halves, table, axis=-2).reshape(x.shape).astype(x.dtype)


def rotate_pairs(
    x: Float[Array, "b l h d"],
    table: tuple[Float[Array, "#b l 1 half"], Float[Array, "#b l 1 half"]],
) -> Float[Array, "b l h d"]:
    """`rotate`, with neighbouring entries as pairs."""
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    return _turned(pairs, table, axis=-1).reshape(x.shape).astype(x.dtype)


def _turned(pairs, table, axis: int):
    """Pairs along an axis of size 2, which is reversed rather than split and joined again: XLA on
    the CPU then has no join to make entry by entry, worth 4 % of a network call."""
    cos, sin = table
    signed = jnp.stack([-sin, sin], axis)
    return pairs * jnp.expand_dims(cos, axis) + jnp.flip(pairs, axis) * signed
