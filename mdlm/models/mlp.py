"""The position-wise MLP of a block, in five kinds.

gelu     W_2 gelu(W_1 x),              hidden width 4 d (tanh form, as in the papers)
relu2    W_2 relu(W_1 x)^2,            hidden width 4 d (arXiv:2109.08668)
swiglu   W_2 (silu(V x) * (W_1 x)),    hidden width about 8/3 d (arXiv:2002.05202)
geglu    W_2 (gelu(V x) * (W_1 x)),    the same
glu      W_2 (sigmoid(V x) * (W_1 x)), the same
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from mdlm.models.layers import Linear

MLPKind = Literal["gelu", "relu2", "swiglu", "geglu", "glu"]
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
        self.kind = kind
        hidden = hidden_width(kind, width) if hidden is None else hidden
        count = 2 if kind in GATES else 1
        both: Any = dict(dtype=dtype, use_bias=use_bias)
        self.inner = Linear(width, (hidden,) * count, rngs, split="columns", **both)
        self.outer = Linear(hidden, width, rngs, split="rows", **both)

    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        *gate, y = self.inner.parts(x)
        if gate:
            y = GATES[self.kind](gate[0]) * y
        elif self.kind == "relu2":
            y = jnp.square(jax.nn.relu(y))
        else:
            y = gelu(y)
        return self.outer(y)


@jax.custom_vjp
def gelu(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Returns the tanh form of GELU. The backward pass needs only its input, one array, not two."""
    return jax.nn.gelu(x, approximate=True)


def _gelu_forward(x):
    return gelu(x), x


def _gelu_backward(x, g):
    return jax.vjp(lambda x: jax.nn.gelu(x, approximate=True), x)[1](g)


gelu.defvjp(_gelu_forward, _gelu_backward)


GATES = {"swiglu": jax.nn.silu, "geglu": gelu, "glu": jax.nn.sigmoid}
"""The activation of the gate of each gated kind."""
