"""Parameters are numbers: what is loaded, imported or begun from is finite."""

import jax
import jax.numpy as jnp

from mdlm.errors import InputError
from mdlm.runs.weights import named
from mdlm.types import ArrayTree

ADVICE = "the run diverged; use an earlier checkpoint (--step, or --fork RUN@STEP), or train anew"


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
