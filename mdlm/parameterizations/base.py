"""The contract of parameterizations: from a network's output to log p(x_0 | z_t), by token."""

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
    """Reads a network's output as a distribution of the clean tokens.

    `mask_id` and `vocab_size` come from the vocabulary; the output may be larger than `vocab_size`.
    """

    mask_id: int | None = None
    vocab_size: int | None = None

    def with_vocab(self, vocab: Vocab) -> Self:
        """Returns this parameterization on the tokens of `vocab`.

        Raises ValueError if a field was set by hand to another value than that of `vocab`.
        """
        return with_ids(self, vocab)

    def incompatibility(self, process: Process) -> str | None:
        """Says why this parameterization does not fit a process; None if it does."""
        return None

    def ids(self) -> tuple[int, int]:
        """Returns `mask_id` and `vocab_size`. Raises ValueError if they are not set."""
        if self.mask_id is None or self.vocab_size is None:
            name = type(self).__name__
            raise ValueError(f"{name} has no mask_id or vocab_size: call with_vocab first")
        return self.mask_id, self.vocab_size

    def over_vocabulary(
        self, output: Float[Array, "*n v"], *, with_mask: bool = False
    ) -> tuple[Float[Array, "*n v"], Int[Array, "*n v"]]:
        """Returns float32 logits, and the token id of each entry.

        Logits are -inf beyond `vocab_size` and, unless `with_mask`, at the mask.
        """
        mask_id, size = self.ids()
        column = jax.lax.broadcasted_iota(jnp.int32, output.shape, output.ndim - 1)
        has_mass = column < size
        if not with_mask:
            has_mass &= column != mask_id
        # float32 before the softmax: bfloat16 is too coarse for log-probabilities.
        return jnp.where(has_mass, output.astype(jnp.float32), -jnp.inf), column

    @abc.abstractmethod
    def log_p0(
        self,
        output: Float[Array, "*n v"],
        z_t: Int[Array, "*n"],
        t: Float[Array, " *#n"] | None,
    ) -> Float[Array, "*n v"]:
        """Returns log-probabilities (nats, float32) of the clean token; -inf is no mass.

        Only parameterizations that read the output differently at different noise levels need
        `t`; the others accept None.
        """

    def log_p0_of(
        self,
        x_0: Int[Array, "*n"],
        output: Float[Array, "*n v"],
        z_t: Int[Array, "*n"],
        t: Float[Array, " *#n"] | None,
    ) -> Float[Array, "*n"]:
        """Returns `log_p0` of the tokens `x_0` alone.

        A parameterization that needs fewer passes over the logits for this overrides it.
        """
        # A comparison instead of a gather: the gradient of a gather is a scatter, but this fuses.
        column = jax.lax.broadcasted_iota(jnp.int32, output.shape, output.ndim - 1)
        log_p0 = self.log_p0(output, z_t, t)
        return jnp.where(column == x_0[..., None], log_p0, 0.0).sum(-1)
