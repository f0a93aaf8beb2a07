"""Sampling from a causal network, token by token: the autoregressive baseline.

    p(x) = prod_i p(x_i | x_<i)

A network with a key-value cache reads the prompts once; each later call reads one token of each
row. The rows of a batch may be at different positions.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax.numpy as jnp
from jax import Array
from jaxtyping import Int

from mdlm.diffusion import Diffusion
from mdlm.samplers.base import Sampler
from mdlm.samplers.state import SampleState, extended
from mdlm.types import ArrayTree, Attends, NetInput, Reading, pytree


@pytree
class ReadState(SampleState):
    """Adds what the network has read."""

    stored: Any  # KeyValues of the tokens read, or None
    at: Any  # Int[Array, " b"], position of the token that each row reads next


@dataclass(frozen=True, kw_only=True)
class LeftToRight(Sampler):
    """Writes the open positions of each row from left to right.

    Position 0 must be fixed in every row (the start token): a causal network has no distribution
    for it, and it would keep the prior's token. Other fixed tokens stay, but each token is
    conditioned on those to its left only.

    NFE is one call for prompts of several tokens, and one for each position from the first to the
    last open one, in the row where these are most (for a network without a cache: one for each
    position that some row writes).
    """

    keeps_written: ClassVar[bool] = True
    attends: ClassVar[Attends] = "causal"

    def begin(self, state: SampleState, diffusion: Diffusion) -> ReadState:
        stored, at = prompts_read(state, diffusion)
        nfe = state.nfe + (0 if stored is None else (at > 0).any())
        return extended(state, ReadState, nfe=nfe, stored=stored, at=at)

    def step(self, state: ReadState, diffusion: Diffusion) -> ReadState:
        position = jnp.arange(state.tokens.shape[1])[None, :]
        step = state.step
        here = step + 1 if state.stored is None else state.at[:, None] + 1
        is_next = ~state.is_fixed & (position == here)
        # Each position is written once, so its key leaves out the step: with or without a cache the
        # draws are the same.
        asked = replace(state, step=jnp.zeros_like(state.step))
        if state.stored is None:
            state = self.write(asked, is_next, None, diffusion)
        else:
            # Tokens with a fixed token after them must be read too.
            reading = Reading(stored=state.stored, at=state.at[:, None])
            prediction = diffusion.denoise(NetInput(tokens=state.tokens, reading=reading))
            answered = replace(diffusion, denoise=lambda inputs, *, key=None: prediction)
            written = self.write(asked, is_next, None, answered)
            read = dict(stored=prediction.cache, at=state.at + 1)
            state = replace(written, nfe=asked.nfe + 1, **read)
        is_left = ~state.is_fixed & (position > here)
        return replace(state, step=step, done=~is_left.any(-1))


def prompts_read(state: SampleState, diffusion: Diffusion) -> tuple[ArrayTree, Int[Array, " b"]]:
    """Has a causal network read the prompts, in one call. Returns what it stored, None if it stores
    nothing, and how many tokens of each row that is: all before the one that gives the distribution
    of the first open position."""
    l = state.tokens.shape[1]
    first_open = jnp.argmax(~state.is_fixed.at[:, 0].set(True), axis=1)
    count = jnp.maximum(first_open.astype(jnp.int32) - 1, 0)
    position = jnp.arange(l, dtype=jnp.int32)[None]
    reading = Reading(
        stored=None,
        at=jnp.where(position < count[:, None], position, l),
        asked=jnp.zeros((), jnp.int32),
    )
    return diffusion.denoise(NetInput(tokens=state.tokens, reading=reading)).cache, count
