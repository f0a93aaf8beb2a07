"""Attention masks, which describe what attends to what without an `[l, l]` array per sequence.

    q attends to k  iff  neither is padding, both are in one segment, and `by_position(q, k)` holds

`by_position` depends on the two positions only, so it is the same for all sequences and a kernel
can evaluate it block by block. Padding is treated as a segment of its own: no softmax is then over
an empty set, and `blank` sets the outputs at padding to 0.

Block diffusion (arXiv:2503.09573) reads rows [noised ; clean], one text twice. With b(q) the
index of the diffusion block of q, counted from 0 in each half:

    noised q attends to  noised k with b(k) = b(q),  clean k with b(k) < b(q)
    clean q attends to                               clean k with b(k) <= b(q)
"""

import functools
import operator
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from mdlm.types import pytree

OUTPUT = "attention"
"""The name of the output of attention in `jax.checkpoint` policies."""

PADDING = -1
"""The segment id of padding."""


@dataclass(frozen=True)
class Halves:
    """Rows of `2 * length` positions, [noised ; clean], with diffusion blocks of `block_size`."""

    length: int
    block_size: int

    def __post_init__(self):
        if self.block_size < 1 or self.length % self.block_size:
            raise ValueError(
                f"block_size={self.block_size} does not divide the length of {self.length}"
            )

    def attends(
        self, q: Int[Array | np.ndarray, "*#s"], k: Int[Array | np.ndarray, "*#s"]
    ) -> Bool[Array | np.ndarray, "*#s"]:
        """Returns whether `q` attends to `k`. Works on arrays of NumPy, JAX and kernels."""
        shift = self.length // self.block_size  # from a noised block to its clean copy
        ahead = q // self.block_size - k // self.block_size
        q_clean, k_clean = q >= self.length, k >= self.length
        earlier = (q_clean & (ahead > 0)) | (~q_clean & (ahead > -shift))
        return (ahead == 0) | (k_clean & earlier)


@pytree
class AttentionMask:
    """Which keys each query attends to. Every query that is not padding attends to itself.

    A new rule about positions is a new static field and a new case of `by_position`; the
    implementations need no change.
    """

    # No key comes more than this after its query: 0 is causal attention; None if any may.
    ahead: int | None = field(default=None, metadata={"static": True})
    # Local attention: no key is further than this from its query; None if any may be.
    reach: int | None = field(default=None, metadata={"static": True})
    halves: Halves | None = field(default=None, metadata={"static": True})
    is_valid: Any = None  # Bool[Array, "b l"], False at padding, which is neither query nor key
    segment_ids: Any = None  # Int[Array, "b l"], from 0; attention stays inside a segment

    def by_position(
        self, q: Int[Array | np.ndarray, "*#s"], k: Int[Array | np.ndarray, "*#s"]
    ) -> Bool[Array | np.ndarray, "*#s"] | None:
        """Returns whether the query at `q` attends to the key at `k`; None if all attend to all."""
        if self.halves is not None:
            return self.halves.attends(q, k)
        before = None if self.ahead is None else k - q <= self.ahead
        if self.reach is None:
            return before
        near = (q - k <= self.reach) & (k - q <= self.reach)
        return near if before is None else near & before

    def segments(self) -> Int[Array, "b l"] | None:
        """Returns the segment of each position, `PADDING` at padding; None if all are in one."""
        if self.is_valid is None:
            return self.segment_ids
        ids = 0 if self.segment_ids is None else self.segment_ids
        return jnp.where(self.is_valid, ids, PADDING)

    def dense(self, q: slice, k: slice) -> Bool[Array, "#b 1 #n m"] | None:
        """Returns which query at positions `q` (third axis) attends to which key at positions `k`
        (fourth axis), or None if all attend to all. Slices have a start and a stop.

        Queries at padding may have any value; `blank` zeroes their outputs.
        """
        queries, keys = (jnp.arange(some.start, some.stop) for some in (q, k))
        attends = self.by_position(queries[:, None], keys[None, :])
        parts: list[Any] = [] if attends is None else [attends[None, None]]
        if self.segment_ids is not None:
            ids: Any = self.segments()
            parts.append(ids[:, None, q, None] == ids[:, None, None, k])
        elif self.is_valid is not None:
            parts.append(self.is_valid[:, None, None, k])
        return functools.reduce(operator.and_, parts) if parts else None

    def in_runs(self, positions: slice, size: int) -> Bool[Array, "#b 1 r #s s"] | None:
        """Returns `dense` inside each run of `size` positions, all of which attend to each other
        but for padding and segments."""
        if self.segment_ids is not None:
            ids: Any = self.segments()
            runs = ids[:, positions].reshape(ids.shape[0], 1, -1, size)
            return runs[..., :, None] == runs[..., None, :]
        if self.is_valid is not None:
            return self.is_valid[:, positions].reshape(self.is_valid.shape[0], 1, -1, 1, size)
        return None

    def blank(self, y: Float[Array, "b l h d"]) -> Float[Array, "b l h d"]:
        """Returns `y` with 0 at padding, for values and gradients."""
        if self.is_valid is None:
            return y
        return jnp.where(self.is_valid[:, :, None, None], y, 0)
