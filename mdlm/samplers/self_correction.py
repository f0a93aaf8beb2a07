"""Self-correction of finished samples (GIDD, arXiv:2503.04482): tokens are replaced where the
network prefers others.

After `first` has sampled, each round draws a token for every position from the network's
distribution near t = 0, sharpened by the temperature, and makes the few replacements of highest
probability:

    z' ~ p(x_0 | z)^(1 / temperature),    priority = [z' is not z] p(z'),    best `moves` replaced

p in the priority is the sharpened distribution too. A row is done when no token would change, or
when its self-accuracy (the share of its tokens that are the network's likeliest) has not improved
for `patience` rounds. This searches for rows that the network agrees with; the samples do not have
the network's distribution. It needs a network trained on rows in which some tokens are wrong.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from mdlm.diffusion import Diffusion
from mdlm.draws import categorical_by_position
from mdlm.keys import stream
from mdlm.parameterizations.base import Parameterization
from mdlm.parameterizations.mean import Mean
from mdlm.processes.base import Process
from mdlm.processes.interpolating import Interpolating
from mdlm.samplers.base import Sampler
from mdlm.samplers.grid import GridSampler
from mdlm.samplers.logits.shaping import shape_all
from mdlm.samplers.reverse import Reverse
from mdlm.samplers.state import SampleState, extended, ranks, rewritten
from mdlm.types import Vocab, pytree


@pytree
class CorrectionState(SampleState):
    """Adds the state of the first sampler and the progress of each row's corrections."""

    first: Any  # the state of the first sampler
    rounds: Any  # Int[Array, " b"], rounds taken
    best: Any  # Float[Array, " b"], the best self-accuracy so far
    stale: Any  # Int[Array, " b"], rounds since the best was reached


@dataclass(frozen=True, kw_only=True)
class SelfCorrection(Sampler):
    """Corrects the samples of `first`: `moves` tokens of a row in each of at most `rounds` rounds.

    The network is given the time `time`. The defaults are GIDD's. `temperature`, `top_k` and
    `top_p` change the distribution of the corrections; those of `first`, the distribution that
    `first` draws from.

    NFE is that of `first` plus at most `rounds`. Corrections begin when all rows are sampled.
    """

    processes: ClassVar[tuple[type[Process], ...]] = (Interpolating,)
    parameterizations: ClassVar[tuple[type[Parameterization], ...]] = (Mean,)

    first: GridSampler = Reverse()
    temperature: float = 0.1
    moves: int = 1
    time: float = 0.01
    rounds: int = 128
    patience: int = 32

    def __post_init__(self):
        super().__post_init__()
        for name in ("moves", "rounds", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        if not 0 < self.time <= 1:
            raise ValueError(f"time={self.time}: must be in (0, 1]")

    def incompatibility(self, process, parameterization, network=None):
        name = type(self.first).__name__
        if self.first.guidance is not None:
            return f"first={name}(...) has guidance; give the guidance to SelfCorrection(...)"
        reason = super().incompatibility(process, parameterization, network)
        if reason is None:
            of_first = self.first.incompatibility(process, parameterization, network)
            reason = of_first and f"first={name}(...): {of_first}"
        return reason

    def check_ids(self, vocab: Vocab) -> None:
        super().check_ids(vocab)
        self.first.check_ids(vocab)

    @property
    def _first(self) -> GridSampler:
        """`first`, with the tokens banned here banned there too."""
        return replace(self.first, banned=(*self.first.banned, *self.banned))

    def init(self, keys, tokens, is_fixed, diffusion):
        first = self.first.init(keys, tokens, is_fixed, diffusion)
        none = jnp.zeros_like(first.done, jnp.int32)
        return extended(
            first,
            CorrectionState,
            first=first,
            rounds=none,
            best=jnp.full(none.shape, -1.0),
            stale=none,
        )

    def step(self, state: CorrectionState, diffusion: Diffusion[Interpolating]) -> CorrectionState:
        def sample() -> CorrectionState:
            first = replace(state.first, step=state.step)
            first = self._first.step(first, diffusion)
            return replace(
                state,
                first=first,
                tokens=first.tokens,
                confidence=first.confidence,
                nfe=first.nfe,
            )

        def correct() -> CorrectionState:
            return self.correct(state, diffusion)

        return jax.lax.cond(state.first.done.all(), correct, sample)

    def correct(
        self, state: CorrectionState, diffusion: Diffusion[Interpolating]
    ) -> CorrectionState:
        """Takes one round of corrections."""
        t = jnp.full((state.tokens.shape[0], 1), self.time)
        log_p0 = self.ask_everywhere(state, t, diffusion)
        log_p = shape_all(self, log_p0, state, diffusion.parameterization)
        # Keyed by the row's rounds: the number of steps before them depends on the other rows.
        keys = jax.vmap(lambda key, i: stream(jax.random.fold_in(key, i), "correct"))(
            state.keys, state.rounds
        )
        proposed = categorical_by_position(keys, log_p).astype(state.tokens.dtype)
        may_move = ~state.is_fixed & ~state.done[:, None]
        tokens = moved(state.tokens, proposed, log_p, may_move, self.moves)
        accuracy = agreement(tokens, log_p0, ~state.is_fixed)
        stale = jnp.where(accuracy > state.best, 0, state.stale + 1)
        rounds = state.rounds + 1
        is_still = (tokens == state.tokens).all(-1)
        done = is_still | (stale >= self.patience) | (rounds >= self.rounds)
        return replace(
            rewritten(state, tokens, log_p0),
            rounds=rounds,
            best=jnp.maximum(state.best, accuracy),
            stale=stale,
            done=state.done | done,
            nfe=state.nfe + 1,
        )


def moved(
    tokens: Int[Array, "b l"],
    proposed: Int[Array, "b l"],
    log_p: Float[Array, "b l v"],
    may_move: Bool[Array, "b l"],
    moves: int,
) -> Int[Array, "b l"]:
    """Writes the `moves` likeliest proposals of each row, among those that change a token."""
    p = jnp.exp(jnp.take_along_axis(log_p, proposed[..., None], axis=-1)[..., 0])
    changes = may_move & (proposed != tokens)
    is_best = ranks(jnp.where(changes, p, -1.0)) < moves
    return jnp.where(changes & is_best, proposed, tokens)


def agreement(
    tokens: Int[Array, "b l"], log_p: Float[Array, "b l v"], is_counted: Bool[Array, "b l"]
) -> Float[Array, " b"]:
    """Self-accuracy: the share of each row's counted tokens that are the likeliest."""
    is_likeliest = is_counted & (tokens == jnp.argmax(log_p, axis=-1))
    return is_likeliest.sum(-1) / jnp.maximum(is_counted.sum(-1), 1)
