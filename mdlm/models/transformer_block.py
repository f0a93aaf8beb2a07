"""The transformer block that the networks share.

    x <- x + gate_1 * dropout(attention(shift_1 + (1 + scale_1) * norm(x)))
    x <- x + gate_2 * dropout(mlp(shift_2 + (1 + scale_2) * norm(x)))

With conditioning, the six vectors are a linear function of `cond` (adaLN, arXiv:2212.09748) that
starts at 0, so that each block starts as the identity; without, shift = scale = 0 and gate = 1.
The residual stream x is float32.

Encoders of the kind of BERT normalise after each sum instead, and have no conditioning:

    x <- norm_1(x + dropout(attention(x)));  x <- norm_2(x + dropout(mlp(x)))
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, Key

from mdlm.keys import stream
from mdlm.models.attention.dispatch import attention
from mdlm.models.attention.mask import AttentionMask
from mdlm.models.decoding.last_block import joined_heads
from mdlm.models.experts import ExpertMLP, Experts
from mdlm.models.layers import Linear, dropout, modulate, norm
from mdlm.models.mlp import MLP
from mdlm.models.rotary import rotate
from mdlm.models.stack import Table, stack
from mdlm.models.transformer import Transformer


class Block(nnx.Module):
    """Attention and an MLP, each behind a norm and added to the residual stream.

    `attn_norm` says whether there is a norm before the attention. With `experts`, they take the
    place of the MLP.
    """

    def __init__(
        self,
        config: Transformer,
        rngs: nnx.Rngs,
        *,
        cond_dim: int | None,
        dtype: jnp.dtype,
        attn_norm: bool = True,
        experts: Experts | None = None,
    ):
        self.config = config
        width = config.width
        heads, kv_heads, size = config.heads_shape
        widths = (heads * size, kv_heads * size, kv_heads * size)
        self.norm1: Any = norm(config.norm, width, config.norm_epsilon) if attn_norm else None
        by_columns: Any = dict(use_bias=config.qkv_bias, split="columns")
        self.qkv = Linear(width, widths, rngs, dtype=dtype, **by_columns)
        own: Any = lambda: norm("rms", size, config.norm_epsilon)
        self.qk_norm = own() if config.qk_norm is True else None
        is_separate = config.qk_norm == "separate"
        self.q_norm, self.k_norm = (own() if is_separate else None for _ in range(2))
        by_rows: Any = dict(use_bias=config.attn_out_bias, split="rows")
        self.attn_out = Linear(widths[0], width, rngs, dtype=dtype, **by_rows)
        self.norm2 = norm(config.norm, width, config.norm_epsilon)
        own_mlp: Any = dict(use_bias=config.use_bias, hidden=config.hidden_width)
        self.mlp: Any = (
            MLP(config.mlp, width, rngs, dtype=dtype, **own_mlp)
            if experts is None
            else ExpertMLP(experts, config.mlp, width, rngs, dtype=dtype)
        )
        # Float32, like the norms that it modulates.
        float32 = jnp.dtype(jnp.float32)
        self.modulation = (
            None
            if cond_dim is None
            else Linear(cond_dim, 6 * width, rngs, dtype=float32, zero=True)
        )

    def __call__(
        self,
        x: Float[Array, "b l d"],
        mask: AttentionMask,
        table: Table | None,
        *,
        cond: Float[Array, " b #l c"] | None,
        key: Key[Array, ""] | None,
    ) -> Float[Array, "b l d"]:
        """Returns the residual stream after this block.

        Raises ValueError if the block has adaLN and `cond` is None.
        """
        return self.with_load(x, mask, table, cond=cond, key=key)[0]

    def with_load(
        self,
        x: Float[Array, "b l d"],
        mask: AttentionMask,
        table: Table | None,
        *,
        cond: Float[Array, " b #l c"] | None,
        key: Key[Array, ""] | None,
    ) -> tuple[Float[Array, "b l d"], Float[Array, " e"] | None]:
        """Returns the residual stream after this block, and the number of tokens that each of its
        experts computed; None if it has no experts."""
        vectors = self.vectors(cond)
        with jax.named_scope("attention"):
            q, k, v = self.projected(self.before_attention(x, vectors), table)
            out = joined_heads(attention(q, k, v, mask, self.config.attention))
        return self._after(x, out, vectors, key)

    def before_attention(
        self, x: Float[Array, "b l d"], vectors: Sequence[Array | float]
    ) -> Float[Array, "b l d"]:
        """Returns the input of the attention, from that of the block."""
        if self.norm1 is None or self.config.is_post_norm:
            return x
        return modulate(self.norm1(x), *vectors[:2])

    def projected(
        self, y: Float[Array, "b l d"], table: Table | None
    ) -> tuple[Float[Array, "b l h c"], Float[Array, "b l g c"], Float[Array, "b l g c"]]:
        """Returns queries, keys and values by head, from the input of the attention."""
        q, k, v = self.qkv.parts(y)
        return self.queries(q, table), self.keys(k, table), self.by_head(v)

    def after_attention(
        self,
        x: Float[Array, "b l d"],
        out: Float[Array, "b l w"],
        vectors: Sequence[Array | float],
        *,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "b l d"]:
        """Returns the residual stream after the block, given its input `x`, the output `out` of all
        heads, and its `vectors`. Acts on each position separately."""
        return self._after(x, out, vectors, key)[0]

    def _after(self, x, out, vectors, key):
        """Returns `after_attention`, and the load of the experts."""
        _, _, gate_1, *shift_scale, gate_2 = vectors
        is_post = self.config.is_post_norm
        keys = (None, None) if key is None else (stream(key, "attention"), stream(key, "mlp"))
        rate = self.config.dropout
        with jax.named_scope("attention"):
            x = x + gate_1 * dropout(keys[0], self.attn_out(out), rate)
            x = self.norm1(x) if is_post else x
        with jax.named_scope("mlp"):
            y, load = self.mlp(x if is_post else modulate(self.norm2(x), *shift_scale)), None
            if isinstance(self.mlp, ExpertMLP):
                y, load = y
            x = x + gate_2 * dropout(keys[1], y, rate)
            return (self.norm2(x) if is_post else x), load

    def by_head(self, x: Float[Array, "b l w"]) -> Float[Array, "b l h c"]:
        """Returns queries, keys or values with an axis for the heads."""
        return x.reshape(*x.shape[:2], -1, self.config.heads_shape[2])

    def queries(self, x: Float[Array, "b l w"], table: Table | None) -> Float[Array, "b l h c"]:
        """Returns queries by head, normalised and rotated, from the output of their kernel."""
        return self._placed(x, self.q_norm or self.qk_norm, table)

    def keys(self, x: Float[Array, "b l w"], table: Table | None) -> Float[Array, "b l h c"]:
        """Returns keys by head, normalised and rotated, from the output of their kernel."""
        return self._placed(x, self.k_norm or self.qk_norm, table)

    def _placed(self, x, norm, table):
        y = self.by_head(x)
        y = y if norm is None else norm(y)
        return (y if table is None else rotate(y, table)).astype(x.dtype)

    def vectors(self, cond: Float[Array, " b #l c"] | None) -> Sequence[Array | float]:
        """Returns shift, scale and gate of the attention, then of the MLP."""
        if self.modulation is None:
            return (0.0, 0.0, 1.0) * 2
        if cond is None:
            raise ValueError("cond=None: a block with adaLN needs `cond`")
        return jnp.split(self.modulation(cond), 6, axis=-1)


def stack_blocks(
    config: Transformer, rngs: nnx.Rngs, *, depth: int | None = None, **of_block: Any
) -> Block:
    """Returns `depth` blocks (None: `config.depth`) as one: each parameter has a leading axis of
    that size. `of_block` are further arguments of `Block`."""
    make = lambda rngs: Block(config, rngs, **of_block)
    return stack(make, config.depth if depth is None else depth, rngs)
