"""The mean parameterization: the output is the distribution of x_0, without substitutions.

    log p(x_0 | z_t) = log softmax(output),  over the vocabulary

(The "x_0-parameterization" of D3PM, arXiv:2107.03006 app. A.8.) Unlike SUBS it does not carry clean
tokens over, and the mask may have mass, though no clean token is a mask: for absorbing noise the
objective `D3PM` adds the cost of that mass. Logits beyond `vocab_size` have no mass: they are
exactly -inf, and their gradients are 0.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from mdlm.parameterizations.base import Parameterization


@dataclass(frozen=True, kw_only=True)
class Mean(Parameterization):
    """The output is logits of the clean token at every position, noised or not.

    `mask_has_mass` includes the mask in the softmax, as in D3PM; False gives it no mass.
    """

    mask_has_mass: bool = False

    def log_p0(
        self,
        output: Float[Array, "*n v"],
        z_t: Int[Array, "*n"],
        t: Float[Array, " *#n"] | None = None,
    ) -> Float[Array, "*n v"]:
        return jax.nn.log_softmax(
            self.over_vocabulary(output, with_mask=self.mask_has_mass)[0], axis=-1
        )

    def log_p0_of(
        self,
        x_0: Int[Array, "*n"],
        output: Float[Array, "*n v"],
        z_t: Int[Array, "*n"],
        t: Float[Array, " *#n"] | None = None,
    ) -> Float[Array, "*n"]:
        logits, column = self.over_vocabulary(output, with_mask=self.mask_has_mass)
        picked = jnp.where(column == x_0[..., None], logits, 0.0).sum(-1)
        return picked - jax.nn.logsumexp(logits, axis=-1)
