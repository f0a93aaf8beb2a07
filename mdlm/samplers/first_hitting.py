"""First hitting: a masking process reversed without steps in time (arXiv:2409.02908).

A position is still masked at t with probability (1 - alpha_t) / (1 - alpha_1), so the level u of
a masked position, the value of this ratio at which it is revealed, is uniform on (0, 1]. The levels
do not depend on the tokens, so all are drawn beforehand. The positions of a row are then revealed
by falling level, and the network is given the time of the level. Revealed one by one this is the
exact continuous reverse process, with one call for each position; `Ancestral` reaches it in the
limit of many steps.

`left_first` = w in [0, 1) reveals left positions sooner on average. Position j of l has the
coordinate c_j = (l - 1/2 - j) / l and the level G((1 - w) u_j + w c_j), with

    G(x) = mean over i of clip((x - w c_i) / (1 - w), 0, 1)

the distribution function of (1 - w) u_i + w c_i over all positions i. At any time, therefore, the
expected share of masks in the row is (1 - alpha_t) / (1 - alpha_1), as in training, but more of
them lie to the right; the network is given this one time for the row. w = 0 is the plain uniform
distribution; from w = l / (l + 1) on positions are revealed strictly from left to right. Fixed
positions count in l too. The order does not depend on the tokens: with one position per call, a
network whose conditional distributions are all exact draws from the exact distribution, for any w.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int, Key

from mdlm.diffusion import Diffusion
from mdlm.draws import uniforms
from mdlm.keys import streams
from mdlm.processes.masked import Masked
from mdlm.samplers.base import Sampler
from mdlm.samplers.caches.base import Cache
from mdlm.samplers.requirements import no_inverse, rates_differ
from mdlm.samplers.state import SampleState, extended, ranks
from mdlm.types import pytree


@pytree
class LevelState(SampleState):
    """Adds the noise levels, which are drawn before the first step."""

    level: Any  # Float[Array, "b l"], the share of noise left when each position is revealed


@dataclass(frozen=True, kw_only=True)
class FirstHitting(Sampler):
    """Reveals `per_call` positions of each row with every call, at the time of the first of them.

    1 is exact; with more, tokens of different times are drawn together, independently of each
    other. NFE is the largest number of open positions of a row, divided by `per_call` and rounded
    up.
    """

    keeps_written: ClassVar[bool] = True

    per_call: int = 1
    left_first: float = 0.0
    cache: Cache | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.per_call < 1:
            raise ValueError(f"per_call={self.per_call}: must be at least 1")
        if not 0 <= self.left_first < 1:
            raise ValueError(f"left_first={self.left_first}: must be in [0, 1)")

    def incompatibility(self, process, parameterization, network=None):
        return (
            super().incompatibility(process, parameterization, network)
            or rates_differ(process, "reveals")
            or no_inverse(process, "a given level")
        )

    def init(
        self,
        keys: Key[Array, " b"],
        tokens: Int[Array, "b l"],
        is_fixed: Bool[Array, "b l"],
        diffusion: Diffusion[Masked],
    ) -> LevelState:
        state = super().init(keys, tokens, is_fixed, diffusion)
        # Never 0, the level of clean data, where log-SNR is infinite.
        u = 1 - uniforms(streams(keys, "level"), tokens.shape[1])
        return extended(state, LevelState, level=levels(u, self.left_first))

    def step(self, state: LevelState, diffusion: Diffusion[Masked]) -> LevelState:
        process = diffusion.process
        is_open = process.is_masked(state.tokens) & ~state.is_fixed
        level = jnp.where(is_open, state.level, -jnp.inf)
        is_revealed = is_open & (ranks(level) < self.per_call)
        # A row that is done reveals nothing at any time.
        first = jnp.where(is_open.any(-1), level.max(-1), 1.0)[:, None]
        t = process.schedule.time_of(first * process.schedule.one_minus_alpha(jnp.ones(())))
        state = self.write(state, is_revealed, t, diffusion)
        return replace(state, done=(is_open == is_revealed).all(-1))


def levels(u: Float[Array, "b l"], left_first: float) -> Float[Array, "b l"]:
    """The level of each position, in (0, 1], from uniform numbers; see the module docstring."""
    if left_first == 0:
        return u
    left = jnp.arange(u.shape[1], dtype=jnp.float32) / u.shape[1]
    # (x - w c_i) / (1 - w) at x = (1 - w) u_j + w c_j, without cancellation.
    ahead = (left[None, :] - left[:, None]) * (left_first / (1 - left_first))
    return jnp.clip(u[:, :, None] + ahead[None], 0.0, 1.0).mean(-1)
