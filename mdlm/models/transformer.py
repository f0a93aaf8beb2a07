"""The transformer block that the networks share, and the loop over a stack of them.

    x <- x + gate_1 * dropout(attention(shift_1 + (1 + scale_1) * norm(x)))
    x <- x + gate_2 * dropout(mlp(shift_2 + (1 + scale_2) * norm(x)))

With conditioning, the six vectors are a linear function of `cond` (adaLN, arXiv:2212.09748) that
starts at 0, so that each block starts as the identity; without, shift = scale = 0 and gate = 1.
The residual stream x is float32. All blocks are one module whose parameters have a leading axis
of `depth`; `jax.lax.scan` runs along it, and `remat` recomputes a block in the backward pass.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, Key

from mdlm.keys import by_row, stream
from mdlm.models.attention import attention, rotary_angles, rotate
from mdlm.models.layers import LayerNorm, Linear, dropout, modulate
from mdlm.types import NetInput

MLP_RATIO = 4


def check_sizes(network) -> None:
    """ValueError unless the sizes of a transformer's configuration fit one another."""
    for name in ("width", "depth", "heads", "logits_chunk"):
        if getattr(network, name) < 1:
            raise ValueError(f"{name}={getattr(network, name)} must be at least 1")
    if network.width % (2 * network.heads):
        raise ValueError(
            f"width={network.width} must be an even multiple of heads={network.heads}"
            " (rotary turns pairs of a head's entries)"
        )
    if not 0 <= network.dropout < 1:
        raise ValueError(f"dropout={network.dropout} must lie in [0, 1)")
    if network.dtype not in ("auto", "float32", "bfloat16"):
        raise ValueError(f"dtype={network.dtype!r} must be auto, float32 or bfloat16")


class Block(nnx.Module):
    """Attention and a 4x tanh-GELU MLP, each behind a norm and added to the residual stream."""

    def __init__(
        self,
        width: int,
        heads: int,
        rngs: nnx.Rngs,
        *,
        cond_dim: int | None,
        dropout: float,
        dtype: jnp.dtype,
    ):
        self.heads, self.dropout = heads, dropout
        self.norm1 = LayerNorm(width)
        self.qkv = Linear(width, 3 * width, rngs, dtype=dtype, use_bias=False)
        self.attn_out = Linear(width, width, rngs, dtype=dtype, use_bias=False)
        self.norm2 = LayerNorm(width)
        self.mlp_in = Linear(width, MLP_RATIO * width, rngs, dtype=dtype)
        self.mlp_out = Linear(MLP_RATIO * width, width, rngs, dtype=dtype)
        # Float32, as the norms that it modulates are.
        float32 = jnp.dtype(jnp.float32)
        self.modulation = (
            None
            if cond_dim is None
            else Linear(cond_dim, 6 * width, rngs, dtype=float32, zero=True)
        )

    def __call__(
        self,
        x: Float[Array, "b l d"],
        inputs: NetInput,
        angles: Float[Array, "#b l 1 half"],
        *,
        causal: bool,
        cond: Float[Array, "b #l c"] | None,
        key: Key[Array, ""] | None,
    ) -> Float[Array, "b l d"]:
        """The residual stream after this block. ValueError if it has adaLN and no `cond`."""
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self._vectors(cond)
        keys = (None, None) if key is None else (stream(key, "attention"), stream(key, "mlp"))

        y = modulate(self.norm1(x), shift_1, scale_1)
        qkv = self.qkv(y).reshape(*y.shape[:2], 3, self.heads, -1)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        y = attention(
            rotate(q, angles),
            rotate(k, angles),
            v,
            causal=causal,
            is_valid=inputs.is_valid,
            segment_ids=inputs.segment_ids,
        )
        y = dropout(keys[0], self.attn_out(y.reshape(x.shape)), self.dropout)
        x = x + gate_1 * y

        y = modulate(self.norm2(x), shift_2, scale_2)
        y = self.mlp_out(jax.nn.gelu(self.mlp_in(y), approximate=True))
        y = dropout(keys[1], y, self.dropout)
        return x + gate_2 * y

    def _vectors(self, cond: Float[Array, "b #l c"] | None) -> Sequence[Array | float]:
        """Shift, scale and gate of the attention, then of the MLP."""
        if self.modulation is None:
            return (0.0, 0.0, 1.0) * 2
        if cond is None:
            raise ValueError("a block with adaLN needs `cond`")
        return jnp.split(self.modulation(cond), 6, axis=-1)


def stack_blocks(depth: int, rngs: nnx.Rngs, *args, **kwargs) -> Block:
    """`depth` blocks as one: every parameter has a leading axis of `depth`."""

    @nnx.split_rngs(splits=depth)
    @nnx.vmap
    def make(rngs):
        return Block(*args, rngs=rngs, **kwargs)

    return make(rngs)


def run_blocks(
    blocks: Block,
    x: Float[Array, "b l d"],
    inputs: NetInput,
    *,
    causal: bool,
    cond: Float[Array, "b #l c"] | None,
    key: Key[Array, ""] | None,
    remat: bool,
) -> Float[Array, "b l d"]:
    """`x` after all blocks, in order; each block's dropout key is folded from `key`."""
    b, l, width = x.shape
    positions = jnp.arange(l)[None] if inputs.positions is None else inputs.positions
    angles = rotary_angles(positions, width // blocks.heads)
    depth = blocks.norm1.scale.shape[0]
    keys = None if key is None else by_row(key, jnp.arange(depth))

    def step(x, layer):
        block, key = layer
        return block(x, inputs, angles, causal=causal, cond=cond, key=key), None

    body = jax.checkpoint(step, prevent_cse=False) if remat else step
    return jax.lax.scan(body, x, (blocks, keys))[0]
