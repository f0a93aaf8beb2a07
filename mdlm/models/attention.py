"""Attention among the positions of each sequence, and the rotary position code.

    out_q = sum_k softmax_k(q . k / sqrt(head width)) v_k,  over the keys that query q may see

A query sees a key unless the key is padding, lies in another segment or, if causal, lies later.
A query that may see nothing gets 0. Rotary (arXiv:2104.09864) turns the pair (i, i + half) of
each head's entries by the angle position / 10000^(i / half); so q . k depends on the positions'
difference only.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

ROTARY_BASE = 10000.0


def attention(
    q: Float[Array, "b l h d"],
    k: Float[Array, "b l h d"],
    v: Float[Array, "b l h d"],
    *,
    causal: bool = False,
    is_valid: Bool[Array, "b l"] | None = None,
    segment_ids: Int[Array, "b l"] | None = None,
) -> Float[Array, "b l h d"]:
    """Softmax attention with the masks above; scores and softmax are float32."""
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
    scores = scores * q.shape[-1] ** -0.5
    may_see = _may_see(q.shape[1], causal, is_valid, segment_ids)
    if may_see is None:
        weights = jax.nn.softmax(scores, axis=-1)
    else:
        # A finite stand-in for -inf: a query that sees nothing then has a softmax (and
        # gradients) without NaN, which the last factor sets to 0.
        scores = jnp.where(may_see, scores, -1e30)
        weights = jax.nn.softmax(scores, axis=-1) * may_see.any(-1, keepdims=True)
    return jnp.einsum("bhqk,bkhd->bqhd", weights.astype(v.dtype), v)


def _may_see(
    length: int,
    causal: bool,
    is_valid: Bool[Array, "b l"] | None,
    segment_ids: Int[Array, "b l"] | None,
) -> Bool[Array, "#b 1 #l l"] | None:
    """Which query (third axis) sees which key (fourth); None where all see all."""
    parts = []
    if causal:
        place = jnp.arange(length)
        parts.append((place[:, None] >= place[None, :])[None, None])
    if is_valid is not None:
        parts.append(is_valid[:, None, None, :])
    if segment_ids is not None:
        parts.append(segment_ids[:, None, :, None] == segment_ids[:, None, None, :])
    if not parts:
        return None
    allowed = parts[0]
    for part in parts[1:]:
        allowed = allowed & part
    return allowed


def rotary_angles(positions: Int[Array, "b l"], head_width: int) -> Float[Array, "b l 1 half"]:
    """The angle of each pair of entries at each position, the same for all heads. Radians."""
    half = head_width // 2
    frequency = ROTARY_BASE ** (-jnp.arange(half, dtype=jnp.float32) / half)
    return (positions[..., None].astype(jnp.float32) * frequency[None, None])[:, :, None]


def rotate(
    x: Float[Array, "b l h d"], angles: Float[Array, "#b l 1 half"]
) -> Float[Array, "b l h d"]:
    """`x` with its pairs turned by `angles`, in float32, given in the dtype of `x`."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
