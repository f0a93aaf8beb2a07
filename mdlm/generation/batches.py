"""The rows of a batch that are computed: those that are not done, on as many devices as they fill.

A row's text depends on its own key and prompt alone, so rows may leave a batch and fill it up. The
sizes of the batches are few, as each compiles a program: powers of two for each device, and that
of the whole batch.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jax import Array
from jaxtyping import Bool, Int, Key

from mdlm.samplers.state import Samples


def split(count: int, rows: int, devices: int) -> tuple[int, int]:
    """Returns how many devices compute `count` rows of a batch of `rows`, and the rows of each."""
    parts = min(devices, power_of_two(count))
    return parts, min(power_of_two(-(-count // parts)), -(-rows // parts))


def on_open_rows(
    generate: Callable[..., Samples],
    keys: Key[Array, " b"],
    tokens: Int[np.ndarray, "b l"],
    is_fixed: Bool[np.ndarray, "b l"],
    *is_valid: Bool[np.ndarray, "b l"],
    devices: int,
) -> Samples:
    """Generates the rows that have an open position; the others keep their tokens.

    Where the batch is larger than these rows it is filled up with copies of one in which all is
    fixed: these take no steps, and their results are dropped. `generate` is also given `is_valid`,
    if there is one, and `parts`, the number of devices.
    """
    (is_open,) = np.nonzero(~is_fixed.all(axis=1))
    whole = np.array(tokens)
    if not len(is_open):
        return Samples(tokens=whole, nfe=0)
    parts, each = split(len(is_open), len(tokens), devices)
    chosen = np.resize(is_open, parts * each)
    chosen[len(is_open) :] = is_open[0]
    is_filling = np.arange(len(chosen)) >= len(is_open)
    given: Any = (keys[chosen], tokens[chosen], is_fixed[chosen] | is_filling[:, None])
    samples = generate(*given, *(valid[chosen] for valid in is_valid), parts=parts)
    whole[is_open] = np.asarray(samples.tokens)[: len(is_open)]
    return Samples(tokens=whole, nfe=samples.nfe)


def power_of_two(count: int) -> int:
    """The least power of two that is at least `count`."""
    return 1 << (count - 1).bit_length()
