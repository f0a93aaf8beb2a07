"""What a network's output means: the way from its numbers to log p(x_0 | z_t), token by token."""

import abc
from typing import Self

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from mdlm.types import Vocab


class Parameterization(abc.ABC):
    """Reads a network's output as a law of the clean tokens."""

    @abc.abstractmethod
    def with_vocab(self, vocab: Vocab) -> Self:
        """This parameterization on the tokens of `vocab`.

        Raises ValueError where a token was set by hand and `vocab` says otherwise.
        """

    @abc.abstractmethod
    def log_p0(
        self,
        output: Float[Array, "*n v"],
        z_t: Int[Array, "*n"],
        t: Float[Array, "*#n"] | None,
    ) -> Float[Array, "*n v"]:
        """Log-probabilities (nats, float32) of the clean token; -inf where there is no mass.

        `t` is read only by parameterizations whose output means different things at different
        noise levels; the others take None.
        """

    def log_p0_of(
        self,
        x_0: Int[Array, "*n"],
        output: Float[Array, "*n v"],
        z_t: Int[Array, "*n"],
        t: Float[Array, "*#n"] | None,
    ) -> Float[Array, "*n"]:
        """`log_p0` of the tokens `x_0` alone.

        A parameterization that can do so with fewer passes over the columns overrides this.
        """
        # A comparison and not a gather, whose gradient would be a scatter: this fuses.
        column = jax.lax.broadcasted_iota(jnp.int32, output.shape, output.ndim - 1)
        log_p0 = self.log_p0(output, z_t, t)
        return jnp.where(column == x_0[..., None], log_p0, 0.0).sum(-1)
