"""The transformer block that the networks share.

    x <- x + gate_1 * dropout(attention(shift_1 + (1 + scale_1) * norm(x)))
    x <- x + gate_2 * dropout(mlp(shift_2 + (1 + scale_2) * norm(x)))

With conditioning, the six vectors are a linear function of `cond` (adaLN, arXiv:2212.09748) that
starts at 0, so that each block starts as the identity; without, shift = scale = 0 and gate = 1.
The residual stream x is float32.
"""

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, Key

from mdlm.keys import stream
from mdlm.models.attention.dispatch import Implementation, attention
from mdlm.models.attention.mask import AttentionMask
from mdlm.models.layers import Linear, NormKind, Precision, dropout, modulate, norm
from mdlm.models.mlp import GATES, MLP, MLPKind, hidden_width
from mdlm.models.network import Remat
from mdlm.models.rotary import rotate
from mdlm.models.stack import Table, stack


@dataclass(frozen=True, kw_only=True)
class Transformer(abc.ABC):
    """The fields that transformers add to those of every network. The defaults are the sizes of the
    MDLM paper.

    Args:
        width: width of the residual stream.
        depth: number of blocks.
        heads: number of attention heads; each has `width / heads` entries.
        dropout: probability of dropping outputs of attention and MLP, in calls with a key (the
            paper trains with 0.1).
        norm: "layer" (zero mean, unit variance) or "rms" (unit mean square, arXiv:1910.07467).
        qk_norm: normalise queries and keys of each head to unit mean square, with one learned
            scale for both (arXiv:2010.04245), which keeps attention from saturating.
        mlp: "gelu"; "relu2", squared ReLU (arXiv:2109.08668); or the gated "swiglu", "geglu" and
            "glu" (arXiv:2002.05202, with 2/3 of the hidden width, for as many parameters).
        use_bias: biases in MLP and head.
        attention: the implementation of attention, see `mdlm.models.attention.dispatch`.
        dtype, remat, logits_chunk: see `mdlm.models.network.Network`.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    dropout: float = 0.0
    norm: NormKind = "layer"
    qk_norm: bool = False
    mlp: MLPKind = "gelu"
    use_bias: bool = True
    dtype: Precision = "auto"
    attention: Implementation = "auto"
    remat: Remat = "auto"

    def __post_init__(self):
        check_sizes(
            self,
            norm=NormKind,
            mlp=MLPKind,
            dtype=Precision,
            attention=Implementation,
            remat=Remat,
        )

    @property
    @abc.abstractmethod
    def modulated(self) -> int:
        """Width of the vector that modulates the blocks; 0 where none does."""

    @property
    def shared(self) -> tuple[int, int]:
        return self.heads, hidden_width(self.mlp, self.width)

    def flops(self, rows: float, length: int, scored: float, columns: int) -> float:
        width = self.width
        per_token = 4 * width * width + hidden_width(self.mlp, width) * width * (
            3 if self.mlp in GATES else 2
        )
        attended = 2 * length * width
        per_row = 6 * width * self.modulated * self.depth
        return 2 * (
            rows * (length * self.depth * (per_token + attended) + per_row)
            + scored * width * columns
        )


def check_sizes(config: Any, **kinds: Any) -> None:
    """Raises ValueError if a size that all transformers have is impossible, or a field is not one
    of the values of its `Literal` in `kinds`."""
    for name in ("width", "depth", "heads", "logits_chunk"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")
    if config.width % (2 * config.heads):
        raise ValueError(
            f"width={config.width}: must be a multiple of 2 * heads = {2 * config.heads}"
            " (rotary embeddings rotate pairs of a head's entries)"
        )
    if not 0 <= config.dropout < 1:
        raise ValueError(f"dropout={config.dropout}: must be in [0, 1)")
    for name, kind in kinds.items():
        if getattr(config, name) not in get_args(kind):
            choices = ", ".join(get_args(kind))
            raise ValueError(f"{name}={getattr(config, name)!r}: must be one of {choices}")


class Block(nnx.Module):
    """Attention and an MLP, each behind a norm and added to the residual stream."""

    def __init__(
        self, config: Transformer, rngs: nnx.Rngs, *, cond_dim: int | None, dtype: jnp.dtype
    ):
        self.config = config
        width = config.width
        self.norm1 = norm(config.norm, width)
        by_columns: Any = dict(split="columns", cuts=3)
        self.qkv = Linear(width, 3 * width, rngs, dtype=dtype, use_bias=False, **by_columns)
        self.qk_norm = norm("rms", width // config.heads) if config.qk_norm else None
        self.attn_out = Linear(width, width, rngs, dtype=dtype, use_bias=False, split="rows")
        self.norm2 = norm(config.norm, width)
        self.mlp = MLP(config.mlp, width, rngs, dtype=dtype, use_bias=config.use_bias)
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
        table: Table,
        *,
        cond: Float[Array, " b #l c"] | None,
        key: Key[Array, ""] | None,
    ) -> Float[Array, "b l d"]:
        """Returns the residual stream after this block.

        Raises ValueError if the block has adaLN and `cond` is None.
        """
        vectors = self.vectors(cond)
        with jax.named_scope("attention"):
            shift, scale = vectors[:2]
            out = self._attend(modulate(self.norm1(x), shift, scale), mask, table)
        return self.after_attention(x, out, vectors, key=key)

    def after_attention(
        self,
        x: Float[Array, "b l d"],
        out: Float[Array, "b l d"],
        vectors: Sequence[Array | float],
        *,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "b l d"]:
        """Returns the residual stream after the block, given its input `x`, the output `out` of all
        heads, and its `vectors`. Acts on each position separately."""
        _, _, gate_1, shift_2, scale_2, gate_2 = vectors
        keys = (None, None) if key is None else (stream(key, "attention"), stream(key, "mlp"))
        rate = self.config.dropout
        with jax.named_scope("attention"):
            x = x + gate_1 * dropout(keys[0], self.attn_out(out), rate)
        with jax.named_scope("mlp"):
            y = self.mlp(modulate(self.norm2(x), shift_2, scale_2))
            return x + gate_2 * dropout(keys[1], y, rate)

    def _attend(self, y: Float[Array, "b l d"], mask: AttentionMask, table: Table):
        heads = (*y.shape[:2], self.config.heads, -1)
        q, k, v = (x.reshape(heads) for x in self.qkv.parts(y))
        if self.qk_norm is not None:
            q, k = self.qk_norm(q), self.qk_norm(k)
        q, k = (rotate(x, table).astype(v.dtype) for x in (q, k))
        return attention(q, k, v, mask, self.config.attention).reshape(y.shape)

    def vectors(self, cond: Float[Array, " b #l c"] | None) -> Sequence[Array | float]:
        """Returns shift, scale and gate of the attention, then of the MLP."""
        if self.modulation is None:
            return (0.0, 0.0, 1.0) * 2
        if cond is None:
            raise ValueError("cond=None: a block with adaLN needs `cond`")
        return jnp.split(self.modulation(cond), 6, axis=-1)


def stack_blocks(
    config: Transformer, rngs: nnx.Rngs, *, cond_dim: int | None, dtype: jnp.dtype
) -> Block:
    """Returns `config.depth` blocks as one: each parameter has a leading axis of that size."""
    return stack(lambda rngs: Block(config, rngs, cond_dim=cond_dim, dtype=dtype), config, rngs)
