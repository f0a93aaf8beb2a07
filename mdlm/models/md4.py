"""The network of MD4 (arXiv:2406.04329), a gated transformer, optionally conditioned on time.

    c = W_2 silu(W_1 [sin(1000 t f), cos(1000 t f)]),  f_i = 10000^(-i / (half - 1)), i < half
    x = table[tokens];  x <- x + gate_1 attention(m_1(x));  x <- x + gate_2 mlp(m_2(x))
    logits = m_3(x) kernel,    m(x) = normal(x) (1 + scale) + shift
    mlp(y) = W_2 (act(V y) * (W_1 y)),    act: sigmoid (GLU), silu (SwiGLU), gelu (GEGLU)

half is half the width of c. Shift, scale and gate are linear in act(c), with the mlp's act. With
time conditioning the LayerNorms have no parameters; without it there are RMSNorms and no
modulation. Only the time embedding, the embedding projection and the modulations have biases.
Rotary positions rotate neighbouring entries. The head starts at 0, as in the other networks, so
all logits are 0 at first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, Key

from mdlm.keys import stream
from mdlm.models.attention.dispatch import Implementation, attention
from mdlm.models.attention.mask import AttentionMask
from mdlm.models.layers import (
    Embedding,
    Linear,
    Precision,
    RMSNorm,
    compute_dtype,
    dropout,
    modulate,
    standardised,
)
from mdlm.models.mlp import GATES, MLP
from mdlm.models.network import Network, Remat
from mdlm.models.readout import Readout
from mdlm.models.rotary import Rotary, rotate_pairs
from mdlm.models.stack import Table, run_blocks, stack
from mdlm.models.transformer import check_sizes
from mdlm.types import NetInput

Gate = Literal["swiglu", "geglu", "glu"]
FLOAT32 = jnp.dtype(jnp.float32)


@dataclass(frozen=True, kw_only=True)
class MD4Transformer(Network):
    """MD4's bidirectional transformer, with its options.

    Args:
        width, depth, heads: of the residual stream; blocks; attention heads.
        cond_dim: width of the vector that conditions the blocks on time (MD4: the head width); 0
            for no time conditioning. The conditioning is t itself: `time_condition="t"`.
        zero_modulation: modulations start at 0, so that each block starts as the identity
            ("adaLN-zero"); False starts them like any layer ("adaLN").
        mlp: "swiglu", "geglu" or "glu".
        embed_width: width of the embedding table, which a linear layer then projects to `width`;
            0 means a table of the full width.
        dropout: probability of dropping outputs of attention and mlp.
        attention: see `mdlm.models.transformer.Transformer`.
        dtype, remat, logits_chunk: see `mdlm.models.network.Network`.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    cond_dim: int = 64
    zero_modulation: bool = True
    mlp: Gate = "swiglu"
    embed_width: int = 0
    dropout: float = 0.0
    dtype: Precision = "auto"
    attention: Implementation = "auto"
    remat: Remat = "auto"

    def __post_init__(self):
        check_sizes(self, mlp=Gate, dtype=Precision, attention=Implementation, remat=Remat)
        if self.cond_dim % 2 or self.cond_dim == 2 or self.cond_dim < 0:
            raise ValueError(f"cond_dim={self.cond_dim}: must be 0, or even and at least 4")
        if self.embed_width < 0:
            raise ValueError(f"embed_width={self.embed_width}: must be at least 0")

    @property
    def shared(self) -> tuple[int, int]:
        return self.heads, gated_width(self.width)

    @property
    def rotary(self) -> Rotary:
        return Rotary(self.width // self.heads)

    def flops(self, rows: float, length: int, scored: float, columns: int) -> float:
        width, cond = self.width, self.cond_dim
        block = 4 * width**2 + 3 * width * gated_width(width) + 2 * length * width
        conditioning = 8 * cond**2 + (6 * self.depth + 2) * width * cond
        per_row = length * (self.depth * block + self.embed_width * width) + conditioning
        return 2 * (rows * per_row + scored * width * columns)

    def module(self, columns: int, rngs: nnx.Rngs) -> nnx.Module:
        return MD4Module(self, columns, rngs)


def gated_width(width: int) -> int:
    """Returns the hidden width of the mlp: 8/3 of the width, rounded up to a multiple of 32."""
    return -(-(8 * width // 3) // 32) * 32


def sinusoid(t: Float[Array, " b #l"], width: int) -> Float[Array, " b #l c"]:
    """Returns sines, then cosines, of 1000 t at `width / 2` frequencies from 1 down to 1/10000."""
    steps = jnp.arange(width // 2, dtype=jnp.float32) / (width // 2 - 1)
    angles = 1000 * t[..., None].astype(jnp.float32) * (10000.0**-steps)[None, None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class TimeEmbedding(nnx.Module):
    """Computes the vector c from the time. Float32."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.inner = Linear(width, 4 * width, rngs, dtype=FLOAT32)
        self.outer = Linear(4 * width, width, rngs, dtype=FLOAT32)

    def __call__(self, t: Float[Array, " b #l"]) -> Float[Array, " b #l c"]:
        width = self.inner.kernel.shape[0]
        return self.outer(jax.nn.silu(self.inner(sinusoid(t, width))))


class Normal(nnx.Module):
    """LayerNorm without parameters, for networks with time conditioning."""

    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        return standardised(x)


def norm(config: MD4Transformer) -> Normal | RMSNorm:
    """Returns the norm for a network with or without time conditioning."""
    return Normal() if config.cond_dim else RMSNorm(config.width, epsilon=1e-5)


def modulation(config: MD4Transformer, vectors: int, rngs: nnx.Rngs) -> Linear | None:
    """Returns the layer from act(c) to `vectors` vectors of the width; None without time."""
    if not config.cond_dim:
        return None
    width, zero = vectors * config.width, config.zero_modulation
    return Linear(config.cond_dim, width, rngs, dtype=FLOAT32, zero=zero)


class MD4Block(nnx.Module):
    """Attention and a gated mlp, each behind a norm and added to the residual stream."""

    def __init__(self, config: MD4Transformer, rngs: nnx.Rngs, dtype: jnp.dtype):
        self.config = config
        width = config.width
        self.norm1 = norm(config)
        thrice = (width,) * 3
        self.qkv = Linear(width, thrice, rngs, dtype=dtype, use_bias=False, split="columns")
        self.attn_out = Linear(width, width, rngs, dtype=dtype, use_bias=False, split="rows")
        self.norm2 = norm(config)
        self.mlp = MLP(
            config.mlp, width, rngs, dtype=dtype, use_bias=False, hidden=gated_width(width)
        )
        self.modulation: Any = modulation(config, 6, rngs)

    def __call__(
        self,
        x: Float[Array, "b l d"],
        mask: AttentionMask,
        table: Table,
        *,
        cond: Float[Array, " b #l c"] | None,
        key: Key[Array, ""] | None,
    ) -> Float[Array, "b l d"]:
        """Returns the residual stream after this block; `cond` is act(c)."""
        vectors: Sequence[Array | float] = (0.0, 0.0, 1.0) * 2
        if self.modulation is not None:
            vectors = jnp.split(self.modulation(cond), 6, axis=-1)
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = vectors
        keys = (None, None) if key is None else (stream(key, "attention"), stream(key, "mlp"))
        with jax.named_scope("attention"):
            y = self._attend(modulate(self.norm1(x), shift_1, scale_1), mask, table)
            x = x + gate_1 * dropout(keys[0], y, self.config.dropout)
        with jax.named_scope("mlp"):
            y = self.mlp(modulate(self.norm2(x), shift_2, scale_2))
            return x + gate_2 * dropout(keys[1], y, self.config.dropout)

    def _attend(self, y: Float[Array, "b l d"], mask: AttentionMask, table: Table):
        heads = (*y.shape[:2], self.config.heads, -1)
        q, k, v = (x.reshape(heads) for x in self.qkv.parts(y))
        q, k = rotate_pairs(q, table), rotate_pairs(k, table)
        out = attention(q, k, v, mask, self.config.attention)
        return self.attn_out(out.reshape(y.shape))


class MD4Module(nnx.Module):
    """The module of `MD4Transformer`."""

    def __init__(self, config: MD4Transformer, columns: int, rngs: nnx.Rngs):
        self.config = config
        self.dtype = compute_dtype(config.dtype)
        width, narrow = config.width, config.embed_width
        self.time: Any = TimeEmbedding(config.cond_dim, rngs) if config.cond_dim else None
        self.embed = Embedding(columns, narrow or width, rngs)
        self.widen: Any = Linear(narrow, width, rngs, dtype=self.dtype) if narrow else None
        self.blocks = stack(lambda rngs: MD4Block(config, rngs, self.dtype), config.depth, rngs)
        self.norm = norm(config)
        self.modulation: Any = modulation(config, 2, rngs)
        self.head = Linear(
            width, columns, rngs, dtype=self.dtype, use_bias=False, zero=True, split="whole"
        )

    def __call__(
        self,
        inputs: NetInput,
        *,
        condition: Float[Array, " b #l"] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Readout:
        cond = self._cond(inputs, condition)
        with jax.named_scope("embed"):
            x = self.embed(inputs.tokens)
            if self.widen is not None:
                x = self.widen(x).astype(jnp.float32)
        x = run_blocks(self.blocks, x, inputs, cond=cond, key=key)
        with jax.named_scope("head"):
            hidden = self.norm(x)
            if self.modulation is not None:
                hidden = modulate(hidden, *jnp.split(self.modulation(cond), 2, axis=-1))
            hidden = hidden.astype(self.dtype)
        return Readout(hidden, *self.head.arrays(), chunk=self.config.logits_chunk)

    def _cond(self, inputs: NetInput, condition: Float[Array, " b #l"] | None):
        """Returns act(c), the input of all modulations."""
        if self.time is None:
            if condition is not None:
                raise ValueError(
                    "condition: a network with cond_dim=0 has no input for the noise level"
                )
            return None
        if condition is None:
            condition = jnp.zeros((inputs.tokens.shape[0], 1))
        return GATES[self.config.mlp](self.time(condition))
