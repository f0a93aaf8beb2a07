"""SUBS: what is known of the clean token is put in by substitution (MDLM, arXiv:2406.07524).

    z_t not masked:  x_0 = z_t, with certainty                  ("carry-over unmasking")
    z_t masked:      softmax of the output over real tokens     ("zero masking probabilities")

Real tokens are the ids below `vocab_size` other than the mask; columns beyond are the padding of
the network's table. No mass is -inf exactly, and gradients there are 0.
"""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from mdlm.parameterizations.base import Parameterization
from mdlm.types import Vocab


@dataclass(frozen=True, kw_only=True)
class Subs(Parameterization):
    """The output is logits of the clean token. Both fields come from the vocabulary."""

    mask_id: int | None = None
    vocab_size: int | None = None

    def with_vocab(self, vocab: Vocab) -> "Subs":
        for name, mine, theirs in (
            ("mask_id", self.mask_id, vocab.mask_id),
            ("vocab_size", self.vocab_size, vocab.size),
        ):
            if mine not in (None, theirs):
                raise ValueError(f"{name}={mine}, but the vocabulary's is {theirs}")
        return dataclasses.replace(self, mask_id=vocab.mask_id, vocab_size=vocab.size)

    def log_p0(
        self,
        output: Float[Array, "*n v"],
        z_t: Int[Array, "*n"],
        t: Float[Array, "*#n"] | None = None,
    ) -> Float[Array, "*n v"]:
        logits, column = self._over_tokens(output)
        certain = jnp.where(column == z_t[..., None], 0.0, -jnp.inf)
        is_masked = (z_t == self.mask_id)[..., None]
        return jnp.where(is_masked, jax.nn.log_softmax(logits, axis=-1), certain)

    def log_p0_of(
        self,
        x_0: Int[Array, "*n"],
        output: Float[Array, "*n v"],
        z_t: Int[Array, "*n"],
        t: Float[Array, "*#n"] | None = None,
    ) -> Float[Array, "*n"]:
        logits, column = self._over_tokens(output)
        picked = jnp.where(column == x_0[..., None], logits, 0.0).sum(-1)
        log_p = picked - jax.nn.logsumexp(logits, axis=-1)
        return jnp.where(z_t == self.mask_id, log_p, jnp.where(z_t == x_0, 0.0, -jnp.inf))

    def _over_tokens(self, output):
        """Float32 logits with no mass on what is no token, and each entry's column."""
        if self.mask_id is None or self.vocab_size is None:
            raise ValueError("Subs has no mask_id or vocab_size: call with_vocab first")
        column = jax.lax.broadcasted_iota(jnp.int32, output.shape, output.ndim - 1)
        is_token = (column != self.mask_id) & (column < self.vocab_size)
        # float32 before the softmax: log-probabilities are not made in bfloat16.
        return jnp.where(is_token, output.astype(jnp.float32), -jnp.inf), column
