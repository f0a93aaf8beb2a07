"""An autoregressive transformer with the blocks of the DiT: the MDLM paper's AR baseline.

    x = table[tokens];  x <- block(x) for each block (causal);  h = norm(x)
    logits about token i = h_(i-1) kernel + bias

The network shifts by one itself, so that position i of the prediction is about token i, as for
every network, see `mdlm.models.decoder`.
"""

from dataclasses import dataclass
from typing import ClassVar

from flax import nnx

from mdlm.models.decoder import DecoderModule
from mdlm.models.network import Network
from mdlm.models.transformer import Transformer
from mdlm.types import Attends


@dataclass(frozen=True, kw_only=True)
class CausalTransformer(Transformer, Network):
    """A causal transformer without adaLN, as it has no noise level."""

    attends: ClassVar[Attends] = "causal"

    @property
    def modulated(self) -> int:
        return 0

    @property
    def caches(self) -> bool:
        return True

    def module(self, columns: int, rngs: nnx.Rngs) -> nnx.Module:
        return DecoderModule(self, columns, rngs)
