"""Samplers that go down a grid of times."""

from dataclasses import dataclass
from typing import Literal, get_args

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, Key

from mdlm.samplers.base import Sampler
from mdlm.samplers.state import SampleState
from mdlm.times import Grid, grid_of


@dataclass(frozen=True, kw_only=True)
class GridSampler(Sampler):
    """A sampler that takes `steps` steps down a `grid` of times.

    The grid is "uniform", or "cosine" (MD4, arXiv:2406.04329), with shorter steps near noise,
    where few tokens are known.
    """

    steps: int = 128
    grid: Grid = "uniform"

    def __post_init__(self):
        super().__post_init__()
        if self.steps < 1:
            raise ValueError(f"steps={self.steps}: must be at least 1")
        if self.grid not in get_args(Grid):
            raise ValueError(f'grid={self.grid!r}: must be "uniform" or "cosine"')

    def times(self, state: SampleState) -> tuple[Float[Array, "b 1"], Float[Array, "b 1"]]:
        """The times t and s < t of the current step, from t to s; both 0 in a step after the
        grid."""
        grid = jnp.append(grid_of(self.grid, self.steps), 0.0)
        rows = (state.tokens.shape[0], 1)
        return jnp.full(rows, grid[state.step]), jnp.full(rows, grid[state.step + 1])


Last = Literal["draw", "argmax"]


@dataclass(frozen=True, kw_only=True)
class LastStep(Sampler):
    """Mixed into a `GridSampler` that resolves positions still masked after its grid.

    There are some if alpha(0) < 1. They take one extra step and call, and `last` says how their
    tokens are chosen: "draw" from the same distribution as before, or the likeliest ("argmax", the
    papers' "noise removal").
    """

    last: Last = "draw"

    def __post_init__(self):
        super().__post_init__()
        if self.last not in get_args(Last):
            raise ValueError(f'last={self.last!r}: must be "draw" or "argmax"')

    def choose(
        self,
        keys: Key[Array, " n"],
        log_p: Float[Array, "n v"],
        at: Int[Array, " n"],
        state: SampleState,
    ) -> Int[Array, " n"]:
        assert isinstance(self, GridSampler)
        drawn = super().choose(keys, log_p, at, state)
        is_after_grid = state.is_after(self.steps, at)
        if self.last == "draw":
            return drawn
        return jnp.where(is_after_grid, jnp.argmax(log_p, axis=-1), drawn)
