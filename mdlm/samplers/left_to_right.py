"""Sampling from a causal network, one token after the other: the autoregressive baseline.

p(x) = prod_i p(x_i | x_<i). Step n writes position n + 1 of every row. Each step is a full
forward pass over the row (there is no key-value cache), so NFE is at most l - 1.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import jax.numpy as jnp

from mdlm.parameterizations.base import Parameterization
from mdlm.processes.base import Process
from mdlm.samplers.base import Sampler
from mdlm.samplers.state import SampleState
from mdlm.types import Denoise, Sees


@dataclass(frozen=True, kw_only=True)
class LeftToRight(Sampler):
    """Position 0 must be fixed in every row (the start token): nothing precedes it, so a causal
    network has no law for it, and it would keep the prior's token. Other fixed positions are
    kept, but a causal network sees only those to the left of what it writes.
    """

    sees: ClassVar[Sees] = "before"

    def step(
        self,
        state: SampleState,
        *,
        process: Process,
        parameterization: Parameterization,
        denoise: Denoise,
    ) -> SampleState:
        position = jnp.arange(state.tokens.shape[1])[None, :]
        is_written = ~state.is_fixed & (position == state.step + 1)
        state = self.write(
            state, is_written, None, parameterization=parameterization, denoise=denoise
        )
        is_left = ~state.is_fixed & (position > state.step + 1)
        return replace(state, done=~is_left.any(-1))
