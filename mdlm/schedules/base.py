"""The contract of noise schedules: alpha(t) and the functions that follow from it."""

import abc
from typing import ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int, Key

from mdlm.types import ArrayTree, Vocab


class Schedule(abc.ABC):
    """Elementwise functions of diffusion time. `x_0` holds clean tokens in the shape of the times.

    Only schedules that noise tokens at different rates (`per_token`) read `x_0`.
    """

    has_inverse: ClassVar[bool] = False
    per_token: ClassVar[bool] = False
    needs_counts: ClassVar[bool] = False

    def with_vocab(self, vocab: Vocab) -> Self:
        """Returns the schedule for a vocabulary; most schedules do not depend on it."""
        return self

    def with_counts(self, counts: Int[np.ndarray, " v"]) -> Self:
        """Returns the schedule for the token counts of the training split (`needs_counts`)."""
        return self

    def init(self, key: Key[Array, ""]) -> ArrayTree:
        """Returns initial learned values: `{}` for a schedule that learns nothing."""
        return {}

    def bind(self, arrays: ArrayTree) -> Self:
        """Returns the schedule with these learned values, which may be traced."""
        return self

    @abc.abstractmethod
    def alpha(
        self, t: Float[Array, "*s"], x_0: Int[Array, "*s"] | None = None
    ) -> Float[Array, "*s"]:
        """Probability that a token is still clean at `t`."""

    def one_minus_alpha(
        self, t: Float[Array, "*s"], x_0: Int[Array, "*s"] | None = None
    ) -> Float[Array, "*s"]:
        """Probability that a token is noised by time `t`."""
        return 1 - self.alpha(t, x_0)

    def alpha_gap(
        self, s: Float[Array, "*s"], t: Float[Array, "*s"], x_0: Int[Array, "*s"] | None = None
    ) -> Float[Array, "*s"]:
        """`alpha(s) - alpha(t)`, the probability to be noised between `s` and `t >= s`."""
        return self.alpha(s, x_0) - self.alpha(t, x_0)

    def dalpha(
        self, t: Float[Array, "*s"], x_0: Int[Array, "*s"] | None = None
    ) -> Float[Array, "*s"]:
        """Derivative of alpha in time."""
        return jax.jvp(lambda t: self.alpha(t, x_0), (t,), (jnp.ones_like(t),))[1]

    def weight(
        self, t: Float[Array, "*s"], x_0: Int[Array, "*s"] | None = None
    ) -> Float[Array, "*s"]:
        """The weight of a masked token in the NELBO: `-alpha' / (1 - alpha)` (MD4 eq. 5)."""
        return -self.dalpha(t, x_0) / self.one_minus_alpha(t, x_0)

    def log_snr(
        self, t: Float[Array, "*s"], x_0: Int[Array, "*s"] | None = None
    ) -> Float[Array, "*s"]:
        """`log(alpha / (1 - alpha))`, nats."""
        return jnp.log(self.alpha(t, x_0)) - jnp.log(self.one_minus_alpha(t, x_0))

    def sigma(
        self, t: Float[Array, "*s"], x_0: Int[Array, "*s"] | None = None
    ) -> Float[Array, "*s"]:
        """Total noise `-log alpha`, nats."""
        noised = self.one_minus_alpha(t, x_0)
        is_low = noised < 0.5
        low = jnp.log1p(-jnp.where(is_low, noised, 0.0))
        return -jnp.where(is_low, low, jnp.log(self.alpha(t, x_0)))

    def time_of(self, one_minus_alpha: Float[Array, "*s"]) -> Float[Array, "*s"]:
        """Returns the time in [0, 1] at which `1 - alpha` has this value, else the nearest end.

        Raises ValueError if the schedule has no inverse in closed form (`has_inverse` is False).
        """
        raise ValueError(f"{type(self).__name__} has no inverse in closed form")


def check_eps(eps: float, bound: float) -> None:
    """Raises ValueError if `eps` is not in [0, bound)."""
    if not 0 <= eps < bound:
        raise ValueError(f"eps={eps}: must be in [0, {bound})")
