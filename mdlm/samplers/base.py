"""The one sampling loop, and what every sampler shares.

A sequence starts as the process's prior, with some positions fixed: the prompt, an infilling's
surroundings, padding. Each step decides *whether* each other position is written, then *which*
token it gets, drawn from the network's law p(x_0 | z_t) itself. Drawing both at once from
"tokens and mask" thins the law of the token by the number of steps, and float32 then loses its
tail; apart they have the same joint law and no such loss. The loop runs `step` until every row
is done, then `finish` once. NFE is the number of network calls, for the whole batch.
"""

import abc
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int, Key

from mdlm import draws
from mdlm.keys import streams
from mdlm.parameterizations.base import Parameterization
from mdlm.parameterizations.subs import Subs
from mdlm.processes.base import Process
from mdlm.processes.masked import Masked
from mdlm.samplers.filters import filter_log_p
from mdlm.samplers.state import Proposal, Samples, SampleState, State, placed, step_keys
from mdlm.types import Denoise, InputError, NetInput, Prediction, Sees, Vocab

CHUNK = 128
"""Positions whose logits are held at once, at most."""

FEW = 16
"""Positions that are asked about at once, where few are."""


Score = Callable[[Float[Array, "n v"], Int[Array, " n"]], Float[Array, " n"]]
"""How much is to be said for a drawn token, given the law that it was drawn from (its logarithm):
what samplers that write the best first order positions by."""


@dataclass(frozen=True, kw_only=True)
class Sampler(abc.ABC):
    """Turns the prior into a sample. A sampler says when each position is written.

    The law of a written token is the network's, reshaped by `temperature` (0 takes the likeliest
    token), then cut to the `top_k` likeliest (0: all), then to the smallest set of likeliest
    tokens that holds at least `top_p` of what is left, the token that crosses included.
    """

    processes: ClassVar[tuple[type[Process], ...]] = (Masked,)
    parameterizations: ClassVar[tuple[type[Parameterization], ...]] = (Subs,)
    sees: ClassVar[Sees] = "all"
    """What it is defined for; anything else is refused when the experiment is composed."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        if not self.temperature >= 0:
            raise ValueError(f"temperature={self.temperature} is below 0")
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k} is below 0 (0 keeps all tokens)")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} is not in (0, 1]")

    def refuses(self, process: Process, parameterization: Parameterization) -> str | None:
        """Why it cannot be used with these, though they are of the right kinds; None if it can."""
        return None

    def init(
        self,
        keys: Key[Array, " b"],
        tokens: Int[Array, "b l"],
        is_fixed: Bool[Array, "b l"],
        *,
        process: Process,
    ) -> SampleState:
        """The state before the first step: the prior, and `tokens` where they are fixed."""
        prior = process.prior(streams(keys, "prior"), tokens.shape[1])
        return SampleState(
            tokens=jnp.where(is_fixed, tokens, prior),
            is_fixed=is_fixed,
            step=jnp.zeros((), jnp.int32),
            done=is_fixed.all(-1),
            keys=keys,
            nfe=jnp.zeros((), jnp.int32),
            confidence=is_fixed.astype(jnp.float32),
        )

    def begin(
        self,
        state: SampleState,
        *,
        process: Process,
        parameterization: Parameterization,
        denoise: Denoise,
    ) -> SampleState:
        """What is to be asked of the network once, before the first step; by default nothing."""
        return state

    @abc.abstractmethod
    def step(
        self,
        state: SampleState,
        *,
        process: Process,
        parameterization: Parameterization,
        denoise: Denoise,
    ) -> SampleState:
        """One step. Sets `done`; the loop itself counts `step`."""

    def finish(
        self,
        state: SampleState,
        *,
        process: Process,
        parameterization: Parameterization,
        denoise: Denoise,
    ) -> SampleState:
        """Resolves what the steps left open; by default they leave nothing."""
        return state

    def choose(
        self,
        keys: Key[Array, " n"],
        log_p0: Float[Array, "n v"],
        at: Int[Array, " n"],
        state: SampleState,
    ) -> Int[Array, " n"]:
        """The token proposed at each of the rows `at` (`sequence * l + position`)."""
        log_p = filter_log_p(
            log_p0, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p
        )
        return draws.categorical(keys, log_p)

    def inputs(self, tokens: Int[Array, "b l"], t: Float[Array, "b #l"] | None) -> NetInput:
        """What the network is asked by `propose`."""
        return NetInput(tokens=tokens, t=t)

    def propose(
        self,
        state: State,
        is_asked: Bool[Array, "b l"],
        t: Float[Array, "b #l"] | None,
        *,
        parameterization: Parameterization,
        denoise: Denoise,
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
                drawn = self.choose(token_keys, log_p0, at, state).astype(z_t.dtype)
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
            prediction = denoise(replace(self.inputs(state.tokens, t), late=True))
            many = min(CHUNK, b * l)
            if not prediction.is_late:
                return fill(prediction, many)
            return jax.lax.cond(
                4 * is_asked.sum() <= b * l,
                lambda: fill(prediction, min(max(FEW, 2 * b), many)),
                lambda: fill(prediction.whole, many),
            )

        is_any = is_asked.any()
        proposal = jax.lax.cond(is_any, ask, lambda: nothing)
        proposal = jax.tree.map(lambda flat: flat.reshape(b, l), proposal)
        return replace(state, nfe=state.nfe + is_any), proposal

    def write(
        self,
        state: State,
        is_chosen: Bool[Array, "b l"],
        t: Float[Array, "b #l"] | None,
        *,
        parameterization: Parameterization,
        denoise: Denoise,
    ) -> State:
        """Proposes a token at each chosen position, and writes it."""
        state, proposal = self.propose(
            state, is_chosen, t, parameterization=parameterization, denoise=denoise
        )
        return placed(state, proposal, is_chosen)


def entry(log_p: Float[Array, "n v"], token: Int[Array, " n"]) -> Float[Array, " n"]:
    """The entry of each row at its token."""
    return jnp.take_along_axis(log_p, token[:, None], axis=-1)[:, 0]


@dataclass(frozen=True, kw_only=True)
class Loop:
    """A sampler and all that its steps need. `generate` runs them in one program,
    `trace.generate_traced` one after the other under the eyes of the host."""

    sampler: Sampler
    process: Process
    parameterization: Parameterization
    denoise: Denoise

    def begin(
        self, keys: Key[Array, " b"], tokens: Int[Array, "b l"], is_fixed: Bool[Array, "b l"]
    ) -> SampleState:
        """The state before the first step."""
        state = self.sampler.init(keys, tokens, is_fixed, process=self.process)
        return self.sampler.begin(state, **self._network())

    def advance(self, state: SampleState) -> SampleState:
        """One step; wanted until every row is done."""
        state = self.sampler.step(state, **self._network())
        return replace(state, step=state.step + 1)

    def finish(self, state: SampleState) -> SampleState:
        """What follows the last step, once."""
        return self.sampler.finish(state, **self._network())

    def _network(self) -> dict[str, Any]:
        names = ("process", "parameterization", "denoise")
        return {name: getattr(self, name) for name in names}


def generate(
    keys: Key[Array, " b"],
    tokens: Int[Array, "b l"],
    is_fixed: Bool[Array, "b l"],
    *,
    sampler: Sampler,
    process: Process,
    parameterization: Parameterization,
    denoise: Denoise,
    is_valid: Bool[Array, "b l"] | None = None,
    positions: Int[Array, "b l"] | None = None,
    label: Int[Array, " b"] | None = None,
) -> Samples:
    """Draws one sequence per row; meant to be jitted whole, with the parameters as argument.

    `tokens` counts where `is_fixed`, and never changes there; elsewhere it is ignored. Positions
    that are not `is_valid` (padding of a shorter row) keep their token too and are hidden from
    the network's attention. The network is told each row's `label`, where it takes labels.
    Nothing is checked here: see `check_prompt`.
    """
    if is_valid is not None:
        is_fixed = is_fixed | ~is_valid

    def ask(inputs: NetInput, *, key: Key[Array, ""] | None = None):
        return denoise(
            replace(inputs, is_valid=is_valid, positions=positions, label=label), key=key
        )

    loop = Loop(sampler=sampler, process=process, parameterization=parameterization, denoise=ask)
    state = loop.begin(keys, tokens, is_fixed)
    state = jax.lax.while_loop(lambda state: ~state.done.all(), loop.advance, state)
    state = loop.finish(state)
    return Samples(tokens=state.tokens, nfe=state.nfe)


def check_prompt(
    tokens: Int[np.ndarray, "b l"],
    is_fixed: Bool[np.ndarray, "b l"],
    vocab: Vocab,
    first_row: int = 0,
) -> None:
    """Raises `InputError` where a fixed token is the mask or outside the vocabulary.

    Prompts are counted from `first_row` in the message.
    """
    is_outside = (tokens < 0) | (tokens >= vocab.size)
    for is_bad, reason in (
        (is_outside, f"outside the vocabulary of {vocab.size} tokens"),
        (tokens == vocab.mask_id, "the mask token, which stands for an unknown one"),
    ):
        found = np.argwhere(is_bad & is_fixed)
        if len(found):
            row, position = found[0]
            raise InputError(
                f"token {tokens[row, position]} at position {position} of prompt {row + first_row} "
                f"is {reason}"
            )
