"""The network of MDLM (arXiv:2406.07524): a diffusion transformer (arXiv:2212.09748) over tokens.

    c      = silu(W_2 silu(W_1 [cos(s f), sin(s f)])),  f_i = 10000^(-i / 128), i < 128
    x      = table[tokens];  x <- block(x, c) for each block
    logits = (norm(x) (1 + scale(c)) + shift(c)) kernel + bias

where s is the noise level that conditions the network (sigma in the paper; always 0 without time
conditioning). The modulations and the head start at 0, so all logits are 0 at first; all other
parameters start as in PyTorch's layers (see `layers`).

Options. With labels, c + label_table[label] takes the place of c. With self-conditioning, x starts
as table[tokens] + W h, where h is the input of the head in an earlier pass (`self_conditioning`)
and W starts at 0.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, Key

from mdlm.keys import by_row
from mdlm.models.attention.mask import AttentionMask
from mdlm.models.decoding.kv_cache import ReadPrediction, at_read, read
from mdlm.models.decoding.last_block import DeferredReadout, picked
from mdlm.models.head import make_head, predicted
from mdlm.models.layers import Embedding, Linear, compute_dtype, modulate, norm
from mdlm.models.network import Network
from mdlm.models.readout import Readout
from mdlm.models.stack import mask_of, run_blocks, run_but_last
from mdlm.models.transformer import Transformer
from mdlm.models.transformer_block import stack_blocks
from mdlm.types import Batch, NetInput

FREQUENCIES = 128
FLOAT32 = jnp.dtype(jnp.float32)


@dataclass(frozen=True, kw_only=True)
class DiT(Transformer, Network):
    """A bidirectional transformer with adaLN conditioning.

    Args:
        cond_dim: width of the vector that conditions the blocks on the noise level; 0 means no
            adaLN, for networks without time conditioning.
        labels: number of classes that rows may have, 0..labels-1. The class `labels` itself, or no
            label in the inputs, means "any class". 0: no labels.
        label_dropout: fraction of the rows whose label is dropped in training, so that the network
            learns both the conditional and the unconditional distribution, for guidance.
        self_conditioning: condition the network on its own earlier prediction.
    """

    cond_dim: int = 128
    labels: int = 0
    label_dropout: float = 0.1
    self_conditioning: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.cond_dim < 0:
            raise ValueError(f"cond_dim={self.cond_dim}: must be at least 0")
        if self.labels < 0:
            raise ValueError(f"labels={self.labels}: must be at least 0")
        if self.labels and not self.cond_dim:
            raise ValueError(
                f"labels={self.labels}: labels need adaLN; give a cond_dim of at least 1, not 0"
            )
        if not 0 <= self.label_dropout <= 1:
            raise ValueError(f"label_dropout={self.label_dropout}: must be in [0, 1]")
        if self.attends != "all" and (self.labels or self.self_conditioning):
            raise ValueError(
                f"labels={self.labels}, self_conditioning={self.self_conditioning}:"
                " only for networks that read noised rows alone; use labels=0 and False"
            )

    @property
    def passes(self) -> int:
        return 2 if self.self_conditioning else 1

    @property
    def caches(self) -> bool:
        return not self.self_conditioning

    @property
    def takes_labels(self) -> bool:
        return self.labels > 0

    def labelled(self, batch: Batch, key: Key[Array, ""] | None = None) -> Batch:
        if not self.labels or batch.label is None:
            return replace(batch, label=None)
        if key is None:
            return batch
        draw = lambda key: jax.random.bernoulli(key, self.label_dropout)
        is_dropped = jax.vmap(draw)(by_row(key, batch.row))
        return replace(batch, label=jnp.where(is_dropped, self.labels, batch.label))

    @property
    def modulated(self) -> int:
        return self.cond_dim

    def flops(self, rows: float, length: int, scored: float, columns: int) -> float:
        conditioning = (
            2 * FREQUENCIES * self.cond_dim + self.cond_dim**2 + 2 * self.width * self.cond_dim
        )
        shown = length * self.width**2 if self.self_conditioning else 0
        return super().flops(rows, length, scored, columns) + 2 * rows * (conditioning + shown)

    def module(self, columns: int, rngs: nnx.Rngs) -> nnx.Module:
        return DiTModule(self, columns, rngs)


def sinusoid(condition: Float[Array, " b #l"]) -> Float[Array, " b #l 256"]:
    """Returns cosines, then sines, of the noise level at geometrically spaced frequencies."""
    steps = jnp.arange(FREQUENCIES, dtype=jnp.float32)
    frequency = jnp.exp(-math.log(10000) * steps / FREQUENCIES)
    angles = condition[..., None].astype(jnp.float32) * frequency[None, None]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class NoiseLevel(nnx.Module):
    """Computes the vector c that conditions the blocks on the noise level. Float32."""

    def __init__(self, cond_dim: int, rngs: nnx.Rngs):
        self.inner = Linear(2 * FREQUENCIES, cond_dim, rngs, dtype=FLOAT32)
        self.outer = Linear(cond_dim, cond_dim, rngs, dtype=FLOAT32)

    def __call__(self, condition: Float[Array, " b #l"]) -> Float[Array, " b #l c"]:
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
        self.norm = norm(config.norm, width, config.norm_epsilon)
        self.modulation: Any = (
            Linear(cond_dim, 2 * width, rngs, dtype=FLOAT32, zero=True) if cond_dim else None
        )
        self.head = make_head(config, columns, rngs, dtype=self.dtype)
        # Created last, so that these options do not change the other initial values.
        self.label: Any = (
            Embedding(config.labels + 1, config.cond_dim, rngs) if config.labels else None
        )
        self.shown: Any = (
            Linear(width, width, rngs, dtype=self.dtype, use_bias=False, zero=True)
            if config.self_conditioning
            else None
        )

    def __call__(
        self,
        inputs: NetInput,
        *,
        condition: Float[Array, " b #l"] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Readout | DeferredReadout | ReadPrediction:
        cond = self._cond(inputs, condition)
        if inputs.reading is not None:
            return self._read(inputs, inputs, mask_of(inputs), cond, cond)
        with jax.named_scope("embed"):
            x = self._embed(inputs)
        if inputs.defer_last_block and key is None:
            begun = run_but_last(self.blocks, x, inputs, cond=cond)
            return DeferredReadout(begun, cond, self.readout, x.shape[1])
        x = run_blocks(self.blocks, x, inputs, cond=cond, key=key)
        return self.readout(x, cond)

    def readout(self, x: Float[Array, "b l d"], cond: Float[Array, " b #l c"] | None) -> Readout:
        """Returns the prediction from the output of the last block."""
        with jax.named_scope("head"):
            hidden = self.norm(x)
            if self.modulation is not None:
                hidden = modulate(hidden, *jnp.split(self.modulation(cond), 2, axis=-1))
            return predicted(self, hidden)

    def _read(
        self, inputs: NetInput, row: NetInput, mask: AttentionMask, cond: Any, row_cond: Any
    ) -> ReadPrediction:
        """Returns the prediction of a call that reads some positions of `row`, see `kv_cache`.
        `row_cond` conditions the blocks at its positions, `cond` the head."""
        if row_cond is not None and row_cond.shape[1] > 1:
            row_cond = at_read(row_cond, inputs.reading)
        x, cache = read(self.blocks, row, self.embed, mask, cond=row_cond)

        def head(x: Float[Array, "1 n d"], sequence: Any, position: Any) -> Readout:
            return self.readout(x, None if cond is None else picked(cond, sequence, position))

        own = jnp.arange(inputs.tokens.shape[1])[None]
        return ReadPrediction(x, inputs.reading, own, head, cache)

    def _embed(self, inputs: NetInput) -> Float[Array, "b l d"]:
        x = self.embed(inputs.tokens)
        if inputs.self_cond is None:
            return x
        if self.shown is None:
            raise ValueError("self_cond: a network without self-conditioning has no such input")
        return x + self.shown(inputs.self_cond)

    def _cond(self, inputs: NetInput, condition: Float[Array, " b #l"] | None):
        if self.label is None and inputs.label is not None:
            raise ValueError("label: a network with labels=0 has no such input")
        if self.noise_level is None:
            if condition is not None:
                raise ValueError(
                    "condition: a network with cond_dim=0 has no input for the noise level"
                )
            return None
        if condition is None:
            condition = jnp.zeros((inputs.tokens.shape[0], 1))
        cond = self.noise_level(condition)
        if self.label is None:
            return cond
        any_class = jnp.full(inputs.tokens.shape[:1], self.config.labels)
        label = any_class if inputs.label is None else inputs.label
        return cond + self.label(label[:, None])
