"""Named random streams.

One key belongs to a run. `stream(key, "times")` derives a key that depends on nothing but the
run's key and the name, so a new use of randomness never changes what the others draw, and a
name that is used twice is easy to find. `by_row` gives each sequence its own key: what a
sequence draws then depends only on its index in the global batch, not on how the batch is split
over devices, hosts or micro-batches.
"""

import zlib

import jax
from jax import Array
from jaxtyping import Int, Key

from mdlm.errors import InputError


def of_seed(seed: int) -> Key[Array, ""]:
    """Returns the key of a run. All bits of its seed count.

    Raises InputError if the seed is outside [0, 2**63).
    """
    if not 0 <= seed < 2**63:
        raise InputError(f"seed={seed}: must be in [0, 2**63)")
    key = jax.random.key(seed % 2**32)
    return jax.random.fold_in(key, seed >> 32) if seed >> 32 else key


def stream(key: Key[Array, ""], name: str) -> Key[Array, ""]:
    """The key of the stream `name` (a checksum of the name, folded in)."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def streams(keys: Key[Array, " n"], name: str) -> Key[Array, " n"]:
    """The stream `name` of each key."""
    return jax.vmap(lambda key: stream(key, name))(keys)


def by_row(key: Key[Array, ""], row: Int[Array, " n"]) -> Key[Array, " n"]:
    """One key per entry of `row`."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, row)
