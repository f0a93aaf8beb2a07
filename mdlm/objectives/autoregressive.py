"""Next-token cross-entropy, the baseline that bounds are measured against.

    -log p(x) = sum_{i >= 1} -log p(x_i | x_0 .. x_{i-1})

The network's answer about position i has seen the tokens before i only (its adapter does the
shift). The first token of a row has nothing before it and is not scored: with rows that begin
with BOS nothing is lost, otherwise the number is conditional on each row's first token.
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
        # Every position is asked as if its own token were masked, which it is for this network.
        rows, length = batch.tokens.shape
        keys = by_row(stream(key, "prior"), batch.row)
        hidden = diffusion.process.prior(keys, length)
        terms = weighted_cross_entropy(
            prediction,
            scored,
            parameterization=diffusion.parameterization,
            z_t=hidden,
            t=jnp.ones((rows, 1)),
            weight=jnp.ones(batch.tokens.shape),
        )
        return replace(terms, t=None)
