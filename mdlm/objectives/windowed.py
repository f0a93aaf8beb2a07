"""Masked objectives in which tokens see some of the later ones: from causal to full attention.

A network that was trained causally and now is to attend to everything learns faster if attention
opens gradually (DiffuLLaMA, arXiv:2410.17891, reveals a growing random part of the later tokens).
Here each token attends to all earlier ones and to the `ahead` next ones. With stages
(`mdlm.experiment.stages`) the window grows as training goes on.
"""

from dataclasses import dataclass, replace
from typing import Any, Self

from jax import Array
from jaxtyping import Key

from mdlm.diffusion import Diffusion, limits_attention
from mdlm.objectives.base import Objective
from mdlm.objectives.nelbo import Nelbo
from mdlm.types import Batch, LossTerms, Vocab


@dataclass(frozen=True, kw_only=True)
class Windowed(Objective):
    """Trains an objective while each token attends to no token more than `ahead` after it.

    A bound in this window is a bound, but not of the network as it is sampled: reported is the
    objective without a window.

    Args:
        ahead: how many later tokens each token attends to; 0 is causal attention.
        objective: the objective, of a network that attends to everything.
    """

    ahead: int
    objective: Objective = Nelbo()

    def __post_init__(self):
        if self.ahead < 0:
            raise ValueError(f"ahead={self.ahead}: must be at least 0")

    @property
    def protocol(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return f"{self.objective.protocol}, {self.ahead} tokens ahead seen"

    def incompatibility(self, process: Any, parameterization: Any, network: Any = None):
        reason = self.objective.incompatibility(process, parameterization, network)
        return reason or limits_attention(network)

    def reported(self) -> Objective:
        return self.objective.reported()

    def with_vocab(self, vocab: Vocab) -> Self:
        return replace(self, objective=self.objective.with_vocab(vocab))

    def __call__(self, key: Key[Array, ""], batch: Batch, diffusion: Diffusion) -> LossTerms:
        return self.objective(key, batch, diffusion.with_window(self.ahead))
