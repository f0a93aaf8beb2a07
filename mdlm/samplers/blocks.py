"""Sampling one diffusion block after another (BD3-LM, arXiv:2503.09573 alg. 2).

p(x) = prod_j p(x_j | blocks before j). Block j is sampled by the ancestral chain of the masked
process from all masks (see `ancestral`), conditioned on the finished blocks before it; later blocks
are not attended to. With blocks of one token the samples have the network's autoregressive
distribution exactly; with larger blocks, in the limit of many steps. Finished blocks are kept, see
`caches.finished_blocks`; without a cache every call reads the whole row [noised ; clean].
"""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Int, Key

from mdlm.diffusion import Diffusion
from mdlm.processes.masked import Masked
from mdlm.samplers.ancestral import RevealState, due_steps, reveal_due
from mdlm.samplers.caches.base import Cache
from mdlm.samplers.caches.finished_blocks import FinishedBlocks
from mdlm.samplers.grid import GridSampler, LastStep
from mdlm.samplers.requirements import check_length, rates_differ
from mdlm.samplers.state import extended
from mdlm.types import Attends


@dataclass(frozen=True, kw_only=True)
class BlockByBlock(LastStep, GridSampler):
    """Takes the steps of `Ancestral` in each block; `block_size` must be the network's.

    The rows of a batch may be at different blocks. NFE is at most the tokens of a row, and at most
    `steps` (`steps + 1` if alpha(0) < 1) for each block.

    Fixed tokens stay, but those of later blocks influence nothing before their own block.
    """

    keeps_written: ClassVar[bool] = True
    attends: ClassVar[Attends] = "blocks"

    block_size: int
    cache: Cache | None = FinishedBlocks()

    def __post_init__(self):
        super().__post_init__()
        if self.block_size < 1:
            raise ValueError(f"block_size={self.block_size}: must be at least 1")

    def longest_block(self) -> int | None:
        return self.block_size

    def incompatibility(self, process, parameterization, network=None):
        reason = super().incompatibility(process, parameterization, network)
        return reason or rates_differ(process, "reveals")

    def init(
        self,
        keys: Key[Array, " b"],
        tokens: Int[Array, "b l"],
        is_fixed: Bool[Array, "b l"],
        diffusion: Diffusion[Masked],
    ) -> RevealState:
        length = tokens.shape[1]
        check_length(self.block_size, length)
        state = super().init(keys, tokens, is_fixed, diffusion)
        block = jnp.arange(length, dtype=jnp.int32) // self.block_size
        due = due_steps(self, keys, length, diffusion.process) + block[None] * (self.steps + 1)
        return extended(state, RevealState, due=due)

    def step(self, state: RevealState, diffusion: Diffusion[Masked]) -> RevealState:
        return reveal_due(self, state, diffusion)
