"""Attention in plain matmuls, for any device, with its gradients written out.

    s = q k^T / sqrt(d),  p = exp(s - max s),  z = sum p,  o = p v / z
    with g = do / z:  dv = p^T g,  ds = p (g v^T - sum(g o)) / sqrt(d),  dq = ds k,  dk = ds^T q

Scores and softmax are float32. Division by z is done on `[l d]`, never on `[l l]`, and p is kept
for the backward pass in the dtype of the inputs. Every matmul has its batch axes first, the layout
of all backends; with automatic differentiation XLA on the CPU adds transposing copies. dk and dv
are computed as dk^T = q^T ds and dv^T = g^T p, which are the faster matmuls there.

XLA on the CPU runs some of the small matmuls on one thread, and independent work on the other
threads. On the CPU, two halves of the heads are therefore computed separately.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from mdlm.models.attention.mask import AttentionMask
from mdlm.parallel.mesh import platform
from mdlm.parallel.sharding import splits_heads

MASKED = -1e30  # score of a masked key; finite, so that a query without keys has no NaN


def attend(
    q: Float[Array, "b l h d"],
    k: Float[Array, "b l h d"],
    v: Float[Array, "b l h d"],
    mask: AttentionMask,
) -> Float[Array, "b l h d"]:
    """Returns softmax attention. Holds `[b h l l]` scores, and masks before broadcasting."""
    positions = slice(0, q.shape[1])
    may_attend = mask.dense(positions, positions)
    return mask.blank(heads_first(lambda q, k, v: attend_heads(q, k, v, may_attend), q, k, v))


def heads_first(attend: Callable, *arrays: Float[Array, "b l h d"]) -> Float[Array, "b l h d"]:
    """Applies `attend` to `[b h l d]` arrays, on the CPU to two halves of the heads."""
    in_two = platform() == "cpu" and arrays[0].shape[2] % 2 == 0 and not splits_heads()
    parts = 2 if in_two else 1
    outs: list[Any] = []
    for some in zip(*(jnp.split(x, parts, axis=2) for x in arrays), strict=True):
        outs.append(attend(*(x.transpose(0, 2, 1, 3) for x in some)).transpose(0, 2, 1, 3))
    return jnp.concatenate(outs, axis=2)


def product(
    a: Float[Array, "*b m n"], b: Float[Array, "*b o p"], axis_a: int, axis_b: int
) -> Float[Array, "*b q r"]:
    """Returns the matmul over one of the last two axes (-1 or -2) of each, in float32."""
    batch = tuple(range(a.ndim - 2))
    dims = (((a.ndim + axis_a,), (b.ndim + axis_b,)), (batch, batch))
    return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)


@jax.custom_vjp
def attend_heads(
    q: Float[Array, "b h l d"],
    k: Float[Array, "b h m d"],
    v: Float[Array, "b h m d"],
    may_attend: Bool[Array, "#b 1 #l m"] | None,
) -> Float[Array, "b h l d"]:
    """Returns softmax attention of queries at l positions to keys at m positions."""
    return _forward(q, k, v, may_attend)[0]


def unnormalized_weights(
    q: Float[Array, "b h l d"],
    k: Float[Array, "b h m d"],
    may_attend: Bool[Array, "#b 1 #l m"] | None,
) -> tuple[Float[Array, "b h l m"], Float[Array, "b h l 1"]]:
    """Returns p and z: the weights of softmax attention are p / z."""
    scores = product(q, k, -1, -1) * q.shape[-1] ** -0.5
    if may_attend is not None:
        scores = jnp.where(may_attend, scores, MASKED)
    p = jnp.exp(scores - scores.max(-1, keepdims=True))
    return p, p.sum(-1, keepdims=True)


def _forward(q, k, v, may_attend):
    p, z = unnormalized_weights(q, k, may_attend)
    p = p.astype(v.dtype)
    out = product(p, v, -1, -2) / z
    return out.astype(v.dtype), (q, k, v, p, z, out)


def _backward(residuals, g):
    q, k, v, p, z, out = residuals
    g = g.astype(jnp.float32) / z
    inner = (g * out).sum(-1, keepdims=True)
    g = g.astype(v.dtype)
    return *gradients(q, k, v, p, g, inner), None


def gradients(q, k, v, p, g, inner):
    """Returns the gradients of q, k and v, given g = do / z and the sums of g o."""
    ds = p * (product(g, v, -1, -1) - inner) * q.shape[-1] ** -0.5
    ds = ds.astype(q.dtype)
    dq = product(ds, k, -1, -2)
    dk, dv = (x.swapaxes(-1, -2) for x in (product(q, ds, -2, -2), product(g, p, -2, -2)))
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype)


attend_heads.defvjp(_forward, _backward)
