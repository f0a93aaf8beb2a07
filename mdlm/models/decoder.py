"""The transformer of LLaMA and Qwen, which LLaDA, Dream and SDAR made a diffusion model.

    x = table[tokens];  x <- block(x) for each block;  h = norm(x)
    logits about token i = h_i kernel     (or the table as kernel: `tied`)

There is no adaLN. What attends to what is a choice:

    all      the whole row                                             (LLaDA, Dream)
    causal   the tokens before; logits about token i are from h_(i-1)  (LLaMA, Qwen)
    blocks   the own diffusion block and the clean ones before it; rows of 2 l tokens,
             [tokens ; clean], as in `mdlm.models.block`                (SDAR)

With `experts` (LLaDA2), blocks after the first have a mixture of experts in place of the MLP, see
`mdlm.models.experts`.

Position i of the prediction is always about token i. A network that was trained to predict the next
token and keeps that habit (`shift`, Dream) has the logits about token i from h_(i-1), and those
about a token without predecessor from its own h. With diffusion blocks, the predecessor of the
first token of a block is the clean one.

A causal network predicts a token without predecessor (the first of the row, the first of a segment,
or one that follows padding) from h = 0: its logits are the bias, or 0, the same for all inputs.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import AbstractMesh, Mesh
from jaxtyping import Bool, Float, Int, Key

from mdlm.errors import InputError
from mdlm.models.attention.mask import Halves
from mdlm.models.block_rows import flops_of_both, joined
from mdlm.models.decoding.kv_cache import ReadPrediction, read
from mdlm.models.decoding.last_block import DeferredReadout, at_source
from mdlm.models.experts import Experts, balance
from mdlm.models.head import make_head, predicted
from mdlm.models.layers import Embedding, NormKind, compute_dtype, norm
from mdlm.models.mlp import MLPKind
from mdlm.models.network import Network
from mdlm.models.readout import Readout
from mdlm.models.rotary import LinearScaling, Llama3Scaling, Rotary
from mdlm.models.stack import Stacks, mask_of, run_but_last, run_with_load
from mdlm.models.transformer import Transformer, check_sizes
from mdlm.models.transformer_block import stack_blocks
from mdlm.parallel.mesh import TENSOR
from mdlm.types import Attends, NetInput


@dataclass(frozen=True, kw_only=True)
class Decoder(Transformer, Network):
    """A transformer with the options of LLaMA and Qwen; the defaults are those of LLaDA's shape.

    Args:
        attends: what a prediction depends on: "all", "causal" or "blocks".
        block_size: tokens of a diffusion block, for "blocks" only; the length of rows must be a
            multiple of it.
        shift: the logits about a token are those at the token before it, for "all" and "blocks"
            (causal networks always do so).
        experts: the mixture of experts that takes the place of the MLPs; None: there is none.
        rotary_scaling: how the rotary angles are slowed down for texts longer than those of the
            first training; None: they are not.
    """

    norm: NormKind = "rms"
    mlp: MLPKind = "swiglu"
    use_bias: bool = False
    attends: Attends = "all"
    block_size: int = 0
    shift: bool = False
    experts: Experts | None = None
    rotary_scaling: LinearScaling | Llama3Scaling | None = None

    def __post_init__(self):
        super().__post_init__()
        check_sizes(self, attends=Attends)
        if (self.attends == "blocks") != (self.block_size > 0):
            raise ValueError(
                f"block_size={self.block_size}, attends={self.attends!r}: a block size of at least"
                ' 1 goes with attends="blocks", and 0 with the others'
            )
        if self.shift and self.attends == "causal":
            raise ValueError("shift=True: a causal network does so already; use shift=False")
        if self.experts and self.experts.dense >= self.depth:
            raise ValueError(
                f"experts.dense={self.experts.dense}: must be below depth={self.depth}, so that"
                " there are blocks with experts"
            )

    @property
    def modulated(self) -> int:
        return 0

    @property
    def rotary(self) -> Rotary | None:
        plain = super().rotary
        return plain and plain._replace(scaling=self.rotary_scaling)

    @property
    def mlp_multiplications(self) -> int:
        dense = super().mlp_multiplications
        if self.experts is None:
            return dense
        mixture = self.experts.multiplications(self.mlp, self.width)
        first = self.experts.dense
        return dense // self.depth * first + (self.depth - first) * mixture

    @property
    def caches(self) -> bool:
        return True

    @property
    def limits_attention(self) -> bool:
        return self.attends == "all"

    def check_mesh(self, mesh: Mesh | AbstractMesh, length: int) -> None:
        super().check_mesh(mesh, length)
        shared = self.experts.shared * self.experts.hidden if self.experts else 0
        if shared % mesh.shape[TENSOR]:
            raise InputError(
                f"hidden width {shared} of the shared experts: must be a multiple of"
                f" mesh.tensor={mesh.shape[TENSOR]}"
            )

    def flops(self, rows: float, length: int, scored: float, columns: int) -> float:
        if self.attends == "blocks":
            return flops_of_both(super().flops, self, rows, length, scored, columns)
        return super().flops(rows, length, scored, columns)

    def module(self, columns: int, rngs: nnx.Rngs) -> nnx.Module:
        return DecoderModule(self, columns, rngs)


class DecoderModule(nnx.Module):
    """The module of `Decoder` and of `CausalTransformer`."""

    def __init__(self, config: Any, columns: int, rngs: nnx.Rngs):
        self.config = config
        self.dtype = compute_dtype(config.dtype)
        self.embed = Embedding(columns, config.width, rngs)
        self.blocks: Any = decoder_blocks(config, rngs, self.dtype)
        self.norm = norm(config.norm, config.width, config.norm_epsilon)
        self.head = make_head(config, columns, rngs, dtype=self.dtype)

    def __call__(
        self,
        inputs: NetInput,
        *,
        condition: Float[Array, " b #l"] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Readout | DeferredReadout | ReadPrediction:
        """Returns the prediction about `inputs.tokens`.

        Raises ValueError if `inputs.clean` is missing for a network that reads it, or `block_size`
        does not divide the length.
        """
        if condition is not None:
            raise ValueError("condition: this transformer has no input for the noise level")
        if inputs.reading is not None:
            return self._read(inputs)
        if self.config.attends == "causal" or (inputs.ahead == 0 and self.config.shift):
            return self._causal(inputs, key)
        length, halves = inputs.tokens.shape[1], None
        read = inputs
        if self.config.attends == "blocks":
            halves, read = Halves(length, self.config.block_size), joined(inputs)
        with jax.named_scope("embed"):
            x = self.embed(read.tokens)
        source = self._source(inputs) if self.config.shift else None
        if inputs.defer_last_block and key is None:
            ahead = inputs.ahead
            begun = run_but_last(self.blocks, x, read, ahead=ahead, halves=halves, cond=None)
            return DeferredReadout(begun, None, self.readout, length, source)
        x, load = run_with_load(self.blocks, x, read, ahead=inputs.ahead, halves=halves, key=key)
        return self.readout(at_source(x, length, source), None, load)

    def readout(
        self, x: Float[Array, "b l d"], _: None, load: Float[Array, "n e"] | None = None
    ) -> Readout:
        """Returns the prediction from the output of the last block."""
        with jax.named_scope("head"):
            return predicted(self, self.norm(x), scalars=_scalars(load))

    def _source(self, inputs: NetInput) -> Int[Array, "#b l"]:
        """Returns the position from whose output each token's logits are computed, counted in the
        rows that the network reads. A token without predecessor has its own, though a causal
        network computes nothing from it."""
        place = jnp.arange(inputs.tokens.shape[1])[None]
        if not (self.config.attends == "causal" or self.config.shift):
            return place
        before = place - 1
        if self.config.attends == "blocks":
            is_first = place % self.config.block_size == 0
            before = before + jnp.where(is_first, inputs.tokens.shape[1], 0)
        return jnp.where(_has_predecessor(inputs), before, place)

    def _causal(self, inputs: NetInput, key: Key[Array, ""] | None) -> Readout:
        with jax.named_scope("embed"):
            x = self.embed(inputs.tokens)
        x, load = run_with_load(self.blocks, x, inputs, ahead=0, key=key)
        with jax.named_scope("head"):
            before = jnp.roll(self.norm(x), 1, axis=1)
            hidden = jnp.where(_has_predecessor(inputs)[..., None], before, 0)
            return predicted(self, hidden, scalars=_scalars(load))

    def _read(self, inputs: NetInput) -> ReadPrediction:
        """Returns the prediction of a call that reads some positions, see `kv_cache`."""
        causal, halves, row = self.config.attends == "causal", None, inputs
        if self.config.attends == "blocks":
            halves = Halves(inputs.tokens.shape[1], self.config.block_size)
            row = joined(inputs)
        mask = mask_of(row, ahead=0 if causal else None, halves=halves)
        x, cache = read(self.blocks, row, self.embed, mask)
        follows = _has_predecessor(inputs)

        def head(x: Float[Array, "1 n d"], sequence: Any, position: Any) -> Readout:
            hidden = self.norm(x)
            if causal:
                hidden = jnp.where(follows[sequence, position][None, :, None], hidden, 0)
            return predicted(self, hidden)

        return ReadPrediction(x, inputs.reading, self._source(inputs), head, cache)


def decoder_blocks(config: Any, rngs: nnx.Rngs, dtype: jnp.dtype) -> Any:
    """Returns the blocks: a stack, or two with experts where the first blocks have none."""
    experts = getattr(config, "experts", None)
    make: Any = lambda **own: stack_blocks(config, rngs, cond_dim=None, dtype=dtype, **own)
    if experts is None or experts.dense == 0:
        return make(experts=experts)
    rest = make(experts=experts, depth=config.depth - experts.dense)
    return Stacks(make(depth=experts.dense), rest)


def _scalars(load: Float[Array, "n e"] | None) -> dict[str, Float[Array, ""]]:
    return {} if load is None else balance(load)


def _has_predecessor(inputs: NetInput) -> Bool[Array, "b l"]:
    """Returns whether the token before each one belongs to the same segment."""
    b, l = inputs.tokens.shape
    known = jnp.broadcast_to(jnp.arange(l)[None] > 0, (b, l))
    if inputs.is_valid is not None:
        known = known & jnp.roll(inputs.is_valid, 1, axis=1)
    if inputs.segment_ids is not None:
        known = known & (jnp.roll(inputs.segment_ids, 1, axis=1) == inputs.segment_ids)
    return known
