"""The state that the steps of a sampler pass on, and functions that change it."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int, Key

from mdlm.keys import stream
from mdlm.types import pytree


@pytree
class SampleState:
    """The state that one step of a sampler passes to the next."""

    tokens: Any  # Int[Array, "b l"]
    is_fixed: Any  # Bool[Array, "b l"], True where the caller's token stays
    step: Any  # Int[Array, ""], steps taken so far
    done: Any  # Bool[Array, " b"]
    keys: Any  # Key[Array, " b"]
    nfe: Any  # Int[Array, ""], network calls so far
    confidence: Any  # Float[Array, "b l"], the network's probability of each written token, at
    # the time of writing; 1 where the caller's token stays, 0 where none is written yet

    cache: Any = None  # what a sampler with a cache keeps between calls

    def is_after(self, steps: int, at: Int[Array, " n"]) -> Bool[Array, "#n"]:
        """Whether the flat positions `at` are written after a grid of `steps` steps."""
        return jnp.atleast_1d(self.step >= steps)


State = TypeVar("State", bound=SampleState)
"""The state of a sampler, which may have more fields."""


@pytree
class Samples:
    """The result of `generate`."""

    tokens: Any  # Int[Array, "b l"]
    nfe: Any  # Int[Array, ""], network calls for the batch


@pytree
class Proposal:
    """Tokens drawn at the positions asked for, with the network's probabilities."""

    tokens: Any  # Int[Array, "b l"], elsewhere the present token
    confidence: (
        Any  # Float[Array, "b l"], the network's probability of the drawn token; elsewhere 0
    )
    present: Any  # Float[Array, "b l"], its probability of the present token; elsewhere 0
    score: Any  # Float[Array, "b l"], priority, see `Sampler.propose`; elsewhere -inf


def extended(state: SampleState, kind: type[State], **more: Any) -> State:
    """Returns the state as the subclass `kind`, with the values of its own fields."""
    return kind(**{field.name: getattr(state, field.name) for field in fields(SampleState)} | more)


def no_proposal(tokens: Int[Array, "b l"]) -> Proposal:
    """The proposal if no position is asked for."""
    zeros = jnp.zeros(tokens.shape)
    none = jnp.full(tokens.shape, -jnp.inf)
    return Proposal(tokens=tokens, confidence=zeros, present=zeros, score=none)


def filled(
    none: Proposal,
    is_asked: Bool[Array, "b l"],
    size: int,
    draw: Callable[[Int[Array, " n"]], Proposal],
) -> Proposal:
    """Returns the flat proposal `none` with what `draw` gives for the positions asked for, `size`
    of them at a time."""
    end = is_asked.size
    padded = -(-end // size) * size
    (asked,) = jnp.nonzero(is_asked.reshape(-1), size=padded, fill_value=end)

    def fill_chunk(i: Int[Array, ""], known: Proposal) -> Proposal:
        rows = jax.lax.dynamic_slice_in_dim(asked, i * size, size)
        # Indices past the end are dropped below; a position that was asked for stands for them.
        found = draw(jnp.where(rows < end, rows, asked[0]))
        put = lambda known, found: known.at[rows].set(found, mode="drop")
        return jax.tree.map(put, known, found)

    return jax.lax.fori_loop(0, -(-is_asked.sum() // size), fill_chunk, none)


def placed(state: State, proposal: Proposal, is_written: Bool[Array, "b l"]) -> State:
    """Returns the state with the proposed tokens written where `is_written`."""
    return replace(
        state,
        tokens=jnp.where(is_written, proposal.tokens, state.tokens),
        confidence=jnp.where(is_written, proposal.confidence, state.confidence),
    )


def removed(state: State, is_removed: Bool[Array, "b l"], noise: Any) -> State:
    """Returns the state with noise (tokens, `[b l]` or one) where `is_removed`."""
    return replace(
        state,
        tokens=jnp.where(is_removed, noise, state.tokens),
        confidence=jnp.where(is_removed, 0.0, state.confidence),
    )


def rewritten(state: State, tokens: Int[Array, "b l"], log_p: Float[Array, "b l v"]) -> State:
    """Returns the state with `tokens`; `log_p` gives the confidence of those that changed."""
    p = jnp.exp(jnp.take_along_axis(log_p, tokens[..., None], axis=-1)[..., 0])
    changed = tokens != state.tokens
    return replace(state, tokens=tokens, confidence=jnp.where(changed, p, state.confidence))


def step_keys(state: SampleState, name: str) -> Key[Array, " b"]:
    """Returns one key for each row, for the current step and the purpose `name`."""
    return jax.vmap(lambda key: stream(jax.random.fold_in(key, state.step), name))(state.keys)


def ranks(score: Float[Array, "b l"]) -> Int[Array, "b l"]:
    """The rank of each position in its row by falling score, from 0; of equal scores the left one
    first."""
    order = jnp.argsort(-score, axis=-1, stable=True)
    return jnp.argsort(order, axis=-1, stable=True)
