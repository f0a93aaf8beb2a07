"""Attention in plain matrix products, for any device, with its gradients written out.

    s = q k^T / sqrt(d),  p = exp(s - max s),  z = sum p,  o = p v / z
    with g = do / z:  dv = p^T g,  ds = p (g v^T - sum(g o)) / sqrt(d),  dq = ds k,  dk = ds^T q

Scores and softmax are float32. Division by z is done on `[l d]`, never on `[l l]`, and p is kept
for the backward pass in the dtype of the inputs. Every product has its batch in front, as all
backends want it; automatic differentiation leaves XLA on the CPU with copies that transpose. dk
and dv are made as dk^T = q^T ds and dv^T = g^T p, which are the faster products there.

XLA on the CPU runs some of the small products on one thread, but runs on the others what does not
depend on them. There, two halves of the heads are therefore computed apart.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from mdlm.models.attention_mask import AttentionMask

BATCH = ((0, 1), (0, 1))
UNSEEN = -1e30  # finite, so that a row which sees nothing has neither inf - inf nor NaN


def attend(
    q: Float[Array, "b l h d"],
    k: Float[Array, "b l h d"],
    v: Float[Array, "b l h d"],
    mask: AttentionMask,
) -> Float[Array, "b l h d"]:
    """Softmax attention; holds `[b h l l]` scores, and masks as small as they broadcast."""
    may_see = mask.dense(q.shape[1])
    parts = 2 if jax.default_backend() == "cpu" and q.shape[2] % 2 == 0 else 1
    outs: list[Any] = []
    for some in zip(*(jnp.split(x, parts, axis=2) for x in (q, k, v)), strict=True):
        out: Any = _attend(*(x.transpose(0, 2, 1, 3) for x in some), may_see)
        outs.append(out.transpose(0, 2, 1, 3))
    return mask.blank(jnp.concatenate(outs, axis=2))


def _product(a, b, axis_a, axis_b):
    """Over one axis of each of two `[b h ...]` arrays; float32."""
    dims = (((axis_a,), (axis_b,)), BATCH)
    return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)


@jax.custom_vjp
def _attend(q, k, v, may_see):
    return _forward(q, k, v, may_see)[0]


def _forward(q, k, v, may_see):
    scores = _product(q, k, 3, 3) * q.shape[-1] ** -0.5
    if may_see is not None:
        scores = jnp.where(may_see, scores, UNSEEN)
    p = jnp.exp(scores - scores.max(3, keepdims=True))
    z = p.sum(3, keepdims=True)
    p = p.astype(v.dtype)
    out = _product(p, v, 3, 2) / z
    return out.astype(v.dtype), (q, k, v, p, z, out)


def _backward(residuals, g):
    q, k, v, p, z, out = residuals
    g = g.astype(jnp.float32) / z
    inner = (g * out).sum(3, keepdims=True)
    g = g.astype(v.dtype)
    ds = p * (_product(g, v, 3, 3) - inner) * q.shape[-1] ** -0.5
    ds = ds.astype(q.dtype)
    dq = _product(ds, k, 3, 2)
    dk, dv = (x.swapaxes(2, 3) for x in (_product(q, ds, 2, 2), _product(g, p, 2, 2)))
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None


_attend.defvjp(_forward, _backward)
