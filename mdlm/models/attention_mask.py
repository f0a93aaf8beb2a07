"""Which query sees which key, described instead of written out as `[l, l]` per sequence.

    q sees k  iff  neither is padding, both lie in one segment, and `by_place(q, k)` holds

`by_place` looks at nothing but the two places, so it is the same for all sequences and a kernel
can evaluate it block by block. Padding is treated as a segment of its own: softmax is then never
taken over nothing, and `blank` sets what padding got to 0.
"""

from dataclasses import field
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


@pytree
class AttentionMask:
    """A description of what may be seen. Every query that is not padding sees itself at least.

    Another rule about places (causal by blocks, say) is another static field and another case of
    `by_place`, which is all that the implementations ask.
    """

    causal: bool = field(default=False, metadata={"static": True})
    is_valid: Any = None  # Bool[Array, "b l"], False at padding: sees nothing, nobody sees it
    segment_ids: Any = None  # Int[Array, "b l"], from 0; attention stays inside a segment

    def by_place(
        self, q: Int[Array | np.ndarray, "*#s"], k: Int[Array | np.ndarray, "*#s"]
    ) -> Bool[Array | np.ndarray, "*#s"] | None:
        """Whether the query at place `q` may see the key at `k`; None where places never matter."""
        return q >= k if self.causal else None

    def segments(self) -> Int[Array, "b l"] | None:
        """The segment of each position, padding being one; None where all are one segment."""
        if self.is_valid is None:
            return self.segment_ids
        ids = 0 if self.segment_ids is None else self.segment_ids
        return jnp.where(self.is_valid, ids, PADDING)

    def dense(self, length: int) -> Bool[Array, "#b 1 #l l"] | None:
        """Which query (third axis) sees which key (fourth), or None where all see all.

        What padding sees is left open, for `blank` to set right.
        """
        parts = []
        place = jnp.arange(length)
        seen = self.by_place(place[:, None], place[None, :])
        if seen is not None:
            parts.append(seen[None, None])
        if self.segment_ids is not None:
            ids: Any = self.segments()
            parts.append(ids[:, None, :, None] == ids[:, None, None, :])
        elif self.is_valid is not None:
            parts.append(self.is_valid[:, None, None, :])
        if not parts:
            return None
        allowed = parts[0]
        for part in parts[1:]:
            allowed = allowed & part
        return allowed

    def blank(self, y: Float[Array, "b l h d"]) -> Float[Array, "b l h d"]:
        """`y`, and 0 at padding (in gradient too, whatever stood there)."""
        if self.is_valid is None:
            return y
        return jnp.where(self.is_valid[:, :, None, None], y, 0)
