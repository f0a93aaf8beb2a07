"""From the last hidden states to logits, a part of the rows at a time.

    logits = hidden kernel + bias,   total = sum over rows of weight * fn(logits)

`[b l v]` logits in float32 are the largest array of a step by far. `reduce_rows` therefore takes
a stretch of the length at a time (of all sequences, so that a batch split over devices stays
split), and computes its logits again in the backward pass.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from mdlm.models.layers import matmul
from mdlm.types import ArrayTree, Prediction, weighted


class Readout(Prediction):
    """Hidden states and the head that turns them into logits.

    `chunk` bounds the number of logits (of the whole batch, over all devices) that `reduce_rows`
    holds at once; one position of each sequence is the least it can take.
    """

    def __init__(
        self,
        hidden: Float[Array, "b l d"],
        kernel: Float[Array, "d v"],
        bias: Float[Array, " v"],
        *,
        chunk: int = 2**25,
    ):
        self.hidden, self.kernel, self.bias, self.chunk = hidden, kernel, bias, chunk

    def _head(self, hidden: Float[Array, "*n d"]) -> Float[Array, "*n v"]:
        kernel = self.kernel.astype(hidden.dtype)
        logits = matmul(hidden, kernel, jnp.dtype(jnp.float32))
        return logits + jnp.broadcast_to(self.bias, logits.shape)

    def logits(self, at: Int[Array, " n"] | None = None) -> Float[Array, "..."]:
        if at is None:
            return self._head(self.hidden)
        return self._head(self.hidden.reshape(-1, self.hidden.shape[-1])[at])

    def reduce_rows(
        self,
        fn: Callable[[Float[Array, "n v"], ArrayTree, ArrayTree], Float[Array, " n"]],
        rows: ArrayTree,
        weight: Float[Array, "b l"],
        shared: ArrayTree = None,
    ) -> tuple[Float[Array, ""], Float[Array, "b l"]]:
        def part(hidden, rows, weight):
            flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (hidden, rows))
            loss = fn(self._head(flat[0]), flat[1], shared)
            values = weighted(loss.reshape(weight.shape), weight)
            return values.sum(), jax.lax.stop_gradient(values)

        b, l = weight.shape
        most = max(1, self.chunk // (b * self.kernel.shape[1]))
        if most >= l:
            return part(self.hidden, rows, weight)

        size = -(-l // -(-l // most))
        count = l // size
        whole = count * size

        def chunks(x):
            return jnp.moveaxis(x[:, :whole].reshape(b, count, size, *x.shape[2:]), 1, 0)

        def step(total, chunk):
            subtotal, values = part(*chunk)
            return total + subtotal, values

        everything = (self.hidden, rows, weight)
        total, values = jax.lax.scan(
            jax.checkpoint(step, prevent_cse=False),
            jnp.zeros((), jnp.float32),
            jax.tree.map(chunks, everything),
        )
        values = jnp.moveaxis(values, 0, 1).reshape(b, whole)
        if whole == l:
            return total, values
        last_total, last_values = jax.checkpoint(part)(
            *jax.tree.map(lambda x: x[:, whole:], everything)
        )
        return total + last_total, jnp.concatenate([values, last_values], axis=1)
