"""An autoregressive transformer with the blocks of the DiT: the MDLM paper's AR baseline.

    x = table[tokens];  x <- block(x) for each block (causal);  h = norm(x)
    logits about token i = h_(i-1) kernel + bias

The network shifts by one itself, so that position i of the prediction is about token i, as for
every network. A token without a predecessor (the first of the row, the first of a segment, or one
that follows padding) is predicted from h = 0: its logits are the bias, the same for all inputs.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Key

from mdlm.models.decoding.kv_cache import NextToken, read_all, read_one
from mdlm.models.layers import Embedding, Linear, compute_dtype, norm
from mdlm.models.network import Network
from mdlm.models.readout import Readout
from mdlm.models.stack import run_blocks
from mdlm.models.transformer import Transformer, stack_blocks
from mdlm.types import Attends, NetInput


@dataclass(frozen=True, kw_only=True)
class CausalTransformer(Transformer, Network):
    """A causal transformer without adaLN, as it has no noise level."""

    attends: ClassVar[Attends] = "causal"

    @property
    def modulated(self) -> int:
        return 0

    def module(self, columns: int, rngs: nnx.Rngs) -> nnx.Module:
        return CausalModule(self, columns, rngs)


class CausalModule(nnx.Module):
    """The module of `CausalTransformer`."""

    def __init__(self, config: CausalTransformer, columns: int, rngs: nnx.Rngs):
        self.config = config
        self.dtype = compute_dtype(config.dtype)
        self.embed = Embedding(columns, config.width, rngs)
        self.blocks = stack_blocks(config, rngs, cond_dim=None, dtype=self.dtype)
        self.norm = norm(config.norm, config.width)
        self.head = Linear(
            config.width,
            columns,
            rngs,
            dtype=self.dtype,
            use_bias=config.use_bias,
            zero=True,
            split="whole",
        )

    def __call__(
        self,
        inputs: NetInput,
        *,
        condition: Float[Array, " b #l"] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Readout | NextToken:
        if condition is not None:
            raise ValueError("condition: a causal transformer has no input for the noise level")
        if inputs.cache is not None:
            return self._next(inputs)
        cache = None
        with jax.named_scope("embed"):
            x = self.embed(inputs.tokens)
        if inputs.make_cache and key is None:
            x, cache = read_all(self.blocks, x, inputs)
        else:
            x = run_blocks(self.blocks, x, inputs, causal=True, cond=None, key=key)
        with jax.named_scope("head"):
            before = jnp.roll(self.norm(x), 1, axis=1)
            hidden = jnp.where(_has_predecessor(inputs)[..., None], before, 0).astype(self.dtype)
        return Readout(hidden, *self.head.arrays(), chunk=self.config.logits_chunk, cache=cache)

    def _next(self, inputs: NetInput) -> NextToken:
        """Predicts the tokens that follow those at `inputs.cache.at`."""
        sequence, length = jnp.arange(inputs.tokens.shape[0]), inputs.tokens.shape[1]
        at = inputs.cache.at
        x = self.embed(inputs.tokens[sequence, at][:, None])
        x, cache = read_one(self.blocks, x, inputs)
        follows = _has_predecessor(inputs)[sequence, jnp.minimum(at + 1, length - 1)]
        hidden = jnp.where(follows[:, None, None], self.norm(x), 0).astype(self.dtype)

        def head(hidden: Float[Array, "n d"]) -> Float[Array, "n v"]:
            return Readout(hidden[None], *self.head.arrays()).logits()[0]

        return NextToken(hidden, head, length, cache)


def _has_predecessor(inputs: NetInput) -> Bool[Array, "b l"]:
    """Returns whether the token before each one belongs to the same segment."""
    b, l = inputs.tokens.shape
    known = jnp.broadcast_to(jnp.arange(l)[None] > 0, (b, l))
    if inputs.is_valid is not None:
        known = known & jnp.roll(inputs.is_valid, 1, axis=1)
    if inputs.segment_ids is not None:
        known = known & (jnp.roll(inputs.segment_ids, 1, axis=1) == inputs.segment_ids)
    return known
