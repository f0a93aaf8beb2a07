"""The loop over a stack of blocks.

All blocks are one module whose parameters have a leading axis of `depth`; `jax.lax.scan` runs
along it. Where the first blocks have other parameters than the rest, there are two such stacks.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, Int, Key

from mdlm.keys import by_row
from mdlm.models.attention.mask import OUTPUT, AttentionMask, Halves
from mdlm.models.decoding.last_block import BegunBlock
from mdlm.models.layers import PRODUCT
from mdlm.models.network import Remat
from mdlm.models.rotary import Rotary, rotary_table
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
    def rotary(self) -> Rotary | None:
        """How heads are rotated; None: not at all."""
        ...


def stack(make: Callable[[nnx.Rngs], Any], depth: int, rngs: nnx.Rngs) -> Any:
    """Returns `depth` modules as one, whose parameters have a leading axis of that size."""
    return nnx.split_rngs(splits=depth)(nnx.vmap(make))(rngs)


class Stacks(nnx.Module):
    """The blocks of a network whose first ones have other parameters than the rest: two stacks."""

    def __init__(self, first: Any, rest: Any):
        self.first, self.rest = first, rest

    @property
    def config(self) -> Any:
        return self.rest.config


def stacks_of(blocks: Any) -> tuple[Any, ...]:
    """Returns the stacks of a network's blocks, in order."""
    return (blocks.first, blocks.rest) if isinstance(blocks, Stacks) else (blocks,)


def run_blocks(
    blocks: Any,  # a stack of `Block`s or of blocks with the same call signature, or `Stacks`
    x: Float[Array, "b l d"],
    inputs: NetInput,
    *,
    ahead: int | None = None,
    halves: Halves | None = None,
    cond: Float[Array, " b #l c"] | None,
    key: Key[Array, ""] | None,
) -> Float[Array, "b l d"]:
    """Returns `x` after all blocks, in order. Each block's dropout key is folded from `key`."""
    mask = mask_of(inputs, ahead=ahead, halves=halves)

    def apply(block: Any, x: Array, table: Table | None, key: Key[Array, ""] | None) -> Any:
        return block(x, mask, table, cond=cond, key=key), None

    return run_stack(apply, stacks_of(blocks), blocks.config, x, inputs, key)[0]


def run_with_load(
    blocks: Any,
    x: Float[Array, "b l d"],
    inputs: NetInput,
    *,
    ahead: int | None = None,
    halves: Halves | None = None,
    key: Key[Array, ""] | None,
) -> tuple[Float[Array, "b l d"], Float[Array, "n e"] | None]:
    """Runs `run_blocks` without conditioning, and returns with `x` the number of tokens that each
    expert of each block of the last stack computed; None if it has no experts."""
    mask = mask_of(inputs, ahead=ahead, halves=halves)

    def apply(block: Any, x: Array, table: Table | None, key: Key[Array, ""] | None) -> Any:
        return block.with_load(x, mask, table, cond=None, key=key)

    return run_stack(apply, stacks_of(blocks), blocks.config, x, inputs, key)


def run_but_last(
    blocks: Any,
    x: Float[Array, "b l d"],
    inputs: NetInput,
    *,
    ahead: int | None = None,
    halves: Halves | None = None,
    cond: Float[Array, " b #l c"] | None,
) -> BegunBlock:
    """Runs `run_blocks` without dropout, up to the keys and values of the last block."""
    mask = mask_of(inputs, ahead=ahead, halves=halves)
    before, last = split_last(stacks_of(blocks))

    def apply(block: Any, x: Array, table: Table | None, _: None) -> Any:
        return block(x, mask, table, cond=cond, key=None), None

    x, _ = run_stack(apply, before, blocks.config, x, inputs, None)
    return BegunBlock(last, x, mask, table_of(inputs, x.shape[1], blocks.config.rotary), cond)


def split_last(stacks: Sequence[Any]) -> tuple[tuple[Any, ...], Any]:
    """Returns the stacks without the last block, and that block."""
    *before, last = stacks
    return (
        (*before, jax.tree.map(lambda array: array[:-1], last)),
        jax.tree.map(lambda array: array[-1], last),
    )


def mask_of(
    inputs: NetInput,
    *,
    ahead: int | None = None,
    halves: Halves | None = None,
    reach: int | None = None,
) -> AttentionMask:
    """Returns the attention mask of these inputs."""
    return AttentionMask(
        ahead=ahead,
        halves=halves,
        reach=reach,
        is_valid=inputs.is_valid,
        segment_ids=inputs.segment_ids,
    )


def table_of(inputs: NetInput, length: int, rotary: Rotary | None) -> Table | None:
    """Returns the rotary table of these inputs, the same for all blocks."""
    if rotary is None:
        return None
    return rotary_table(positions_of(inputs, length), rotary)


def positions_of(inputs: NetInput, length: int) -> Int[Array, "#b l"]:
    """Returns the position of each token in its text."""
    return jnp.arange(length)[None] if inputs.positions is None else inputs.positions


def run_stack(
    apply: Callable[..., tuple[Array, Any]],
    stacks: Sequence[Any],
    config: StackConfig,
    x: Float[Array, "b l d"],
    inputs: NetInput,
    key: Key[Array, ""] | None,
) -> tuple[Float[Array, "b l d"], Any]:
    """Applies `apply(block, x, rotary table, key)`, which returns `x` and something else, with each
    of the stacked blocks, in order. Returns the last `x`, and what else the blocks of the last
    stack returned, stacked."""
    table = table_of(inputs, x.shape[1], config.rotary)

    def step(x, layer):
        block, key = layer
        return apply(block, moved(x, STREAM), table, key)

    remat = config.remat
    if remat == "auto":
        remat = "products" if platform() == "tpu" else "none"
    step = rematerialised(remat, step)
    start, others = 0, None
    for blocks in stacks:
        end = start + jax.tree.leaves(blocks)[0].shape[0]
        keys = None if key is None else by_row(key, jnp.arange(start, end))
        x, others = jax.lax.scan(step, x, (blocks, keys), unroll=unrolled(remat))
        start = end
    return x, others


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
