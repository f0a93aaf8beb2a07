"""The network of MDLM (arXiv:2406.07524): a diffusion transformer (arXiv:2212.09748) over tokens.

    c      = silu(W_2 silu(W_1 [cos(s f), sin(s f)])),  f_i = 10000^(-i / 128), i < 128
    x      = table[tokens];  x <- block(x, c) for each block
    logits = (norm(x) (1 + scale(c)) + shift(c)) kernel + bias

where s is what the network is fed of the noise level (sigma in the paper; 0 throughout where it
is not told the time). The modulations and the head start at 0, so all logits are 0 at first; all
else starts as PyTorch's layers do (see `layers`).
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, Key

from mdlm.models.layers import Embedding, LayerNorm, Linear, Precision, compute_dtype, modulate
from mdlm.models.network import Network
from mdlm.models.readout import Readout
from mdlm.models.transformer import check_sizes, run_blocks, stack_blocks
from mdlm.types import NetInput

FREQUENCIES = 128
FLOAT32 = jnp.dtype(jnp.float32)


@dataclass(frozen=True, kw_only=True)
class DiT(Network):
    """A bidirectional transformer with adaLN conditioning. The defaults are the paper's sizes.

    `dropout` acts on the output of attention and MLP (the paper trains with 0.1), and only in
    calls that pass a key. `dtype` is that of the products; parameters, norms, softmax, residual
    stream and logits are float32. `remat` trades a second forward pass for the memory of the
    blocks' insides. `logits_chunk` bounds the logits held at once in `Prediction.reduce_rows`.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    cond_dim: int = 128
    dropout: float = 0.0
    dtype: Precision = "auto"
    remat: bool = True
    logits_chunk: int = 2**25

    def __post_init__(self):
        check_sizes(self)
        if self.cond_dim < 1:
            raise ValueError(f"cond_dim={self.cond_dim} must be at least 1")

    def module(self, columns: int, rngs: nnx.Rngs) -> nnx.Module:
        return DiTModule(self, columns, rngs)


def sinusoid(condition: Float[Array, "b #l"]) -> Float[Array, "b #l 256"]:
    """Cosines, then sines, of the noise level at geometrically spaced frequencies."""
    steps = jnp.arange(FREQUENCIES, dtype=jnp.float32)
    frequency = jnp.exp(-math.log(10000) * steps / FREQUENCIES)
    angles = condition[..., None].astype(jnp.float32) * frequency[None, None]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class NoiseLevel(nnx.Module):
    """The vector c that tells the blocks the noise level. Float32: it is one row per sequence."""

    def __init__(self, cond_dim: int, rngs: nnx.Rngs):
        self.inner = Linear(2 * FREQUENCIES, cond_dim, rngs, dtype=FLOAT32)
        self.outer = Linear(cond_dim, cond_dim, rngs, dtype=FLOAT32)

    def __call__(self, condition: Float[Array, "b #l"]) -> Float[Array, "b #l c"]:
        return jax.nn.silu(self.outer(jax.nn.silu(self.inner(sinusoid(condition)))))


class DiTModule(nnx.Module):
    """The module of `DiT`."""

    def __init__(self, config: DiT, columns: int, rngs: nnx.Rngs):
        self.config = config
        self.dtype = compute_dtype(config.dtype)
        width, cond_dim = config.width, config.cond_dim
        self.embed = Embedding(columns, width, rngs)
        self.noise_level = NoiseLevel(cond_dim, rngs)
        self.blocks = stack_blocks(
            config.depth,
            rngs,
            width,
            config.heads,
            cond_dim=cond_dim,
            dropout=config.dropout,
            dtype=self.dtype,
        )
        self.norm = LayerNorm(width)
        self.modulation = Linear(cond_dim, 2 * width, rngs, dtype=FLOAT32, zero=True)
        self.head = Linear(width, columns, rngs, dtype=self.dtype, zero=True)

    def __call__(
        self,
        inputs: NetInput,
        *,
        condition: Float[Array, "b #l"] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Readout:
        if condition is None:
            condition = jnp.zeros((inputs.tokens.shape[0], 1))
        cond = self.noise_level(condition)
        x = run_blocks(
            self.blocks,
            self.embed(inputs.tokens),
            inputs,
            causal=False,
            cond=cond,
            key=key,
            remat=self.config.remat,
        )
        hidden = modulate(self.norm(x), *jnp.split(self.modulation(cond), 2, axis=-1))
        return Readout(
            hidden.astype(self.dtype),
            self.head.kernel[...],
            self.head.bias[...],
            chunk=self.config.logits_chunk,
        )
