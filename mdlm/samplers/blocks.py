"""Sampling block after block (BD3-LM, arXiv:2503.09573 alg. 2).

p(x) = prod_j p(x_j | blocks before j), and inside block j the ancestral chain of the masked process
from all masks (see `ancestral`), the blocks before it being done and later ones not looked at. With
blocks of one token this draws from the network's autoregressive law itself, with more as its steps
grow. Every call reads the whole row [noised ; clean] (there is no key-value cache).
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from mdlm.draws import uniforms
from mdlm.parameterizations.base import Parameterization
from mdlm.processes.base import Process
from mdlm.processes.masked import Masked
from mdlm.samplers.base import GridSampler, SampleState, step_keys
from mdlm.types import Denoise, NetInput, Sees


@dataclass(frozen=True, kw_only=True)
class BlockByBlock(GridSampler):
    """`steps` steps down a `grid` of times for each block of `block_size` tokens, which is the
    network's. A step that reveals nothing in any row calls no network, so NFE is at most `steps`
    (one more where alpha(0) < 1) for each block.

    Fixed tokens stay, but the network sees those of later blocks only when it gets there.
    """

    sees: ClassVar[Sees] = "blocks"

    block_size: int

    def __post_init__(self):
        super().__post_init__()
        if self.block_size < 1:
            raise ValueError(f"block_size={self.block_size} must be at least 1")

    def refuses(self, process: Process, parameterization: Parameterization) -> str | None:
        if process.schedule.per_token:
            return "it reveals all tokens at one rate, and the schedule has a rate for each"
        return None

    def inputs(self, tokens: Int[Array, "b l"], t: Float[Array, "b #l"] | None) -> NetInput:
        # What is still masked lies in the block at hand or later: never read as clean.
        return NetInput(tokens=tokens, clean=tokens, t=t)

    def step(
        self,
        state: SampleState,
        *,
        process: Masked,
        parameterization: Parameterization,
        denoise: Denoise,
    ) -> SampleState:
        l = state.tokens.shape[1]
        if l % self.block_size:
            raise ValueError(f"block_size={self.block_size} does not divide the length of {l}")
        # A block takes `steps` steps, and one in which whatever is left is revealed.
        block, step = jnp.divmod(state.step, self.steps + 1)
        t, s = self.times(replace(state, step=step))
        uniform = uniforms(step_keys(state, "whether"), l)
        is_over = step == self.steps
        is_open = process.is_masked(state.tokens) & ~state.is_fixed
        is_here = (jnp.arange(l) // self.block_size == block)[None]
        is_revealed = is_open & is_here & (is_over | (uniform < process.reveal_probability(t, s)))
        state = self.write(
            state, is_revealed, t, parameterization=parameterization, denoise=denoise
        )
        return replace(state, done=(is_open == is_revealed).all(-1))
