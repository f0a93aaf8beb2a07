"""Samplers that go down a grid of times."""

from dataclasses import dataclass
from typing import Literal, get_args

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

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
"""How positions still masked after the grid are resolved, in one extra step and call (there are
some if alpha(0) < 1): drawn from the same distribution, or the likeliest token (the papers'
"noise removal")."""


def check_last(last: Last) -> None:
    """Raises ValueError if `last` is not "draw" or "argmax"."""
    if last not in get_args(Last):
        raise ValueError(f'last={last!r}: must be "draw" or "argmax"')


def resolved(
    drawn: Int[Array, " n"],
    log_p: Float[Array, "n v"],
    last: Last,
    is_last: Bool[Array, "#n"],
) -> Int[Array, " n"]:
    """Returns the tokens `drawn` from `log_p`; where `is_last`, the likeliest if `last` says so."""
    if last == "draw":
        return drawn
    return jnp.where(is_last, jnp.argmax(log_p, axis=-1), drawn)
