"""Rows [tokens ; clean] of block diffusion (arXiv:2503.09573), which hold one text twice."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax.numpy as jnp

from mdlm.types import NetInput


def joined(inputs: NetInput) -> NetInput:
    """Returns rows of 2 l tokens, [tokens ; clean]; halves share positions, segments, padding.

    Raises ValueError if there are no clean tokens.
    """
    if inputs.clean is None:
        raise ValueError("a block-diffusion network reads the clean tokens too: clean=None")
    length = inputs.tokens.shape[1]
    positions = jnp.arange(length)[None] if inputs.positions is None else inputs.positions
    twice = lambda x: None if x is None else jnp.concatenate([x, x], axis=1)
    return replace(
        inputs,
        tokens=jnp.concatenate([inputs.tokens, inputs.clean], axis=1),
        clean=None,
        positions=twice(positions),
        is_valid=twice(inputs.is_valid),
        segment_ids=twice(inputs.segment_ids),
    )


def flops_of_both(
    flops: Callable[..., float], config: Any, rows: float, length: int, scored: float, columns: int
) -> float:
    """Returns the operations of both halves, with the attention scores that are computed, from the
    function `flops` of a network that reads one half."""
    heads, _, size = config.heads_shape
    once = flops(rows, length, scored, columns)
    clean = flops(rows, length, 0, columns) - flops(rows, 0, 0, columns)
    own = 4 * rows * config.depth * length * config.block_size * heads * size
    return once + clean + own
