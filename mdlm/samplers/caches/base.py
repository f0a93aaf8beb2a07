"""What a sampler keeps of its network calls, so that the next ones read less."""

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Int

from mdlm.diffusion import Diffusion, NetworkTraits
from mdlm.samplers.state import Proposal, SampleState, State
from mdlm.types import ArrayTree, Attends, NetInput, Reading

Read = Callable[[Reading], tuple[Proposal, ArrayTree]]
"""Calls the network with a `Reading`; returns the proposals of the sampler that asks, and what is
then stored."""


class InBlocks(Protocol):
    """What a cache knows of its sampler."""

    def longest_block(self) -> int | None:
        """The largest number of positions of a block; None: a whole row."""
        ...

    def here(self, state: SampleState, is_open: Bool[Array, "b l"]) -> Bool[Array, "b l"]:
        """The block that is being written in each row."""
        ...


@dataclass(frozen=True, kw_only=True)
class Cache(abc.ABC):
    """Keeps keys and values between the network calls of a sampler."""

    exact: ClassVar[bool] = False
    """Whether the samples are those of calls that read everything."""
    attends: ClassVar[Attends] = "all"
    """The networks that it is for."""

    def incompatibility(self, attends: Attends, network: NetworkTraits | None) -> str | None:
        """Why it cannot be used by a sampler of networks that attend so, with this network; None if
        it can."""
        name = f"cache={type(self).__name__}(...)"
        if attends != self.attends:
            return f'{name} is for networks with attends="{self.attends}", not "{attends}"'
        if network is None or network.caches or self.exact:  # exact: as if there were none
            return None
        why = "reads its own output at all positions" if network.passes > 1 else "cannot do so"
        return f"{name} keeps keys and values, and network={type(network).__name__}(...) {why}"

    @abc.abstractmethod
    def begin(self, sampler: InBlocks, state: State, diffusion: Diffusion) -> State:
        """Returns the state with an empty cache, or one of the prompt. Counts network calls."""

    @abc.abstractmethod
    def ask(
        self,
        sampler: InBlocks,
        state: State,
        is_asked: Bool[Array, "b l"],
        diffusion: Diffusion,
        read: Read,
    ) -> tuple[State, Proposal]:
        """Has the network read what the proposals at the positions of `is_asked` need. Returns the
        state with the cache after the call, which is counted, and the proposals."""

    def answerable(
        self,
        sampler: InBlocks,
        state: SampleState,
        is_asked: Bool[Array, "b l"],
        diffusion: Diffusion,
    ) -> Bool[Array, "b l"]:
        """Those of the positions at which the coming call can propose a token: by default all."""
        return is_asked


NO_CACHE: Cache | None = None
"""The cache of samplers that keep nothing."""


def nothing_stored(
    tokens: Int[Array, "b l"], diffusion: Diffusion, *, rollout: bool = False
) -> ArrayTree:
    """Room for the keys and values of a batch, as the network returns it, all 0. With guidance that
    calls the network twice, it is a tuple of two. None if the network stores nothing. See `Reading`
    for `rollout`."""

    def read() -> ArrayTree:
        t = jnp.ones((tokens.shape[0], 1))
        reading = Reading(stored=None, at=tokens[:, :1], rollout=rollout)
        return diffusion.denoise(NetInput(tokens=tokens, t=t, reading=reading)).cache

    shapes = jax.eval_shape(read)
    return jax.tree.map(lambda array: jnp.zeros(array.shape, array.dtype), shapes)
