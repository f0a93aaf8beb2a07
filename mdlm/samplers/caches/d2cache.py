"""An approximate cache that reads what may be written soon, and what is attended to most."""

import math
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from mdlm.samplers.caches.partial import Partial, View
from mdlm.samplers.state import ranks


@dataclass(frozen=True, kw_only=True)
class D2Cache(Partial):
    """Approximate. Reads and writes the `masks` open positions of highest confidence x density of
    known tokens around, those of the block first. It also reads the tokens written in the last call
    and, of the other positions, those that most was attended to in it (d2Cache, arXiv:2509.23094).

    The confidence of a position is that of the last call that asked for it; no call did: 1.

    Args:
        masks: how many open positions a call reads.
        sigma: standard deviation, in positions, of the Gaussian that weighs the known tokens.
        share: the other positions read have this share of their attention rollout, or are one.
    """

    rollout: ClassVar[bool] = True

    masks: int = 32
    sigma: float = 10.0
    share: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        if self.masks < 1:
            raise ValueError(f"masks={self.masks}: must be at least 1")
        if not 0 < self.sigma <= 1000:
            raise ValueError(f"sigma={self.sigma}: must be above 0, and at most 1000 positions")
        if not 0 <= self.share <= 1:
            raise ValueError(f"share={self.share}: must be from 0 to 1")

    def reads(self, view: View) -> Bool[Array, "b l"]:
        is_near = self.candidates(view) | view.is_changed
        return is_near | nucleus(jnp.where(is_near, 0.0, view.rollout), self.share)

    def candidates(self, view: View) -> Bool[Array, "b l"]:
        is_possible = view.is_open & (jnp.cumsum(view.is_here, axis=-1) > 0)
        score = view.confidence * density(~view.is_open, self.sigma) + view.is_here
        return is_possible & (ranks(jnp.where(is_possible, score, -jnp.inf)) < self.masks)

    def is_due(self, view: View) -> Bool[Array, "b 1"]:
        return jnp.zeros_like(view.is_new)


def density(is_known: Bool[Array, "b l"], sigma: float) -> Float[Array, "b l"]:
    """Returns the share of known tokens around each position, weighed by a Gaussian.

    Before a row all is known; after it, all or nothing, as its last token is.
    """
    reach = math.ceil(4 * sigma)
    weights = jnp.exp(-(jnp.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    known = is_known.astype(jnp.float32)
    before = jnp.ones((known.shape[0], reach))
    after = jnp.broadcast_to(known[:, -1:], before.shape)
    wide = jnp.concatenate([before, known, after], axis=1)
    mean = lambda row: jnp.convolve(row, weights / weights.sum(), mode="valid")
    return jax.vmap(mean)(wide)


def nucleus(amount: Float[Array, "b l"], share: float) -> Bool[Array, "b l"]:
    """Returns the positions with the largest amounts, as many as have together at most this share
    of the row's; at least one, if any amount is above 0."""
    order = jnp.argsort(-amount, axis=-1, stable=True)
    falling = jnp.take_along_axis(amount, order, axis=-1)
    is_in = jnp.cumsum(falling, axis=-1) <= share * amount.sum(-1, keepdims=True)
    is_in = is_in.at[:, 0].set(True) & (falling > 0)
    return jnp.zeros(amount.shape, bool).at[jnp.arange(len(amount))[:, None], order].set(is_in)
