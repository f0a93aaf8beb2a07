"""Next-token cross-entropy, the baseline that bounds are measured against.

    -log p(x) = sum_{i >= 1} -log p(x_i | x_0 .. x_{i-1})

The network's prediction at position i attends to the tokens before i only (its adapter shifts
them). The first token of a row has no tokens before it and is not counted. If rows begin with BOS
nothing is lost; otherwise the likelihood is conditioned on the first token of each row.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import jax.numpy as jnp
from jax import Array
from jaxtyping import Key

from mdlm.diffusion import Diffusion
from mdlm.keys import by_row, stream
from mdlm.objectives.base import Objective, ask, weighted_cross_entropy
from mdlm.types import Attends, Batch, LossTerms


@dataclass(frozen=True, kw_only=True)
class Autoregressive(Objective):
    """Trains and reports the exact negative log-likelihood, in nats. Nothing is noised."""

    is_exact: ClassVar[bool] = True
    attends: ClassVar[Attends] = "causal"
    protocol: ClassVar[str] = "exact NLL, first token of each row not scored"

    def __call__(self, key: Key[Array, ""], batch: Batch, diffusion: Diffusion) -> LossTerms:
        first = jnp.zeros_like(batch.loss_mask).at[:, 0].set(True)
        scored = replace(batch, loss_mask=batch.loss_mask & ~first)
        prediction = ask(
            diffusion.denoise, scored, tokens=batch.tokens, t=None, key=stream(key, "dropout")
        )
        # Every position is read as masked, because a causal network does not read its own token.
        rows, length = batch.tokens.shape
        keys = by_row(stream(key, "prior"), batch.row)
        masks = diffusion.process.prior(keys, length)
        terms = weighted_cross_entropy(
            prediction,
            scored,
            parameterization=diffusion.parameterization,
            z_t=masks,
            t=jnp.ones((rows, 1)),
            weight=jnp.ones(batch.tokens.shape),
        )
        return replace(terms, t=None)
