"""The one sampling loop, and what every sampler shares.

A sequence starts as the process's prior, with some positions fixed: the prompt, an infilling's
surroundings, padding. Each step decides *whether* each other position is written, then *which*
token it gets, drawn from the network's law p(x_0 | z_t) itself. Drawing both at once from
"tokens and mask" thins the law of the token by the number of steps, and float32 then loses its
tail; apart they have the same joint law and no such loss. The loop runs `step` until every row
is done, then `finish` once. NFE is the number of network calls, for the whole batch.
"""

import abc
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int, Key

from mdlm import draws
from mdlm.keys import stream
from mdlm.parameterizations.base import Parameterization
from mdlm.parameterizations.subs import Subs
from mdlm.processes.base import Process
from mdlm.processes.masked import Masked
from mdlm.samplers.filters import filter_log_p
from mdlm.times import Grid, grid_of
from mdlm.types import Denoise, InputError, NetInput, Sees, Vocab, pytree

CHUNK = 128
"""Positions whose logits are held at once, at most."""


@pytree
class SampleState:
    """What one step of a sampler hands to the next."""

    tokens: Any  # Int[Array, "b l"]
    is_fixed: Any  # Bool[Array, "b l"], True where the caller's token stays
    step: Any  # Int[Array, ""], steps taken so far
    done: Any  # Bool[Array, " b"]
    keys: Any  # Key[Array, " b"]
    nfe: Any  # Int[Array, ""], network calls so far


State = TypeVar("State", bound=SampleState)
"""A sampler may keep more in its state."""


@pytree
class Samples:
    """What `generate` returns."""

    tokens: Any  # Int[Array, "b l"]
    nfe: Any  # Int[Array, ""], network calls for the batch


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
        prior = process.prior(jax.vmap(lambda key: stream(key, "prior"))(keys), tokens.shape[1])
        return SampleState(
            tokens=jnp.where(is_fixed, tokens, prior),
            is_fixed=is_fixed,
            step=jnp.zeros((), jnp.int32),
            done=is_fixed.all(-1),
            keys=keys,
            nfe=jnp.zeros((), jnp.int32),
        )

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
        """The token written at each of the rows `at` (`sequence * l + position`)."""
        log_p = filter_log_p(
            log_p0, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p
        )
        return draws.categorical(keys, log_p)

    def inputs(self, tokens: Int[Array, "b l"], t: Float[Array, "b #l"] | None) -> NetInput:
        """What the network is asked by `write`."""
        return NetInput(tokens=tokens, t=t)

    def write(
        self,
        state: State,
        is_chosen: Bool[Array, "b l"],
        t: Float[Array, "b #l"] | None,
        *,
        parameterization: Parameterization,
        denoise: Denoise,
    ) -> State:
        """Calls the network once and writes a token at each chosen position.

        No position chosen in any row: no call. Logits exist for `CHUNK` positions at a time, and
        for chosen positions only. A token's key depends on its row's key, the step and the
        position, so what a row draws does not depend on the rows beside it.
        """

        b, l = state.tokens.shape

        def ask(z_t: Int[Array, " n"]) -> Int[Array, " n"]:
            prediction = denoise(self.inputs(state.tokens, t))
            times = None if t is None else jnp.broadcast_to(t, (b, l)).reshape(-1)
            keys = step_keys(state, "which")
            size = min(CHUNK, b * l)
            padded = -(-b * l // size) * size
            (chosen,) = jnp.nonzero(is_chosen.reshape(-1), size=padded, fill_value=b * l)

            def write_chunk(i: Int[Array, ""], tokens: Int[Array, " n"]) -> Int[Array, " n"]:
                rows = jax.lax.dynamic_slice_in_dim(chosen, i * size, size)
                at = jnp.minimum(rows, b * l - 1)  # rows past the last chosen are dropped below
                log_p0 = parameterization.log_p0(
                    prediction.logits(at), z_t[at], None if times is None else times[at]
                )
                token_keys = jax.vmap(jax.random.fold_in)(keys[at // l], at % l)
                written = self.choose(token_keys, log_p0, at, state)
                return tokens.at[rows].set(written.astype(tokens.dtype), mode="drop")

            chunks = -(-is_chosen.sum() // size)
            return jax.lax.fori_loop(0, chunks, write_chunk, z_t)

        is_asked = is_chosen.any()
        tokens = jax.lax.cond(is_asked, ask, lambda z_t: z_t, state.tokens.reshape(-1))
        return replace(state, tokens=tokens.reshape(b, l), nfe=state.nfe + is_asked)


@dataclass(frozen=True, kw_only=True)
class GridSampler(Sampler):
    """A sampler that takes `steps` steps down a `grid` of times: "uniform", or "cosine" (MD4,
    arXiv:2406.04329), shorter steps near noise, where what a step writes is written knowing
    little."""

    steps: int = 128
    grid: Grid = "uniform"

    def __post_init__(self):
        super().__post_init__()
        if self.steps < 1:
            raise ValueError(f"steps={self.steps} is below 1")
        if self.grid not in get_args(Grid):
            raise ValueError(f'grid={self.grid!r} is neither "uniform" nor "cosine"')

    def times(self, state: SampleState) -> tuple[Float[Array, "b 1"], Float[Array, "b 1"]]:
        """The times t and s < t that the current step goes from and to; both 0 in a step beyond
        the grid."""
        grid = jnp.append(grid_of(self.grid, self.steps), 0.0)
        rows = (state.tokens.shape[0], 1)
        return jnp.full(rows, grid[state.step]), jnp.full(rows, grid[state.step + 1])

    def shaped(self, log_p: Float[Array, "b l v"]) -> Float[Array, "b l v"]:
        """Laws after temperature, top-k and top-p."""
        filtered = filter_log_p(
            log_p.reshape(-1, log_p.shape[-1]),
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
        )
        return filtered.reshape(log_p.shape)


def step_keys(state: SampleState, name: str) -> Key[Array, " b"]:
    """One key per row for the current step and the purpose `name`."""
    return jax.vmap(lambda key: stream(jax.random.fold_in(key, state.step), name))(state.keys)


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

    def advance(state: SampleState) -> SampleState:
        state = sampler.step(state, process=process, parameterization=parameterization, denoise=ask)
        return replace(state, step=state.step + 1)

    state = sampler.init(keys, tokens, is_fixed, process=process)
    state = jax.lax.while_loop(lambda state: ~state.done.all(), advance, state)
    state = sampler.finish(state, process=process, parameterization=parameterization, denoise=ask)
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
