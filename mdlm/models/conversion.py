"""From networks that read causally to networks that read everything, with the same parameters."""

import dataclasses

from mdlm.errors import InputError
from mdlm.models.causal import CausalTransformer
from mdlm.models.decoder import Decoder
from mdlm.models.network import Network
from mdlm.models.transformer import Transformer


def opened(network: Network, *, shift: bool = True) -> Decoder:
    """Returns the network with the same parameters as a causal one that attends to everything.

    Args:
        shift: whether the logits about a token stay where a causal network computes them, at the
            token before it (DiffuLLaMA, Dream), so that what the last layers do stays of use; else
            they move to the token itself (SDAR, dLLM's A2D), as in networks trained from nothing.

    Raises InputError if the network is not causal.
    """
    if network.attends != "causal" or not isinstance(network, Decoder | CausalTransformer):
        raise InputError(
            f"network={type(network).__name__}(...): attends to more than the tokens before each"
            " position already; only a causal network is converted"
        )
    if isinstance(network, Decoder):
        return dataclasses.replace(network, attends="all", shift=shift)
    shared = {f.name for kind in (Network, Transformer) for f in dataclasses.fields(kind)}
    values = {name: getattr(network, name) for name in sorted(shared)}
    return Decoder(**values, attends="all", shift=shift)
