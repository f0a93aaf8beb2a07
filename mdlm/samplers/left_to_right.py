"""Sampling from a causal network, token by token: the autoregressive baseline.

    p(x) = prod_i p(x_i | x_<i)

A network with a key-value cache reads the prompts once; each later call reads one token of each
row. The rows of a batch may be at different positions.
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
    """Adds the key-value cache of the tokens that the network has read."""

    cache: Any  # KeyValues, or None


@dataclass(frozen=True, kw_only=True)
class LeftToRight(Sampler):
    """Writes the open positions of each row from left to right.

    Position 0 must be fixed in every row (the start token): a causal network has no distribution
    for it, and it would keep the prior's token. Other fixed tokens stay, but each token is
    conditioned on those to its left only.

    NFE is one call for the prompts, and one for each position from the first to the last open one,
    in the row where these are most (for a network without a cache: one for each position that some
    row writes).
    """

    attends: ClassVar[Attends] = "causal"

    def begin(self, state: SampleState, diffusion: Diffusion) -> ReadState:
        cache = diffusion.denoise(NetInput(tokens=state.tokens, make_cache=True)).cache
        if cache is None:
            return extended(state, ReadState, cache=None)
        # The token before the first open position is read again: its logits predict that position.
        first_open = jnp.argmax(~state.is_fixed.at[:, 0].set(True), axis=1)
        at = jnp.maximum(first_open.astype(jnp.int32) - 1, 0)
        return extended(state, ReadState, nfe=state.nfe + 1, cache=replace(cache, at=at))

    def step(self, state: ReadState, diffusion: Diffusion) -> ReadState:
        position = jnp.arange(state.tokens.shape[1])[None, :]
        cache: KeyValues | None = state.cache
        step = state.step
        here = step + 1 if cache is None else cache.at[:, None] + 1
        is_next = ~state.is_fixed & (position == here)
        # Each position is written once, so its key leaves out the step: with or without a cache the
        # draws are the same.
        asked = replace(state, step=jnp.zeros_like(state.step))
        if cache is None:
            state = self.write(asked, is_next, None, diffusion)
        else:
            # Tokens with a fixed token after them must be read too.
            prediction = diffusion.denoise(NetInput(tokens=state.tokens, cache=cache))
            answered = replace(diffusion, denoise=lambda inputs, *, key=None: prediction)
            written = self.write(asked, is_next, None, answered)
            state = replace(written, nfe=asked.nfe + 1, cache=prediction.cache)
        is_left = ~state.is_fixed & (position > here)
        return replace(state, step=step, done=~is_left.any(-1))
