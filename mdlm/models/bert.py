"""BERT (arXiv:1810.04805), an encoder that normalises after its sums, with learned positions.

    x      = dropout(norm(table[tokens] + positions[0 .. l-1] + token_types[type]))
    x     <- norm_1(x + dropout(attention(x)));  x <- norm_2(x + dropout(mlp(x)))  for each block
    h      = norm(gelu(x kernel + bias))
    logits = h table^T + bias

Every norm is a LayerNorm with a bias, every matmul but the last has a bias, and GELU is the exact
one. As a diffusion model it predicts the masked tokens of a row from all others, which is what it
was trained for at one noise level.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import AbstractMesh, Mesh
from jaxtyping import Float, Key

from mdlm.errors import InputError
from mdlm.keys import stream
from mdlm.models.decoding.last_block import DeferredReadout
from mdlm.models.head import Transform, predicted
from mdlm.models.layers import Embedding, NormKind, compute_dtype, dropout, norm
from mdlm.models.mlp import MLPKind
from mdlm.models.network import Network
from mdlm.models.readout import Readout
from mdlm.models.rotary import ROTARY_BASE
from mdlm.models.stack import positions_of, run_blocks, run_but_last
from mdlm.models.transformer import Transformer
from mdlm.models.transformer_block import stack_blocks
from mdlm.types import NetInput


@dataclass(frozen=True, kw_only=True)
class Bert(Transformer, Network):
    """The encoder of BERT; the defaults are the sizes of bert-base.

    Args:
        positions: rows of the table of positions, the most tokens of a row.
        token_types: rows of the table of token types. Tokens have type 0 unless the inputs say
            otherwise (`NetInput.token_types`).
    """

    is_post_norm: ClassVar[bool] = True
    attn_out_bias: ClassVar[bool] = True

    norm: NormKind = "layer_bias"
    norm_epsilon: float | None = 1e-12
    mlp: MLPKind = "gelu_erf"
    qkv_bias: bool = True
    tied: bool = True
    positions: int = 512
    token_types: int = 2

    def __post_init__(self):
        super().__post_init__()
        for name in ("positions", "token_types"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        if (self.rotary_base, self.rotary_fraction) != (ROTARY_BASE, 1.0):
            raise ValueError(
                f"rotary_base={self.rotary_base}, rotary_fraction={self.rotary_fraction}:"
                " Bert has learned positions, and none that are rotary; leave both out"
            )
        if not self.tied:
            raise ValueError("tied=False: the head of Bert is the embedding table; use tied=True")

    @property
    def modulated(self) -> int:
        return 0

    @property
    def rotary(self) -> None:
        return None

    def check_mesh(self, mesh: Mesh | AbstractMesh, length: int) -> None:
        super().check_mesh(mesh, length)
        if length > self.positions:
            raise InputError(self._too_long(length))

    def _too_long(self, length: int) -> str:
        return f"length={length}: must be at most network.positions={self.positions}"

    def flops(self, rows: float, length: int, scored: float, columns: int) -> float:
        transform = 2 * rows * length * self.width**2
        return super().flops(rows, length, scored, columns) + transform

    def module(self, columns: int, rngs: nnx.Rngs) -> nnx.Module:
        return BertModule(self, columns, rngs)


class BertModule(nnx.Module):
    """The module of `Bert`."""

    head = None

    def __init__(self, config: Bert, columns: int, rngs: nnx.Rngs):
        self.config = config
        self.dtype = compute_dtype(config.dtype)
        width = config.width
        self.embed = Embedding(columns, width, rngs)
        self.positions = Embedding(config.positions, width, rngs)
        self.token_types = Embedding(config.token_types, width, rngs)
        self.embed_norm = norm(config.norm, width, config.norm_epsilon)
        self.blocks = stack_blocks(config, rngs, cond_dim=None, dtype=self.dtype)
        self.transform = Transform(config, rngs, dtype=self.dtype)
        self.head_bias: Any = nnx.Param(jnp.zeros(columns)) if config.use_bias else None

    def __call__(
        self,
        inputs: NetInput,
        *,
        condition: Float[Array, " b #l"] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Readout | DeferredReadout:
        """Returns the prediction about `inputs.tokens`.

        Raises ValueError if the rows are longer than the table of positions.
        """
        if condition is not None:
            raise ValueError("condition: Bert has no input for the noise level")
        x = self._embed(inputs, key)
        if inputs.defer_last_block and key is None:
            begun = run_but_last(self.blocks, x, inputs, cond=None)
            return DeferredReadout(begun, None, self.readout, x.shape[1])
        x = run_blocks(self.blocks, x, inputs, causal=False, cond=None, key=key)
        return self.readout(x, None)

    def readout(self, x: Float[Array, "b l d"], _: None) -> Readout:
        """Returns the prediction from the output of the last block."""
        with jax.named_scope("head"):
            bias = None if self.head_bias is None else self.head_bias[...]
            return predicted(self, self.transform(x), bias=bias, features=x)

    def _embed(self, inputs: NetInput, key: Key[Array, ""] | None) -> Float[Array, "b l d"]:
        length = inputs.tokens.shape[1]
        if length > self.config.positions:
            raise ValueError(self.config._too_long(length))
        types = jnp.zeros((1, 1), jnp.int32) if inputs.token_types is None else inputs.token_types
        with jax.named_scope("embed"):
            x = self.embed(inputs.tokens) + self.positions(positions_of(inputs, length))
            x = self.embed_norm(x + self.token_types(types))
            return dropout(None if key is None else stream(key, "embed"), x, self.config.dropout)
