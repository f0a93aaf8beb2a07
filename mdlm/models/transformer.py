"""The transformer block that the networks share.

    x <- x + gate_1 * dropout(attention(shift_1 + (1 + scale_1) * norm(x)))
    x <- x + gate_2 * dropout(mlp(shift_2 + (1 + scale_2) * norm(x)))

With conditioning, the six vectors are a linear function of `cond` (adaLN, arXiv:2212.09748) that
starts at 0, so that each block starts as the identity; without, shift = scale = 0 and gate = 1.
The residual stream x is float32.
"""

import abc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, Key

from mdlm.keys import stream
from mdlm.models.attention.dispatch import Implementation, attention
from mdlm.models.attention.mask import AttentionMask
from mdlm.models.decoding.last_block import joined_heads
from mdlm.models.layers import Linear, NormKind, Precision, dropout, modulate, norm
from mdlm.models.mlp import GATES, MLP, MLPKind, hidden_width
from mdlm.models.network import Remat
from mdlm.models.rotary import ROTARY_BASE, rotate
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
        norm_epsilon: added to the variance or mean square (None: 1e-5 for "layer", 1e-6 for "rms").
        kv_heads: heads of keys and values, a divisor of `heads`: each serves as many successive
            heads of queries (grouped-query attention, arXiv:2305.13245). 0: as many as `heads`.
        head_width: entries of a head; 0: width / heads.
        rotary_base: the base of the angles of rotary embeddings.
        rotary_fraction: the part of each head's entries that is rotated, the first ones.
        qk_norm: normalise queries and keys of each head to unit mean square (arXiv:2010.04245),
            which keeps attention from saturating: True with one learned scale for both,
            "separate" with one for each.
        qkv_bias: biases of queries, keys and values.
        mlp: "gelu"; "relu2", squared ReLU (arXiv:2109.08668); or the gated "swiglu", "geglu" and
            "glu" (arXiv:2002.05202, with 2/3 of the hidden width, for as many parameters).
        hidden: hidden width of the MLP; 0: by its kind, see `mdlm.models.mlp.hidden_width`.
        use_bias: biases in MLP and head.
        tied: the head multiplies by the embedding table, and has no kernel of its own.
        logit_cap: keeps logits within +-this, by cap tanh(logit / cap) (None: no limit).
        attention: the implementation of attention, see `mdlm.models.attention.dispatch`.
        dtype, remat, logits_chunk: see `mdlm.models.network.Network`.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    dropout: float = 0.0
    norm: NormKind = "layer"
    norm_epsilon: float | None = None
    kv_heads: int = 0
    head_width: int = 0
    rotary_base: float = ROTARY_BASE
    rotary_fraction: float = 1.0
    qk_norm: bool | Literal["separate"] = False
    qkv_bias: bool = False
    mlp: MLPKind = "gelu"
    hidden: int = 0
    use_bias: bool = True
    tied: bool = False
    logit_cap: float | None = None
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
        check_options(self)

    @property
    @abc.abstractmethod
    def modulated(self) -> int:
        """Width of the vector that modulates the blocks; 0 where none does."""

    @property
    def heads_shape(self) -> tuple[int, int, int]:
        """Heads of queries, heads of keys and values, entries of a head."""
        size = self.head_width or self.width // self.heads
        return self.heads, self.kv_heads or self.heads, size

    @property
    def rotary(self) -> tuple[int, float]:
        return int(self.heads_shape[2] * self.rotary_fraction), self.rotary_base

    @property
    def hidden_width(self) -> int:
        return self.hidden or hidden_width(self.mlp, self.width)

    @property
    def shared(self) -> tuple[int, int]:
        return self.heads, self.hidden_width

    def flops(self, rows: float, length: int, scored: float, columns: int) -> float:
        width = self.width
        heads, kv_heads, size = self.heads_shape
        matrices = 3 if self.mlp in GATES else 2
        per_token = 2 * width * size * (heads + kv_heads) + matrices * self.hidden_width * width
        attended = 2 * length * heads * size
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
    if config.width % (2 * config.heads) and not getattr(config, "head_width", 0):
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


def check_options(config: Transformer) -> None:
    """Raises ValueError if options of a `Transformer` are impossible, alone or together."""
    for name in ("kv_heads", "head_width", "hidden"):
        if getattr(config, name) < 0:
            raise ValueError(f"{name}={getattr(config, name)}: must be at least 0")
    for name in ("norm_epsilon", "logit_cap", "rotary_base"):
        value = getattr(config, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name}={value}: must be above 0")
    if config.qk_norm not in (True, False, "separate"):
        raise ValueError(f"qk_norm={config.qk_norm!r}: must be True, False or 'separate'")
    if config.kv_heads and config.heads % config.kv_heads:
        raise ValueError(f"kv_heads={config.kv_heads}: must divide heads={config.heads}")
    size = config.heads_shape[2]
    rotated = size * config.rotary_fraction
    if not 0 < config.rotary_fraction <= 1 or rotated % 2:
        raise ValueError(
            f"rotary_fraction={config.rotary_fraction}: must be in (0, 1] and rotate an even number"
            f" of a head's {size} entries, not {rotated:g}"
        )


class Block(nnx.Module):
    """Attention and an MLP, each behind a norm and added to the residual stream."""

    def __init__(
        self, config: Transformer, rngs: nnx.Rngs, *, cond_dim: int | None, dtype: jnp.dtype
    ):
        self.config = config
        width = config.width
        heads, kv_heads, size = config.heads_shape
        widths = (heads * size, kv_heads * size, kv_heads * size)
        self.norm1 = norm(config.norm, width, config.norm_epsilon)
        by_columns: Any = dict(use_bias=config.qkv_bias, split="columns")
        self.qkv = Linear(width, widths, rngs, dtype=dtype, **by_columns)
        own: Any = lambda: norm("rms", size, config.norm_epsilon)
        self.qk_norm = own() if config.qk_norm is True else None
        is_separate = config.qk_norm == "separate"
        self.q_norm, self.k_norm = (own() if is_separate else None for _ in range(2))
        self.attn_out = Linear(widths[0], width, rngs, dtype=dtype, use_bias=False, split="rows")
        self.norm2 = norm(config.norm, width, config.norm_epsilon)
        self.mlp = MLP(
            config.mlp,
            width,
            rngs,
            dtype=dtype,
            use_bias=config.use_bias,
            hidden=config.hidden_width,
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
        out: Float[Array, "b l w"],
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
        q, k, v = self.qkv.parts(y)
        q, k, v = self.queries(q, table), self.keys(k, table), self.by_head(v)
        return joined_heads(attention(q, k, v, mask, self.config.attention))

    def by_head(self, x: Float[Array, "b l w"]) -> Float[Array, "b l h c"]:
        """Returns queries, keys or values with an axis for the heads."""
        return x.reshape(*x.shape[:2], -1, self.config.heads_shape[2])

    def queries(self, x: Float[Array, "b l w"], table: Table) -> Float[Array, "b l h c"]:
        """Returns queries by head, normalised and rotated, from the output of their kernel."""
        return self._placed(x, self.q_norm or self.qk_norm, table)

    def keys(self, x: Float[Array, "b l w"], table: Table) -> Float[Array, "b l h c"]:
        """Returns keys by head, normalised and rotated, from the output of their kernel."""
        return self._placed(x, self.k_norm or self.qk_norm, table)

    def _placed(self, x, norm, table):
        by_head = self.by_head(x)
        return rotate(by_head if norm is None else norm(by_head), table).astype(x.dtype)

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
