"""The last block computed only at the positions whose logits are asked for.

In sampling, a call writes a few tokens of a row and nobody reads the rest of the network's output.
Up to the last block every position depends on all others. In the last one only the keys and values
are needed everywhere: queries, attention, MLP and head are computed at the positions asked about.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from mdlm.models.attention.dispatch import attention
from mdlm.models.attention.mask import AttentionMask
from mdlm.models.attention.xla import UNSEEN
from mdlm.models.layers import matmul, modulate
from mdlm.models.readout import Readout
from mdlm.models.rotary import rotate
from mdlm.types import ArrayTree, Prediction

HeadOf = Callable[[Float[Array, "b l d"], Any], Readout]
"""What follows the last block: the residual stream and `cond` to logits."""


class DeferredReadout(Prediction):
    """A prediction of which the last block has only its keys and values so far.

    Args:
        begun: the last block.
        cond: the conditioning vector of the head, `[b #l c]` or None.
        head: see `HeadOf`.
        length: positions of a row that have logits; the network may read longer rows.
    """

    def __init__(self, begun: "BegunBlock", cond: Any, head: HeadOf, length: int):
        self._begun, self._cond, self._head, self._length = begun, cond, head, length

    @property
    def whole(self) -> Readout:
        return self._head(self._begun.everywhere()[:, : self._length], self._cond)

    @property
    def hidden(self) -> Any:
        return self.whole.hidden

    def logits(self, at: Int[Array, " n"] | None = None) -> Float[Array, "..."]:
        if at is None:
            return self.whole.logits()
        sequence, place = at // self._length, at % self._length
        x = self._begun.at(sequence, place)
        cond = None if self._cond is None else picked(self._cond, sequence, place)
        return self._head(x, cond).logits()[0]

    def reduce_rows(
        self, fn: Callable, rows: ArrayTree, weight: Float[Array, "b l"], shared: ArrayTree = None
    ) -> tuple[Float[Array, ""], Float[Array, "b l"]]:
        return self.whole.reduce_rows(fn, rows, weight, shared)


class BegunBlock:
    """A `transformer.Block` of which the keys and values are made."""

    def __init__(self, block: Any, x: Float[Array, "b l d"], mask: AttentionMask, table, cond):
        self.block, self.x, self.mask, self.table = block, x, mask, table
        self.vectors = block.vectors(cond)
        shift, scale = self.vectors[:2]
        self.y = modulate(block.norm1(x), shift, scale)
        kernel = block.qkv.arrays()[0].astype(block.qkv.dtype)
        width = x.shape[-1]
        self._to_q = kernel[:, :width]
        k, v = jnp.split(self._product(self.y, kernel[:, width:]), 2, axis=-1)
        self.k, self.v = self._turned(self._heads(k), table), self._heads(v)

    def queries(self, y: Float[Array, "b l d"], table: Any = None) -> Float[Array, "b l h c"]:
        """Of normed inputs, at the places of `table` (None: all)."""
        q = self._heads(self._product(y, self._to_q))
        return self._turned(q, self.table if table is None else table)

    def everywhere(self) -> Float[Array, "b l d"]:
        """The residual stream after the block."""
        q = self.queries(self.y)
        out = attention(q, self.k, self.v, self.mask, self.block.config.attention)
        return self.block.after_attention(self.x, out.reshape(self.x.shape), self.vectors)

    def at(self, sequence: Int[Array, " n"], place: Int[Array, " n"]) -> Float[Array, "1 n d"]:
        """The residual stream after the block at some places of some sequences."""
        here = lambda array: picked(array, sequence, place)
        q = self.queries(here(self.y), tuple(here(part) for part in self.table))[0]
        out = attend_at(q, self.k, self.v, self.mask, sequence, place)
        vectors = [v if isinstance(v, float) else here(v) for v in self.vectors]
        x = here(self.x)
        return self.block.after_attention(x, out.reshape(x.shape), vectors)

    def _product(self, y: Any, kernel: Any) -> Any:
        dtype = self.block.qkv.dtype
        return matmul(y.astype(dtype), kernel, dtype)

    def _heads(self, x: Any) -> Any:
        return x.reshape(*x.shape[:2], self.block.config.heads, -1)

    def _turned(self, x: Any, table: Any) -> Any:
        normed = x if self.block.qk_norm is None else self.block.qk_norm(x)
        return rotate(normed, table).astype(x.dtype)


def picked(
    array: Float[Array, "#b #l *s"], sequence: Int[Array, " n"], place: Int[Array, " n"]
) -> Float[Array, "1 n *s"]:
    """Entries of an array that may be the same for all sequences or all places."""
    row = jnp.zeros_like(sequence) if array.shape[0] == 1 else sequence
    column = jnp.zeros_like(place) if array.shape[1] == 1 else place
    return array[row, column][None]


def attend_at(
    q: Float[Array, "n h d"],
    k: Float[Array, "b l h d"],
    v: Float[Array, "b l h d"],
    mask: AttentionMask,
    sequence: Int[Array, " n"],
    place: Int[Array, " n"],
) -> Float[Array, "n h d"]:
    """Softmax attention of single places (which are no padding) to their own sequences."""
    keys = jnp.arange(k.shape[1])
    scores = jnp.einsum("nhd,nlhd->nhl", q, k[sequence], preferred_element_type=jnp.float32)
    scores = scores * q.shape[-1] ** -0.5
    by_place, ids = mask.by_place(place[:, None], keys[None]), mask.segments()
    for seen in (by_place, None if ids is None else ids[sequence, place][:, None] == ids[sequence]):
        if seen is not None:
            scores = jnp.where(jnp.asarray(seen)[:, None], scores, UNSEEN)
    p = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("nhl,nlhd->nhd", p, v[sequence])
