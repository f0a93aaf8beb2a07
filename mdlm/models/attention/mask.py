"""Which query sees which key, described instead of written out as `[l, l]` per sequence.

    q sees k  iff  neither is padding, both lie in one segment, and `by_place(q, k)` holds

`by_place` looks at nothing but the two places, so it is the same for all sequences and a kernel
can evaluate it block by block. Padding is treated as a segment of its own: softmax is then never
taken over nothing, and `blank` sets what padding got to 0.

Block diffusion (arXiv:2503.09573) reads rows [noised ; clean] of one text twice. With b(q) the
number of the block that q lies in, counted from 0 in each half:

    noised q sees  noised k with b(k) = b(q),  clean k with b(k) < b(q)
    clean q sees                               clean k with b(k) <= b(q)
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
"""The name under which `jax.checkpoint` policies find what attention gives."""

PADDING = -1
"""The segment that padding makes up."""


@dataclass(frozen=True)
class Halves:
    """Rows of `2 * length` places, [noised ; clean], each half in blocks of `block_size`."""

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
        """The rule of block diffusion. Operators alone, for NumPy, JAX and kernels alike."""
        shift = self.length // self.block_size  # by which clean blocks are further on
        ahead = q // self.block_size - k // self.block_size
        q_clean, k_clean = q >= self.length, k >= self.length
        earlier = (q_clean & (ahead > 0)) | (~q_clean & (ahead > -shift))
        return (ahead == 0) | (k_clean & earlier)


@pytree
class AttentionMask:
    """A description of what may be seen. Every query that is not padding sees itself at least.

    Another rule about places is another static field and another case of `by_place`, which is all
    that the implementations need to ask.
    """

    causal: bool = field(default=False, metadata={"static": True})
    halves: Halves | None = field(default=None, metadata={"static": True})
    is_valid: Any = None  # Bool[Array, "b l"], False at padding: sees nothing, nobody sees it
    segment_ids: Any = None  # Int[Array, "b l"], from 0; attention stays inside a segment

    def by_place(
        self, q: Int[Array | np.ndarray, "*#s"], k: Int[Array | np.ndarray, "*#s"]
    ) -> Bool[Array | np.ndarray, "*#s"] | None:
        """Whether the query at place `q` may see the key at `k`; None where places never matter."""
        if self.halves is not None:
            return self.halves.attends(q, k)
        return q >= k if self.causal else None

    def segments(self) -> Int[Array, "b l"] | None:
        """The segment of each position, padding being one; None where all are one segment."""
        if self.is_valid is None:
            return self.segment_ids
        ids = 0 if self.segment_ids is None else self.segment_ids
        return jnp.where(self.is_valid, ids, PADDING)

    def dense(self, q: slice, k: slice) -> Bool[Array, "#b 1 #n m"] | None:
        """Which of the queries at the places `q` (third axis) sees which key at `k` (fourth), or
        None where all see all. Slices have a start and a stop.

        What padding sees is left open, for `blank` to set right.
        """
        queries, keys = (jnp.arange(some.start, some.stop) for some in (q, k))
        seen = self.by_place(queries[:, None], keys[None, :])
        parts: list[Any] = [] if seen is None else [seen[None, None]]
        if self.segment_ids is not None:
            ids: Any = self.segments()
            parts.append(ids[:, None, q, None] == ids[:, None, None, k])
        elif self.is_valid is not None:
            parts.append(self.is_valid[:, None, None, k])
        return functools.reduce(operator.and_, parts) if parts else None

    def in_runs(self, places: slice, size: int) -> Bool[Array, "#b 1 r #s s"] | None:
        """`dense` inside each run of `size` of the places, which see each other as far as places
        go: only padding and segments are looked at."""
        if self.segment_ids is not None:
            ids: Any = self.segments()
            runs = ids[:, places].reshape(ids.shape[0], 1, -1, size)
            return runs[..., :, None] == runs[..., None, :]
        if self.is_valid is not None:
            return self.is_valid[:, places].reshape(self.is_valid.shape[0], 1, -1, 1, size)
        return None

    def blank(self, y: Float[Array, "b l h d"]) -> Float[Array, "b l h d"]:
        """`y`, and 0 at padding (in gradient too, whatever stood there)."""
        if self.is_valid is None:
            return y
        return jnp.where(self.is_valid[:, :, None, None], y, 0)
