"""The KV cache: a causal stack runs one token at a time and keeps the keys and values.

In a causal network the hidden states of a token do not depend on later tokens, so reading one token
after another with a cache gives the same result as reading all at once, for 1/l of the work.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from mdlm.models.decoding.last_block import BegunBlock, attend_at, joined_heads, picked
from mdlm.models.stack import mask_of, stacks_of, table_of
from mdlm.types import ArrayTree, KeyValues, NetInput, Prediction


class NextToken(Prediction):
    """Logits of one token of each sequence, the one after the last token that was read.

    An index of `logits` selects a sequence; its position in the sequence is ignored.
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
            raise ValueError(
                "at=None: with a KV cache there are logits of one token per sequence; give `at`"
            )
        return self._head(self.hidden[at // self._length, 0])

    def reduce_rows(
        self, fn: Callable, rows: ArrayTree, weight: Float[Array, "b l"], shared: ArrayTree = None
    ) -> tuple[Float[Array, ""], Float[Array, "b l"]]:
        raise ValueError(
            "reduce_rows: not available with a KV cache; call the network without a cache"
        )


def read_all(
    blocks: Any, x: Float[Array, "b l d"], inputs: NetInput
) -> tuple[Float[Array, "b l d"], KeyValues]:
    """Returns `x` after all blocks, and a cache of all tokens whose next token is the first."""
    mask, table = mask_of(inputs, causal=True), table_of(inputs, x.shape[1], blocks.config.rotary)

    def step(x: Array, block: Any) -> tuple[Array, tuple[Array, Array]]:
        begun = BegunBlock(block, x, mask, table, None)
        return begun.everywhere(), (begun.k, begun.v)

    read = []
    for layers in stacks_of(blocks):
        x, keys_values = jax.lax.scan(step, x, layers)
        read.append(keys_values)
    keys, values = (jnp.concatenate(parts) for parts in zip(*read, strict=True))
    return x, KeyValues(keys=keys, values=values, at=jnp.zeros(x.shape[0], jnp.int32))


def read_one(
    blocks: Any, x: Float[Array, "b 1 d"], inputs: NetInput
) -> tuple[Float[Array, "b 1 d"], KeyValues]:
    """Returns `x`, of the token at `inputs.cache.at` of each sequence, after all blocks, and the
    cache with that token added."""
    cache: KeyValues = inputs.cache
    b, l = inputs.tokens.shape
    mask, everywhere = mask_of(inputs, causal=True), table_of(inputs, l, blocks.config.rotary)
    sequence, position = jnp.arange(b), cache.at
    here = lambda part: picked(part, sequence, position).swapaxes(0, 1)
    table: Any = jax.tree.map(here, everywhere)

    def step(carry: Any, layer: Any) -> tuple[Any, None]:
        x, keys, values = carry
        block, index = layer
        begun = BegunBlock(block, x, mask, table, None)
        keys = keys.at[index, sequence, position].set(begun.k[:, 0])
        values = values.at[index, sequence, position].set(begun.v[:, 0])
        q = begun.queries(begun.y)[:, 0]
        out = attend_at(q, keys[index], values[index], mask, sequence, position)
        out = joined_heads(out)[:, None]
        return (block.after_attention(x, out, begun.vectors), keys, values), None

    carry, start = (x, cache.keys, cache.values), 0
    for layers in stacks_of(blocks):
        end = start + jax.tree.leaves(layers)[0].shape[0]
        carry, _ = jax.lax.scan(step, carry, (layers, jnp.arange(start, end)))
        start = end
    x, keys, values = carry
    return x, KeyValues(keys=keys, values=values, at=position + 1)
