"""Ancestral sampling of a masking process: the reverse chain, its reveals drawn beforehand.

On the grid 1 = t_N > ... > t_0 = 0, a masked position is revealed between t and s < t with
probability (alpha_s - alpha_t) / (1 - alpha_t), and its token is then drawn from the network's
p(x_0 | z_t); a revealed token stays (MDLM eq. 7, arXiv:2406.07524). Positions revealed in the
same step are drawn independently of each other: with more steps the distribution of the sample
tends to that of revealing one position at a time, in random order.

The step that reveals a position does not depend on the tokens drawn, so all reveal steps are drawn
first (DNDM, arXiv:2312.09193): a position is still masked at s with probability
(1 - alpha_s) / (1 - alpha_1), with alpha at the position's own time if it has one. Each row then
skips to its next step that reveals something, independently of the other rows. The distribution of
the sample is the same.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Int, Key

from mdlm.diffusion import Diffusion
from mdlm.draws import uniforms
from mdlm.keys import streams
from mdlm.processes.masked import Masked
from mdlm.samplers.caches.base import Cache
from mdlm.samplers.grid import GridSampler, LastStep
from mdlm.samplers.requirements import rates_differ
from mdlm.samplers.state import SampleState, extended
from mdlm.schedules.positions import PositionTimes
from mdlm.times import grid_of
from mdlm.types import pytree


@pytree
class RevealState(SampleState):
    """Adds the reveal steps, which are drawn before the first step."""

    due: Any  # Int[Array, "b l"], the step of the grid that reveals each position

    def is_after(self, steps: int, at: Int[Array, " n"]) -> Bool[Array, " n"]:
        return self.due.reshape(-1)[at] % (steps + 1) == steps


@dataclass(frozen=True, kw_only=True)
class Ancestral(LastStep, GridSampler):
    """Reveals masked positions at random steps of the reverse chain; revealed tokens stay.

    NFE is the largest number, over the rows of the batch, of steps that reveal something. A row of
    L open positions, with alpha = 1 - t and a uniform grid, has
    steps * (1 - (1 - 1 / steps)^L) of them in the mean: at most `steps`, and near L if L is
    smaller.

    The step that resolves positions still masked after the grid is a step like the others, so that
    the network is compiled once.

    Args:
        positions: the times of positions, as in training (`mdlm.objectives.Positional`); None: all
            have that of the row.
    """

    keeps_written: ClassVar[bool] = True

    cache: Cache | None = None
    positions: PositionTimes | None = None

    def incompatibility(self, process, parameterization, network=None):
        reason = super().incompatibility(process, parameterization, network)
        if reason is None and self.positions is not None and not self.positions.is_path:
            kind = type(self.positions).__name__
            return f"positions={kind}(): these times do not lead from noise to a text"
        return reason or rates_differ(process, "reveals")

    def init(
        self,
        keys: Key[Array, " b"],
        tokens: Int[Array, "b l"],
        is_fixed: Bool[Array, "b l"],
        diffusion: Diffusion[Masked],
    ) -> RevealState:
        state = super().init(keys, tokens, is_fixed, diffusion)
        due = due_steps(self, keys, tokens.shape[1], diffusion.process, self.positions)
        return extended(state, RevealState, due=due)

    def step(self, state: RevealState, diffusion: Diffusion[Masked]) -> RevealState:
        return reveal_due(self, state, diffusion, self.positions)


def due_steps(
    sampler: GridSampler,
    keys: Key[Array, " b"],
    length: int,
    process: Masked,
    positions: PositionTimes | None = None,
) -> Int[Array, "b l"]:
    """The step that reveals each position: 0 is the first of the grid, `steps` the extra one."""
    grid = grid_of(sampler.grid, sampler.steps)
    u = uniforms(streams(keys, "due"), length)
    masked = lambda t: (
        process.schedule.one_minus_alpha(t) / process.schedule.one_minus_alpha(jnp.ones(()))
    )
    if positions is None:
        rising = masked(grid[1:])[::-1]  # still masked after the last step, .., the first
        return sampler.steps - jnp.searchsorted(rising, u, side="right").astype(jnp.int32)

    def is_masked_after(steps: Int[Array, ""]) -> Bool[Array, "b l"]:
        t = jnp.full((u.shape[0], 1), grid[steps])
        return u < masked(positions.times(keys, t, length))

    add = lambda n, due: due + is_masked_after(n + 1)
    return jax.lax.fori_loop(0, sampler.steps, add, jnp.zeros(u.shape, jnp.int32))


def reveal_due(
    sampler: GridSampler,
    state: RevealState,
    diffusion: Diffusion[Masked],
    positions: PositionTimes | None = None,
) -> RevealState:
    """Writes the positions of each row that are due first. `due` may run over several passes down
    the grid, `steps + 1` steps each."""
    is_open = diffusion.process.is_masked(state.tokens) & ~state.is_fixed
    never = jnp.iinfo(jnp.int32).max
    now = jnp.where(is_open, state.due, never).min(-1, keepdims=True)
    is_revealed = is_open & (state.due == now)
    # A row that is done reveals nothing at any time.
    t = grid_of(sampler.grid, sampler.steps)[now % (sampler.steps + 1)]
    if positions is not None:
        t = positions.times(state.keys, t, state.tokens.shape[1])
    state = sampler.write(state, is_revealed, t, diffusion)
    return replace(state, done=(is_open == is_revealed).all(-1))
