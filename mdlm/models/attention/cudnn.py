"""Attention by cuDNN's flash kernels (NVIDIA GPUs), through `jax.nn.dot_product_attention`.

The kernels have two masks that take no memory: a causal one, and a length beyond which keys are
masked. Padding can be anywhere, so positions are sorted, the valid ones first and otherwise in
order (which keeps causality), and reordered back afterwards. Segments have no such form here: they
become a `[b 1 l l]` bias in the dtype of the inputs, one for all heads.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from mdlm.models.attention.mask import AttentionMask
from mdlm.parallel.mesh import device_kind


def obstacle(q: Float[Array, "b l h d"], mask: AttentionMask, platform: str) -> str | None:
    """Returns why this implementation does not support these inputs; None if it does."""
    length, width = q.shape[1], q.shape[3]
    if platform != "gpu":
        return f"it runs on NVIDIA GPUs, and the platform is {platform}"
    if re.search("AMD|Radeon|Instinct", device_kind()):
        return f"it runs on NVIDIA GPUs, and these are {device_kind()}"
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"it supports bfloat16 and float16, not {q.dtype}"
    if width % 8 or width > 128:
        return f"the head width must be a multiple of 8, at most 128, not {width}"
    if mask.halves is not None:
        return "it has no mask for rows [noised ; clean]"
    if mask.reach is not None or mask.ahead not in (None, 0):
        return "it has no mask for local attention, or for a part of what comes after a position"
    if mask.segment_ids is not None and length % 128:
        # With a bias, odd lengths are refused by JAX, and at length % 128 = 64 the backward
        # kernel can give NaN (pytorch/pytorch#196678).
        return f"with segments the length must be a multiple of 128, not {length}"
    return None


def attend(
    q: Float[Array, "b l h d"],
    k: Float[Array, "b l h d"],
    v: Float[Array, "b l h d"],
    mask: AttentionMask,
) -> Float[Array, "b l h d"]:
    """Returns softmax attention. `obstacle` must be None for these inputs."""
    if mask.segment_ids is not None:
        # Padding is a segment here, so that no softmax is over an empty set.
        ids: Any = mask.segments()
        bias = ids[:, None, :, None] == ids[:, None, None, :]
        return mask.blank(_kernel(q, k, v, mask, bias=bias))
    if mask.is_valid is None:
        return _kernel(q, k, v, mask)

    order = jnp.argsort(~mask.is_valid, axis=1, stable=True)
    # Padding attends to the valid keys. Where there are none, one key is left unmasked, so that
    # the softmax is not over an empty set.
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
        is_causal=mask.ahead == 0,
        key_value_seq_lengths=keys,
        implementation="cudnn",
    )


def _take(x: Float[Array, "b l h d"], order: Int[Array, "b l"]) -> Float[Array, "b l h d"]:
    """Returns the positions of each sequence in another order."""
    # With unique indices, the backward pass scatters without atomic additions.
    pick = lambda row, at: row.at[at].get(unique_indices=True, mode="promise_in_bounds")
    return jax.vmap(pick)(x, order)
