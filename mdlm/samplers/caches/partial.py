"""Approximate caches: what a call reads, and which calls read all.

A network that attends to the whole row changes its keys and values at every position when a token
is written anywhere. Keeping some of them is an approximation: between two full calls, which read
the whole row, a call reads some of its positions. Nothing is approximate if every call is full.

What a row reads depends on that row only, and so do its samples.
"""

import abc
import functools
import operator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from mdlm.diffusion import Diffusion
from mdlm.samplers.caches.base import Cache, InBlocks, Read, nothing_stored
from mdlm.samplers.state import Proposal, SampleState, State
from mdlm.types import ArrayTree, KeyValues, Reading, pytree


@pytree
class View:
    """What a cache knows of the rows before a call."""

    is_open: Any  # Bool[Array, "b l"], positions still to be written
    is_fixed: Any  # Bool[Array, "b l"], positions that have the caller's token
    is_here: Any  # Bool[Array, "b l"], the block that is being written; else the whole row
    is_new: Any  # Bool[Array, "b 1"], whether this call is the block's first
    is_changed: Any  # Bool[Array, "b l"], tokens written since they were last read
    calls: Any  # Int[Array, "b 1"], calls since the last full one
    priority: Any  # Float[Array, "b l"], of the proposals of the last full call; -inf: none
    confidence: Any  # Float[Array, "b l"], the network's probability of the token that was proposed
    # last at each position; 1: none was
    rollout: Any  # Float[Array, "b l"], of the last call, see `Reading`; None: not wanted


@dataclass(frozen=True, kw_only=True)
class Partial(Cache):
    """Which positions a call reads between two full calls. The samples are approximate.

    Args:
        refresh: every so many calls, one is full; 1 is the same as no cache. None: only the calls
            that the cache itself wants to be full, at least a row's first.
    """

    rollout: ClassVar[bool] = False
    """Whether `reads` wants the attention rollout of the last call."""

    refresh: int | None = None

    def __post_init__(self):
        if self.refresh is not None and self.refresh < 1:
            raise ValueError(
                f"refresh={self.refresh}: must be at least 1 (every call reads all), or None"
            )

    @abc.abstractmethod
    def reads(self, view: View) -> Bool[Array, "b l"]:
        """The positions that a call reads if it is not full. Those whose logits it needs, and the
        ones from which these are computed, are read in any case."""

    def is_due(self, view: View) -> Bool[Array, "b 1"]:
        """Whether a call must be full, `refresh` aside. By default the first of each block."""
        return view.is_new

    def candidates(self, view: View) -> Bool[Array, "b l"]:
        """The positions that may be written by a call that is not full: by default all."""
        return view.is_open

    def most(self, length: int, block_size: int | None) -> int:
        """The largest number of positions that `reads` may give for a row."""
        return length

    def begin(self, sampler: InBlocks, state: State, diffusion: Diffusion) -> State:
        b, l = state.tokens.shape
        stored = nothing_stored(state.tokens, diffusion, rollout=self.rollout)
        if stored is None:
            raise ValueError("the network keeps no keys and values: leave the sampler's cache out")
        cache = PartialState(
            stored=stored,
            tokens=state.tokens,
            block=jnp.full((b, 1), -1, jnp.int32),
            calls=jnp.zeros((b, 1), jnp.int32),
            priority=jnp.full((b, l), -jnp.inf),
            confidence=jnp.ones((b, l)),
        )
        return replace(state, cache=cache)

    def answerable(
        self,
        sampler: InBlocks,
        state: SampleState,
        is_asked: Bool[Array, "b l"],
        diffusion: Diffusion,
    ) -> Bool[Array, "b l"]:
        view = viewed(sampler, state, diffusion)
        return is_asked & (self.is_full(view) | self.candidates(view))

    def is_full(self, view: View) -> Bool[Array, "b 1"]:
        """Whether the coming call is full."""
        is_full = (view.calls == 0) | self.is_due(view)
        return is_full if self.refresh is None else is_full | (view.calls >= self.refresh)

    def ask(
        self,
        sampler: InBlocks,
        state: State,
        is_asked: Bool[Array, "b l"],
        diffusion: Diffusion,
        read: Read,
    ) -> tuple[State, Proposal]:
        l, kept = state.tokens.shape[1], state.cache
        view = viewed(sampler, state, diffusion)
        is_live = is_asked.any(-1, keepdims=True)
        is_full = is_live & self.is_full(view)
        is_needed = is_asked | before(is_asked) if diffusion.shift else is_asked
        is_read = is_full | (is_live & (is_needed | self.reads(view)))

        def at_most(most: int) -> tuple[Proposal, ArrayTree]:
            return read(
                Reading(
                    stored=kept.stored,
                    at=packed(is_read, is_needed, most),
                    asked=is_needed.sum(-1).max(),
                    rollout=self.rollout,
                )
            )

        most = min(self.most(l, sampler.longest_block()) + int(diffusion.shift), l)
        proposal, stored = jax.lax.cond(is_full.any(), lambda: at_most(l), lambda: at_most(most))
        after = PartialState(
            stored=stored,
            tokens=jnp.where(is_read, state.tokens, kept.tokens),
            block=jnp.where(is_live, first_of(view.is_here), kept.block),
            calls=jnp.where(is_full, 1, kept.calls + is_live),
            priority=jnp.where(is_full, proposal.score, kept.priority),
            confidence=jnp.where(is_asked, proposal.confidence, kept.confidence),
        )
        return replace(state, cache=after, nfe=state.nfe + is_live.any()), proposal


@pytree
class PartialState:
    """The cache of a batch, from call to call."""

    stored: Any  # KeyValues; with guidance by two calls, those of both
    tokens: Any  # Int[Array, "b l"], the token that each position had when it was last read
    block: Any  # Int[Array, "b 1"], first position of the block of the last call; -1 before it
    calls: Any  # Int[Array, "b 1"], calls since the last full one
    priority: Any  # Float[Array, "b l"], see `View`
    confidence: Any  # Float[Array, "b l"], see `View`


def viewed(sampler: InBlocks, state: SampleState, diffusion: Diffusion) -> View:
    """What is known before the next call."""
    is_open = diffusion.process.is_noise(state.tokens) & ~state.is_fixed
    is_here, kept = sampler.here(state, is_open), state.cache
    return View(
        is_open=is_open,
        is_fixed=state.is_fixed,
        is_here=is_here,
        is_new=first_of(is_here) != kept.block,
        is_changed=state.tokens != kept.tokens,
        calls=kept.calls,
        priority=kept.priority,
        confidence=kept.confidence,
        rollout=rollout_of(kept.stored),
    )


def rollout_of(stored: ArrayTree) -> Float[Array, "b l"] | None:
    """The attention rollout of the last call; with guidance by two calls, the sum of both."""
    is_one = lambda node: isinstance(node, KeyValues)
    shares = [one.rollout for one in jax.tree.leaves(stored, is_leaf=is_one)]
    return None if shares[0] is None else functools.reduce(operator.add, shares)


def packed(
    is_read: Bool[Array, "b l"], is_first: Bool[Array, "b l"], most: int
) -> Int[Array, "b q"]:
    """The positions read, those of `is_first` before the others, at most `most` in each row; the
    row's length stands for none."""
    l = is_read.shape[1]
    group = jnp.where(is_read, jnp.where(is_first, 0, 1), 2)
    order = jnp.argsort(group, axis=-1, stable=True)[:, :most].astype(jnp.int32)
    return jnp.where(jnp.take_along_axis(is_read, order, axis=-1), order, l)


def before(is_asked: Bool[Array, "b l"]) -> Bool[Array, "b l"]:
    """The positions before those asked for, from which a network with `shift` computes logits."""
    return jnp.roll(is_asked, -1, axis=1).at[:, -1].set(False)


def first_of(is_here: Bool[Array, "b l"]) -> Int[Array, "b 1"]:
    """The first position of each row's block."""
    return jnp.argmax(is_here, axis=-1, keepdims=True).astype(jnp.int32)
