"""A diffusion time for each position: some positions are noised, and revealed, before others.

A row has one time t, and position i its own time t_i, which never falls as t rises, from 0 at t = 0
to 1 at t = 1. Any such times give a bound. With the true posterior it is tight, as for one time:

    -log p(x) <= sum_i int_0^1 w(t_i) dt_i/dt E_{z_t} [i masked] -log p(x_i | z_t) dt

Interpolants' joint schedules, Diffusion Forcing (arXiv:2407.01392) and AR-Diffusion
(arXiv:2305.09515) have this form. Objectives (`Positional`) and samplers (`Ancestral`) read the
same values.
"""

import abc
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Key

from mdlm.draws import uniforms
from mdlm.keys import streams


@dataclass(frozen=True, kw_only=True)
class PositionTimes(abc.ABC):
    """Times of positions, as a function of the time of the row."""

    is_path: ClassVar[bool] = True
    """Whether they are a function of the row's time. Else there is no bound, and no sampler."""

    @abc.abstractmethod
    def times(
        self, keys: Key[Array, " b"], t: Float[Array, "b 1"], length: int
    ) -> Float[Array, "b l"]:
        """Returns the time of each position. Each row has a key, for what is random."""

    def with_rates(
        self, keys: Key[Array, " b"], t: Float[Array, "b 1"], length: int
    ) -> tuple[Float[Array, "b l"], Float[Array, "b l"]]:
        """Returns the time of each position, and how fast it rises with that of the row."""
        return jax.jvp(lambda t: self.times(keys, t, length), (t,), (jnp.ones_like(t),))


@dataclass(frozen=True, kw_only=True)
class LeftFirst(PositionTimes):
    """Positions on the left are revealed first: t_i = clip((t - o_i) / width), o_i falling from
    1 - width at the first position to 0 at the last.

    With width=1 all positions have one time. With a width of at most 1 / length they are revealed
    one by one, from left to right.

    Args:
        width: the share of the row's time in which a position goes from noise to its token.
        segment: successive positions with one time.
    """

    width: float
    segment: int = 1

    def __post_init__(self):
        check_width(self.width)
        if self.segment < 1:
            raise ValueError(f"segment={self.segment}: must be at least 1")

    def times(self, keys, t, length):
        number = jnp.arange(length)[None] // self.segment
        last = max((length - 1) // self.segment, 1)
        return within(t, (1 - self.width) * (1 - number / last), self.width)


@dataclass(frozen=True, kw_only=True)
class RandomOffsets(PositionTimes):
    """Each position of each row has a random part of the row's time, of this width."""

    width: float

    def __post_init__(self):
        check_width(self.width)

    def times(self, keys, t, length):
        offset = (1 - self.width) * uniforms(streams(keys, "offsets"), length)
        return within(t, offset, self.width)


@dataclass(frozen=True, kw_only=True)
class ARDiffusion(PositionTimes):
    """The times of AR-Diffusion (arXiv:2305.09515): the line through time 1 at position 2 l and a
    point that moves from the right end of the row to its left end, at time 0, and then up to time
    1. Tokens on the left are less noised."""

    def times(self, keys, t, length):
        # The paper's time runs from 0 to l + T; here the two parts are halves of [0, 1].
        start = length * jnp.clip(1 - 2 * t, 0, 1)
        base = jnp.clip(2 * t - 1, 0, 1)
        slope = (1 - base) / (2 * length - start)
        return jnp.clip(slope * (jnp.arange(length)[None] - start) + base, 0, 1)


@dataclass(frozen=True, kw_only=True)
class Independent(PositionTimes):
    """Each position of each row has a random time of its own, whatever that of the row is
    (Diffusion Forcing). The loss at such times is no bound: a token may be scored given others that
    no order of revealing would have revealed before it at that rate."""

    is_path: ClassVar[bool] = False

    def times(self, keys, t, length):
        return jnp.broadcast_to(uniforms(streams(keys, "times"), length), (t.shape[0], length))

    def with_rates(self, keys, t, length):
        times = self.times(keys, t, length)
        return times, jnp.ones_like(times)


def within(t: Array, offset: Array, width: float) -> Float[Array, "b l"]:
    """Returns times that rise from 0 to 1 on [offset, offset + width]."""
    return jnp.clip((t - offset) / width, 0, 1)


def check_width(width: float) -> None:
    """Raises ValueError if it is no share of the time."""
    if not 0 < width <= 1:
        raise ValueError(f"width={width}: must be above 0 and at most 1")
