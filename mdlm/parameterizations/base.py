"""What a network's output means: the way from its numbers to log p(x_0 | z_t), token by token."""

import abc
from dataclasses import dataclass
from typing import Self

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from mdlm.processes.base import Process
from mdlm.types import Vocab, with_ids


@dataclass(frozen=True, kw_only=True)
class Parameterization(abc.ABC):
    """Reads a network's output as a law of the clean tokens. `mask_id` and `vocab_size` come from
    the vocabulary; the network may have more columns."""

    mask_id: int | None = None
    vocab_size: int | None = None

    def with_vocab(self, vocab: Vocab) -> Self:
        """This parameterization on the tokens of `vocab`.

        Raises ValueError where a token was set by hand and `vocab` says otherwise.
        """
        return with_ids(self, vocab)

    def incompatibility(self, process: Process) -> str | None:
        """Why the output cannot be read so under a process; None if it can."""
        return None

    def ids(self) -> tuple[int, int]:
        """The mask and the size of the vocabulary. ValueError while they are not known."""
        if self.mask_id is None or self.vocab_size is None:
            name = type(self).__name__
            raise ValueError(f"{name} has no mask_id or vocab_size: call with_vocab first")
        return self.mask_id, self.vocab_size

    def over_vocabulary(
        self, output: Float[Array, "*n v"], *, with_mask: bool = False
    ) -> tuple[Float[Array, "*n v"], Int[Array, "*n v"]]:
        """Float32 logits, -inf beyond the vocabulary and, unless `with_mask`, at the mask; and
        each entry's column."""
        mask_id, size = self.ids()
        column = jax.lax.broadcasted_iota(jnp.int32, output.shape, output.ndim - 1)
        has_mass = column < size
        if not with_mask:
            has_mass &= column != mask_id
        # float32 before the softmax: log-probabilities are not made in bfloat16.
        return jnp.where(has_mass, output.astype(jnp.float32), -jnp.inf), column

    @abc.abstractmethod
    def log_p0(
        self,
        output: Float[Array, "*n v"],
        z_t: Int[Array, "*n"],
        t: Float[Array, " *#n"] | None,
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
        t: Float[Array, " *#n"] | None,
    ) -> Float[Array, "*n"]:
        """`log_p0` of the tokens `x_0` alone.

        A parameterization that can do so with fewer passes over the columns overrides this.
        """
        # A comparison and not a gather, whose gradient would be a scatter: this fuses.
        column = jax.lax.broadcasted_iota(jnp.int32, output.shape, output.ndim - 1)
        log_p0 = self.log_p0(output, z_t, t)
        return jnp.where(column == x_0[..., None], log_p0, 0.0).sum(-1)
