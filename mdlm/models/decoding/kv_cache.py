"""A causal stack, one token at a time: keys and values of earlier tokens are kept.

What a causal network makes of a token never changes when tokens follow, so reading token after
token with a cache gives what reading all of them at once gives, for 1/l of the work.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from mdlm.models.decoding.last_block import BegunBlock, attend_at, picked
from mdlm.models.stack import mask_of, table_of
from mdlm.types import ArrayTree, KeyValues, NetInput, Prediction


class NextToken(Prediction):
    """Logits about one token of each sequence, the one after that which was read.

    A row's number says of which sequence, and nothing more.
    """

    def __init__(
        self,
        hidden: Float[Array, "b 1 d"],
        head: Callable[[Float[Array, "n d"]], Float[Array, "n v"]],
        length: int,
        cache: KeyValues,
    ):
        self.hidden, self.cache, self._head, self._length = hidden, cache, head, length

    def logits(self, at: Int[Array, " n"] | None = None) -> Float[Array, "..."]:
        if at is None:
            raise ValueError("with a cache there are logits about one token of a sequence only")
        return self._head(self.hidden[at // self._length, 0])

    def reduce_rows(
        self, fn: Callable, rows: ArrayTree, weight: Float[Array, "b l"], shared: ArrayTree = None
    ) -> tuple[Float[Array, ""], Float[Array, "b l"]]:
        raise ValueError("with a cache there is nothing to sum over")


def read_all(
    blocks: Any, x: Float[Array, "b l d"], inputs: NetInput
) -> tuple[Float[Array, "b l d"], KeyValues]:
    """`x` after all blocks, and a cache of every token. The next to be read is the first."""
    mask, table = mask_of(inputs, causal=True), table_of(inputs, x.shape[1], blocks.config)

    def step(x: Array, block: Any) -> tuple[Array, tuple[Array, Array]]:
        begun = BegunBlock(block, x, mask, table, None)
        return begun.everywhere(), (begun.k, begun.v)

    x, (keys, values) = jax.lax.scan(step, x, blocks)
    return x, KeyValues(keys=keys, values=values, at=jnp.zeros(x.shape[0], jnp.int32))


def read_one(
    blocks: Any, x: Float[Array, "b 1 d"], inputs: NetInput
) -> tuple[Float[Array, "b 1 d"], KeyValues]:
    """`x`, of the token at `inputs.cache.at` of each sequence, after all blocks; the cache that
    knows it."""
    cache: KeyValues = inputs.cache
    b, l = inputs.tokens.shape
    mask, everywhere = mask_of(inputs, causal=True), table_of(inputs, l, blocks.config)
    sequence, place = jnp.arange(b), cache.at
    table: Any = tuple(picked(part, sequence, place).swapaxes(0, 1) for part in everywhere)

    def step(carry: Any, layer: Any) -> tuple[Any, None]:
        x, keys, values = carry
        block, number = layer
        begun = BegunBlock(block, x, mask, table, None)
        keys = keys.at[number, sequence, place].set(begun.k[:, 0])
        values = values.at[number, sequence, place].set(begun.v[:, 0])
        q = begun.queries(begun.y)[:, 0]
        out = attend_at(q, keys[number], values[number], mask, sequence, place)
        return (block.after_attention(x, out.reshape(x.shape), begun.vectors), keys, values), None

    layers = blocks, jnp.arange(cache.keys.shape[0])
    (x, keys, values), _ = jax.lax.scan(step, (x, cache.keys, cache.values), layers)
    return x, KeyValues(keys=keys, values=values, at=place + 1)
