"""The dense parts of a network: matmul, linear layer, norm, embedding, dropout.

Parameters are float32; a layer casts its input and its parameters to `dtype` and returns `dtype`.
Norms and modulation are float32. Random initial values follow the public MDLM code (PyTorch's
defaults): uniform in +-1/sqrt(fan_in) for kernels and biases, and +-1/sqrt(width) for the
embedding table.

`matmul` is x @ w with its gradients written out: dx = g w^T, dw = x^T g. Automatic
differentiation of x @ w gives dw as (g^T x)^T, and XLA on the CPU then fuses the computation of g
into a transposing copy that costs as much as the matmuls themselves.
"""

import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Float, Int, Key, UInt32

from mdlm.parallel.mesh import platform
from mdlm.parallel.sharding import (
    SPREAD,
    STREAM,
    USES,
    WIDE,
    Rest,
    applied,
    in_use,
    is_tensor_parallel,
    led,
    moved,
    splits_heads,
)

PRODUCT = "product"
Precision = Literal["auto", "float32", "bfloat16"]


def compute_dtype(precision: Precision) -> jnp.dtype:
    """Returns the dtype of matmuls: "auto" is float32 on CPUs and bfloat16 elsewhere."""
    if precision == "auto":
        precision = "float32" if platform() == "cpu" else "bfloat16"
    return jnp.dtype(precision)


def matmul(
    x: Float[Array, "*b i"], w: Float[Array, "i o"], dtype: jnp.dtype
) -> Float[Array, "*b o"]:
    """Returns `x @ w` in `dtype`, for two arrays of one dtype. Sums are float32.

    The cotangent is rounded to the dtype of the operands before it is multiplied. Under
    `jax.checkpoint`, a policy that saves the name `PRODUCT` saves the result.
    """
    product: Any = _matmul(x, w, dtype)
    return checkpoint_name(product, PRODUCT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _matmul(x, w, dtype):
    contract = (((x.ndim - 1,), (0,)), ((), ()))
    return jax.lax.dot_general(x, w, contract, preferred_element_type=dtype)


def _matmul_forward(x, w, dtype):
    return _matmul(x, w, dtype), (x, w)


def _matmul_backward(dtype, residuals, g):
    x, w = residuals
    g = materialised(g.astype(x.dtype))
    dx = jax.lax.dot_general(g, w, (((g.ndim - 1,), (1,)), ((), ())))
    if splits_heads():
        # The batch and length axes are both split over devices; a reshape would move data.
        summed = tuple(range(x.ndim - 1))
        return dx, jax.lax.dot_general(x, g, ((summed, summed), ((), ())))
    return dx, _outer(x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1]))


def _outer(x, g):
    """Returns `x^T g`. On the CPU the narrower operand is transposed in a step of its own."""
    if platform() != "cpu":
        return jax.lax.dot_general(x, g, (((0,), (0,)), ((), ())))
    if x.shape[1] <= g.shape[1]:
        return materialised(x.T) @ g
    return materialised(materialised(g.T) @ x).T


_matmul.defvjp(_matmul_forward, _matmul_backward)


def materialised(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Returns `x`. On the CPU, XLA may not recompute it, transposed, inside each matmul."""
    return jax.lax.optimization_barrier(x) if platform() == "cpu" else x


def uniform(key: Key[Array, ""], shape: tuple[int, ...], fan_in: int) -> Float[Array, "..."]:
    """Returns the initial values of a kernel with so many inputs."""
    bound = 1 / math.sqrt(fan_in)
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


class Linear(nnx.Module):
    """Computes `x @ kernel + bias`. With `zero`, both start at 0, so the layer outputs 0 at first.

    `split` says how devices of a mesh share the work, see `mdlm.parallel.sharding`. With several
    widths as `fan_out` the output has so many parts, and the columns of each part are split over
    the devices.
    """

    def __init__(
        self,
        fan_in: int,
        fan_out: int | tuple[int, ...],
        rngs: nnx.Rngs,
        *,
        dtype: jnp.dtype,
        use_bias: bool = True,
        zero: bool = False,
        split: Rest = "table",
    ):
        self.dtype, self.split = dtype, split
        self.widths = (fan_out,) if isinstance(fan_out, int) else fan_out
        fan_out = sum(self.widths)
        self.rest: Rest = "whole" if len(self.widths) > 1 else split

        def initial(*shape):
            return jnp.zeros(shape) if zero else uniform(rngs.params(), shape, fan_in)

        self.kernel = nnx.Param(initial(fan_in, fan_out), rest=self.rest)
        self.bias: Any = nnx.Param(initial(fan_out)) if use_bias else None

    def arrays(self) -> tuple[Float[Array, "i o"], Float[Array, " o"] | None]:
        """Kernel and bias."""
        return self.kernel[...], None if self.bias is None else self.bias[...]

    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        return self._products(x, (sum(self.widths),))[0]

    def parts(self, x: Float[Array, "*b i"]) -> tuple[Float[Array, "..."], ...]:
        """Returns the output in its parts."""
        if is_tensor_parallel():
            return self._products(x, self.widths)
        joined: Any = parts(self(x), self.widths)
        return tuple(led(y, WIDE) for y in joined)

    def columns(self, x: Float[Array, "*b i"], some: slice) -> Float[Array, "*b n"]:
        """Returns some columns of the output."""
        kernel, bias = self.arrays()
        y = matmul(x.astype(self.dtype), kernel[:, some].astype(self.dtype), self.dtype)
        return self._with_bias(y, bias, some)

    def _products(self, x, widths):
        """Returns the output in parts of these widths, each from a matmul of its own."""
        kernel, bias = self.arrays()
        x = x.astype(self.dtype)
        if self.split not in USES:
            product: Any = lambda w, x: _matmul(x, w, self.dtype)
            y = checkpoint_name(applied(product, kernel.astype(self.dtype), x), PRODUCT)
            return (self._with_bias(y, bias),)
        before, inside, after, back = LAYOUTS[self.split]
        x = moved(x, inside, before)
        use: Any = self.split
        outputs, end = [], 0
        for width in widths:
            start, end = end, end + width
            some = None if len(widths) == 1 else slice(start, end)
            w = in_use(kernel, self.dtype, self.rest, use, columns=some)
            y = moved(matmul(x, w, self.dtype), after, back)
            outputs.append(self._with_bias(y, bias, some))
        return tuple(outputs)

    def _with_bias(self, y, bias, some=None):
        if bias is None:
            return y
        bias = bias if some is None else bias[some]
        return y + jnp.broadcast_to(bias.astype(self.dtype), y.shape)


LAYOUTS = {
    "columns": (STREAM, SPREAD, WIDE, WIDE),
    "rows": (WIDE, WIDE, STREAM, SPREAD),
    "whole": (STREAM, STREAM, STREAM, STREAM),
}
"""Layouts by `split`: of the input before the layer, of the input in the matmul, of the output, and
of the output's cotangent in the matmuls of the backward pass."""


NormKind = Literal["layer", "layer_bias", "rms"]


class LayerNorm(nnx.Module):
    """Normalises the last axis to mean 0 and variance 1, then scales it and adds a bias, if it has
    one. Float32."""

    def __init__(self, width: int, epsilon: float = 1e-5, use_bias: bool = False):
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones(width))
        self.bias: Any = nnx.Param(jnp.zeros(width)) if use_bias else None

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        y = standardised(x, self.epsilon) * jnp.broadcast_to(self.scale[...], x.shape)
        return y if self.bias is None else y + jnp.broadcast_to(self.bias[...], x.shape)


def standardised(x: Float[Array, "*b d"], epsilon: float = 1e-5) -> Float[Array, "*b d"]:
    """Returns `x` with mean 0 and variance 1 over the last axis, in float32."""
    x = x.astype(jnp.float32)
    centred = x - x.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + epsilon)


class RMSNorm(nnx.Module):
    """Normalises the last axis to mean square 1, then scales it (arXiv:1910.07467). Float32."""

    def __init__(self, width: int, epsilon: float = 1e-6):
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones(width))

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        x = x.astype(jnp.float32)
        normal = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.epsilon)
        return normal * jnp.broadcast_to(self.scale[...], x.shape)


def norm(kind: NormKind, width: int, epsilon: float | None = None) -> LayerNorm | RMSNorm:
    """Returns a norm of the given kind over a last axis of `width`. `epsilon`, which is added to
    the variance or mean square, is by default 1e-6 for "rms" and 1e-5 for the others."""
    own: Any = {} if epsilon is None else {"epsilon": epsilon}
    if kind == "rms":
        return RMSNorm(width, **own)
    return LayerNorm(width, use_bias=kind == "layer_bias", **own)


class Embedding(nnx.Module):
    """Looks up token ids in a learned table. Float32. Ids must be below `columns`."""

    def __init__(self, columns: int, width: int, rngs: nnx.Rngs):
        self.table = nnx.Param(uniform(rngs.params(), (columns, width), width), rest="table")

    def __call__(self, tokens: Int[Array, "b l"]) -> Float[Array, "b l d"]:
        rows = applied(lambda table, tokens: table[tokens], self.table[...], tokens)
        return rows.astype(jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def parts(x: Float[Array, "*b d"], widths: tuple[int, ...]) -> tuple[Float[Array, "..."], ...]:
    """Splits the last axis into parts of these widths. The backward pass concatenates the
    gradients, where automatic differentiation would pad each with zeros and add them up."""
    return tuple(jnp.split(x, np.cumsum(widths)[:-1], axis=-1))


def _parts_forward(x, widths):
    return parts(x, widths), None


def _parts_backward(widths, _, gradients):
    return (jnp.concatenate(gradients, axis=-1),)


parts.defvjp(_parts_forward, _parts_backward)


def modulate(
    x: Float[Array, "b l d"],
    shift: Float[Array, " b #l d"] | float,
    scale: Float[Array, " b #l d"] | float,
) -> Float[Array, "b l d"]:
    """Returns `x (1 + scale) + shift`, the adaptive part of adaLN (arXiv:2212.09748)."""
    return x * (1 + scale) + shift


def dropout(
    key: Key[Array, ""] | None, x: Float[Array, "*b d"], rate: float
) -> Float[Array, "*b d"]:
    """Zeroes entries with probability `rate` and scales up the others. No dropout if key=None."""
    if key is None or rate == 0:
        return x
    keep = hashed_bits(key, x.shape) >= np.uint32(min(round(rate * 2**32), 2**32 - 1))
    return jnp.where(keep, x / (1 - rate), 0)


def hashed_bits(key: Key[Array, ""], shape: tuple[int, ...]) -> UInt32[Array, "..."]:
    """Returns 32 random bits per entry, cheaper than `jax.random.bits` on CPUs. For dropout only.

    A hash of the entry's index and two words of the key, in two rounds of multiplications and
    shifts (constants: Wellons, "hash-prospector", least bias of two rounds). XLA fuses it into
    the consumer, so it takes no memory. It does not depend on how devices split the array.
    """
    word = jax.random.bits(key, (2,), jnp.uint32)
    index = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(shape):
        index = index * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    first = _mixed(index * np.uint32(0x9E3779B9) + jnp.broadcast_to(word[0], shape))
    return _mixed(first ^ jnp.broadcast_to(word[1], shape))


def _mixed(x):
    x = (x ^ (x >> 16)) * np.uint32(0x21F0AAAD)
    x = (x ^ (x >> 15)) * np.uint32(0xD35A2D97)
    return x ^ (x >> 15)
