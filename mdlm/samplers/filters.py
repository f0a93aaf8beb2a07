"""Reshaping the law of a token before it is drawn: temperature, top-k, top-p, in that order.

All three map float32 log-probabilities to log-probabilities. Top-k and top-p keep the tokens at
or above a threshold, so tokens of equal probability stay or go together. "Top-p" names several
rules in the field. The one here keeps the smallest set of likeliest tokens whose mass reaches p:
the token that crosses p is kept (as in MD4 and most libraries; BD3-LM and ReMDM drop it).
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float


def filter_log_p(
    log_p: Float[Array, "n v"], *, temperature: float, top_k: int, top_p: float
) -> Float[Array, "n v"]:
    """Temperature, then top-k, then top-p. Dropped tokens get `-inf`."""
    return keep_top_p(keep_top_k(temper(log_p, temperature), top_k), top_p)


def temper(log_p: Float[Array, "n v"], temperature: float) -> Float[Array, "n v"]:
    """The law proportional to p^(1 / temperature); at 0 the likeliest token alone."""
    if temperature == 1:
        return log_p
    if temperature == 0:
        likeliest = jnp.argmax(log_p, axis=-1, keepdims=True)
        column = jax.lax.broadcasted_iota(jnp.int32, log_p.shape, 1)
        return jnp.where(column == likeliest, 0.0, -jnp.inf)
    return jax.nn.log_softmax(log_p / temperature, axis=-1)


def keep_top_k(log_p: Float[Array, "n v"], k: int) -> Float[Array, "n v"]:
    """The k likeliest tokens (more where several tie for the last place); 0 keeps all."""
    if k == 0 or k >= log_p.shape[-1]:
        return log_p
    smallest_kept = jax.lax.top_k(log_p, k)[0][:, -1:]
    return jax.nn.log_softmax(jnp.where(log_p >= smallest_kept, log_p, -jnp.inf), axis=-1)


def keep_top_p(log_p: Float[Array, "n v"], p: float) -> Float[Array, "n v"]:
    """The smallest set of likeliest tokens whose mass is at least p; 1 keeps all.

    The set is found by its threshold, the largest probability such that all tokens at or above
    it hold mass p. Non-negative floats are ordered as their bit patterns are, so 31 halvings of
    the range of patterns find the threshold exactly, without sorting a vocabulary.
    """
    if p == 1:
        return log_p
    mass = jax.nn.softmax(log_p, axis=-1)
    bits = jax.lax.bitcast_convert_type(mass, jnp.int32)

    def halve(_, bounds):
        low, high = bounds  # the tokens at or above `low` hold mass p, those above `high` do not
        middle = low + (high - low) // 2
        held = jnp.sum(jnp.where(bits >= middle, mass, 0.0), axis=-1, keepdims=True)
        return jnp.where(held >= p, middle, low), jnp.where(held >= p, high, middle)

    low = jnp.zeros((log_p.shape[0], 1), jnp.int32)
    high = jnp.max(bits, axis=-1, keepdims=True) + 1
    low, _ = jax.lax.fori_loop(0, 31, halve, (low, high))
    return jax.nn.log_softmax(jnp.where(bits >= low, log_p, -jnp.inf), axis=-1)
