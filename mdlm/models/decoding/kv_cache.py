"""The key-value cache: a call reads some positions of each row, and has the others stored.

    q, k, v  at the positions read;  k, v  replace those stored there
    out_q    softmax attention to all stored keys and values, under the network's own mask

The result is that of a call that reads the whole row wherever the stored keys and values are those
that the whole row would give: always, if what they depend on has not changed since they were
stored (causal networks, finished diffusion blocks); else the call is an approximation. Which
positions are read, and when, is up to the sampler.

Positions are counted in the row that the network reads. A network that attends to diffusion blocks
reads [tokens ; clean] and stores clean tokens alone. Its noised block, of which there is one at a
time in each row, has `block_size` further entries at the end, which each call writes anew.
"""

import functools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int, Shaped

from mdlm.models.attention.mask import AttentionMask
from mdlm.models.attention.xla import product, unnormalized_weights
from mdlm.models.decoding.last_block import joined_heads
from mdlm.models.readout import Readout
from mdlm.models.rotary import rotary_table
from mdlm.models.stack import positions_of, stacks_of
from mdlm.types import ArrayTree, KeyValues, NetInput, Prediction, Reading

HeadAt = Callable[[Float[Array, "1 n d"], Int[Array, " n"], Int[Array, " n"]], Readout]
"""The function from the residual stream after the last block, of which each entry gives the logits
of a position (sequence, position), to these logits."""


class ReadPrediction(Prediction):
    """The prediction of a call with a `Reading`: it has the logits of the positions asked for.

    Args:
        x: the residual stream after the last block at the positions read.
        reading: which positions these are.
        source: the position from whose output the logits of each token are computed.
        head: see `HeadAt`.
        cache: the stored keys and values, with those of the positions read.
    """

    def __init__(
        self,
        x: Float[Array, "b q d"],
        reading: Reading,
        source: Int[Array, "#b l"],
        head: HeadAt,
        cache: KeyValues,
    ):
        b, q, _ = x.shape
        self.cache, self._x, self._head = cache, x, head
        self._source = jnp.broadcast_to(source, (b, source.shape[1]))
        # The entry of each position in `x`; the row may be [tokens ; clean].
        entry = jnp.zeros((b, 2 * source.shape[1]), jnp.int32)
        order = jnp.broadcast_to(jnp.arange(q, dtype=jnp.int32)[None], (b, q))
        self._entry = entry.at[jnp.arange(b)[:, None], reading.at].set(order, mode="drop")

    def logits(self, at: Int[Array, " n"] | None = None) -> Float[Array, "..."]:
        if at is None:
            raise ValueError(
                "at=None: with a cache there are logits of the positions read only; give `at`"
            )
        length = self._source.shape[1]
        sequence, position = at // length, at % length
        entry = self._entry[sequence, self._source[sequence, position]]
        return self._head(self._x[sequence, entry][None], sequence, position).logits()[0]

    def reduce_rows(
        self, fn: Callable, rows: ArrayTree, weight: Float[Array, "b l"], shared: ArrayTree = None
    ) -> tuple[Float[Array, ""], Float[Array, "b l"]]:
        raise ValueError("reduce_rows: not available with a cache; call the network without one")


def at_read(array: Shaped[Array, "#b #l *s"], reading: Reading) -> Shaped[Array, "b q *s"]:
    """Returns the entries of an array, which may broadcast over sequences or positions, at the
    positions read."""
    b, length = reading.at.shape[0], array.shape[1]
    row = jnp.zeros((b, 1), jnp.int32) if array.shape[0] == 1 else jnp.arange(b)[:, None]
    return array[row, jnp.minimum(reading.at, length - 1)]


def read(
    blocks: Any,
    row: NetInput,
    embed: Callable[[Int[Array, "b q"]], Float[Array, "b q d"]],
    mask: AttentionMask,
    *,
    cond: Float[Array, "#b #q c"] | None = None,
) -> tuple[Float[Array, "b q d"], KeyValues]:
    """Reads the positions `row.reading.at` of each row.

    Args:
        blocks: the network's blocks.
        row: the row that the network reads, of l tokens or, with `mask.halves`, of 2 l.
        embed: the embedding of tokens.
        mask: what attends to what in that row.
        cond: the conditioning vector of each position read, or one for each sequence.

    Returns the residual stream after the last block, of which the first `reading.asked` entries
    are computed, and the stored keys and values with the new ones.
    """
    reading: Reading = row.reading
    b, q = reading.at.shape
    size = min(reading.chunk, q)
    tokens, positions = row.tokens, positions_of(row, row.tokens.shape[1])
    part = Parts(size=size, count=-(-q // size))
    at = part.padded(reading.at, tokens.shape[1])
    x = part.padded(embed(at_read(tokens, reading)), 0.0)
    config = blocks.config
    table: Any = config.rotary and rotary_table(at_read(positions, reading), config.rotary)
    table = jax.tree.map(lambda array: part.padded(array, 0.0), table)
    if cond is not None and cond.shape[1] > 1:
        cond = part.padded(cond, 0.0)
    slots = Slots(mask, at, tokens.shape[1])
    if reading.rollout and mask.halves is not None:
        raise ValueError("rollout: not for networks that read [tokens ; clean]")
    stored = reading.stored or empty(config, b, slots.capacity, block_dtype(blocks))
    some = part.holding((at < tokens.shape[1]).any(0).sum())
    asked = some if reading.asked is None or reading.rollout else part.holding(reading.asked)
    sequence = jnp.arange(b)[:, None]

    def step(carry: Any, layer: Any) -> tuple[Any, Any]:
        x, keys, values = carry
        block, index = layer

        def store(i: Any, kept: Any) -> Any:
            queries, keys, values = kept
            y = block.before_attention(part.of(x, i), block.vectors(part.of(cond, i)))
            q, k, v = block.projected(y, jax.tree.map(lambda a: part.of(a, i), table))
            to = (index, sequence, part.of(slots.slot, i))
            put = lambda array, new: array.at[to].set(new.astype(array.dtype), mode="drop")
            return part.put(queries, q, i), put(keys, k), put(values, v)

        queries = jnp.zeros((*x.shape[:2], *config.heads_shape[::2]), keys.dtype)
        queries, keys, values = part.each(some, store, (queries, keys, values))
        own_keys, own_values = keys[index], values[index]

        def attend(i: Any, kept: Any) -> Any:
            x, weights = kept
            may_attend = slots.may_attend(part.of(at, i))
            out, shares = attend_stored(part.of(queries, i), own_keys, own_values, may_attend)
            vectors = block.vectors(part.of(cond, i))
            new = block.after_attention(part.of(x, i), joined_heads(out), vectors)
            if weights is not None:
                weights = part.put(weights, shares, i)
            return part.put(x, new, i), weights

        weights = jnp.zeros((b, at.shape[1], slots.capacity)) if reading.rollout else None
        count = jnp.where(index == depth - 1, asked, some)
        x, weights = part.each(count, attend, (x, weights))
        return (x, keys, values), weights

    depth = stored.keys.shape[0]
    carry, start = (x, stored.keys, stored.values), 0
    maps: list[Any] = []
    for layers in stacks_of(blocks):
        end = start + jax.tree.leaves(layers)[0].shape[0]
        carry, weights = jax.lax.scan(step, carry, (layers, jnp.arange(start, end)))
        maps.append(weights)
        start = end
    x, keys, values = carry
    shares = None
    if reading.rollout:
        shares = rollout(maps, at, slots.capacity)
        if reading.stored is not None:  # a row of which nothing is read keeps what it has
            is_live = (at < slots.capacity).any(-1, keepdims=True)
            shares = jnp.where(is_live, shares, reading.stored.rollout)
    return x[:, :q], KeyValues(keys=keys, values=values, rollout=shares)


def rollout(
    maps: Sequence[Float[Array, "n b p m"]], at: Int[Array, "b p"], capacity: int
) -> Float[Array, "b m"]:
    """Returns the sum over outputs of the attention rollout of a call, see `Reading.rollout`.

    A block's map is (attention, averaged over heads, + identity) / 2 at the positions `at`, and the
    identity at those not read. The product over blocks is multiplied from its last factor on with a
    row of ones, so that no product of two maps is computed.
    """
    sequence = jnp.arange(at.shape[0])[:, None]
    shares = jnp.ones((at.shape[0], capacity))
    is_read = at < capacity

    def back(shares: Array, weights: Array) -> tuple[Array, None]:
        own = jnp.where(is_read, shares[sequence, jnp.minimum(at, capacity - 1)], 0.0) / 2
        spread = jnp.einsum("bp,bpm->bm", own, weights)
        return shares.at[sequence, at].add(-own, mode="drop") + spread, None

    for weights in reversed(maps):
        shares, _ = jax.lax.scan(back, shares, weights, reverse=True)
    return shares


@dataclass(frozen=True)
class Parts:
    """Positions read, `size` at a time; so many parts of a row hold them all."""

    size: int
    count: int

    def padded(self, array: Shaped[Array, "#b q *s"], value: Any) -> Shaped[Array, "#b p *s"]:
        """Returns the array with `value` at the end, so that it consists of whole parts."""
        more = self.size * self.count - array.shape[1]
        widths = [(0, more if axis == 1 else 0) for axis in range(array.ndim)]
        return jnp.pad(array, widths, constant_values=value) if more else array

    def holding(self, positions: Int[Array, ""]) -> Int[Array, ""]:
        """Returns the number of parts that hold the first positions."""
        return -(-positions // self.size)

    def of(self, array: Any, i: Any) -> Any:
        """Returns part i of an array; all of it if it is the same at each position."""
        if array is None or array.shape[1] == 1 or self.count == 1:
            return array
        return jax.lax.dynamic_slice_in_dim(array, i * self.size, self.size, axis=1)

    def put(self, array: Shaped[Array, "b p *s"], new: Any, i: Any) -> Shaped[Array, "b p *s"]:
        """Returns the array with part i replaced."""
        new = new.astype(array.dtype)
        if self.count == 1:
            return new
        return jax.lax.dynamic_update_slice_in_dim(array, new, i * self.size, axis=1)

    def each(self, count: Int[Array, ""], do: Callable[[Any, Any], Any], carry: Any) -> Any:
        """Runs `do(i, carry)` for the first parts, or once if there is one."""
        return do(0, carry) if self.count == 1 else jax.lax.fori_loop(0, count, do, carry)


class Slots:
    """Where the keys and values of positions are stored, and who attends to them."""

    def __init__(self, mask: AttentionMask, at: Int[Array, "b q"], length: int):
        self._mask, self._length = mask, length
        if mask.halves is None:
            self.capacity, self.slot = length, at
            self._position = jnp.arange(length)[None]
            return
        half, size = mask.halves.length, mask.halves.block_size
        self.capacity = half + size
        noised = jnp.where(at < half, half + at % size, self.capacity)
        self.slot = jnp.where((half <= at) & (at < length), at - half, noised)
        # The block that is read noised; block 0, to which no other attends, if there is none.
        first = jnp.where(at < half, at, half).min(-1, keepdims=True) % half // size * size
        is_clean = jnp.broadcast_to(half + jnp.arange(half)[None], (at.shape[0], half))
        self._position = jnp.concatenate([is_clean, first + jnp.arange(size)[None]], axis=1)

    def may_attend(self, at: Int[Array, "b q"]) -> Bool[Array, "b q m"] | None:
        """Returns whether the query at each of these positions attends to what is in each slot."""
        parts: list[Any] = []
        near = self._mask.by_position(at[:, :, None], self._position[:, None, :])
        if near is not None:
            parts.append(near)
        ids = self._mask.segments()
        if ids is not None:
            inside = lambda some: jnp.take_along_axis(ids, jnp.minimum(some, self._length - 1), 1)
            here = jnp.broadcast_to(self._position, (at.shape[0], self.capacity))
            parts.append(inside(at)[:, :, None] == inside(here)[:, None, :])
        return functools.reduce(operator.and_, parts) if parts else None


def attend_stored(
    q: Float[Array, "b q h e"],
    k: Float[Array, "b m g e"],
    v: Float[Array, "b m g e"],
    may_attend: Bool[Array, "#b q m"] | None,
) -> tuple[Float[Array, "b q h e"], Float[Array, "b q m"]]:
    """Returns softmax attention to the stored keys and values, each for r = h / g heads of queries,
    and the mean of the weights over heads."""
    b, n, heads, size = q.shape
    shared = heads // k.shape[2]
    # The queries of heads that share keys stand behind one another, as if of one longer row.
    q = q.reshape(b, n, k.shape[2], shared, size).transpose(0, 2, 3, 1, 4)
    q = q.reshape(b, -1, shared * n, size)
    k, v = (x.transpose(0, 2, 1, 3) for x in (k, v))
    if may_attend is not None:
        may_attend = jnp.tile(may_attend, (1, shared, 1))[:, None]
    p, z = unnormalized_weights(q, k, may_attend)
    out = product(p.astype(v.dtype), v, -1, -2) / z
    out = out.reshape(b, -1, shared, n, size).transpose(0, 3, 1, 2, 4)
    weights = (p / z).reshape(b, heads, n, -1).mean(1)
    return out.astype(v.dtype).reshape(b, n, heads, size), weights


def empty(config: Any, rows: int, capacity: int, dtype: jnp.dtype) -> KeyValues:
    """Returns room for keys and values of `capacity` positions, all 0."""
    _, kv_heads, size = config.heads_shape
    zeros = jnp.zeros((config.depth, rows, capacity, kv_heads, size), dtype)
    return KeyValues(keys=zeros, values=zeros)


def block_dtype(blocks: Any) -> jnp.dtype:
    """Returns the dtype of keys and values."""
    return stacks_of(blocks)[0].qkv.dtype
