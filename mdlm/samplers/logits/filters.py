"""Filters of a token's distribution before it is drawn: bans, temperature, top-k, top-p.

Each maps float32 log-probabilities to log-probabilities. Top-k and top-p keep the tokens at or
above a threshold, so tokens of equal probability stay or go together. "Top-p" is the name of two
rules in the field, which differ by the token that crosses p:

    reach   the smallest set of likeliest tokens whose mass is at least p: the token that crosses
            is kept (Hugging Face, MD4, Duo, Dream)
    below   the largest set of likeliest tokens whose mass is at most p, and the likeliest token in
            any case: the one that crosses is dropped (ReMDM, BD3-LM, PRISM)

Both are renormalised here, as in all of these but PRISM.
"""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

TopP = Literal["reach", "below"]

TINY = float(np.finfo(np.float32).tiny)


def filter_log_p(
    log_p: Float[Array, "n v"],
    *,
    temperature: float | Float[Array, "n 1"],
    top_k: int,
    top_p: float,
    rule: TopP = "reach",
) -> Float[Array, "n v"]:
    """Applies temperature, then top-k, then top-p. Dropped tokens get `-inf`."""
    return keep_top_p(keep_top_k(temper(log_p, temperature), top_k), top_p, rule)


def restrict(
    log_p: Float[Array, "n v"], banned: Sequence[int], *, mask_id: int, size: int
) -> Float[Array, "n v"]:
    """The distribution conditioned on an allowed token: an id below `size`, not the mask, not
    `banned`. If allowed tokens have no probability, it is uniform on them, so that a banned token
    is never drawn, even if the network is certain of it."""
    allowed = np.arange(log_p.shape[-1]) < size
    allowed[[mask_id, *banned]] = False
    inside = jnp.where(allowed[None], log_p, -jnp.inf)
    has_mass = jnp.isfinite(inside).any(-1, keepdims=True)
    return jax.nn.log_softmax(
        jnp.where(has_mass, inside, jnp.where(allowed, 0.0, -jnp.inf)[None]), axis=-1
    )


def temper(
    log_p: Float[Array, "n v"], temperature: float | Float[Array, "n 1"]
) -> Float[Array, "n v"]:
    """The distribution proportional to p^(1 / temperature); at 0 the likeliest token alone."""
    if not isinstance(temperature, Array):
        if temperature == 1:
            return log_p
        if temperature == 0:
            return _likeliest(log_p)
        return jax.nn.log_softmax(log_p / temperature, axis=-1)
    is_cold = temperature < TINY
    # The largest is subtracted first, so that only tokens of probability 0 become infinite.
    below = log_p - log_p.max(-1, keepdims=True)
    warm = jax.nn.log_softmax(below / jnp.where(is_cold, 1.0, temperature), axis=-1)
    return jnp.where(is_cold, _likeliest(log_p), warm)


def _likeliest(log_p: Float[Array, "n v"]) -> Float[Array, "n v"]:
    likeliest = jnp.argmax(log_p, axis=-1, keepdims=True)
    token = jax.lax.broadcasted_iota(jnp.int32, log_p.shape, 1)
    return jnp.where(token == likeliest, 0.0, -jnp.inf)


def keep_top_k(log_p: Float[Array, "n v"], k: int) -> Float[Array, "n v"]:
    """Keeps the k likeliest tokens (more if several tie for the k-th); 0 keeps all."""
    if k == 0 or k >= log_p.shape[-1]:
        return log_p
    smallest_kept = jax.lax.top_k(log_p, k)[0][:, -1:]
    return jax.nn.log_softmax(jnp.where(log_p >= smallest_kept, log_p, -jnp.inf), axis=-1)


def keep_top_p(log_p: Float[Array, "n v"], p: float, rule: TopP = "reach") -> Float[Array, "n v"]:
    """Keeps the likeliest tokens, as many as `rule` says (see the module docstring); 1 keeps all.

    The set is found by its threshold: the largest probability such that all tokens at or above it
    hold mass p, or the smallest such that they do not hold more. Non-negative floats have the
    same order as their bit patterns, so 31 halvings of the range of patterns find the threshold
    exactly, without sorting the vocabulary.
    """
    if p == 1:
        return log_p
    mass = jax.nn.softmax(log_p, axis=-1)
    bits = jax.lax.bitcast_convert_type(mass, jnp.int32)

    def halve(_, bounds):
        # The mass of the tokens at or above `low` is at least p (reach) or above p (below); that
        # of the tokens at or above `high` is not.
        low, high = bounds
        middle = low + (high - low) // 2
        held = jnp.sum(jnp.where(bits >= middle, mass, 0.0), axis=-1, keepdims=True)
        is_over = held >= p if rule == "reach" else held > p
        return jnp.where(is_over, middle, low), jnp.where(is_over, high, middle)

    largest = jnp.max(bits, axis=-1, keepdims=True)
    low = jnp.zeros((log_p.shape[0], 1), jnp.int32)
    low, high = jax.lax.fori_loop(0, 31, halve, (low, largest + 1))
    least = low if rule == "reach" else jnp.minimum(high, largest)
    return jax.nn.log_softmax(jnp.where(bits >= least, log_p, -jnp.inf), axis=-1)
