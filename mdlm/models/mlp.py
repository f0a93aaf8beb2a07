"""The position-wise MLP of a block, in seven kinds.

gelu     W_2 gelu(W_1 x),              hidden width 4 d (tanh form, as in the papers)
relu2    W_2 relu(W_1 x)^2,            hidden width 4 d (arXiv:2109.08668)
swiglu   W_2 (silu(V x) * (W_1 x)),    hidden width about 8/3 d (arXiv:2002.05202)
geglu    W_2 (gelu(V x) * (W_1 x)),    the same
glu      W_2 (sigmoid(V x) * (W_1 x)), the same

"gelu_erf" and "geglu_erf" are gelu and geglu with the exact GELU, x Phi(x) with the normal
distribution function Phi = (1 + erf(x / sqrt 2)) / 2, instead of its tanh form.
"""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from mdlm.models.layers import Linear

MLPKind = Literal["gelu", "gelu_erf", "relu2", "swiglu", "geglu", "geglu_erf", "glu"]
RATIO = 4
TILE = 64
"""A gated hidden width is a multiple of this, or of 8 in narrow networks, for fast matmuls."""


def hidden_width(kind: MLPKind, width: int) -> int:
    """Returns the hidden width. Gated kinds have two thirds, for as many parameters."""
    if kind not in GATES:
        return RATIO * width
    tile = TILE if width >= TILE else 8
    return max(tile, round(RATIO * width * 2 / 3 / tile) * tile)


class MLP(nnx.Module):
    """Two linear layers with a nonlinearity, or a gate, between them.

    `hidden` is the hidden width, by default `hidden_width(kind, width)`.
    """

    def __init__(
        self,
        kind: MLPKind,
        width: int,
        rngs: nnx.Rngs,
        *,
        dtype: jnp.dtype,
        use_bias: bool,
        hidden: int | None = None,
    ):
        self.kind: MLPKind = kind
        hidden = hidden_width(kind, width) if hidden is None else hidden
        count = 2 if kind in GATES else 1
        both: Any = dict(dtype=dtype, use_bias=use_bias)
        self.inner = Linear(width, (hidden,) * count, rngs, split="columns", **both)
        self.outer = Linear(hidden, width, rngs, split="rows", **both)

    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        return self.outer(activated(self.kind, *self.inner.parts(x)))


def activated(kind: MLPKind, *parts: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Returns the input of the second layer from the output of the first: one part, or, in the
    gated kinds, the gate and what it multiplies."""
    gate: Any
    y: Any
    *gate, y = parts
    if gate:
        return GATES[kind](gate[0]) * y
    if kind == "relu2":
        return jnp.square(jax.nn.relu(y))
    return gelu(y, kind == "gelu_erf")


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gelu(x: Float[Array, "*s"], is_exact: bool = False) -> Float[Array, "*s"]:
    """Returns GELU, in its tanh form unless `is_exact`. The backward pass needs only its input, one
    array, not two."""
    return jax.nn.gelu(x, approximate=not is_exact)


def _gelu_forward(x, is_exact):
    return gelu(x, is_exact), x


def _gelu_backward(is_exact, x, g):
    return jax.vjp(lambda x: jax.nn.gelu(x, approximate=not is_exact), x)[1](g)


gelu.defvjp(_gelu_forward, _gelu_backward)


GATES = {
    "swiglu": jax.nn.silu,
    "geglu": gelu,
    "geglu_erf": functools.partial(gelu, is_exact=True),
    "glu": jax.nn.sigmoid,
}
"""The activation of the gate of each gated kind."""
