"""Rotary position embedding (arXiv:2104.09864).

    angle_i = position / 10000^(i / half),   half = head width / 2
    (x_i, x_(i + half))  <-  the pair rotated by angle_i

Some networks have another base than 10000, or rotate only the first entries of each head. With this
rotation q . k depends only on the difference of the two positions. Cosines and sines are
computed once for all layers and heads: inside each layer, XLA recomputes them for every head of
every sequence, which on a CPU costs more than the attention itself.

`rotate_pairs` rotates neighbours, (x_(2 i), x_(2 i + 1)), instead: the same with the entries of
each head in another order, for weights that were trained with it.
"""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

ROTARY_BASE = 10000.0


def rotary_table(
    positions: Int[Array, "b l"], rotated: int, base: float = ROTARY_BASE
) -> tuple[Float[Array, "b l 1 half"], Float[Array, "b l 1 half"]]:
    """Returns cosine and sine of each pair's angle at each position, for all heads. Float32.

    `rotated` is the number of entries of each head that are rotated.
    """
    half = rotated // 2
    frequency = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
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
