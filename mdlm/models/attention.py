"""Attention among the positions of each sequence.

    out_q = sum_k softmax_k(q . k / sqrt(head width)) v_k,  over the keys that query q may see

What it may see, `AttentionMask` describes; a position of padding sees nothing and gets 0. There
are several implementations of this one function, which differ in speed and memory only:

    xla     matrix products, on every device; holds the [b h l l] scores
    cudnn   NVIDIA's flash kernels, for bfloat16; holds masks only where there are segments
    splash  a Pallas kernel for TPUs; holds neither

"auto" is the kernel made for the device where it can do what is asked, else xla.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from mdlm.models import attention_cudnn, attention_xla
from mdlm.models.attention_mask import AttentionMask
from mdlm.models.rotary import ROTARY_BASE
from mdlm.types import InputError

Implementation = Literal["auto", "xla", "cudnn", "splash"]


def attention(
    q: Float[Array, "b l h d"],
    k: Float[Array, "b l h d"],
    v: Float[Array, "b l h d"],
    mask: AttentionMask | None = None,
    implementation: Implementation = "auto",
    **described: Any,  # TRANSITION: until transformer.py passes `mask`
) -> Float[Array, "b l h d"]:
    """Softmax attention, its scores and softmax in float32, in the dtype of the inputs.

    InputError where `implementation` cannot do what is asked, with the reason.
    """
    mask = AttentionMask(**described) if mask is None else mask  # TRANSITION
    name = choose(q, mask, implementation)
    if name == "splash":
        # Imported late: Pallas takes a while, and only TPUs need it.
        from mdlm.models import attention_splash

        return attention_splash.attend(q, k, v, mask)
    return (attention_cudnn if name == "cudnn" else attention_xla).attend(q, k, v, mask)


def choose(
    q: Float[Array, "b l h d"], mask: AttentionMask, implementation: Implementation
) -> Implementation:
    """The implementation that `attention` takes, "auto" being resolved."""
    where = platform()
    if implementation == "auto":
        own = {"gpu": "cudnn", "tpu": "splash"}.get(where)
        if own is None or _obstacle(own, q, mask, where) or (own == "splash" and q.shape[1] < 128):
            return "xla"
        return own
    reason = _obstacle(implementation, q, mask, where)
    if reason:
        raise InputError(f"attention={implementation!r}: {reason}; choose 'auto' or 'xla'")
    return implementation


def platform() -> str:
    """Where the program that is being traced will run: "cpu", "gpu" or "tpu".

    A mesh that is set (`jax.set_mesh`) decides, also one of devices that are not here and are
    only compiled for.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def _obstacle(name: str, q: Array, mask: AttentionMask, where: str) -> str | None:
    if name == "xla":
        return None
    if name == "cudnn":
        return attention_cudnn.obstacle(q, mask, where)
    from mdlm.models import attention_splash

    return attention_splash.obstacle(q, mask, where)


# TRANSITION: until transformer.py takes these from mdlm.models.rotary.


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
