"""Exact draws from categorical distributions in float32.

The Gumbel-max trick in float32 truncates the noise at about 16. Tokens of probability below 2^-23
of the largest are then never drawn, and tokens near that too seldom: samples look better than the
model is (arXiv:2409.02908). Inverting the distribution function has no such truncation, but a
cumulative sum over a whole vocabulary rounds small entries away, and XLA's is not monotone. The
draw therefore has two levels: first a tile of `TILE` tokens by its total probability, then a token
inside the tile. Each level returns only entries of positive probability.

One error remains: probabilities below about 2^-23 of the total of a tile are resolved to that
absolute size.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, Key

from mdlm.keys import by_row

TILE = 256


def categorical(keys: Key[Array, " n"], logits: Float[Array, "n v"]) -> Int[Array, " n"]:
    """One token per row, drawn from `softmax(logits)`; each row draws with its own key.

    Logits of `-inf` are never drawn. A row with no finite logit gives token 0.
    """
    n, v = logits.shape
    tile = min(TILE, v)
    padded = -(-v // tile) * tile
    z = jnp.pad(logits.astype(jnp.float32), ((0, 0), (0, padded - v)), constant_values=-jnp.inf)
    largest = jnp.max(z, axis=-1, keepdims=True)
    mass = jnp.exp(z - jnp.where(jnp.isfinite(largest), largest, 0.0))
    mass = mass.reshape(n, padded // tile, tile)
    uniform = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys)
    which_tile = _pick(uniform[:, 0], mass.sum(-1))
    inside = jnp.take_along_axis(mass, which_tile[:, None, None], axis=1)[:, 0]
    return which_tile * tile + _pick(uniform[:, 1], inside)


def categorical_by_position(
    keys: Key[Array, " b"], logits: Float[Array, "b l v"]
) -> Int[Array, "b l"]:
    """One token per position, drawn from `softmax(logits)` with keys folded from the row's."""
    b, l, v = logits.shape
    each = jax.vmap(lambda key: by_row(key, jnp.arange(l)))(keys)
    return categorical(each.reshape(b * l), logits.reshape(b * l, v)).reshape(b, l)


def uniforms(keys: Key[Array, " b"], length: int) -> Float[Array, "b l"]:
    """Uniform numbers in [0, 1), `length` for each row's key."""
    return jax.vmap(lambda key: jax.random.uniform(key, (length,)))(keys)


def _pick(uniform: Float[Array, " n"], mass: Float[Array, "n m"]) -> Int[Array, " n"]:
    """The first entry whose cumulative mass exceeds `uniform` of the total, never an empty one."""
    cumulative = jnp.cumsum(mass, axis=-1)
    beyond = (cumulative > (uniform * cumulative[:, -1])[:, None]) & (mass > 0)
    return jnp.where(beyond.any(-1), jnp.argmax(beyond, -1), jnp.argmax(mass, -1))
