"""What the steps of a sampler hand on."""

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
    """What one step of a sampler hands to the next."""

    tokens: Any  # Int[Array, "b l"]
    is_fixed: Any  # Bool[Array, "b l"], True where the caller's token stays
    step: Any  # Int[Array, ""], steps taken so far
    done: Any  # Bool[Array, " b"]
    keys: Any  # Key[Array, " b"]
    nfe: Any  # Int[Array, ""], network calls so far
    confidence: Any  # Float[Array, "b l"], the probability that the network gave each token that
    # was written, when it was; 1 where the caller's token stays, 0 where none is written yet


State = TypeVar("State", bound=SampleState)
"""A sampler may keep more in its state."""


@pytree
class Samples:
    """What `generate` returns."""

    tokens: Any  # Int[Array, "b l"]
    nfe: Any  # Int[Array, ""], network calls for the batch


@pytree
class Proposal:
    """Tokens drawn at the positions that were asked about, and what the network says of them."""

    tokens: Any  # Int[Array, "b l"], where nothing was asked the token that is there
    confidence: Any  # Float[Array, "b l"], the network's probability of that token; elsewhere 0
    present: Any  # Float[Array, "b l"], its probability of the token that was there; elsewhere 0
    score: Any  # Float[Array, "b l"], see `Sampler.propose`; elsewhere -inf


def extended(state: SampleState, kind: type[State], **more: Any) -> State:
    """A state of another kind, which keeps more."""
    return kind(**{field.name: getattr(state, field.name) for field in fields(SampleState)} | more)


def placed(state: State, proposal: Proposal, is_written: Bool[Array, "b l"]) -> State:
    """The state with the proposed tokens written."""
    return replace(
        state,
        tokens=jnp.where(is_written, proposal.tokens, state.tokens),
        confidence=jnp.where(is_written, proposal.confidence, state.confidence),
    )


def removed(state: State, is_removed: Bool[Array, "b l"], noise: Any) -> State:
    """The state with noise (tokens, `[b l]` or one) in place of what was written."""
    return replace(
        state,
        tokens=jnp.where(is_removed, noise, state.tokens),
        confidence=jnp.where(is_removed, 0.0, state.confidence),
    )


def rewritten(state: State, tokens: Int[Array, "b l"], log_p: Float[Array, "b l v"]) -> State:
    """The state with `tokens`; `log_p` are the laws that those which changed come from."""
    p = jnp.exp(jnp.take_along_axis(log_p, tokens[..., None], axis=-1)[..., 0])
    changed = tokens != state.tokens
    return replace(state, tokens=tokens, confidence=jnp.where(changed, p, state.confidence))


def step_keys(state: SampleState, name: str) -> Key[Array, " b"]:
    """One key per row for the current step and the purpose `name`."""
    return jax.vmap(lambda key: stream(jax.random.fold_in(key, state.step), name))(state.keys)


def ranks(score: Float[Array, "b l"]) -> Int[Array, "b l"]:
    """The place of each position when its row is ordered by falling score, from 0; of equal ones
    the left one first."""
    order = jnp.argsort(-score, axis=-1, stable=True)
    return jnp.argsort(order, axis=-1, stable=True)
