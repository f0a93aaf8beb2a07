"""Sampling block after block (BD3-LM, arXiv:2503.09573 alg. 2).

p(x) = prod_j p(x_j | blocks before j), and inside block j the ancestral chain of the masked process
from all masks (see `ancestral`), the blocks before it being done and later ones not looked at. With
blocks of one token this draws from the network's autoregressive law itself, with more as its steps
grow. Every call reads the whole row [noised ; clean] (there is no key-value cache).
"""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, Key

from mdlm.processes.masked import Masked
from mdlm.samplers.ancestral import Ancestral
from mdlm.types import NetInput, Sees


@dataclass(frozen=True, kw_only=True)
class BlockByBlock(Ancestral):
    """The steps of `Ancestral` for each block of `block_size` tokens, which is the network's.
    Rows need not be at the same block. NFE is at most the tokens of a row, and at most `steps`
    (one more where alpha(0) < 1) for each block.

    Fixed tokens stay, but the network sees those of later blocks only when it gets there.
    """

    sees: ClassVar[Sees] = "blocks"

    block_size: int

    def __post_init__(self):
        super().__post_init__()
        if self.block_size < 1:
            raise ValueError(f"block_size={self.block_size} must be at least 1")

    def due(self, keys: Key[Array, " b"], length: int, process: Masked) -> Int[Array, "b l"]:
        if length % self.block_size:
            raise ValueError(f"block_size={self.block_size} does not divide the length of {length}")
        block = jnp.arange(length, dtype=jnp.int32) // self.block_size
        return super().due(keys, length, process) + block[None] * (self.steps + 1)

    def inputs(self, tokens: Int[Array, "b l"], t: Float[Array, " b #l"] | None) -> NetInput:
        # What is still masked lies in the block at hand or later: never read as clean.
        return NetInput(tokens=tokens, clean=tokens, t=t)
