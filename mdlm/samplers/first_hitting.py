"""First hitting: a masking process reversed without steps in time (arXiv:2409.02908).

A position is still masked at t with probability (1 - alpha_t) / (1 - alpha_1), so the level u of
a masked position, the value of this ratio at which it is revealed, is uniform on (0, 1]. All
levels are drawn beforehand: they depend on nothing that is drawn meanwhile. The positions of a row
are then revealed by falling level, the network being told the time of the level. One by one this
is the continuous reverse process itself, with as many calls as there are positions: `Ancestral`
has it as the limit of many steps.

`left_first` = w in [0, 1) gives positions times of their own, the left ones sooner. Position j of l
is at the place c_j = (l - 1/2 - j) / l and its level is G((1 - w) u_j + w c_j), with

    G(x) = mean over i of clip((x - w c_i) / (1 - w), 0, 1)

the distribution function of the levels of all positions together. At any time, therefore,
(1 - alpha_t) / (1 - alpha_1) of the row is masked in the mean, as in training, though more of it to
the right, and the network is told that one time of the row. w = 0 is the plain law; from
w = l / (l + 1) on positions come strictly from left to right. Fixed positions count as places too.
The order depends on no token: one by one, a network that knows the law of the tokens given any of
them draws that law, whatever w is.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int, Key

from mdlm.diffusion import Diffusion
from mdlm.draws import uniforms
from mdlm.keys import streams
from mdlm.processes.masked import Masked
from mdlm.samplers.base import Sampler, no_inverse, rates_differ
from mdlm.samplers.state import SampleState, extended, ranks
from mdlm.types import pytree


@pytree
class LevelState(SampleState):
    """What is known of the reveals before the first of them."""

    level: Any  # Float[Array, "b l"], the share of noise left when each position is revealed


@dataclass(frozen=True, kw_only=True)
class FirstHitting(Sampler):
    """`per_call` positions of each row are revealed with every call, the time being that of the
    first of them: 1 is exact, more draw tokens independently of each other that belong to
    different times. NFE is the open positions of the fullest row, divided by `per_call` and
    rounded up.
    """

    per_call: int = 1
    left_first: float = 0.0

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
        # A row that is done reveals nothing, at whatever time.
        first = jnp.where(is_open.any(-1), level.max(-1), 1.0)[:, None]
        t = process.schedule.time_of(first * process.schedule.one_minus_alpha(jnp.ones(())))
        state = self.write(state, is_revealed, t, diffusion)
        return replace(state, done=(is_open == is_revealed).all(-1))


def levels(u: Float[Array, "b l"], left_first: float) -> Float[Array, "b l"]:
    """The level of each position, in (0, 1], from uniform numbers; see the module."""
    if left_first == 0:
        return u
    place = jnp.arange(u.shape[1], dtype=jnp.float32) / u.shape[1]
    # (x - w c_i) / (1 - w) at x = (1 - w) u_j + w c_j, without their cancelling.
    ahead = (place[None, :] - place[:, None]) * (left_first / (1 - left_first))
    return jnp.clip(u[:, :, None] + ahead[None], 0.0, 1.0).mean(-1)
