"""The rotary position code (arXiv:2104.09864).

    angle_i = position / 10000^(i / half),   half = head width / 2
    (x_i, x_(i + half))  <-  the pair turned by angle_i

Turned like this, q . k depends on the difference of the two positions only. Cosines and sines are
made once for all layers and heads: left to each layer, XLA computes them anew for every head of
every sequence, which on a CPU costs more than the attention itself.
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
    cos, sin = table
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
