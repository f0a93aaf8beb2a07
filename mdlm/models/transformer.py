"""The transformer block that the networks share.

    x <- x + gate_1 * dropout(attention(shift_1 + (1 + scale_1) * norm(x)))
    x <- x + gate_2 * dropout(mlp(shift_2 + (1 + scale_2) * norm(x)))

With conditioning, the six vectors are a linear function of `cond` (adaLN, arXiv:2212.09748) that
starts at 0, so that each block starts as the identity; without, shift = scale = 0 and gate = 1.
The residual stream x is float32.

Encoders of the kind of BERT normalise after each sum instead, and have no conditioning:

    x <- norm_1(x + dropout(attention(x)));  x <- norm_2(x + dropout(mlp(x)))
"""

import abc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, Key

from mdlm.keys import stream
from mdlm.models.attention.dispatch import Implementation, attention
from mdlm.models.attention.mask import AttentionMask
from mdlm.models.decoding.last_block import joined_heads
from mdlm.models.experts import ExpertMLP, Experts
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
        norm: "layer" (zero mean, unit variance), "layer_bias" (the same, with a bias), or "rms"
            (unit mean square, arXiv:1910.07467).
        norm_epsilon: added to the variance or mean square (None: 1e-6 for "rms", else 1e-5).
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
            "glu" (arXiv:2002.05202, with 2/3 of the hidden width, for as many parameters);
            "gelu_erf" and "geglu_erf" have the exact GELU.
        hidden: hidden width of the MLP; 0: by its kind, see `mdlm.models.mlp.hidden_width`.
        use_bias: biases in MLP and head.
        tied: the head multiplies by the embedding table, and has no kernel of its own.
        logit_cap: keeps logits within +-this, by cap tanh(logit / cap) (None: no limit).
        attention: the implementation of attention, see `mdlm.models.attention.dispatch`.
        dtype, remat, logits_chunk: see `mdlm.models.network.Network`.
    """

    is_post_norm: ClassVar[bool] = False
    """Whether a block normalises after its sums, not before attention and MLP."""
    attn_out_bias: ClassVar[bool] = False
    """Whether the matrix after attention has a bias."""

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
    def rotary(self) -> tuple[int, float] | None:
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
        projections = 2 * width * size * (heads + kv_heads)
        attended = 2 * length * heads * size
        per_token = self.depth * (projections + attended) + self.mlp_multiplications
        per_row = 6 * width * self.modulated * self.depth
        return 2 * (rows * (length * per_token + per_row) + scored * width * columns)

    @property
    def mlp_multiplications(self) -> int:
        """The multiplications of the MLPs of all blocks for one token."""
        matrices = 3 if self.mlp in GATES else 2
        return self.depth * matrices * self.hidden_width * self.width


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
