"""Ancestral sampling of a masking process: the reverse chain, step by step.

On the grid 1 = t_N > ... > t_0 = 0, a masked position is revealed between t and s < t with
probability (alpha_s - alpha_t) / (1 - alpha_t), and its token is then drawn from the network's
p(x_0 | z_t); a revealed token stays (MDLM eq. 7, arXiv:2406.07524). Positions revealed in the
same step are drawn independently of each other: as the steps grow the law of the sample tends to
that of revealing one position at a time, in random order.
"""

from dataclasses import dataclass, replace
from typing import Literal

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, Key

from mdlm.draws import uniforms
from mdlm.parameterizations.base import Parameterization
from mdlm.processes.base import Process
from mdlm.processes.masked import Masked
from mdlm.samplers.base import GridSampler, SampleState, step_keys
from mdlm.types import Denoise


@dataclass(frozen=True, kw_only=True)
class Ancestral(GridSampler):
    """A step that reveals nothing calls no network, so NFE is at most `steps`, and near the number
    of positions where that is smaller: with one row, alpha = 1 - t, a uniform grid and L open
    positions it is steps * (1 - (1 - 1 / steps)^L) in the mean.

    `last` says how positions that are still masked at t = 0 (schedules with alpha(0) < 1) are
    resolved, in one step and call more: "draw" from the same law, or "argmax", the likeliest
    token, the papers' "noise removal". It is a step like the others, and no `finish`, so that the
    network is compiled once.
    """

    last: Literal["draw", "argmax"] = "draw"

    def __post_init__(self):
        super().__post_init__()
        if self.last not in ("draw", "argmax"):
            raise ValueError(f'last={self.last!r} is neither "draw" nor "argmax"')

    def refuses(self, process: Process, parameterization: Parameterization) -> str | None:
        if process.schedule.per_token:
            return (
                "it reveals all tokens at one rate, and the schedule has a rate for each;"
                " use sampler=Reverse()"
            )
        return None

    def step(
        self,
        state: SampleState,
        *,
        process: Masked,
        parameterization: Parameterization,
        denoise: Denoise,
    ) -> SampleState:
        t, s = self.times(state)
        uniform = uniforms(step_keys(state, "whether"), state.tokens.shape[1])
        is_over = state.step == self.steps
        is_open = process.is_masked(state.tokens) & ~state.is_fixed
        is_revealed = is_open & (is_over | (uniform < process.reveal_probability(t, s)))
        state = self.write(
            state, is_revealed, t, parameterization=parameterization, denoise=denoise
        )
        return replace(state, done=(is_open == is_revealed).all(-1))

    def choose(
        self,
        keys: Key[Array, " n"],
        log_p0: Float[Array, "n v"],
        at: Int[Array, " n"],
        state: SampleState,
    ) -> Int[Array, " n"]:
        drawn = super().choose(keys, log_p0, at, state)
        if self.last == "draw":
            return drawn
        return jnp.where(state.step == self.steps, jnp.argmax(log_p0, axis=-1), drawn)
