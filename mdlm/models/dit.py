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
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, Key

from mdlm.models.layers import Embedding, Linear, compute_dtype, modulate, norm
from mdlm.models.readout import Readout
from mdlm.models.transformer import Transformer, run_blocks, stack_blocks
from mdlm.types import NetInput

FREQUENCIES = 128
FLOAT32 = jnp.dtype(jnp.float32)


@dataclass(frozen=True, kw_only=True)
class DiT(Transformer):
    """A bidirectional transformer with adaLN conditioning.

    `cond_dim` is the width of the vector that tells the blocks the noise level; 0 leaves adaLN
    out, which a network that is not told the time does without.
    """

    cond_dim: int = 128

    def __post_init__(self):
        super().__post_init__()
        if self.cond_dim < 0:
            raise ValueError(f"cond_dim={self.cond_dim} must be at least 0")

    @property
    def modulated(self) -> int:
        return self.cond_dim

    def flops(self, rows: float, length: int, scored: float, columns: int) -> float:
        told = 2 * FREQUENCIES * self.cond_dim + self.cond_dim**2 + 2 * self.width * self.cond_dim
        return super().flops(rows, length, scored, columns) + 2 * rows * told

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
        width, cond_dim = config.width, config.cond_dim or None
        self.embed = Embedding(columns, width, rngs)
        self.noise_level: Any = NoiseLevel(cond_dim, rngs) if cond_dim else None
        self.blocks = stack_blocks(config, rngs, cond_dim=cond_dim, dtype=self.dtype)
        self.norm = norm(config.norm, width)
        self.modulation: Any = (
            Linear(cond_dim, 2 * width, rngs, dtype=FLOAT32, zero=True) if cond_dim else None
        )
        self.head = Linear(
            width, columns, rngs, dtype=self.dtype, use_bias=config.use_bias, zero=True
        )

    def __call__(
        self,
        inputs: NetInput,
        *,
        condition: Float[Array, "b #l"] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Readout:
        cond = self._cond(inputs, condition)
        with jax.named_scope("embed"):
            x = self.embed(inputs.tokens)
        x = run_blocks(self.blocks, x, inputs, causal=False, cond=cond, key=key)
        with jax.named_scope("head"):
            hidden = self.norm(x)
            if self.modulation is not None:
                hidden = modulate(hidden, *jnp.split(self.modulation(cond), 2, axis=-1))
            hidden = hidden.astype(self.dtype)
        return Readout(hidden, *self.head.arrays(), chunk=self.config.logits_chunk)

    def _cond(self, inputs: NetInput, condition: Float[Array, "b #l"] | None):
        if self.noise_level is None:
            if condition is not None:
                raise ValueError("a network with cond_dim=0 has no input for the noise level")
            return None
        if condition is None:
            condition = jnp.zeros((inputs.tokens.shape[0], 1))
        return self.noise_level(condition)
