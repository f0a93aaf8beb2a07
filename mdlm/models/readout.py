"""From the last hidden states to logits, only at positions with a weight, in chunks.

    logits = hidden kernel + bias,   total = sum over positions of weight * fn(logits)

`[b l v]` logits in float32 are the largest array of a step by far, and half of the positions have
weight 0. `reduce_rows` packs the positions with a weight other than 0 to the front and loops over
them in chunks. The number of chunks is dynamic, so no position is dropped and none of weight 0 is
computed beyond the last chunk. The gradients are computed from a chunk's logits in the forward
pass: `total` is linear in its cotangent, so the backward pass only scales them. On a mesh each
device does this for the positions that it holds, and the sums are added up once at the end. The
head's kernel is gathered first, and its gradient is reduced into the sharding of the parameters.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec
from jaxtyping import Bool, Float, Int

from mdlm.models.layers import materialised, matmul
from mdlm.parallel.mesh import platform, row_parts
from mdlm.parallel.sharding import STREAM, at_rest, axes_of, fitted, traced
from mdlm.types import ArrayTree, Prediction, weighted

FEWEST = 128
"""Least positions of a chunk that is made small to skip more; smaller matmuls are slow."""

RowLoss = Callable[[Float[Array, "n v"], ArrayTree, ArrayTree], Float[Array, " n"]]


def chunk_size() -> int:
    """Returns the default number of logits that are held at once.

    On a CPU they fit in its cache. On accelerators each chunk adds to the whole gradient of the
    kernel in memory, so chunks are few and large: a quarter of a GiB.
    """
    return 5 * 2**20 if platform() == "cpu" else 2**26


def positions_per_chunk(chunk: int, positions: int, vocab_size: int) -> int:
    """Returns the positions of a chunk: at most about a sixteenth, so that some can be skipped."""
    return max(1, min(chunk // vocab_size, max(FEWEST, positions // 16), positions))


class Readout(Prediction):
    """Hidden states and the head that turns them into logits.

    `chunk` is the most logits that `reduce_rows` holds at once on a device (None: `chunk_size`),
    but at least those of one position. With a `cap`, logits are cap tanh(logits / cap). `features`
    are those of the prediction, where they are not `hidden`.
    """

    def __init__(
        self,
        hidden: Float[Array, "b l d"],
        kernel: Float[Array, "d v"],
        bias: Float[Array, " v"] | None,
        *,
        chunk: int | None = None,
        cap: float | None = None,
        scalars: Mapping[str, Float[Array, ""]] | None = None,
        features: Float[Array, "b l d"] | None = None,
    ):
        self.cap, self.scalars = cap, scalars or {}
        self._features = hidden if features is None else features
        self.hidden, self.kernel, self.bias = hidden, kernel, bias
        self.chunk = chunk_size() if chunk is None else chunk

    @property
    def features(self) -> Any:
        return self._features

    def logits(self, at: Int[Array, " n"] | None = None) -> Float[Array, "..."]:
        hidden = self.hidden
        if at is not None:
            hidden = hidden.reshape(-1, hidden.shape[-1])[at]
        logits = _head(hidden, self.kernel.astype(hidden.dtype), self.bias)
        return logits if self.cap is None else capped(logits, self.cap)

    def reduce_rows(
        self,
        fn: RowLoss,
        rows: ArrayTree,
        weight: Float[Array, "b l"],
        shared: ArrayTree = None,
    ) -> tuple[Float[Array, ""], Float[Array, "b l"]]:
        of_logits = fn if self.cap is None else _of_capped(fn, self.cap)
        reduced: Any = _reduce(
            of_logits, self.chunk, self.hidden, self.kernel, self.bias, shared, rows, weight
        )
        total, values = reduced
        return total, jax.lax.stop_gradient(values)


def capped(logits: Float[Array, "*s"], cap: float) -> Float[Array, "*s"]:
    """Returns the logits, kept within +-cap smoothly."""
    return cap * jnp.tanh(logits / cap)


def _of_capped(fn: RowLoss, cap: float) -> RowLoss:
    return lambda logits, rows, shared: fn(capped(logits, cap), rows, shared)


def _head(hidden, kernel, bias):
    logits = matmul(hidden, kernel, jnp.dtype(jnp.float32))
    return logits if bias is None else logits + jnp.broadcast_to(bias, logits.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _reduce(fn, chunk, hidden, kernel, bias, shared, rows, weight):
    return _on_each_device(fn, chunk, False, hidden, kernel, bias, shared, rows, weight)[0]


def _reduce_forward(fn, chunk, hidden, kernel, bias, shared, rows, weight):
    return _on_each_device(fn, chunk, True, hidden, kernel, bias, shared, rows, weight)


def _reduce_backward(fn, chunk, gradients, cotangents):
    # The values carry no gradient, so only the total's cotangent counts; rows and weights are data.
    scale = cotangents[0]
    return (*jax.tree.map(lambda g: g * scale.astype(g.dtype), gradients), None, None)


_reduce.defvjp(_reduce_forward, _reduce_backward)


def _on_each_device(fn, chunk, with_gradients, hidden, kernel, bias, shared, rows, weight):
    """Runs `_loop` over the positions that each device holds and sums over the mesh."""
    loop = functools.partial(_loop, fn, chunk, with_gradients)
    mesh = traced()
    if mesh is None or weight.shape[0] % row_parts(mesh):
        return loop(hidden, kernel, bias, shared, rows, weight)
    whole, held = PartitionSpec(), fitted(mesh, weight.shape, STREAM)
    sharing = [axis for entry in held for axis in axes_of(entry)]
    rest = at_rest(mesh, kernel.shape, "whole")
    splits = [(d, axes_of(entry)) for d, entry in enumerate(rest) if entry is not None]
    # With too few positions for all devices, some devices repeat others and are not summed.
    are_summed = {axis for _, axes in splits for axis in axes} <= set(sharing)

    def on_device(hidden, kernel, *others):
        kernel = kernel.astype(hidden.dtype)
        for d, axes in splits:
            kernel = jax.lax.all_gather(kernel, axes, axis=d, tiled=True)
        (total, values), gradients = loop(hidden, kernel, *others)
        if gradients is None:
            return (jax.lax.psum(total, sharing), values), None
        d_hidden, d_kernel, *d_shared = gradients
        left = list(sharing)
        for d, axes in splits if are_summed else ():
            d_kernel = jax.lax.psum_scatter(d_kernel, axes, scatter_dimension=d, tiled=True)
            left = [axis for axis in left if axis not in axes]
        d_kernel = jax.lax.psum(d_kernel, left)
        total, *d_shared = jax.lax.psum((total, *d_shared), sharing)
        return (total, values), (d_hidden, d_kernel, *d_shared)

    given_back = (held, rest if are_summed else whole, whole, whole)
    return jax.shard_map(
        on_device,
        in_specs=(held, rest, whole, whole, held, held),
        out_specs=((whole, held), given_back if with_gradients else None),
        check_vma=False,
    )(hidden, kernel, bias, shared, rows, weight)


def _loop(fn, chunk, with_gradients, hidden, kernel, bias, shared, rows, weight):
    """Returns ((total, values), gradients by hidden, kernel, bias and shared, or None)."""
    b, l = weight.shape
    n, v = b * l, kernel.shape[1]
    size = positions_per_chunk(chunk, n, v)
    padded = -(-n // size) * size
    order, is_used, index = _pack(weight.reshape(n) != 0, padded)

    def packed(x):
        return x.reshape(n, *x.shape[2:])[order]

    hidden_p, rows_p = packed(hidden), jax.tree.map(packed, rows)
    weight_p = jnp.where(is_used, packed(weight), 0)
    kernel = kernel.astype(hidden.dtype)
    ones = jnp.ones(size, hidden.dtype)

    def step(i, carry):
        total, values, gradients = carry
        take = lambda x: jax.lax.dynamic_slice_in_dim(x, i * size, size)
        put = lambda x, part: jax.lax.dynamic_update_slice_in_dim(x, part, i * size, 0)
        h, rows, weight = take(hidden_p), jax.tree.map(take, rows_p), take(weight_p)

        def loss(logits, shared):
            part = weighted(fn(logits, rows, shared), weight)
            return part.sum(), part

        logits = _head(h, kernel, bias)
        if gradients is None:
            subtotal, part = loss(logits, shared)
            return total + subtotal, put(values, part), None
        subtotal, pull, part = jax.vjp(loss, logits, shared, has_aux=True)
        gradients = _added(gradients, put, pull(jnp.ones((), jnp.float32)), h, kernel, ones)
        return total + subtotal, put(values, part), gradients

    nothing = jnp.zeros((), jnp.float32)
    gradients = _zeros(hidden_p, kernel, bias, shared) if with_gradients else None
    count = (jnp.sum(weight != 0) + size - 1) // size
    total, values, gradients = jax.lax.fori_loop(
        0, count, step, (nothing, jnp.zeros(padded, jnp.float32), gradients)
    )

    def unpacked(x):
        is_there = (weight != 0).reshape(b, l, *[1] * (x.ndim - 1))
        return jnp.where(is_there, x[index].reshape(b, l, *x.shape[1:]), 0)

    if gradients is not None:
        gradients = (unpacked(gradients[0]), *gradients[1:])
    return (total, unpacked(values)), gradients


def _zeros(hidden, kernel, bias, shared):
    """Gradients of 0, in float32 where chunks are summed."""
    bias_gradient = None if bias is None else jnp.zeros(bias.shape, jnp.float32)
    return (
        jnp.zeros_like(hidden),
        jnp.zeros(kernel.shape, jnp.float32),
        bias_gradient,
        jax.tree.map(jnp.zeros_like, shared),
    )


def _added(gradients, put, pulled, h, kernel, ones):
    """The gradients with those of a chunk added, from its gradients by logits and `shared`."""
    d_hidden, d_kernel, d_bias, d_shared = gradients
    d_logits, d_shared_part = pulled
    g = materialised(d_logits.astype(h.dtype))
    float32 = dict(preferred_element_type=jnp.float32)
    d_hidden = put(d_hidden, jax.lax.dot_general(g, kernel, (((1,), (1,)), ((), ()))))
    d_kernel += jax.lax.dot_general(h, g, (((0,), (0,)), ((), ())), **float32)
    if d_bias is not None:
        # A matmul, because XLA on the CPU sums columns an order of magnitude slower.
        d_bias += jax.lax.dot_general(ones, g, (((0,), (0,)), ((), ())), **float32)
    d_shared = jax.tree.map(jnp.add, d_shared, d_shared_part)
    return d_hidden, d_kernel, d_bias, d_shared


def _pack(
    is_used: Bool[Array, " n"], padded: int
) -> tuple[Int[Array, " m"], Bool[Array, " m"], Int[Array, " n"]]:
    """Returns the used positions in order, padded; which entries are used; entry by position."""
    n = is_used.shape[0]
    index = jnp.cumsum(is_used) - 1
    (order,) = jnp.nonzero(is_used, size=padded, fill_value=n)
    return jnp.minimum(order, n - 1), order < n, jnp.maximum(index, 0)
