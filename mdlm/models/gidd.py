"""The network of the scaling study of GIDD (arXiv:2512.10858), without the noise level as input.

    x      = table[tokens]
    x     <- x + (4 / depth) attention(norm(x));  x <- x + (4 / depth) mlp(norm(x))
    logits = (512 / width) norm(x) kernel
    mlp(y) = W_2 relu(W_1 y)^2, with biases;  norm: unit mean square, then a learned scale

Queries and keys are normalised over the whole width before they are split into heads, and rotated
by rotary positions. Each head has one more key and value, learned, without a position, and attended
to from every position, so that a head can attend to no token. Scores are q k / sqrt(d), limited by
30 tanh(s / 30). With these factors one learning rate suits all depths and widths.

Tokens of a prompt attend only to each other: position i attends to j unless i is clean (t = 0
there) and j is noisy. So the hidden states of a prompt do not change while the rest is sampled.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Key

from mdlm.keys import stream
from mdlm.models.attention.dispatch import by_heads, by_places
from mdlm.models.attention.mask import AttentionMask
from mdlm.models.layers import Embedding, Linear, Precision, RMSNorm, compute_dtype, dropout
from mdlm.models.mlp import MLP
from mdlm.models.network import Network, Remat
from mdlm.models.readout import Readout
from mdlm.models.rotary import Rotary, rotate
from mdlm.models.stack import Table, run_stack, stack
from mdlm.models.transformer import check_sizes
from mdlm.types import NetInput

CAP = 30.0


@dataclass(frozen=True, kw_only=True)
class ScaledTransformer(Network):
    """The bidirectional transformer of the scaling study.

    With times per token (`[b l]`), the tokens at t = 0 are a prompt. With one time per row there is
    no prompt.

    Attention is plain matmuls on any device, as no fused kernel limits its scores.

    Args:
        width, depth, heads: of the residual stream; blocks; attention heads.
        hidden: hidden width of the mlp; 0 means four times the width.
        dropout: probability with which outputs of attention and mlp are dropped.
        dtype, remat, logits_chunk: see `mdlm.models.network.Network`.
    """

    width: int = 512
    depth: int = 8
    heads: int = 8
    hidden: int = 0
    dropout: float = 0.0
    dtype: Precision = "auto"
    remat: Remat = "auto"

    def __post_init__(self):
        check_sizes(self, dtype=Precision, remat=Remat)
        if self.hidden < 0:
            raise ValueError(f"hidden={self.hidden}: must be at least 0")

    @property
    def hidden_width(self) -> int:
        return self.hidden or 4 * self.width

    @property
    def shared(self) -> tuple[int, int]:
        return self.heads, self.hidden_width

    @property
    def rotary(self) -> Rotary:
        return Rotary(self.width // self.heads)

    def module(self, columns: int, rngs: nnx.Rngs) -> nnx.Module:
        return ScaledModule(self, columns, rngs)

    def flops(self, rows: float, length: int, scored: float, columns: int) -> float:
        width = self.width
        per_token = 4 * width * width + 2 * width * self.hidden_width
        attended = 2 * (length + 1) * width
        return 2 * (rows * length * self.depth * (per_token + attended) + scored * width * columns)


class ScaledBlock(nnx.Module):
    """Attention and an mlp, each behind a norm, each added with the weight 4 / depth."""

    def __init__(self, config: ScaledTransformer, rngs: nnx.Rngs, *, dtype: jnp.dtype):
        self.config = config
        width, heads = config.width, config.heads

        def linear(split: Any = "columns"):
            return Linear(width, width, rngs, dtype=dtype, use_bias=False, split=split)

        self.norm1, self.norm2 = RMSNorm(width), RMSNorm(width)
        self.q, self.k, self.v, self.attn_out = linear(), linear(), linear(), linear("rows")
        self.q_norm, self.k_norm = RMSNorm(width), RMSNorm(width)
        self.key = nnx.Param(jnp.zeros((heads, width // heads)))
        self.value = nnx.Param(jnp.zeros((heads, width // heads)))
        self.mlp = MLP("relu2", width, rngs, dtype=dtype, use_bias=True, hidden=config.hidden_width)

    def __call__(
        self,
        x: Float[Array, "b l d"],
        may_attend: Bool[Array, "#b 1 #l l"],
        table: Table,
        *,
        key: Key[Array, ""] | None,
    ) -> Float[Array, "b l d"]:
        """Returns the residual stream after this block."""
        keys = (None, None) if key is None else (stream(key, "attention"), stream(key, "mlp"))
        rate, share = self.config.dropout, 4 / self.config.depth
        with jax.named_scope("attention"):
            y = self._attend(self.norm1(x), may_attend, table)
            x = x + share * dropout(keys[0], y, rate)
        with jax.named_scope("mlp"):
            return x + share * dropout(keys[1], self.mlp(self.norm2(x)), rate)

    def _attend(self, y: Float[Array, "b l d"], may_attend: Bool[Array, "#b 1 #l l"], table: Table):
        heads = (*y.shape[:2], self.config.heads, -1)
        v = self.v(y).reshape(heads)
        q, k = self.q_norm(self.q(y)), self.k_norm(self.k(y))
        q, k = (rotate(x.reshape(heads), table).astype(v.dtype) for x in (q, k))
        q, k, v = by_heads(q), by_heads(k), by_heads(v)
        scale = q.shape[-1] ** -0.5
        # Scores and softmax in float32.
        own = dict(preferred_element_type=jnp.float32)
        scores = CAP * jnp.tanh(jnp.einsum("blhd,bmhd->bhlm", q, k, **own) * (scale / CAP))
        extra = jnp.einsum("blhd,hd->bhl", q, self.key[...].astype(q.dtype), **own)
        extra = CAP * jnp.tanh(extra * (scale / CAP))[..., None]
        scores = jnp.concatenate([extra, jnp.where(may_attend, scores, -jnp.inf)], axis=-1)
        p = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
        value = self.value[...].astype(v.dtype)
        out = jnp.einsum("bhlm,bmhd->blhd", p[..., 1:], v)
        out = out + jnp.einsum("bhl,hd->blhd", p[..., 0], value)
        return self.attn_out(by_places(out).reshape(y.shape))


class ScaledModule(nnx.Module):
    """The module of `ScaledTransformer`."""

    def __init__(self, config: ScaledTransformer, columns: int, rngs: nnx.Rngs):
        self.config = config
        self.dtype = compute_dtype(config.dtype)
        self.embed = Embedding(columns, config.width, rngs)
        make = lambda rngs: ScaledBlock(config, rngs, dtype=self.dtype)
        self.blocks = stack(make, config.depth, rngs)
        self.norm = RMSNorm(config.width)
        self.head = Linear(
            config.width, columns, rngs, dtype=self.dtype, use_bias=False, zero=True, split="whole"
        )

    def __call__(
        self,
        inputs: NetInput,
        *,
        condition: Float[Array, " b #l"] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Readout:
        if condition is not None:
            raise ValueError("condition: ScaledTransformer has no input for the noise level")
        may_attend = _may_attend(inputs)

        def apply(block: Any, x: Array, table: Table, key: Key[Array, ""] | None) -> Any:
            return block(x, may_attend, table, key=key), None

        with jax.named_scope("embed"):
            x = self.embed(inputs.tokens)
        x, _ = run_stack(apply, (self.blocks,), self.config, x, inputs, key)
        with jax.named_scope("head"):
            hidden = (self.norm(x) * (512 / self.config.width)).astype(self.dtype)
        return Readout(hidden, *self.head.arrays(), chunk=self.config.logits_chunk)


def _may_attend(inputs: NetInput) -> Bool[Array, "#b 1 #l l"]:
    l = inputs.tokens.shape[1]
    mask = AttentionMask(is_valid=inputs.is_valid, segment_ids=inputs.segment_ids)
    positions: Any = slice(0, l)
    dense = mask.dense(positions, positions)
    may_attend = jnp.ones((1, 1, 1, l), bool) if dense is None else dense
    if inputs.t is not None and inputs.t.shape[1] == l > 1:
        is_clean = inputs.t == 0
        may_attend = may_attend & ~(is_clean[:, None, :, None] & ~is_clean[:, None, None, :])
    return may_attend
