"""A diffusion objective and next-token prediction at once, on one network.

    L = L_diffusion + weight * sum_{i >= 1} -log p(x_i | x_0 .. x_{i-1})

A network with `shift` computes the logits about a token at the one before it, as causal networks
do. Read with causal attention it therefore is an autoregressive model with the same parameters. The
second term keeps it a good one, or teaches it, at the cost of a second pass per row. I-DLM
(arXiv:2604.11035) and Nemotron-Labs-Diffusion train such sums.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Self

from jax import Array
from jaxtyping import Key

from mdlm.diffusion import Diffusion, limits_attention
from mdlm.keys import stream
from mdlm.objectives.autoregressive import Autoregressive
from mdlm.objectives.base import Objective
from mdlm.objectives.nelbo import Nelbo
from mdlm.types import Batch, LossTerms, Vocab


@dataclass(frozen=True, kw_only=True)
class WithCausal(Objective):
    """Trains a diffusion objective plus `weight` times next-token cross-entropy; reports the first.

    The log has `causal_nll`, nats per token of the second term.

    Args:
        objective: the diffusion objective, of a network that attends to everything.
        weight: the weight of the next-token term.
    """

    objective: Objective = Nelbo()
    weight: float = 1.0

    def __post_init__(self):
        if not 0 < self.weight < math.inf:
            raise ValueError(f"weight={self.weight}: must be a number above 0")

    @property
    def protocol(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.objective.protocol

    def incompatibility(self, process: Any, parameterization: Any, network: Any = None):
        reason = self.objective.incompatibility(process, parameterization, network)
        if reason is None and network is not None and not network.shift:
            reason = "needs a network whose logits are about the next token: network.shift=True"
        return reason or limits_attention(network)

    def reported(self) -> Objective:
        return self.objective.reported()

    def with_vocab(self, vocab: Vocab) -> Self:
        return replace(self, objective=self.objective.with_vocab(vocab))

    def __call__(self, key: Key[Array, ""], batch: Batch, diffusion: Diffusion) -> LossTerms:
        terms = self.objective(key, batch, diffusion)
        causal = Autoregressive()(stream(key, "causal"), batch, diffusion.with_window(0))
        return replace(
            terms,
            total=terms.total + self.weight * causal.total,
            scored=terms.scored + causal.scored,
            scalars={**terms.scalars, "causal_nll": causal.bound.sum() / causal.count.sum()},
        )
