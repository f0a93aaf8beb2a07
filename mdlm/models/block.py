"""The network of block diffusion (BD3-LM, arXiv:2503.09573): a DiT over a text noised and clean.

    rows of 2 l places:  [tokens ; clean],  both halves at the positions 0 .. l-1
    logits about token i:  from place i of the first half

A noised token sees its own noised block and the clean blocks before it, a clean one the clean
blocks up to its own (`AttentionMask`), so one pass gives p(x_i | noised own block, clean blocks
before) for all blocks at once. Parameters are those of `DiT`. What the clean half computes does
not depend on the noise: it is told the noise level 0.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, Key

from mdlm.models.attention.mask import Halves
from mdlm.models.decoding.last_block import DeferredReadout
from mdlm.models.dit import DiT, DiTModule
from mdlm.models.readout import Readout
from mdlm.models.stack import run_blocks, run_but_last
from mdlm.types import Attends, NetInput


@dataclass(frozen=True, kw_only=True)
class BlockDiT(DiT):
    """A DiT that sees noise inside a block of `block_size` tokens and clean blocks before it.

    Rows must be a multiple of the block size long. With `block_size` 1 it models a token given
    those before it; with one block of the whole row it is the DiT.
    """

    attends: ClassVar[Attends] = "blocks"

    block_size: int

    def __post_init__(self):
        super().__post_init__()
        if self.block_size < 1:
            raise ValueError(f"block_size={self.block_size} must be at least 1")

    def flops(self, rows: float, length: int, scored: float, columns: int) -> float:
        """Of both halves; of the scores, those that the split form of the attention makes."""
        once = super().flops(rows, length, scored, columns)
        clean = super().flops(rows, length, 0, columns) - super().flops(rows, 0, 0, columns)
        own = 4 * rows * self.depth * length * self.block_size * self.width
        return once + clean + own

    def module(self, columns: int, rngs: nnx.Rngs) -> nnx.Module:
        return BlockDiTModule(self, columns, rngs)


class BlockDiTModule(DiTModule):
    """The module of `BlockDiT`."""

    config: BlockDiT

    def __call__(
        self,
        inputs: NetInput,
        *,
        condition: Float[Array, " b #l"] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Readout | DeferredReadout:
        """The prediction about `inputs.tokens`.

        ValueError where `inputs.clean` is missing, or blocks do not divide the length.
        """
        if inputs.clean is None:
            raise ValueError("a block-diffusion network reads the clean tokens too: clean=None")
        length = inputs.tokens.shape[1]
        halves = Halves(length, self.config.block_size)
        cond = self._cond(inputs, condition)
        both = joined(inputs)
        with jax.named_scope("embed"):
            x = self.embed(both.tokens)
        told = cond if condition is None else self._with_clean(cond, length)
        if inputs.defer_last_block and key is None:
            begun = run_but_last(self.blocks, x, both, halves=halves, cond=told)
            return DeferredReadout(begun, cond, self.readout, length)
        x = run_blocks(self.blocks, x, both, causal=False, halves=halves, cond=told, key=key)
        return self.readout(x[:, :length], cond)

    def _with_clean(self, cond, length):
        """What both halves are told, where the noised one is told its noise level."""
        b, _, width = cond.shape
        clean = self.noise_level(jnp.zeros((b, 1)))
        return jnp.concatenate(
            [jnp.broadcast_to(part, (b, length, width)) for part in (cond, clean)], axis=1
        )


def joined(inputs: NetInput) -> NetInput:
    """Rows of 2 l places, [tokens ; clean], in the same positions, segments and padding."""
    length = inputs.tokens.shape[1]
    place = jnp.arange(length)[None] if inputs.positions is None else inputs.positions
    twice = lambda x: None if x is None else jnp.concatenate([x, x], axis=1)
    return replace(
        inputs,
        tokens=jnp.concatenate([inputs.tokens, inputs.clean], axis=1),
        clean=None,
        positions=twice(place),
        is_valid=twice(inputs.is_valid),
        segment_ids=twice(inputs.segment_ids),
    )
