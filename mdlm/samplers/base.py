"""The base class of all samplers.

A sequence starts as the process's prior, with some positions fixed: the prompt, the context of an
infilling, padding. Each step decides *whether* each other position is written, then *which* token
it gets, drawn from the network's distribution p(x_0 | z_t) itself. One draw over "tokens and mask"
would scale the token probabilities down by the number of steps, and float32 would lose the tail;
two separate draws have the same joint distribution and no such loss. `loop` runs the steps.
"""

import abc
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
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
from mdlm.samplers.caches.base import NO_CACHE
from mdlm.samplers.logits.filters import TopP
from mdlm.samplers.logits.guidance import Guidance
from mdlm.samplers.logits.shaping import (
    Annealed,
    Hook,
    Shaping,
    check_banned,
    check_settings,
    shape,
    unshapeable,
)
from mdlm.samplers.state import (
    Proposal,
    SampleState,
    State,
    filled,
    no_proposal,
    placed,
    step_keys,
)
from mdlm.types import ArrayTree, Attends, NetInput, Prediction, Reading, Vocab

CHUNK = 128
"""The largest number of positions whose logits are held at once."""

FEW = 16
"""The number of positions per chunk where few positions are requested."""


Score = Callable[[Float[Array, "n v"], Int[Array, " n"]], Float[Array, " n"]]
"""The priority of each position, from log-probabilities there (see `Sampler.weighed`) and the token
drawn. Samplers that write the best positions first order them by it."""


@dataclass(frozen=True, kw_only=True)
class Sampler(abc.ABC):
    """Turns the prior into a sample.

    A sampler decides when each position is written. Its fields say how the network's distribution
    of a token is changed before the token is drawn (`guidance` is applied first, see
    `logits.shaping` for the rest).

    Args:
        temperature: the distribution becomes proportional to p^(1 / temperature); 0 takes the
            likeliest token. With `Annealed` it changes as a row fills.
        top_k: then only the `top_k` likeliest tokens are kept (0: all).
        top_p: then only the likeliest of these with total probability `top_p` are kept.
        top_p_rule: whether the token that crosses `top_p` is kept ("reach") or not ("below").
        banned: ids of tokens that are never written. Fixed tokens stay.
        hook: changes the distribution before all of these; see `Hook`.
        guidance: steers the network's distributions towards a condition, such as a label.

    Some also have a `cache`, which keeps keys and values between network calls, or None.
    """

    processes: ClassVar[tuple[type[Process], ...]] = (Masked,)
    parameterizations: ClassVar[tuple[type[Parameterization], ...]] = (Subs,)
    attends: ClassVar[Attends] = "all"
    """What the sampler is defined for; an experiment refuses anything else."""
    keeps_written: ClassVar[bool] = False
    """Whether no token that it wrote is ever changed. Streams read it from the class itself."""
    # A field of the samplers that can use one, and no field here (hence no annotation).
    cache = NO_CACHE

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
        """The reason why it cannot sample with these parts, its settings and guidance included;
        None if it can. Without `network`, the network is not checked."""
        reason = wrong_kind(self, process, parameterization, network)
        if reason is None:
            reason = unshapeable(self, process)
        if reason is None and self.guidance is not None:
            reason = self.guidance.incompatibility(process, parameterization, network)
        if reason is None and self.cache is not None:
            reason = self.cache.incompatibility(self.attends, network)
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

    def begin(self, state: State, diffusion: Diffusion) -> State:
        """Calls the network before the first step, if needed; by default only for a cache."""
        if self.cache is None:
            return state
        return self.cache.begin(self, state, self._reading_clean(state, diffusion))

    @abc.abstractmethod
    def step(self, state: SampleState, diffusion: Diffusion) -> SampleState:
        """Takes one step. Sets `done`; the loop itself counts `step`."""

    def finish(self, state: SampleState, diffusion: Diffusion) -> SampleState:
        """Resolves positions that the steps left open; by default does nothing."""
        return state

    def choose(
        self,
        keys: Key[Array, " n"],
        log_p: Float[Array, "n v"],
        at: Int[Array, " n"],
        state: SampleState,
    ) -> Int[Array, " n"]:
        """Draws the token proposed at each flat position `at` (`row * l + position`), from its
        processed distribution `log_p`."""
        return draws.categorical(keys, log_p)

    def weighed(
        self,
        log_p0: Float[Array, "n v"],
        processed: Callable[[Shaping], Float[Array, "n v"]],
        mask_id: int,
    ) -> Float[Array, "n v"]:
        """The distributions that give the priorities: the network's, `log_p0`. `processed` applies
        logits processing to them."""
        return log_p0

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
        """Calls the network once and draws a token at each position of `is_asked`. The returned
        state counts the call.

        If no row asks for a position, there is no call. Logits are made only for the positions
        asked for, at most `CHUNK` at a time. A token's key depends on its row's key, the step and
        the position, so a row's draws do not depend on the other rows of the batch.

        `score` gives the priority of every token that is drawn (None: 0 for all). With `unseen`,
        the mask's id, the distributions at visible tokens too are the network's own; without it
        the parameterization carries visible tokens over.
        """
        diffusion = self._reading_clean(state, diffusion)

        def draw(prediction: Prediction) -> Proposal:
            return self._drawn(prediction, state, is_asked, t, diffusion, score, unseen)

        def read(reading: Reading) -> tuple[Proposal, ArrayTree]:
            told = diffusion.denoise(NetInput(tokens=state.tokens, t=t, reading=reading))
            return draw(told), told.cache

        if self.cache is not None and state.cache is not None:
            return self.cache.ask(self, state, is_asked, diffusion, read)

        def ask() -> Proposal:
            inputs = NetInput(tokens=state.tokens, t=t, defer_last_block=True)
            return draw(diffusion.denoise(inputs))

        is_any = is_asked.any()
        proposal = jax.lax.cond(is_any, ask, lambda: no_proposal(state.tokens))
        return replace(state, nfe=state.nfe + is_any), proposal

    def longest_block(self) -> int | None:
        """The most positions of the blocks that are written one after another; None: whole rows."""
        return None

    def note(self, tokens: int, nfe: int) -> str:
        """What to say of a generation of so many tokens with so many calls: that a cache makes it
        approximate; else nothing."""
        if self.cache is None or self.cache.exact:
            return ""
        return f"approximate, by cache={type(self.cache).__name__}(...)"

    def here(self, state: SampleState, is_open: Bool[Array, "b l"]) -> Bool[Array, "b l"]:
        """The block of each row that is being written: by default the whole row."""
        return jnp.ones_like(is_open)

    def _reading_clean(self, state: SampleState, diffusion: Diffusion) -> Diffusion:
        """The diffusion whose network reads the clean tokens too, if it does.

        Open positions lie in the current block or later, so they are never read as clean.
        """
        return diffusion.with_clean(state.tokens) if self.attends == "blocks" else diffusion

    def _drawn(
        self,
        prediction: Prediction,
        state: SampleState,
        is_asked: Bool[Array, "b l"],
        t: Float[Array, " b #l"] | None,
        diffusion: Diffusion,
        score: Score | None,
        unseen: int | None,
    ) -> Proposal:
        """Draws a token at each position of `is_asked` from a prediction, see `propose`."""
        b, l = state.tokens.shape
        none = jax.tree.map(lambda array: array.reshape(-1), no_proposal(state.tokens))
        draw = self._drawing(state, none.tokens, t, diffusion, score, unseen)
        many = min(CHUNK, b * l)
        few = min(max(FEW, 2 * b), many)
        at_few = lambda: filled(none, is_asked, few, partial(draw, prediction))
        at_many = lambda: filled(none, is_asked, many, partial(draw, prediction.whole))
        if prediction.cache is not None:  # it has read few positions already
            proposal = at_few()
        else:
            proposal = jax.lax.cond(4 * is_asked.sum() <= b * l, at_few, at_many)
        return jax.tree.map(lambda flat: flat.reshape(b, l), proposal)

    def _drawing(
        self,
        state: SampleState,
        z_t: Int[Array, " n"],
        t: Float[Array, " b #l"] | None,
        diffusion: Diffusion,
        score: Score | None,
        unseen: int | None,
    ) -> Callable[[Prediction, Int[Array, " n"]], Proposal]:
        """Returns the function that draws tokens at flat positions of `z_t` from a prediction."""
        b, l = state.tokens.shape
        parameterization = diffusion.parameterization
        mask_id, vocab_size = parameterization.ids()
        times = None if t is None else jnp.broadcast_to(t, (b, l)).reshape(-1)
        keys = step_keys(state, "which")

        def draw(prediction: Prediction, at: Int[Array, " n"]) -> Proposal:
            seen = z_t[at] if unseen is None else jnp.full_like(at, unseen, dtype=z_t.dtype)
            log_p0 = parameterization.log_p0(
                prediction.logits(at), seen, None if times is None else times[at]
            )
            token_keys = jax.vmap(jax.random.fold_in)(keys[at // l], at % l)

            def processed(settings: Shaping) -> Float[Array, "n v"]:
                tokens, is_fixed = state.tokens, state.is_fixed
                return shape(
                    settings, log_p0, at, tokens, is_fixed, mask_id=mask_id, size=vocab_size
                )

            drawn = self.choose(token_keys, processed(self), at, state).astype(z_t.dtype)
            weighed = self.weighed(log_p0, processed, mask_id)
            return Proposal(
                tokens=drawn,
                confidence=jnp.exp(entry(log_p0, drawn)),
                present=jnp.exp(entry(log_p0, z_t[at])),
                score=jnp.zeros(at.shape) if score is None else score(weighed, drawn),
            )

        return draw

    def ask_everywhere(
        self, state: SampleState, t: Float[Array, "b 1"], diffusion: Diffusion
    ) -> Float[Array, "b l v"]:
        """The network's distributions of the clean tokens at all positions, held at once."""
        logits = diffusion.denoise(NetInput(tokens=state.tokens, t=t)).logits()
        log_p0 = diffusion.parameterization.log_p0(logits, state.tokens, t)
        # A clean token is never noise, though D3PM's network may give noise some probability.
        is_noise = diffusion.process.is_noise(jnp.arange(log_p0.shape[-1]))
        return jax.nn.log_softmax(jnp.where(is_noise[None, None], -jnp.inf, log_p0), axis=-1)

    def write(
        self,
        state: State,
        is_chosen: Bool[Array, "b l"],
        t: Float[Array, " b #l"] | None,
        diffusion: Diffusion,
    ) -> State:
        """Proposes a token at each chosen position and writes it."""
        state, proposal = self.propose(state, is_chosen, t, diffusion)
        return placed(state, proposal, is_chosen)


def entry(log_p: Float[Array, "n v"], token: Int[Array, " n"]) -> Float[Array, " n"]:
    """The log-probability of each token under its own distribution."""
    return jnp.take_along_axis(log_p, token[:, None], axis=-1)[:, 0]
