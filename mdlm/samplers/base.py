"""What every sampler shares.

A sequence starts as the process's prior, with some positions fixed: the prompt, an infilling's
surroundings, padding. Each step decides *whether* each other position is written, then *which*
token it gets, drawn from the network's law p(x_0 | z_t) itself. Drawing both at once from
"tokens and mask" thins the law of the token by the number of steps, and float32 then loses its
tail; apart they have the same joint law and no such loss. `loop` runs the steps.
"""

import abc
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int, Key

from mdlm import draws
from mdlm.diffusion import Diffusion, NetworkTraits, wrong_kind
from mdlm.keys import streams
from mdlm.parameterizations.base import Parameterization
from mdlm.parameterizations.subs import Subs
from mdlm.processes.base import Process
from mdlm.processes.masked import Masked
from mdlm.samplers.logits.filters import TopP
from mdlm.samplers.logits.guidance import Guidance
from mdlm.samplers.logits.shaping import (
    Annealed,
    Hook,
    check_banned,
    check_settings,
    shape,
    unshapeable,
)
from mdlm.samplers.state import Proposal, SampleState, State, placed, step_keys
from mdlm.types import Attends, NetInput, Prediction, Vocab

CHUNK = 128
"""Positions whose logits are held at once, at most."""

FEW = 16
"""Positions that are asked about at once, where few are."""


Score = Callable[[Float[Array, "n v"], Int[Array, " n"]], Float[Array, " n"]]
"""How much is to be said for a drawn token, given the law that it was drawn from (its logarithm):
what samplers that write the best first order positions by."""


@dataclass(frozen=True, kw_only=True)
class Sampler(abc.ABC):
    """Turns the prior into a sample. A sampler says when each position is written; its fields say
    how the network's distribution of the token is changed before it is drawn (`guidance` is
    applied first, see `logits.shaping` for the rest).

    Args:
        temperature: the distribution becomes proportional to p^(1 / temperature); 0 takes the
            likeliest token. `Annealed` has it change as a row fills.
        top_k: then only the likeliest that many are kept (0: all).
        top_p: then, of what is left, the likeliest that hold this mass.
        top_p_rule: whether the token that crosses `top_p` is kept ("reach") or not ("below").
        banned: ids of tokens that are never written. Fixed ones stay.
        hook: changes the distribution before all these; see `Hook`.
        guidance: changes the network's answers to what is wanted of the sample.
    """

    processes: ClassVar[tuple[type[Process], ...]] = (Masked,)
    parameterizations: ClassVar[tuple[type[Parameterization], ...]] = (Subs,)
    attends: ClassVar[Attends] = "all"
    """What it is defined for; anything else is refused when the experiment is composed."""

    temperature: float | Annealed = 1.0
    top_k: int = 0
    top_p: float = 1.0
    top_p_rule: TopP = "reach"
    banned: tuple[int, ...] = ()
    hook: Hook | None = None
    guidance: Guidance | None = None

    def __post_init__(self):
        check_settings(self)

    def check_ids(self, vocab: Vocab) -> None:
        """Raises InputError if a banned token is not in the vocabulary, or if all are banned."""
        check_banned(self.banned, vocab)

    def incompatibility(
        self,
        process: Process,
        parameterization: Parameterization,
        network: NetworkTraits | None = None,
    ) -> str | None:
        """Why it cannot sample with these, its settings and guidance included; None if it can.
        Without a network, nothing is asked of one."""
        reason = wrong_kind(self, process, parameterization, network)
        if reason is None:
            reason = unshapeable(self, process)
        if reason is None and self.guidance is not None:
            reason = self.guidance.incompatibility(process, parameterization, network)
        return reason

    def init(
        self,
        keys: Key[Array, " b"],
        tokens: Int[Array, "b l"],
        is_fixed: Bool[Array, "b l"],
        diffusion: Diffusion,
    ) -> SampleState:
        """The state before the first step: the prior, and `tokens` where they are fixed."""
        prior = diffusion.process.prior(streams(keys, "prior"), tokens.shape[1])
        return SampleState(
            tokens=jnp.where(is_fixed, tokens, prior),
            is_fixed=is_fixed,
            step=jnp.zeros((), jnp.int32),
            done=is_fixed.all(-1),
            keys=keys,
            nfe=jnp.zeros((), jnp.int32),
            confidence=is_fixed.astype(jnp.float32),
        )

    def begin(self, state: SampleState, diffusion: Diffusion) -> SampleState:
        """What is to be asked of the network once, before the first step; by default nothing."""
        return state

    @abc.abstractmethod
    def step(self, state: SampleState, diffusion: Diffusion) -> SampleState:
        """One step. Sets `done`; the loop itself counts `step`."""

    def finish(self, state: SampleState, diffusion: Diffusion) -> SampleState:
        """Resolves what the steps left open; by default they leave nothing."""
        return state

    def choose(
        self,
        keys: Key[Array, " n"],
        log_p: Float[Array, "n v"],
        at: Int[Array, " n"],
        state: SampleState,
    ) -> Int[Array, " n"]:
        """The token proposed at each of the rows `at` (`sequence * l + position`), from its
        reshaped law."""
        return draws.categorical(keys, log_p)

    def propose(
        self,
        state: State,
        is_asked: Bool[Array, "b l"],
        t: Float[Array, " b #l"] | None,
        diffusion: Diffusion,
        *,
        score: Score | None = None,
        unseen: int | None = None,
    ) -> tuple[State, Proposal]:
        """Calls the network once and draws a token at each position asked about. The state
        returned counts the call.

        No position asked about in any row: no call. Logits exist for `CHUNK` positions at a time,
        and for those asked about only. A token's key depends on its row's key, the step and the
        position, so what a row draws does not depend on the rows beside it.

        `score` is evaluated for every token that is drawn (None: 0 for all). With `unseen`, the
        mask's id, laws are the network's own at visible tokens too, which the parameterization
        otherwise carries over.
        """
        b, l = state.tokens.shape
        z_t = state.tokens.reshape(-1)
        nothing = Proposal(
            tokens=z_t,
            confidence=jnp.zeros(b * l),
            present=jnp.zeros(b * l),
            score=jnp.full(b * l, -jnp.inf),
        )
        parameterization = diffusion.parameterization
        mask_id, vocab_size = parameterization.ids()
        times = None if t is None else jnp.broadcast_to(t, (b, l)).reshape(-1)
        keys = step_keys(state, "which")

        def fill(prediction: Prediction, size: int) -> Proposal:
            padded = -(-b * l // size) * size
            (asked,) = jnp.nonzero(is_asked.reshape(-1), size=padded, fill_value=b * l)

            def fill_chunk(i: Int[Array, ""], known: Proposal) -> Proposal:
                rows = jax.lax.dynamic_slice_in_dim(asked, i * size, size)
                at = jnp.minimum(rows, b * l - 1)  # rows past the last are dropped below
                seen = z_t[at] if unseen is None else jnp.full_like(at, unseen, dtype=z_t.dtype)
                log_p0 = parameterization.log_p0(
                    prediction.logits(at), seen, None if times is None else times[at]
                )
                token_keys = jax.vmap(jax.random.fold_in)(keys[at // l], at % l)
                log_p = shape(
                    self,
                    log_p0,
                    at,
                    state.tokens,
                    state.is_fixed,
                    mask_id=mask_id,
                    size=vocab_size,
                )
                drawn = self.choose(token_keys, log_p, at, state).astype(z_t.dtype)
                found = Proposal(
                    tokens=drawn,
                    confidence=jnp.exp(entry(log_p0, drawn)),
                    present=jnp.exp(entry(log_p0, z_t[at])),
                    score=jnp.zeros(size) if score is None else score(log_p0, drawn),
                )
                put = lambda known, found: known.at[rows].set(found, mode="drop")
                return jax.tree.map(put, known, found)

            return jax.lax.fori_loop(0, -(-is_asked.sum() // size), fill_chunk, nothing)

        def ask() -> Proposal:
            prediction = diffusion.denoise(
                NetInput(tokens=state.tokens, t=t, defer_last_block=True)
            )
            many = min(CHUNK, b * l)
            return jax.lax.cond(
                4 * is_asked.sum() <= b * l,
                lambda: fill(prediction, min(max(FEW, 2 * b), many)),
                lambda: fill(prediction.whole, many),
            )

        is_any = is_asked.any()
        proposal = jax.lax.cond(is_any, ask, lambda: nothing)
        proposal = jax.tree.map(lambda flat: flat.reshape(b, l), proposal)
        return replace(state, nfe=state.nfe + is_any), proposal

    def ask_everywhere(
        self, state: SampleState, t: Float[Array, "b 1"], diffusion: Diffusion
    ) -> Float[Array, "b l v"]:
        """The network's laws of the clean tokens at all positions, held at once."""
        logits = diffusion.denoise(NetInput(tokens=state.tokens, t=t)).logits()
        log_p0 = diffusion.parameterization.log_p0(logits, state.tokens, t)
        # A clean token is no noise, though D3PM's network may put mass there.
        is_noise = diffusion.process.is_noise(jnp.arange(log_p0.shape[-1]))
        return jax.nn.log_softmax(jnp.where(is_noise[None, None], -jnp.inf, log_p0), axis=-1)

    def write(
        self,
        state: State,
        is_chosen: Bool[Array, "b l"],
        t: Float[Array, " b #l"] | None,
        diffusion: Diffusion,
    ) -> State:
        """Proposes a token at each chosen position, and writes it."""
        state, proposal = self.propose(state, is_chosen, t, diffusion)
        return placed(state, proposal, is_chosen)


def rates_differ(process: Process, does: str) -> str | None:
    """Why a sampler that treats all tokens alike cannot be used; None where their rates are one."""
    if not process.schedule.per_token:
        return None
    return (
        f"it {does} all tokens at one rate, but the schedule has a rate for each token;"
        " use sampler=Reverse()"
    )


def no_inverse(process: Process, asks_at: str) -> str | None:
    """Why a sampler that finds its times from something else cannot be used; None where the
    schedule can tell them."""
    if process.schedule.has_inverse:
        return None
    name = type(process.schedule).__name__
    return f"it needs the time of {asks_at}, but {name} has no inverse"


def entry(log_p: Float[Array, "n v"], token: Int[Array, " n"]) -> Float[Array, " n"]:
    """The entry of each row at its token."""
    return jnp.take_along_axis(log_p, token[:, None], axis=-1)[:, 0]
