"""Sampling from a causal network, one token after the other: the autoregressive baseline.

    p(x) = prod_i p(x_i | x_<i)

A network that has a cache reads the prompts once, and then in each call the one token of each row
that was written last. Rows need not be at the same place.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax.numpy as jnp

from mdlm.diffusion import Diffusion
from mdlm.samplers.base import Sampler
from mdlm.samplers.state import SampleState, extended
from mdlm.types import Attends, KeyValues, NetInput, pytree


@pytree
class ReadState(SampleState):
    """What the network has read."""

    cache: Any  # KeyValues, or None


@dataclass(frozen=True, kw_only=True)
class LeftToRight(Sampler):
    """Position 0 must be fixed in every row (the start token): nothing precedes it, so a causal
    network has no law for it, and it would keep the prior's token. Other fixed positions are
    kept, but a causal network sees only those to the left of what it writes.

    NFE is one call for the prompts, and one for each place from the first that is open to the last
    of the row where these are most (with a network that has no cache: one for each place at which
    something is written).
    """

    attends: ClassVar[Attends] = "causal"

    def begin(self, state: SampleState, diffusion: Diffusion) -> ReadState:
        cache = diffusion.denoise(NetInput(tokens=state.tokens, make_cache=True)).cache
        if cache is None:
            return extended(state, ReadState, cache=None)
        # What stands before the first open place is read again, for what it says of that place.
        first_open = jnp.argmax(~state.is_fixed.at[:, 0].set(True), axis=1)
        at = jnp.maximum(first_open.astype(jnp.int32) - 1, 0)
        return extended(state, ReadState, nfe=state.nfe + 1, cache=replace(cache, at=at))

    def step(self, state: ReadState, diffusion: Diffusion) -> ReadState:
        position = jnp.arange(state.tokens.shape[1])[None, :]
        cache: KeyValues | None = state.cache
        step = state.step
        here = step + 1 if cache is None else cache.at[:, None] + 1
        is_next = ~state.is_fixed & (position == here)
        # Each place is written once, so its draw needs no step: with a cache or without, the same.
        asked = replace(state, step=jnp.zeros_like(state.step))
        if cache is None:
            state = self.write(asked, is_next, None, diffusion)
        else:
            # Also tokens after which nothing is written have to be read.
            prediction = diffusion.denoise(NetInput(tokens=state.tokens, cache=cache))
            answered = replace(diffusion, denoise=lambda inputs, *, key=None: prediction)
            written = self.write(asked, is_next, None, answered)
            state = replace(written, nfe=asked.nfe + 1, cache=prediction.cache)
        is_left = ~state.is_fixed & (position > here)
        return replace(state, step=step, done=~is_left.any(-1))
