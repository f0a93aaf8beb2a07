"""Pseudo-random permutations of [0, n), computed element by element without a table.

An element is written as two digits, the left one below `a` and the right one below `b`, with
`a * b` just above `n`. Each round adds to one digit a pseudo-random number that depends on the
other, modulo the digit's base: a Feistel network over Z_a x Z_b. Each round is invertible, so the
whole is a bijection (Black and Rogaway 2002, "Ciphers with arbitrary finite domains", their
generalised Feistel method). A result of `n` or above is permuted again until it is below `n`; that
cycle returns into [0, n) and keeps the bijection. `a * b - n < a`, so it is rare.

The random numbers are those of SplitMix64 (Steele, Lea, Flood 2014), at any index of its
sequence. All arithmetic is on unsigned 64-bit integers: the same on every machine.
"""

import math

import numpy as np
from jaxtyping import Int64, Shaped, UInt64

ROUNDS, ROUNDS_OF_SMALL, SMALL = 10, 24, 64
"""Rounds for `n` above `SMALL`, and for `n` up to `SMALL`, where each round mixes less."""
LIMIT = 2**62
"""The largest `n`. Above it, arithmetic on digits and round numbers could overflow 64 bits."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # SplitMix64's increment, the odd 2**64 / golden ratio
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def key(seed: int, *words: int | Int64[np.ndarray, "..."]) -> UInt64[np.ndarray, "..."]:
    """Returns the key of a permutation from a seed and further numbers, all at least 0.

    If some of them are arrays, the result is an array of keys.
    """
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed={seed}: must be in [0, 2**63)")
    found = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is meant
        for word in (seed, *words):
            state = found + np.asarray(word).astype(np.uint64) + _GOLDEN
            found = _mixed(np.asarray(state))
    return found


def permuted(
    positions: Int64[np.ndarray, "..."], n: int, keys: Shaped[np.ndarray, "..."]
) -> Int64[np.ndarray, "..."]:
    """Returns the images of `positions`, in [0, n), under the permutations of the given keys.

    `positions` and `keys` (from `key`) are broadcast together: each position may have its own key.
    """
    if not 1 <= n <= LIMIT:
        raise ValueError(f"n={n}: must be in [1, 2**62]")
    shape = np.broadcast_shapes(positions.shape, keys.shape)
    at = np.broadcast_to(positions, shape).astype(np.uint64).ravel()
    keys = np.broadcast_to(keys, shape).ravel()
    if at.size and at.max() >= n:
        raise ValueError(f"a position is outside [0, {n})")
    found = _feistel(at, n, keys)
    while (outside := np.flatnonzero(found >= n)).size:
        found[outside] = _feistel(found[outside], n, keys[outside])
    return found.astype(np.int64).reshape(shape)


def _feistel(
    at: UInt64[np.ndarray, " n"], n: int, keys: UInt64[np.ndarray, " n"]
) -> UInt64[np.ndarray, " n"]:
    a = math.isqrt(n - 1) + 1  # the root, rounded up
    bases = np.uint64(a), np.uint64(-(-n // a))
    digits = list(np.divmod(at, bases[1]))
    rounds = ROUNDS if n > SMALL else ROUNDS_OF_SMALL
    for number in range(rounds):
        changed, other = number % 2, 1 - number % 2
        # The sequence of this key, at a different index for each round and digit.
        counter = digits[other] * np.uint64(rounds) + np.uint64(number + 1)
        drawn = _mixed(keys + counter * _GOLDEN)
        digits[changed] = (digits[changed] + drawn % bases[changed]) % bases[changed]
    found = digits[0] * bases[1] + digits[1]
    # Additions alone often give even permutations only, so a random bit may swap 0 and 1.
    coin = _mixed(keys) & np.uint64(n > 1)
    return np.where(found < 2, found ^ coin, found)


def _mixed(x: UInt64[np.ndarray, "..."]) -> UInt64[np.ndarray, "..."]:
    """Returns SplitMix64's output for a state."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * _FIRST
        x = (x ^ (x >> np.uint64(27))) * _SECOND
        return np.asarray(x ^ (x >> np.uint64(31)))
