"""Attention over rows [noised ; clean] of block diffusion, in plain matmuls.

Clean queries attend to the clean half. A noised query has one softmax over two sets of keys, the
clean ones of earlier diffusion blocks and the noised ones of its own:

    s = [q k^T ; q k_own^T] / sqrt(d),  o = (p v + p_own v_own) / (sum p + sum p_own)

Of the `[2 l, 2 l]` scores of a dense mask, it computes `2 l l` and those inside the own blocks.
The two sets share the softmax's sum, and so the gradients of `mdlm.models.attention.xla` apply to
both. (Merging two finished attentions by their log-sum-exp gives the same values, but JAX's
kernels pass no gradient through it.)
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from mdlm.models.attention.mask import AttentionMask
from mdlm.models.attention.xla import MASKED, attend_heads, gradients, heads_first, product


def attend(
    q: Float[Array, "b l h d"],
    k: Float[Array, "b l h d"],
    v: Float[Array, "b l h d"],
    mask: AttentionMask,
) -> Float[Array, "b l h d"]:
    """Returns softmax attention under a mask with `halves`."""
    assert mask.halves is not None
    length, size = mask.halves.length, mask.halves.block_size
    noised, clean = slice(0, length), slice(length, 2 * length)
    among_clean, earlier = mask.dense(clean, clean), mask.dense(noised, clean)
    own = mask.in_runs(noised, size)

    def attend_to_both(q, k, v):
        (q, q_clean), (k_own, k), (v_own, v) = (jnp.split(x, 2, axis=2) for x in (q, k, v))
        q, k_own, v_own = (_in_blocks(x, size) for x in (q, k_own, v_own))
        out = _attend_noised(q, k, v, k_own, v_own, earlier, own)
        return jnp.concatenate([out, attend_heads(q_clean, k, v, among_clean)], axis=2)

    return mask.blank(heads_first(attend_to_both, q, k, v))


def _in_blocks(x, size):
    return x.reshape(*x.shape[:2], -1, size, x.shape[-1])


def _in_row(x):
    return x.reshape(*x.shape[:2], -1, x.shape[-1])


@jax.custom_vjp
def _attend_noised(q, k, v, k_own, v_own, earlier, own):
    """Takes q, k_own, v_own `[b h n s d]`, n blocks of s; k, v `[b h l d]`. Returns `[b h l d]`."""
    return _forward(q, k, v, k_own, v_own, earlier, own)[0]


def _forward(q, k, v, k_own, v_own, earlier, own):
    size, scale = q.shape[3], q.shape[4] ** -0.5
    scores = jnp.where(earlier, product(_in_row(q), k, -1, -1) * scale, MASKED)
    own_scores = product(q, k_own, -1, -1) * scale
    if own is not None:
        own_scores = jnp.where(own, own_scores, MASKED)
    largest = jnp.maximum(scores.max(-1, keepdims=True), _in_row(own_scores.max(-1, keepdims=True)))
    p = jnp.exp(scores - largest)
    p_own = jnp.exp(own_scores - _in_blocks(largest, size))
    z = p.sum(-1, keepdims=True) + _in_row(p_own.sum(-1, keepdims=True))
    p, p_own = p.astype(v.dtype), p_own.astype(v.dtype)
    out = (product(p, v, -1, -2) + _in_row(product(p_own, v_own, -1, -2))) / z
    return out.astype(v.dtype), (q, k, v, k_own, v_own, p, p_own, z, out)


def _backward(residuals, g):
    q, k, v, k_own, v_own, p, p_own, z, out = residuals
    size = q.shape[3]
    g = g.astype(jnp.float32) / z
    inner = (g * out).sum(-1, keepdims=True)
    g = g.astype(v.dtype)
    dq, dk, dv = gradients(_in_row(q), k, v, p, g, inner)
    dq_own, dk_own, dv_own = gradients(
        q, k_own, v_own, p_own, _in_blocks(g, size), _in_blocks(inner, size)
    )
    return _in_blocks(dq, size) + dq_own, dk, dv, dk_own, dv_own, None, None


_attend_noised.defvjp(_forward, _backward)
