"""Approximate caches: which positions a call reads between two calls that read the whole row.

All of them are approximate: between full calls, the keys and values of positions that are not read
are those of an earlier state of the row.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool

from mdlm.samplers.caches.partial import Partial, View
from mdlm.samplers.state import ranks

Until = Literal["prompt", "block", "written"]


@dataclass(frozen=True, kw_only=True)
class Prefix(Partial):
    """Approximate. Reads from the block that is being written to the end of the row; a block's
    first call is full (Fast-dLLM's prefix cache, arXiv:2505.22618)."""

    def reads(self, view: View) -> Bool[Array, "b l"]:
        return jnp.cumsum(view.is_here, axis=-1) > 0


@dataclass(frozen=True, kw_only=True)
class Dual(Partial):
    """Approximate. Reads the block that is being written only; a block's first call is full
    (Fast-dLLM's dual cache, arXiv:2505.22618). Without blocks it reads all."""

    def reads(self, view: View) -> Bool[Array, "b l"]:
        return view.is_here

    def most(self, length: int, block_size: int | None) -> int:
        return min(block_size or length, length)


@dataclass(frozen=True, kw_only=True)
class Delayed(Partial):
    """Approximate. Reads the positions that are still open and those written in the last call; a
    written token is then kept (dKV-Cache, arXiv:2505.15781)."""

    def reads(self, view: View) -> Bool[Array, "b l"]:
        return view.is_open | view.is_changed

    def is_due(self, view: View) -> Bool[Array, "b 1"]:
        return jnp.zeros_like(view.is_new)


@dataclass(frozen=True, kw_only=True)
class FreeCache(Partial):
    """Approximate. Reads from some position to the end of the row; what is before keeps its keys
    and values from the last call that read it (FreeCache, arXiv:2505.21467).

    Args:
        until: reading begins where the prompt ends ("prompt"), at the block that is being written
            ("block"), or at the first open position ("written"). A token is then kept as it was
            read last: still as a mask, unless `window` has it read again.
        multiple: reading begins at a multiple of this.
        window: so many positions before are read too.
    """

    until: Until = "written"
    multiple: int = 1
    window: int = 0

    def __post_init__(self):
        super().__post_init__()
        if self.until not in get_args(Until):
            raise ValueError(f"until={self.until!r}: must be one of {', '.join(get_args(Until))}")
        if self.multiple < 1:
            raise ValueError(f"multiple={self.multiple}: must be at least 1")
        if self.window < 0:
            raise ValueError(f"window={self.window}: must be at least 0")

    def reads(self, view: View) -> Bool[Array, "b l"]:
        after = {"prompt": ~view.is_fixed, "block": view.is_here, "written": view.is_open}
        begin = jnp.argmax(after[self.until], axis=-1, keepdims=True)
        begin = begin // self.multiple * self.multiple - self.window
        return jnp.arange(view.is_open.shape[1])[None] >= begin

    def is_due(self, view: View) -> Bool[Array, "b 1"]:
        return jnp.zeros_like(view.is_new)


@dataclass(frozen=True, kw_only=True)
class ReCAP(Partial):
    """Approximate. Alternates full calls with calls that read and write the `local` positions of
    highest priority in the full call; when these are written, the next call is full (ReCAP,
    arXiv:2505.19089, whose order is that of the full call; here the sampler orders them anew).

    In samplers that know beforehand what they write, a call reads these positions too.
    """

    local: int = 16

    def __post_init__(self):
        super().__post_init__()
        if self.local < 1:
            raise ValueError(f"local={self.local}: must be at least 1")

    def reads(self, view: View) -> Bool[Array, "b l"]:
        return (ranks(view.priority) < self.local) & (view.priority > -jnp.inf)

    def candidates(self, view: View) -> Bool[Array, "b l"]:
        return self.reads(view) & view.is_open

    def is_due(self, view: View) -> Bool[Array, "b 1"]:
        return view.is_new | ~self.candidates(view).any(-1, keepdims=True)
