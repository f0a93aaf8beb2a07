"""Drafts of a masked network, verified from left to right by an autoregressive one.

In each step the masked network proposes its likeliest token d at the next open positions, all in
one call. The verifier, a causal network over the same vocabulary, reads them in one call with a
key-value cache. With p its distribution of a position given all before it:

    exact     d is accepted with probability p(d); else the token is drawn from p without d, and
              the step ends there
    argmax    d is accepted if it is the likeliest token under p     (Guided Diffusion, FlashDLM,
    relaxed   d is accepted if it is among the two likeliest and p(d) is at least half of the
              largest                                                 arXiv:2505.21467)

"exact" gives the verifier's distribution, whatever is drafted: the probability of d is p(d), and
that of another token (1 - p(d)) p / (1 - p(d)). The other two are biased, as published: if the
first draft is not accepted, it is written all the same.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from mdlm import draws
from mdlm.diffusion import Diffusion
from mdlm.draws import uniforms
from mdlm.processes.masked import Masked
from mdlm.samplers.base import Sampler, entry
from mdlm.samplers.caches.base import Cache
from mdlm.samplers.left_to_right import prompts_read
from mdlm.samplers.logits.shaping import shape
from mdlm.samplers.requirements import no_inverse
from mdlm.samplers.state import SampleState, extended, step_keys
from mdlm.types import NetInput, Reading, pytree

Accept = Literal["exact", "argmax", "relaxed"]


@pytree
class VerifiedState(SampleState):
    """Adds what the verifier has read."""

    stored: Any  # KeyValues


@dataclass(frozen=True, kw_only=True)
class Verified(Sampler):
    """Drafts up to `ahead` positions with each call, and keeps what the verifier accepts.

    The settings of the distribution (temperature, top-p ...) are applied to the verifier's. With
    temperature 0 the exact rule writes the verifier's likeliest tokens. Position 0 must be fixed in
    every row, as the verifier has no distribution for it. `cache` is that of the drafts: it changes
    how many are accepted. NFE counts the calls of both networks.
    """

    keeps_written: ClassVar[bool] = True

    ahead: int = 16
    accept: Accept = "exact"
    cache: Cache | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.ahead < 1:
            raise ValueError(f"ahead={self.ahead}: must be at least 1")
        if self.accept not in get_args(Accept):
            raise ValueError(
                f"accept={self.accept!r}: must be one of {', '.join(get_args(Accept))}"
            )

    def incompatibility(self, process, parameterization, network=None):
        reason = super().incompatibility(process, parameterization, network)
        return reason or no_inverse(process, "a given number of masks")

    def note(self, tokens: int, nfe: int) -> str:
        biased = "" if self.accept == "exact" else f"biased, by accept={self.accept!r}; "
        return f"{biased}{2 * tokens / max(nfe, 1):.1f} tokens accepted with each verification"

    def begin(self, state: SampleState, diffusion: Diffusion) -> VerifiedState:
        state = super().begin(state, diffusion)
        stored, count = prompts_read(state, verifier_of(diffusion))
        if stored is None:
            raise ValueError("verifier: its network keeps no keys and values")
        nfe = state.nfe + (count > 0).any()
        return extended(state, VerifiedState, stored=stored, nfe=nfe)

    def step(self, state: VerifiedState, diffusion: Diffusion[Masked]) -> VerifiedState:
        l = state.tokens.shape[1]
        is_open = diffusion.process.is_masked(state.tokens) & ~state.is_fixed
        first = jnp.argmax(is_open, axis=-1, keepdims=True).astype(jnp.int32)
        position = jnp.arange(l)[None]
        is_drafted = is_open & (position < first + self.ahead)
        left, all_open = (some.sum(-1, keepdims=True) for some in (is_open, ~state.is_fixed))
        t = diffusion.process.schedule.time_of(jnp.maximum(left, 1) / jnp.maximum(all_open, 1))
        greedy = replace(self, temperature=0.0)
        state, draft = greedy.propose(state, is_drafted, t, diffusion)
        drafted = jnp.where(is_drafted, draft.tokens, state.tokens)
        is_live = is_open.any(-1, keepdims=True)
        # The token at each of these positions gives the distribution of the next one.
        at = first - 1 + jnp.arange(min(self.ahead + 1, l), dtype=jnp.int32)[None]
        at = jnp.where(is_live & (at < l), at, l)
        reading = Reading(stored=state.stored, at=at)
        told = verifier_of(diffusion).denoise(NetInput(tokens=drafted, reading=reading))
        tokens, p = self._verified(state, drafted, at + 1, told.logits, diffusion)
        written = is_open & diffusion.process.is_masked(state.tokens) & (tokens != state.tokens)
        return replace(
            state,
            tokens=jnp.where(is_open, tokens, state.tokens),
            confidence=jnp.where(written, p, state.confidence),
            stored=told.cache,
            nfe=state.nfe + is_live.any(),
            done=~(is_open & ~written).any(-1),
        )

    def _verified(
        self,
        state: VerifiedState,
        drafted: Int[Array, "b l"],
        asked: Int[Array, "b q"],
        logits: Any,
        diffusion: Diffusion,
    ) -> tuple[Int[Array, "b l"], Float[Array, "b l"]]:
        """Returns the rows with what is accepted, and the verifier's probability of each token.
        `asked` are successive positions, the row's length or more where there is none."""
        (b, l), q = drafted.shape, asked.shape[1]
        row = jnp.arange(b)[:, None]
        here = jnp.minimum(asked, l - 1)
        at = (row * l + here).reshape(-1)
        mask_id, size = diffusion.parameterization.ids()
        d = drafted[row, here].reshape(-1)
        network_log_p = verifier_of(diffusion).parameterization.log_p0(
            logits(at), jnp.full_like(d, mask_id), None
        )
        known = dict(mask_id=mask_id, size=size)
        log_p = shape(self, network_log_p, at, drafted, state.is_fixed, **known)
        keys = step_keys(state, "verify")
        u = uniforms(keys, q).reshape(-1)
        accepts = {
            "exact": lambda: u < jnp.exp(entry(log_p, d)),
            "argmax": lambda: d == jnp.argmax(log_p, axis=-1),
            "relaxed": lambda: passes(log_p, d),
        }
        is_kept = accepts[self.accept]() | state.is_fixed[row, here].reshape(-1)
        is_there = asked < l
        count = jnp.cumprod((is_kept.reshape(b, q) & is_there), axis=-1).sum(-1, keepdims=True)
        order = jnp.arange(q)[None]
        if self.accept == "exact":
            others = jnp.where(jnp.arange(size)[None] == d[:, None], -jnp.inf, log_p[:, :size])
            token_keys = jax.vmap(jax.random.fold_in)(
                jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)[at // l], at % l
            )
            other = draws.categorical(token_keys, others).astype(d.dtype).reshape(b, q)
            new = jnp.where(order < count, d.reshape(b, q), other)
            is_new = is_there & (order <= count)
        else:
            new = d.reshape(b, q)
            is_new = is_there & (order < jnp.maximum(count, 1))
        to = jnp.where(is_new, asked, l)
        tokens = state.tokens.at[row, to].set(new, mode="drop")
        p = jnp.exp(entry(network_log_p, new.reshape(-1))).reshape(b, q)
        return tokens, jnp.zeros((b, l)).at[row, to].set(p, mode="drop")


def passes(log_p: Float[Array, "n v"], token: Int[Array, " n"]) -> Bool[Array, " n"]:
    """Whether the token is one of the two likeliest and at least half as likely as the first."""
    own = entry(log_p, token)
    likelier = (log_p > own[:, None]).sum(-1)
    return (likelier < 2) & (own >= jnp.log(0.5) + log_p.max(-1))


def verifier_of(diffusion: Diffusion) -> Diffusion:
    """The verifier. Raises ValueError if there is none."""
    if diffusion.verifier is None:
        raise ValueError("sampler=Verified(...) needs a verifier: an autoregressive run")
    return diffusion.verifier
