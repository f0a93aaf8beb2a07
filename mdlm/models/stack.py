"""The loop over a stack of blocks.

All blocks are one module whose parameters have a leading axis of `depth`; `jax.lax.scan` runs
along it.
"""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, Key

from mdlm.keys import by_row
from mdlm.models.attention.mask import OUTPUT, AttentionMask, Halves
from mdlm.models.decoding.last_block import BegunBlock
from mdlm.models.layers import PRODUCT
from mdlm.models.network import Remat
from mdlm.models.rotary import rotary_table
from mdlm.parallel.mesh import platform
from mdlm.parallel.sharding import STREAM, moved
from mdlm.types import NetInput

Table = tuple[Float[Array, "#b l 1 half"], Float[Array, "#b l 1 half"]]

UNROLLED = 4
"""Blocks per loop iteration on CPUs, where stacking residuals for the backward pass is costly."""


class StackConfig(Protocol):
    """The fields of a configuration that the loop over a stack of blocks needs."""

    @property
    def depth(self) -> int: ...
    @property
    def remat(self) -> Remat: ...
    @property
    def rotary(self) -> tuple[int, float]:
        """Entries of a head that are rotated, and the base of the angles."""
        ...


def stack(make: Callable[[nnx.Rngs], Any], config: StackConfig, rngs: nnx.Rngs) -> Any:
    """Returns `depth` modules as one, whose parameters have a leading axis of that size."""
    return nnx.split_rngs(splits=config.depth)(nnx.vmap(make))(rngs)


def run_blocks(
    blocks: Any,  # a stack of `Block`s, or of blocks with the same call signature
    x: Float[Array, "b l d"],
    inputs: NetInput,
    *,
    causal: bool,
    halves: Halves | None = None,
    cond: Float[Array, " b #l c"] | None,
    key: Key[Array, ""] | None,
) -> Float[Array, "b l d"]:
    """Returns `x` after all blocks, in order. Each block's dropout key is folded from `key`."""
    mask = mask_of(inputs, causal=causal, halves=halves)

    def apply(block: Any, x: Array, table: Table, key: Key[Array, ""] | None) -> Array:
        return block(x, mask, table, cond=cond, key=key)

    return run_stack(apply, blocks, blocks.config, x, inputs, key)


def run_but_last(
    blocks: Any,
    x: Float[Array, "b l d"],
    inputs: NetInput,
    *,
    halves: Halves | None = None,
    cond: Float[Array, " b #l c"] | None,
) -> BegunBlock:
    """Runs `run_blocks` without dropout, up to the keys and values of the last block."""
    mask = mask_of(inputs, causal=False, halves=halves)
    first = jax.tree.map(lambda array: array[:-1], blocks)
    last = jax.tree.map(lambda array: array[-1], blocks)

    def apply(block: Any, x: Array, table: Table, _: None) -> Array:
        return block(x, mask, table, cond=cond, key=None)

    x = run_stack(apply, first, blocks.config, x, inputs, None)
    return BegunBlock(last, x, mask, table_of(inputs, x.shape[1], blocks.config), cond)


def mask_of(inputs: NetInput, *, causal: bool, halves: Halves | None = None) -> AttentionMask:
    """Returns the attention mask of these inputs."""
    return AttentionMask(
        causal=causal, halves=halves, is_valid=inputs.is_valid, segment_ids=inputs.segment_ids
    )


def table_of(inputs: NetInput, length: int, config: StackConfig) -> Table:
    """Returns the rotary table of these inputs, the same for all blocks."""
    positions = jnp.arange(length)[None] if inputs.positions is None else inputs.positions
    return rotary_table(positions, *config.rotary)


def run_stack(
    apply: Callable[..., Array],
    blocks: Any,
    config: StackConfig,
    x: Float[Array, "b l d"],
    inputs: NetInput,
    key: Key[Array, ""] | None,
) -> Float[Array, "b l d"]:
    """Applies `apply(block, x, rotary table, key)` with each of the stacked blocks, in order."""
    table = table_of(inputs, x.shape[1], config)
    keys = None if key is None else by_row(key, jnp.arange(config.depth))

    def step(x, layer):
        block, key = layer
        return apply(block, moved(x, STREAM), table, key), None

    remat = config.remat
    if remat == "auto":
        remat = "products" if platform() == "tpu" else "none"
    step = rematerialised(remat, step)
    return jax.lax.scan(step, x, (blocks, keys), unroll=unrolled(remat))[0]


def unrolled(remat: Remat) -> int | bool:
    """Returns the number of blocks per loop iteration (True: all).

    On GPUs without rematerialisation the loop is unrolled: its copies of residuals into arrays of
    all blocks and back take a fifth of the time and a third of the memory. With rematerialisation
    the loop stays, as without it the compiler merges the recomputation with the forward pass
    (CSE), and keeps all residuals.
    """
    if platform() == "gpu" and remat == "none":
        return True
    return UNROLLED if platform() == "cpu" else 1


def rematerialised(remat: Remat, step):
    """Returns the scan's `step` with the residuals that `remat` saves for the backward pass."""
    if remat == "none":
        return step
    policy = None
    if remat == "products":
        policy = jax.checkpoint_policies.save_only_these_names(PRODUCT, OUTPUT)
    return jax.checkpoint(step, prevent_cse=False, policy=policy)
