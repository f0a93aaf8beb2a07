"""Attention among the positions of each sequence.

    out_q = sum_k softmax_k(q . k / sqrt(head width)) v_k,  over the keys that query q attends to

`AttentionMask` describes which keys those are; a position of padding attends to none and gets 0.
This one function has several implementations, which differ in speed and memory only:

    xla     plain matmuls, on every device; holds the [b h l l] scores (of rows
            [noised ; clean] half of them: `block_diffusion`)
    cudnn   NVIDIA's flash kernels, for bfloat16; holds masks only where there are segments
    splash  a Pallas kernel for TPUs; holds neither

"auto" is the kernel made for the device where it supports the inputs, else xla.

On a mesh whose `sequence` or `tensor` axis is split, each device computes some of the heads.
"""

from typing import Literal

import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Float

from mdlm.errors import InputError
from mdlm.models.attention import (
    block_diffusion as attention_halves,
)
from mdlm.models.attention import (
    cudnn as attention_cudnn,
)
from mdlm.models.attention import (
    xla as attention_xla,
)
from mdlm.models.attention.mask import OUTPUT, AttentionMask
from mdlm.parallel.mesh import platform
from mdlm.parallel.sharding import HEADS, WIDE, led

Implementation = Literal["auto", "xla", "cudnn", "splash"]
OWN: dict[str, Implementation] = {"gpu": "cudnn", "tpu": "splash"}
"""The kernel made for each platform."""


def attention(
    q: Float[Array, "b l h d"],
    k: Float[Array, "b l g d"],
    v: Float[Array, "b l g d"],
    mask: AttentionMask,
    implementation: Implementation = "auto",
) -> Float[Array, "b l h d"]:
    """Returns softmax attention in the dtype of the inputs. Scores and softmax are float32.

    Keys and values may have fewer heads than queries, a divisor: each is then for as many
    successive heads of the queries (grouped-query attention, arXiv:2305.13245).

    Under `jax.checkpoint`, a policy that saves the name `OUTPUT` ("attention") saves the result.
    Raises InputError if `implementation` does not support the inputs, with the reason.
    """
    name = choose(q, mask, implementation)
    k, v = for_each_head(k, q.shape[2]), for_each_head(v, q.shape[2])
    q, k, v = by_heads(q), by_heads(k), by_heads(v)
    return by_places(_attend(name, q, k, v, mask))


def _attend(name, q, k, v, mask):
    if name == "splash":
        # Imported here: importing Pallas takes a while, and only TPUs need it.
        from mdlm.models.attention import splash

        return splash.attend(q, k, v, mask)
    if name == "cudnn":
        attend = attention_cudnn.attend
    else:
        attend = attention_xla.attend if mask.halves is None else attention_halves.attend
    return checkpoint_name(attend(q, k, v, mask), OUTPUT)


def for_each_head(x: Float[Array, "b l g d"], heads: int) -> Float[Array, "b l h d"]:
    """Returns keys or values by head of the queries, from those by group of heads."""
    return x if x.shape[2] == heads else jnp.repeat(x, heads // x.shape[2], axis=2)


def by_heads(x: Float[Array, "b l h d"]) -> Float[Array, "b l h d"]:
    """Moves `x` from a layout split over positions to one split over heads."""
    return led(x, WIDE, HEADS)


def by_places(x: Float[Array, "b l h d"]) -> Float[Array, "b l h d"]:
    """Moves `x` back from a layout split over heads to one split over positions."""
    return led(x, HEADS, WIDE)


def choose(
    q: Float[Array, "b l h d"], mask: AttentionMask, implementation: Implementation
) -> Implementation:
    """Returns the implementation that `attention` uses, with "auto" resolved."""
    if implementation == "auto":
        own: Implementation | None = OWN.get(platform())
        # A row shorter than one of splash's blocks would mostly be padding.
        if own is None or (own == "splash" and q.shape[1] < 128) or obstacle(own, q, mask):
            return "xla"
        return own
    reason = obstacle(implementation, q, mask)
    if reason:
        raise InputError(f"attention={implementation!r}: {reason}; choose 'auto' or 'xla'")
    return implementation


def obstacle(
    implementation: Implementation, q: Float[Array, "b l h d"], mask: AttentionMask
) -> str | None:
    """Returns why an implementation does not support these inputs; None if it does."""
    if implementation == "cudnn":
        return attention_cudnn.obstacle(q, mask, platform())
    if implementation == "splash":
        from mdlm.models.attention import splash

        return splash.obstacle(q, mask, platform())
    return None
