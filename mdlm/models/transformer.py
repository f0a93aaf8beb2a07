"""The transformer block that the networks share, and the loop over a stack of them.

    x <- x + gate_1 * dropout(attention(shift_1 + (1 + scale_1) * norm(x)))
    x <- x + gate_2 * dropout(mlp(shift_2 + (1 + scale_2) * norm(x)))

With conditioning, the six vectors are a linear function of `cond` (adaLN, arXiv:2212.09748) that
starts at 0, so that each block starts as the identity; without, shift = scale = 0 and gate = 1.
The residual stream x is float32. All blocks are one module whose parameters have a leading axis
of `depth`; `jax.lax.scan` runs along it.
"""

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, Key

from mdlm.keys import by_row, stream
from mdlm.models.attention.dispatch import Implementation, attention
from mdlm.models.attention.mask import OUTPUT, AttentionMask, Halves
from mdlm.models.decoding.last_block import BegunBlock
from mdlm.models.layers import PRODUCT, Linear, NormKind, Precision, dropout, modulate, norm
from mdlm.models.mlp import GATES, MLP, MLPKind, hidden_width
from mdlm.models.network import Network
from mdlm.models.rotary import rotary_table, rotate
from mdlm.parallel.mesh import platform
from mdlm.parallel.sharding import STREAM, moved
from mdlm.types import NetInput

Remat = Literal["auto", "none", "products", "blocks"]
Table = tuple[Float[Array, "#b l 1 half"], Float[Array, "#b l 1 half"]]

UNROLLED = 4
"""Blocks to a turn of the loop on CPUs, where stacking what the backward pass needs is dear."""


@dataclass(frozen=True, kw_only=True)
class Transformer(Network):
    """What the transformers have in common. The defaults are the sizes of the MDLM paper.

    Args:
        width: of the residual stream.
        depth: blocks.
        heads: attention heads, which share the width.
        dropout: probability with which outputs of attention and MLP are dropped, in calls that
            pass a key (the paper trains with 0.1).
        norm: "layer" (zero mean, unit variance) or "rms" (unit mean square, arXiv:1910.07467).
        qk_norm: normalise queries and keys of each head to unit mean square, with one learned
            scale for both (arXiv:2010.04245), so that attention cannot saturate.
        mlp: "gelu"; "relu2", squared ReLU (arXiv:2109.08668); or the gated "swiglu", "geglu" and
            "glu" (arXiv:2002.05202, with 2/3 of the hidden width, so as many parameters).
        use_bias: biases in MLP and head.
        dtype: of the products; parameters, norms, softmax, residual stream and logits are
            float32. "auto" is bfloat16 except on CPUs.
        attention: which implementation computes attention, see `mdlm.models.attention.dispatch`.
        remat: what the backward pass makes anew instead of keeping: "none"; all but the results
            of matrix products and attention ("products"); all inside a block ("blocks", the least
            memory and a third more products). "auto": "products" on TPUs, else nothing.
        logits_chunk: logits that `Prediction.reduce_rows` holds at once on a device (None: see
            `mdlm.models.readout.chunk_size`).
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
    logits_chunk: int | None = None

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
    """ValueError where sizes that all transformers have are impossible, or a field is none of the
    values of its `Literal` in `kinds`."""
    for name in ("width", "depth", "heads", "logits_chunk"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    if config.width % (2 * config.heads):
        raise ValueError(
            f"width={config.width} must be an even multiple of heads={config.heads}"
            " (rotary turns pairs of a head's entries)"
        )
    if not 0 <= config.dropout < 1:
        raise ValueError(f"dropout={config.dropout} must lie in [0, 1)")
    for name, kind in kinds.items():
        if getattr(config, name) not in get_args(kind):
            choices = ", ".join(get_args(kind))
            raise ValueError(f"{name}={getattr(config, name)!r} must be one of {choices}")


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
        mask: AttentionMask,
        table: Table,
        *,
        cond: Float[Array, " b #l c"] | None,
        key: Key[Array, ""] | None,
    ) -> Float[Array, "b l d"]:
        """The residual stream after this block. ValueError if it has adaLN and no `cond`."""
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
        """The rest of the block: `x` came in, `out` came out of all heads, and these are the
        `vectors`. It knows nothing of positions."""
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
        """Shift, scale and gate of the attention, then of the MLP."""
        if self.modulation is None:
            return (0.0, 0.0, 1.0) * 2
        if cond is None:
            raise ValueError("a block with adaLN needs `cond`")
        return jnp.split(self.modulation(cond), 6, axis=-1)


class StackConfig(Protocol):
    """What the loop over a stack of blocks has to know."""

    @property
    def width(self) -> int: ...
    @property
    def depth(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def remat(self) -> Remat: ...


def stack_blocks(
    config: Transformer, rngs: nnx.Rngs, *, cond_dim: int | None, dtype: jnp.dtype
) -> Block:
    """`config.depth` blocks as one: every parameter has a leading axis of that size."""
    return stack(lambda rngs: Block(config, rngs, cond_dim=cond_dim, dtype=dtype), config, rngs)


def stack(make: Callable[[nnx.Rngs], Any], config: StackConfig, rngs: nnx.Rngs) -> Any:
    """As many modules as the depth as one, whose parameters have a leading axis of that size."""
    return nnx.split_rngs(splits=config.depth)(nnx.vmap(make))(rngs)


def run_blocks(
    blocks: Any,  # a stack of `Block`s, or of blocks that are called alike
    x: Float[Array, "b l d"],
    inputs: NetInput,
    *,
    causal: bool,
    halves: Halves | None = None,
    cond: Float[Array, " b #l c"] | None,
    key: Key[Array, ""] | None,
) -> Float[Array, "b l d"]:
    """`x` after all blocks, in order; each block's dropout key is folded from `key`."""
    mask = mask_of(inputs, causal=causal, halves=halves)

    def apply(block: Any, x: Array, table: Table, key: Key[Array, ""] | None) -> Array:
        return block(x, mask, table, cond=cond, key=key)

    return run_stack(apply, blocks, blocks.config, x, inputs, key)


def run_but_last(
    blocks: Any,
    x: Float[Array, "b l d"],
    inputs: NetInput,
    *,
    halves: Halves | None = None,
    cond: Float[Array, " b #l c"] | None,
) -> BegunBlock:
    """`run_blocks` without dropout, up to the keys and values of the last block."""
    mask = mask_of(inputs, causal=False, halves=halves)
    first = jax.tree.map(lambda array: array[:-1], blocks)
    last = jax.tree.map(lambda array: array[-1], blocks)

    def apply(block: Any, x: Array, table: Table, _: None) -> Array:
        return block(x, mask, table, cond=cond, key=None)

    x = run_stack(apply, first, blocks.config, x, inputs, None)
    return BegunBlock(last, x, mask, table_of(inputs, x.shape[1], blocks.config), cond)


def mask_of(inputs: NetInput, *, causal: bool, halves: Halves | None = None) -> AttentionMask:
    """What the positions of these inputs see of each other."""
    return AttentionMask(
        causal=causal, halves=halves, is_valid=inputs.is_valid, segment_ids=inputs.segment_ids
    )


def table_of(inputs: NetInput, length: int, config: StackConfig) -> Table:
    """The rotary table of these inputs, the same for all blocks."""
    positions = jnp.arange(length)[None] if inputs.positions is None else inputs.positions
    return rotary_table(positions, config.width // config.heads)


def run_stack(
    apply: Callable[..., Array],
    blocks: Any,
    config: StackConfig,
    x: Float[Array, "b l d"],
    inputs: NetInput,
    key: Key[Array, ""] | None,
) -> Float[Array, "b l d"]:
    """`x` after `apply(block, x, rotary table, key)` of each of the stacked blocks, in order."""
    table = table_of(inputs, x.shape[1], config)
    keys = None if key is None else by_row(key, jnp.arange(config.depth))

    def step(x, layer):
        block, key = layer
        return apply(block, moved(x, STREAM), table, key), None

    remat = config.remat
    if remat == "auto":
        remat = "products" if platform() == "tpu" else "none"
    step = remembering(remat, step)
    return jax.lax.scan(step, x, (blocks, keys), unroll=unrolled(remat))[0]


def unrolled(remat: Remat) -> int | bool:
    """Blocks to a turn of the loop (True: all).

    On GPUs that keep all for the backward pass, no loop copies it into arrays of all blocks and
    back: a fifth of the time and a third of the memory. Where some is made anew the loop stays, as
    without it the compiler finds that it has seen that before, and keeps it.
    """
    if platform() == "gpu" and remat == "none":
        return True
    return UNROLLED if platform() == "cpu" else 1


def remembering(remat: Remat, step):
    """`step` of a scan with its insides kept for the backward pass, or not, as `remat` says."""
    if remat == "none":
        return step
    policy = None
    if remat == "products":
        policy = jax.checkpoint_policies.save_only_these_names(PRODUCT, OUTPUT)
    return jax.checkpoint(step, prevent_cse=False, policy=policy)
