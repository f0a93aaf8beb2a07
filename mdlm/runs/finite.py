"""Parameters are numbers: what is loaded, imported or begun from is finite."""

import jax
import jax.numpy as jnp
import numpy as np

from mdlm.errors import InputError
from mdlm.runs.weights import named
from mdlm.types import ArrayTree

ADVICE = "the run diverged; use an earlier checkpoint (--step, or --fork RUN@STEP), or train anew"


EXPONENTS = {"float32": 0x7F800000, "bfloat16": 0x7F80, "float16": 0x7C00}
"""The bits of the exponent, by dtype. All are set in NaN and infinity."""

PIECE = 2**18
"""Numbers that are looked at together."""


def is_finite(value: np.ndarray) -> bool:
    """Whether all numbers of an array in memory are finite, by their bits: NumPy's own test of
    bfloat16 takes three times as long."""
    exponent = EXPONENTS.get(value.dtype.name)
    if exponent is None:
        return bool(np.isfinite(value).all())
    bits = value.view(f"u{value.dtype.itemsize}").reshape(-1)
    pieces = (bits[i : i + PIECE] for i in range(0, bits.size, PIECE))  # which fit a cache
    return not any(((some & bits.dtype.type(exponent)) == exponent).any() for some in pieces)


def not_finite(tree: ArrayTree) -> list[str]:
    """Returns the names of the arrays that hold NaN or infinity. All host processes call it."""
    arrays = {
        name: leaf for name, leaf in named(tree).items() if jnp.issubdtype(leaf.dtype, jnp.inexact)
    }
    judge = jax.jit(lambda leaves: [jnp.isfinite(leaf).all() for leaf in leaves])
    found = judge(list(arrays.values()))
    return [name for name, is_sound in zip(arrays, found, strict=True) if not bool(is_sound)]


def check_finite(tree: ArrayTree, title: str, advice: str = ADVICE) -> None:
    """Raises InputError, beginning with `title`, if a number of the tree is not finite."""
    bad = not_finite(tree)
    if bad:
        others = f" and {len(bad) - 1} more arrays have" if len(bad) > 1 else " has"
        raise InputError(f"{title}: {bad[0]}{others} values that are not finite; {advice}")
