"""Ancestral sampling of a masking process: the reverse chain, step by step.

On the grid 1 = t_N > ... > t_0 = 0, a masked position is revealed between t and s < t with
probability (alpha_s - alpha_t) / (1 - alpha_t), and its token is then drawn from the network's
p(x_0 | z_t); a revealed token stays (MDLM eq. 7, arXiv:2406.07524). Positions revealed in the
same step are drawn independently of each other: as the steps grow the law of the sample tends to
that of revealing one position at a time, in random order.
"""

from dataclasses import dataclass, replace
from typing import Literal

import jax
import jax.numpy as jnp

from mdlm.parameterizations.base import Parameterization
from mdlm.processes.masked import Masked
from mdlm.samplers.base import Sampler, SampleState, step_keys
from mdlm.times import uniform_grid
from mdlm.types import Denoise


@dataclass(frozen=True, kw_only=True)
class Ancestral(Sampler):
    """`steps` steps down a uniform grid. A step that reveals nothing calls no network, so
    NFE is at most `steps`, and near the number of positions where that is smaller: with one row,
    alpha = 1 - t and L open positions it is steps * (1 - (1 - 1 / steps)^L) in the mean.

    `last` says how positions that are still masked at t = 0 (schedules with alpha(0) < 1) are
    resolved, in one more call: "draw" from the same law, or "argmax", the likeliest token,
    the papers' "noise removal".
    """

    steps: int = 128
    last: Literal["draw", "argmax"] = "draw"

    def __post_init__(self):
        super().__post_init__()
        if self.steps < 1:
            raise ValueError(f"steps={self.steps} is below 1")
        if self.last not in ("draw", "argmax"):
            raise ValueError(f'last={self.last!r} is neither "draw" nor "argmax"')

    def step(
        self,
        state: SampleState,
        *,
        process: Masked,
        parameterization: Parameterization,
        denoise: Denoise,
    ) -> SampleState:
        b, l = state.tokens.shape
        grid = jnp.asarray(uniform_grid(self.steps), jnp.float32)
        t = jnp.full((b, 1), grid[state.step])
        s = jnp.full((b, 1), grid[state.step + 1])
        uniform = jax.vmap(lambda key: jax.random.uniform(key, (l,)))(step_keys(state, "whether"))
        is_open = process.is_masked(state.tokens) & ~state.is_fixed
        is_revealed = is_open & (uniform < process.reveal_probability(t, s))
        state = self.write(
            state, is_revealed, t, parameterization=parameterization, denoise=denoise
        )
        is_last = state.step + 1 == self.steps
        return replace(state, done=is_last | (is_open == is_revealed).all(-1))

    def finish(
        self,
        state: SampleState,
        *,
        process: Masked,
        parameterization: Parameterization,
        denoise: Denoise,
    ) -> SampleState:
        """Fills what is still masked at t = 0."""
        is_open = process.is_masked(state.tokens) & ~state.is_fixed
        sampler = replace(self, temperature=0.0) if self.last == "argmax" else self
        t = jnp.zeros((state.tokens.shape[0], 1))
        return sampler.write(state, is_open, t, parameterization=parameterization, denoise=denoise)
