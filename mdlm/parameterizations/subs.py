"""SUBS: known facts about the clean token are substituted (MDLM, arXiv:2406.07524).

    z_t not masked:  x_0 = z_t, with certainty                  ("carry-over unmasking")
    z_t masked:      softmax of the output over real tokens     ("zero masking probabilities")

Real tokens are the ids below `vocab_size` other than the mask; logits beyond are padding of the
network's embedding table. Logits without mass are exactly -inf, and their gradients are 0.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from mdlm.parameterizations.base import Parameterization


@dataclass(frozen=True, kw_only=True)
class Subs(Parameterization):
    """The output is logits of the clean token."""

    def log_p0(
        self,
        output: Float[Array, "*n v"],
        z_t: Int[Array, "*n"],
        t: Float[Array, " *#n"] | None = None,
    ) -> Float[Array, "*n v"]:
        logits, column = self.over_vocabulary(output)
        certain = jnp.where(column == z_t[..., None], 0.0, -jnp.inf)
        is_masked = (z_t == self.mask_id)[..., None]
        return jnp.where(is_masked, jax.nn.log_softmax(logits, axis=-1), certain)

    def log_p0_of(
        self,
        x_0: Int[Array, "*n"],
        output: Float[Array, "*n v"],
        z_t: Int[Array, "*n"],
        t: Float[Array, " *#n"] | None = None,
    ) -> Float[Array, "*n"]:
        logits, column = self.over_vocabulary(output)
        picked = jnp.where(column == x_0[..., None], logits, 0.0).sum(-1)
        log_p = picked - jax.nn.logsumexp(logits, axis=-1)
        return jnp.where(z_t == self.mask_id, log_p, jnp.where(z_t == x_0, 0.0, -jnp.inf))
