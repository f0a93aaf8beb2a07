"""Samplers that go down a grid of times."""

import abc
from dataclasses import dataclass
from typing import Literal, get_args

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int, Key

from mdlm.samplers.base import Sampler
from mdlm.samplers.state import SampleState
from mdlm.times import Grid, grid_of


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


@dataclass(frozen=True, kw_only=True)
class ResolvingSampler(GridSampler):
    """A sampler after whose grid positions may still be masked: schedules with alpha(0) < 1 leave
    some. One step and call more resolves them: "draw" from the same law, or "argmax", the
    likeliest token, the papers' "noise removal"."""

    last: Literal["draw", "argmax"] = "draw"

    def __post_init__(self):
        super().__post_init__()
        if self.last not in ("draw", "argmax"):
            raise ValueError(f'last={self.last!r} is neither "draw" nor "argmax"')

    @abc.abstractmethod
    def is_last(self, state: SampleState, at: Int[Array, " n"]) -> Bool[Array, "#n"]:
        """Whether this step is the one after the grid, for the rows `at` of `choose`."""

    def choose(
        self,
        keys: Key[Array, " n"],
        log_p: Float[Array, "n v"],
        at: Int[Array, " n"],
        state: SampleState,
    ) -> Int[Array, " n"]:
        drawn = super().choose(keys, log_p, at, state)
        if self.last == "draw":
            return drawn
        return jnp.where(self.is_last(state, at), jnp.argmax(log_p, axis=-1), drawn)
