"""From the last hidden states to logits: a layer of its own, or the embedding table."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from mdlm.models.layers import Linear
from mdlm.models.readout import Readout
from mdlm.types import KeyValues


def make_head(config: Any, columns: int, rngs: nnx.Rngs, *, dtype: jnp.dtype) -> Any:
    """Returns the layer from hidden states to logits, which start at 0; None if it is tied."""
    if config.tied:
        return None
    whole: Any = dict(zero=True, split="whole")
    return Linear(config.width, columns, rngs, dtype=dtype, use_bias=config.use_bias, **whole)


def predicted(
    module: Any, hidden: Float[Array, "b l d"], cache: KeyValues | None = None
) -> Readout:
    """Returns the prediction of a network with the fields of `Transformer` from the normed output
    of its last block."""
    config = module.config
    tied = module.head is None
    kernel, bias = (module.embed.table[...].T, None) if tied else module.head.arrays()
    return Readout(
        hidden.astype(module.dtype),
        kernel,
        bias,
        chunk=config.logits_chunk,
        cap=config.logit_cap,
        cache=cache,
    )
