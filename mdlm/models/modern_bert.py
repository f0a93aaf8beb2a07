"""ModernBERT (arXiv:2412.13663), an encoder with alternating global and local attention.

    x      = dropout(norm(table[tokens]))
    x     <- x + attention_i(norm(x));  x <- x + mlp(norm(x))     for each block i
    h      = norm(gelu(norm(x) kernel))
    logits = h table^T + bias

    attention_i, every n-th i:  to all positions, rotary base 160000
    attention_i, other i:       to positions at most window / 2 away, rotary base 10000

Block 0 has no norm before its attention, as its input is normed. Norms are LayerNorms without bias,
MLPs are GeGLU with the exact GELU, and only the logits have a bias.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, Key

from mdlm.keys import stream
from mdlm.models.attention.dispatch import attention
from mdlm.models.decoding.last_block import BegunBlock, DeferredReadout, joined_heads
from mdlm.models.head import Transform, predicted
from mdlm.models.layers import Embedding, compute_dtype, dropout, norm
from mdlm.models.mlp import MLPKind
from mdlm.models.network import Network
from mdlm.models.readout import Readout
from mdlm.models.rotary import Rotary
from mdlm.models.stack import Stacks, Table, mask_of, run_stack, split_last, stacks_of, table_of
from mdlm.models.transformer import Transformer
from mdlm.models.transformer_block import stack_blocks
from mdlm.types import NetInput


@dataclass(frozen=True, kw_only=True)
class ModernBert(Transformer, Network):
    """The encoder of ModernBERT; the defaults are the sizes of ModernBERT-base.

    Args:
        global_every: every so many blocks, from the first one on, attend to all positions.
        window: the other blocks attend to positions at most half of this away.
        rotary_base: of the global blocks.
        local_rotary_base: of the other blocks.
    """

    depth: int = 22
    norm_epsilon: float | None = 1e-5
    mlp: MLPKind = "geglu_erf"
    hidden: int = 1152
    use_bias: bool = False
    tied: bool = True
    rotary_base: float = 160000.0
    global_every: int = 3
    window: int = 128
    local_rotary_base: float = 10000.0

    def __post_init__(self):
        super().__post_init__()
        for name, least in (("depth", 2), ("global_every", 1), ("window", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least {least}")
        if self.local_rotary_base <= 0:
            raise ValueError(f"local_rotary_base={self.local_rotary_base}: must be above 0")
        if not self.tied:
            raise ValueError("tied=False: the head is the embedding table; use tied=True")

    @property
    def modulated(self) -> int:
        return 0

    def flops(self, rows: float, length: int, scored: float, columns: int) -> float:
        transform = 2 * rows * length * self.width**2
        return super().flops(rows, length, scored, columns) + transform

    def module(self, columns: int, rngs: nnx.Rngs) -> nnx.Module:
        return ModernBertModule(self, columns, rngs)


class ModernBertModule(nnx.Module):
    """The module of `ModernBert`."""

    head = None

    def __init__(self, config: ModernBert, columns: int, rngs: nnx.Rngs):
        self.config = config
        self.dtype = compute_dtype(config.dtype)
        of_block: Any = dict(cond_dim=None, dtype=self.dtype)
        self.embed = Embedding(columns, config.width, rngs)
        self.embed_norm = norm(config.norm, config.width, config.norm_epsilon)
        self.blocks = Stacks(
            stack_blocks(config, rngs, depth=1, attn_norm=False, **of_block),
            stack_blocks(config, rngs, depth=config.depth - 1, **of_block),
        )
        self.norm = norm(config.norm, config.width, config.norm_epsilon)
        self.transform = Transform(config, rngs, dtype=self.dtype)
        self.head_bias = nnx.Param(jnp.zeros(columns))

    def __call__(
        self,
        inputs: NetInput,
        *,
        condition: Float[Array, " b #l"] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Readout | DeferredReadout:
        if condition is not None:
            raise ValueError("condition: ModernBert has no input for the noise level")
        config = self.config
        with jax.named_scope("embed"):
            x = self.embed_norm(self.embed(inputs.tokens))
            x = dropout(None if key is None else stream(key, "embed"), x, config.dropout)
        is_global = jnp.arange(config.depth) % config.global_every == 0
        first, rest = stacks_of(self.blocks)
        stacks: Any = (first, is_global[:1]), (rest, is_global[1:])
        near = Rotary(config.heads_shape[2], config.local_rotary_base)
        local = table_of(inputs, x.shape[1], near)
        masks = [mask_of(inputs, causal=False, reach=r) for r in (None, config.window // 2)]

        def apply(layer: Any, x: Array, table: Table, key: Key[Array, ""] | None) -> Any:
            block, is_global = layer
            return _applied(block, is_global, x, masks, (table, local), key), None

        if not inputs.defer_last_block or key is not None:
            return self.readout(run_stack(apply, stacks, config, x, inputs, key)[0], None)
        before, (last, _) = split_last(stacks)
        x, _ = run_stack(apply, before, config, x, inputs, None)
        is_local = (config.depth - 1) % config.global_every != 0
        table = local if is_local else table_of(inputs, x.shape[1], config.rotary)
        begun = BegunBlock(last, x, masks[is_local], table, None)
        return DeferredReadout(begun, None, self.readout, x.shape[1])

    def readout(self, x: Float[Array, "b l d"], _: None) -> Readout:
        """Returns the prediction from the output of the last block."""
        with jax.named_scope("head"):
            x, bias = self.norm(x), self.head_bias[...]
            return predicted(self, self.transform(x), bias=bias, features=x)


def _applied(block: Any, is_global: Array, x: Array, masks: Any, tables: Any, key: Any) -> Array:
    """Returns the residual stream after a block that is global or local; of its two masks and two
    rotary tables, the first is for global blocks. One of the two attentions is computed."""
    vectors = block.vectors(None)
    with jax.named_scope("attention"):
        table = jax.tree.map(lambda wide, near: jnp.where(is_global, wide, near), *tables)
        q, k, v = block.projected(block.before_attention(x, vectors), table)
        wide, near = (
            lambda q, k, v, mask=mask: attention(q, k, v, mask, block.config.attention)
            for mask in masks
        )
        out = jax.lax.cond(is_global, wide, near, q, k, v)
    return block.after_attention(x, joined_heads(out), vectors, key=key)
