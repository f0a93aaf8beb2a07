"""From the last hidden states to logits: a layer of its own, or the embedding table."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from mdlm.models.layers import Linear, norm
from mdlm.models.mlp import gelu
from mdlm.models.readout import Readout


def make_head(config: Any, columns: int, rngs: nnx.Rngs, *, dtype: jnp.dtype) -> Any:
    """Returns the layer from hidden states to logits, which start at 0; None if it is tied."""
    if config.tied:
        return None
    whole: Any = dict(zero=True, split="whole")
    return Linear(config.width, columns, rngs, dtype=dtype, use_bias=config.use_bias, **whole)


class Transform(nnx.Module):
    """The layer between the last block and the tied head of BERT: norm(gelu(x kernel + bias)), with
    the exact GELU."""

    def __init__(self, config: Any, rngs: nnx.Rngs, *, dtype: jnp.dtype):
        width, whole = config.width, dict(use_bias=config.use_bias, split="whole")
        self.dense = Linear(width, width, rngs, dtype=dtype, **whole)
        self.norm = norm(config.norm, width, config.norm_epsilon)

    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        return self.norm(gelu(self.dense(x), True))


def predicted(
    module: Any,
    hidden: Float[Array, "b l d"],
    *,
    bias: Float[Array, " v"] | None = None,
    scalars: Mapping[str, Float[Array, ""]] | None = None,
    features: Float[Array, "b l d"] | None = None,
) -> Readout:
    """Returns the prediction of a network with the fields of `Transformer` from the normed output
    of its last block. `bias` is that of a tied head, `scalars` are values for the log, `features`
    that output where `hidden` is a transform of it."""
    config = module.config
    kernel = module.embed.table[...].T
    if module.head is not None:
        kernel, bias = module.head.arrays()
    return Readout(
        hidden.astype(module.dtype),
        kernel,
        bias,
        chunk=config.logits_chunk,
        cap=config.logit_cap,
        scalars=scalars,
        features=features,
    )
