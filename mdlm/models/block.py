"""The network of block diffusion (BD3-LM, arXiv:2503.09573): a DiT over noised and clean tokens.

    rows of 2 l tokens:  [tokens ; clean],  both halves with the rotary positions 0 .. l-1
    logits about token i:  from entry i of the first half

A noised token attends to its own noised diffusion block and to the earlier clean blocks, a clean
one to the clean blocks up to its own (`AttentionMask`), so one pass gives p(x_i | noised own block,
earlier clean blocks) for all blocks at once. Parameters are those of `DiT`. The clean half does not
depend on the noise: it is conditioned on the noise level 0.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, Key

from mdlm.models.attention.mask import Halves
from mdlm.models.block_rows import flops_of_both, joined
from mdlm.models.decoding.kv_cache import ReadPrediction
from mdlm.models.decoding.last_block import DeferredReadout
from mdlm.models.dit import DiT, DiTModule
from mdlm.models.readout import Readout
from mdlm.models.stack import mask_of, run_blocks, run_but_last
from mdlm.types import Attends, NetInput


@dataclass(frozen=True, kw_only=True)
class BlockDiT(DiT):
    """A DiT that attends to one noised diffusion block and to earlier clean ones.

    The length of rows must be a multiple of `block_size`. With `block_size` 1 it models a token
    given the earlier ones; with one block of the whole row it is the DiT.
    """

    attends: ClassVar[Attends] = "blocks"

    block_size: int

    def __post_init__(self):
        super().__post_init__()
        if self.block_size < 1:
            raise ValueError(f"block_size={self.block_size}: must be at least 1")

    def flops(self, rows: float, length: int, scored: float, columns: int) -> float:
        return flops_of_both(super().flops, self, rows, length, scored, columns)

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
    ) -> Readout | DeferredReadout | ReadPrediction:
        """Returns the prediction about `inputs.tokens`.

        Raises ValueError if `inputs.clean` is missing, or `block_size` does not divide the length.
        """
        length = inputs.tokens.shape[1]
        halves = Halves(length, self.config.block_size)
        cond = self._cond(inputs, condition)
        both = joined(inputs)
        full_cond = cond if condition is None else self._with_clean(cond, length)
        if inputs.reading is not None:
            mask = mask_of(both, halves=halves)
            return self._read(inputs, both, mask, cond, full_cond)
        with jax.named_scope("embed"):
            x = self.embed(both.tokens)
        if inputs.defer_last_block and key is None:
            begun = run_but_last(self.blocks, x, both, halves=halves, cond=full_cond)
            return DeferredReadout(begun, cond, self.readout, length)
        x = run_blocks(self.blocks, x, both, halves=halves, cond=full_cond, key=key)
        return self.readout(x[:, :length], cond)

    def _with_clean(self, cond, length):
        """Returns the conditioning of both halves: `cond` for the noised, level 0 for the clean."""
        b, _, width = cond.shape
        clean = self.noise_level(jnp.zeros((b, 1)))
        return jnp.concatenate(
            [jnp.broadcast_to(part, (b, length, width)) for part in (cond, clean)], axis=1
        )
