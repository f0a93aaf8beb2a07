"""A diffusion objective and next-token prediction at once, on one network.

    L = L_diffusion + weight * sum_{i >= 1} -log p(x_i | x_0 .. x_{i-1})

A network with `shift` computes the logits about a token at the one before it, as causal networks
do. Read with causal attention it therefore is an autoregressive model with the same parameters. The
second term keeps it a good one, or teaches it, at the cost of a second pass per row. I-DLM
(arXiv:2604.11035) and Nemotron-Labs-Diffusion train such sums.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
from jax import Array
from jaxtyping import Key

from mdlm.diffusion import Diffusion
from mdlm.keys import stream
from mdlm.objectives.around import Around
from mdlm.objectives.autoregressive import Autoregressive
from mdlm.types import Batch, LossTerms


@dataclass(frozen=True, kw_only=True)
class WithCausal(Around):
    """Trains a diffusion objective plus `weight` times next-token cross-entropy; reports the first.

    The log has `causal_nll`, nats per token of the second term.

    Args:
        weight: the weight of the next-token term.
    """

    weight: float = 1.0

    def __post_init__(self):
        if not 0 < self.weight < math.inf:
            raise ValueError(f"weight={self.weight}: must be a number above 0")

    def incompatibility(self, process: Any, parameterization: Any, network: Any = None):
        reason = super().incompatibility(process, parameterization, network)
        if reason is None and network is not None and not network.shift:
            return "needs a network whose logits are about the next token: network.shift=True"
        return reason

    def __call__(self, key: Key[Array, ""], batch: Batch, diffusion: Diffusion) -> LossTerms:
        terms = self.objective(key, batch, diffusion)
        causal = Autoregressive()(stream(key, "causal"), batch, diffusion.with_window(0))
        nll = causal.bound.sum() / jnp.maximum(causal.count.sum(), 1)
        return replace(
            terms,
            total=terms.total + self.weight * causal.total,
            scored=terms.scored + causal.scored,
            scalars={**terms.scalars, "causal_nll": nll},
        )
