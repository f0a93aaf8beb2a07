"""Masked objectives in which tokens see some of the later ones: from causal to full attention.

A network that was trained causally and now is to attend to everything learns faster if attention
opens gradually (DiffuLLaMA, arXiv:2410.17891, reveals a growing random part of the later tokens).
Here each token attends to all earlier ones and to the `ahead` next ones. With stages
(`mdlm.experiment.stages`) the window grows as training goes on.
"""

from dataclasses import dataclass

from jax import Array
from jaxtyping import Key

from mdlm.diffusion import Diffusion
from mdlm.objectives.around import Around
from mdlm.types import Batch, LossTerms


@dataclass(frozen=True, kw_only=True)
class Windowed(Around):
    """Trains an objective while each token attends to no token more than `ahead` after it.

    A bound in this window is a bound, but not of the network as it is sampled: reported is the
    objective without a window.

    Args:
        ahead: how many later tokens each token attends to; 0 is causal attention.
    """

    ahead: int

    def __post_init__(self):
        if self.ahead < 0:
            raise ValueError(f"ahead={self.ahead}: must be at least 0")

    @property
    def protocol(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return f"{self.objective.protocol}, {self.ahead} tokens ahead seen"

    def __call__(self, key: Key[Array, ""], batch: Batch, diffusion: Diffusion) -> LossTerms:
        return self.objective(key, batch, diffusion.with_window(self.ahead))
