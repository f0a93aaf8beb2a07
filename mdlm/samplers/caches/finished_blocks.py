"""The exact cache of samplers that go from one diffusion block to the next.

The network attends to one noised block and to the clean tokens of the blocks before it. These
never change again, and neither do their keys and values. A call reads the noised block, and in the
first call of a block also the clean tokens of the block just finished. The prompt's whole blocks
are read in one call at the start.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool

from mdlm.diffusion import Diffusion
from mdlm.samplers.caches.base import Cache, InBlocks, Read, nothing_stored
from mdlm.samplers.state import Proposal, State
from mdlm.types import ArrayTree, Attends, NetInput, Reading, pytree


@pytree
class BlocksState:
    """What is stored of the finished blocks of a batch."""

    stored: Any  # KeyValues; with guidance by two calls, those of both
    count: Any  # Int[Array, "b 1"], blocks of each row whose clean tokens have been read


@dataclass(frozen=True, kw_only=True)
class FinishedBlocks(Cache):
    """Exact. Keeps the finished blocks, which are not read again. With a network that stores
    nothing, every call reads all."""

    exact: ClassVar[bool] = True
    attends: ClassVar[Attends] = "blocks"

    def begin(self, sampler: InBlocks, state: State, diffusion: Diffusion) -> State:
        stored = nothing_stored(state.tokens, diffusion)
        if stored is None:
            return state
        b, l = state.tokens.shape
        size = sampler.longest_block() or l
        is_open = ~state.is_fixed
        known = jnp.where(is_open.any(-1), jnp.argmax(is_open, axis=-1), 0)[:, None]
        count = (known // size).astype(jnp.int32)

        def read_prompts() -> ArrayTree:
            place = jnp.arange(l, dtype=jnp.int32)[None]
            reading = Reading(
                stored=stored,
                at=jnp.where(place < count * size, l + place, 2 * l),
                asked=jnp.zeros((), jnp.int32),
            )
            inputs = NetInput(tokens=state.tokens, t=jnp.ones((b, 1)), reading=reading)
            return diffusion.denoise(inputs).cache

        is_any = (count > 0).any()
        cache = BlocksState(stored=jax.lax.cond(is_any, read_prompts, lambda: stored), count=count)
        return replace(state, cache=cache, nfe=state.nfe + is_any)

    def ask(
        self,
        sampler: InBlocks,
        state: State,
        is_asked: Bool[Array, "b l"],
        diffusion: Diffusion,
        read: Read,
    ) -> tuple[State, Proposal]:
        l, kept = state.tokens.shape[1], state.cache
        size = sampler.longest_block() or l
        is_live = is_asked.any(-1, keepdims=True)
        first = jnp.argmax(is_asked, axis=-1, keepdims=True).astype(jnp.int32) // size * size
        begin = kept.count * size  # of the clean tokens that are not stored
        # A network with `shift` computes the first logits at the clean token before the block.
        shift = int(diffusion.shift)
        needed = size + shift

        def at_most(more: int) -> tuple[Proposal, ArrayTree]:
            """Reads the noised block, and of the clean tokens before it at most so many."""
            order = jnp.arange(needed + more, dtype=jnp.int32)[None]
            before = jnp.where(first > 0, l + first - 1, 2 * l)
            clean = l + begin + order - needed
            clean = jnp.where(clean < l + first - shift, clean, 2 * l)
            at = jnp.where(order < needed, before, clean)
            at = jnp.where(order < size, first + order, at)
            return read(
                Reading(
                    stored=kept.stored,
                    at=jnp.where(is_live, at, 2 * l),
                    asked=jnp.asarray(needed),
                    chunk=needed,
                )
            )

        is_behind = is_live & (begin < first)
        proposal, stored = jax.lax.cond(is_behind.any(), lambda: at_most(l), lambda: at_most(0))
        after = BlocksState(stored=stored, count=jnp.where(is_behind, first // size, kept.count))
        return replace(state, cache=after, nfe=state.nfe + is_live.any()), proposal
