"""Attention by the Pallas "splash" kernel that ships with JAX (TPUs).

The kernel loops over blocks of the score matrix. It skips those that `AttentionMask.by_position`
masks entirely, and evaluates the rule inside the others. Segments, and padding as a segment of its
own, are compared by their ids. No `[l, l]` array is held.

Lengths are padded to a multiple of the kernel's 128, and the output is cut to length again. XLA
cannot split a kernel over devices: under a mesh (`jax.set_mesh`) each device runs it on its own
sequences and heads; without one, XLA does not compile it for more than one device.
"""

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask
from jax.sharding import PartitionSpec
from jaxtyping import Float

from mdlm.models.attention.mask import OUTPUT, PADDING, AttentionMask
from mdlm.parallel.sharding import HEADS, fitted, traced

LANES = 128
BLOCKS = (512, 256, 128)


def obstacle(q: Float[Array, "b l h d"], mask: AttentionMask, platform: str) -> str | None:
    """Returns why this implementation does not support these inputs; None if it does."""
    if platform != "tpu":
        return f"it runs on TPUs, and the platform is {platform}"
    if q.dtype not in (jnp.bfloat16, jnp.float32):
        return f"it supports bfloat16 and float32, not {q.dtype}"
    if q.shape[3] % 8:
        return f"the head width must be a multiple of 8, not {q.shape[3]}"
    return None


def attend(
    q: Float[Array, "b l h d"],
    k: Float[Array, "b l h d"],
    v: Float[Array, "b l h d"],
    mask: AttentionMask,
    *,
    interpret: bool = False,
) -> Float[Array, "b l h d"]:
    """Returns softmax attention. `obstacle` must be None for these inputs.

    With `interpret`, the kernel runs on any device, slowly, for tests.
    """
    batch, length = q.shape[:2]
    filling = -length % LANES
    segments: Any = mask.segments()
    if filling and segments is None:
        segments = jnp.zeros((batch, length), jnp.int32)
    if filling:
        ends = ((0, 0), (0, filling))
        segments = jnp.pad(segments, ends, constant_values=PADDING)
        q, k, v = (jnp.pad(x, (*ends, (0, 0), (0, 0))) for x in (q, k, v))

    # The kernel does not scale q. Scaling in float32 rounds it only once.
    q = (q.astype(jnp.float32) * q.shape[3] ** -0.5).astype(q.dtype)
    run = functools.partial(_on_one_device, mask=mask, interpret=interpret)
    return mask.blank(_by_device(run, q)(q, k, v, segments)[:, :length])


def _by_device(run, q):
    """Returns `run`, on each device's own rows and heads if a mesh is set and divides them."""
    mesh = traced()
    if mesh is None:
        return run
    heads = fitted(mesh, q.shape, HEADS)
    rows = PartitionSpec(heads[0])
    return jax.shard_map(
        run, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=False
    )


def _on_one_device(q, k, v, segments, *, mask, interpret):
    length, heads = q.shape[1], q.shape[2]
    block = next(size for size in BLOCKS if length % size == 0)
    kernel = splash.make_splash_mha_single_device(
        splash.MultiHeadMask([_position_mask(mask, length)] * heads),
        block_sizes=splash.BlockSizes(
            block_q=block,
            block_kv=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
        # Saves output and log-sum-exp together, so the backward pass repeats no forward pass.
        residual_checkpoint_name=OUTPUT,
        interpret=interpret,
    )
    ids = None if segments is None else splash.SegmentIds(q=segments, kv=segments)
    heads_first = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    out: Any = jax.vmap(kernel)(*heads_first, ids)
    return out.transpose(0, 2, 1, 3)


def _position_mask(mask: AttentionMask, length: int):
    """Returns the rule about positions as a mask of the kernel."""
    if mask.by_position(np.zeros((1, 1), int), np.zeros((1, 1), int)) is None:
        return splash.FullMask((length, length))
    return PositionMask(mask, length)


class PositionMask(splash_attention_mask._ComputableMask):  # JAX has no public base class
    """`AttentionMask.by_position` for the kernel, which calls it on NumPy blocks and in traces."""

    def __init__(self, mask: AttentionMask, length: int):
        # Without arrays, which cannot be compared and hashed.
        self.rule = replace(mask, is_valid=None, segment_ids=None)
        super().__init__((length, length), self.rule.by_position)

    def __eq__(self, other: object):
        return isinstance(other, PositionMask) and (self.rule, self.shape) == (
            other.rule,
            other.shape,
        )

    def __hash__(self):
        return hash((PositionMask, self.rule, self.shape))
