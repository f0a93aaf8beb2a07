"""The last block, computed only at the positions whose logits are requested.

In sampling, a call writes a few tokens of a row, and the rest of the network's output is not used.
Up to the last block every position depends on all others. In the last one only the keys and values
are needed everywhere: queries, attention, MLP and head are computed at the requested positions.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from mdlm.models.attention.dispatch import attention, for_each_head
from mdlm.models.attention.mask import AttentionMask
from mdlm.models.attention.xla import MASKED
from mdlm.models.readout import Readout
from mdlm.types import ArrayTree, Prediction

HeadOf = Callable[[Float[Array, "b l d"], Any], Readout]
"""The function after the last block, from the residual stream and `cond` to logits."""


class DeferredReadout(Prediction):
    """A prediction whose last block has computed only its keys and values so far.

    Args:
        begun: the last block.
        cond: the conditioning vector of the head, `[b #l c]` or None.
        head: see `HeadOf`.
        length: positions of a row that have logits; the network may read longer rows.
        source: see `at_source`.
    """

    def __init__(
        self, begun: "BegunBlock", cond: Any, head: HeadOf, length: int, source: Any = None
    ):
        self._begun, self._cond, self._head, self._length = begun, cond, head, length
        self._source = source

    @property
    def whole(self) -> Readout:
        x = at_source(self._begun.everywhere(), self._length, self._source)
        return self._head(x, self._cond)

    @property
    def hidden(self) -> Any:
        return self.whole.hidden

    @property
    def features(self) -> Any:
        return self.whole.features

    def logits(self, at: Int[Array, " n"] | None = None) -> Float[Array, "..."]:
        if at is None:
            return self.whole.logits()
        sequence, position = at // self._length, at % self._length
        source = position if self._source is None else self._source[sequence, position]
        x = self._begun.at(sequence, source)
        cond = None if self._cond is None else picked(self._cond, sequence, position)
        return self._head(x, cond).logits()[0]

    def reduce_rows(
        self, fn: Callable, rows: ArrayTree, weight: Float[Array, "b l"], shared: ArrayTree = None
    ) -> tuple[Float[Array, ""], Float[Array, "b l"]]:
        return self.whole.reduce_rows(fn, rows, weight, shared)


def at_source(
    x: Float[Array, "b m d"], length: int, source: Int[Array, "b l"] | None
) -> Float[Array, "b l d"]:
    """Returns the output of the last block from which the logits of each token are computed: that
    at `source`, or at the token's own position."""
    return x[:, :length] if source is None else jnp.take_along_axis(x, source[..., None], axis=1)


class BegunBlock:
    """A `transformer_block.Block` whose keys and values are computed."""

    def __init__(self, block: Any, x: Float[Array, "b l d"], mask: AttentionMask, table, cond):
        self.block, self.x, self.mask, self.table = block, x, mask, table
        self.vectors = block.vectors(cond)
        self.y = block.before_attention(x, self.vectors)
        self._queries = slice(0, block.qkv.widths[0])
        others = slice(block.qkv.widths[0], None)
        k, v = jnp.split(block.qkv.columns(self.y, others), 2, axis=-1)
        self.k, self.v = block.keys(k, table), block.by_head(v)

    def queries(self, y: Float[Array, "b l d"], table: Any = None) -> Float[Array, "b l h c"]:
        """Returns the queries of normed inputs, at the positions of `table` (None: all)."""
        q = self.block.qkv.columns(y, self._queries)
        return self.block.queries(q, self.table if table is None else table)

    def everywhere(self) -> Float[Array, "b l d"]:
        """Returns the residual stream after the block, at all positions."""
        q = self.queries(self.y)
        out = attention(q, self.k, self.v, self.mask, self.block.config.attention)
        return self.block.after_attention(self.x, joined_heads(out), self.vectors)

    def at(self, sequence: Int[Array, " n"], position: Int[Array, " n"]) -> Float[Array, "1 n d"]:
        """Returns the residual stream after the block, at some positions of some sequences."""
        here = lambda array: picked(array, sequence, position)
        q = self.queries(here(self.y), jax.tree.map(here, self.table))[0]
        out = attend_at(q, self.k, self.v, self.mask, sequence, position)
        vectors = [v if isinstance(v, float) else here(v) for v in self.vectors]
        return self.block.after_attention(here(self.x), joined_heads(out)[None], vectors)


def joined_heads(out: Float[Array, "*b h c"]) -> Float[Array, "*b d"]:
    """Returns the outputs of all heads of a position in one row."""
    return out.reshape(*out.shape[:-2], -1)


def picked(
    array: Float[Array, "#b #l *s"], sequence: Int[Array, " n"], position: Int[Array, " n"]
) -> Float[Array, "1 n *s"]:
    """Returns entries of an array that may broadcast over sequences or positions."""
    row = jnp.zeros_like(sequence) if array.shape[0] == 1 else sequence
    column = jnp.zeros_like(position) if array.shape[1] == 1 else position
    return array[row, column][None]


def attend_at(
    q: Float[Array, "n h d"],
    k: Float[Array, "b l g d"],
    v: Float[Array, "b l g d"],
    mask: AttentionMask,
    sequence: Int[Array, " n"],
    position: Int[Array, " n"],
) -> Float[Array, "n h d"]:
    """Returns softmax attention of single positions, none of them padding, to their sequences."""
    keys = jnp.arange(k.shape[1])
    k, v = for_each_head(k[sequence], q.shape[1]), for_each_head(v[sequence], q.shape[1])
    scores = jnp.einsum("nhd,nlhd->nhl", q, k, preferred_element_type=jnp.float32)
    scores = scores * q.shape[-1] ** -0.5
    by_position, ids = mask.by_position(position[:, None], keys[None]), mask.segments()
    in_segment = None if ids is None else ids[sequence, position][:, None] == ids[sequence]
    for may_attend in (by_position, in_segment):
        if may_attend is not None:
            scores = jnp.where(jnp.asarray(may_attend)[:, None], scores, MASKED)
    p = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("nhl,nlhd->nhd", p, v)
