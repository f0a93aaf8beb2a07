"""Attention by cuDNN's flash kernels (NVIDIA GPUs), through `jax.nn.dot_product_attention`.

The kernels know two masks that take no memory: causal, and keys beyond a length. Padding can lie
anywhere, so positions are sorted, the valid ones first and otherwise in order (which keeps
"earlier" and with it causality), and put back afterwards. Segments have no such form here: they
become a `[b 1 l l]` bias in the dtype of the inputs, one for all heads.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from mdlm.models.attention.mask import AttentionMask


def obstacle(q: Float[Array, "b l h d"], mask: AttentionMask, platform: str) -> str | None:
    """Why this implementation cannot do what is asked; None if it can."""
    length, width = q.shape[1], q.shape[3]
    if platform != "gpu":
        return f"it runs on NVIDIA GPUs, and this is a {platform}"
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"it takes bfloat16, not {q.dtype}"
    if width % 8 or width > 128:
        return f"it takes heads of a width that is a multiple of 8, at most 128, not {width}"
    if mask.halves is not None:
        return "it has no mask for rows [noised ; clean]"
    if mask.segment_ids is not None and length % 128:
        # With a bias, odd lengths are refused by JAX, and at length % 128 = 64 the backward
        # kernel can give NaN (pytorch/pytorch#196678).
        return f"with segments it takes lengths that are multiples of 128, not {length}"
    return None


def attend(
    q: Float[Array, "b l h d"],
    k: Float[Array, "b l h d"],
    v: Float[Array, "b l h d"],
    mask: AttentionMask,
) -> Float[Array, "b l h d"]:
    """Softmax attention; `obstacle` must have been None."""
    if mask.segment_ids is not None:
        # Padding is a segment here, so that no row of the softmax is empty.
        ids: Any = mask.segments()
        bias = ids[:, None, :, None] == ids[:, None, None, :]
        return mask.blank(_kernel(q, k, v, mask, bias=bias))
    if mask.is_valid is None:
        return _kernel(q, k, v, mask)

    order = jnp.argsort(~mask.is_valid, axis=1, stable=True)
    # Padding sees the valid keys. Where there are none, one key stays, for a softmax over
    # something.
    count = jnp.maximum(mask.is_valid.sum(1, dtype=jnp.int32), 1)
    q, k, v = (_take(x, order) for x in (q, k, v))
    y = _take(_kernel(q, k, v, mask, keys=count), jnp.argsort(order, axis=1))
    return mask.blank(y)


def _kernel(q, k, v, mask, *, keys=None, bias=None):
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        mask=bias,
        is_causal=mask.causal,
        key_value_seq_lengths=keys,
        implementation="cudnn",
    )


def _take(x: Float[Array, "b l h d"], order: Int[Array, "b l"]) -> Float[Array, "b l h d"]:
    """Positions of each sequence in another order."""
    # Said to be unique, they are put back by the gradient without atomic additions.
    pick = lambda row, at: row.at[at].get(unique_indices=True, mode="promise_in_bounds")
    return jax.vmap(pick)(x, order)
