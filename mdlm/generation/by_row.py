"""The state of a sampler with an entry for each row, so that rows can leave a batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec
from jaxtyping import Int

from mdlm.samplers.state import SampleState
from mdlm.types import ArrayTree


class ByRow:
    """States in which what a batch has once, such as the step, is repeated for each row.

    `begin` makes the state of a batch. The axis of the rows of an array is that whose size follows
    the batch's.
    """

    def __init__(self, begin: Callable[..., SampleState]):
        self._begin, self._axes = begin, None

    def learn(self, params: ArrayTree, *rows: Any) -> None:
        """Finds the axes; `rows` are the arrays of a batch. To be called before the others."""
        if self._axes is not None:
            return
        shape = lambda row, size: jax.ShapeDtypeStruct((size, *row.shape[1:]), row.dtype)
        two, three = (
            jax.eval_shape(self._begin, params, *(shape(row, size) for row in rows))
            for size in (2, 3)
        )
        differ = lambda a, b: [i for i, n in enumerate(a.shape) if n != b.shape[i]]
        self._axes = jax.tree.map(lambda a, b: (differ(a, b) or [-1])[0], two, three)

    def entries(self, state: SampleState) -> SampleState:
        """The state with an entry for each row in every array."""
        rows = state.tokens.shape[0]
        repeated = lambda leaf: jnp.broadcast_to(leaf[None], (rows, *leaf.shape))
        once = lambda leaf, axis: repeated(leaf) if axis < 0 else leaf
        return jax.tree.map(once, state, self._axes)

    def state(self, entries: SampleState) -> SampleState:
        """The state of such entries."""
        return jax.tree.map(lambda leaf, axis: leaf[0] if axis < 0 else leaf, entries, self._axes)

    def taken(self, entries: SampleState, at: Int[Array, " n"]) -> SampleState:
        """The entries of some rows."""
        take = lambda leaf, axis: jnp.take(leaf, at, axis=max(axis, 0))
        return jax.tree.map(take, entries, self._axes)

    def specs(self, name: str) -> ArrayTree:
        """The partition of such entries over the rows, along the axis `name` of a mesh."""
        spec = lambda axis: PartitionSpec(*[None] * max(axis, 0), name)
        return jax.tree.map(spec, self._axes)
