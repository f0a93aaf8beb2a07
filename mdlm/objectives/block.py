"""The bound of block diffusion (BD3-LM, arXiv:2503.09573 eq. 6-8), for all blocks in one pass.

    -log p(x) <= sum over blocks j of  E_t w(t) E_{z_j} sum_{i in j, masked}
                     -log p(x_i | z_j at time t, clean blocks before j),   w = -alpha' / (1 - alpha)

Each block has a time of its own. With blocks of one token the mean over times is the exact
autoregressive likelihood. The prediction then does not depend on the time, so all tokens masked at
weight 1 (`low = high = 1`) gives it without noise. With one block per row it is `Nelbo`.

Training may be limited to times in [low, high] ("clipped schedules", sec. 5): rates near 0 and 1
teach little and raise the variance of the loss. The share of masked tokens of a block is then kept
in [low, high] too, by drawing the masks of other blocks again. Such a loss is no bound, so
evaluations report the bound on the whole interval.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int, Key

from mdlm.diffusion import Diffusion
from mdlm.draws import uniforms
from mdlm.keys import by_row, stream
from mdlm.objectives.base import Objective, nelbo_without, refuse_rates, score_masked
from mdlm.processes.masked import Masked
from mdlm.schedules.base import Schedule
from mdlm.schedules.closed_form import LogLinear
from mdlm.times import LowDiscrepancy, TimeSampler
from mdlm.types import Attends, Batch, LossTerms

Bound = Float[Array, ""] | float
EDGE = 1e-6
"""Tolerance for the rounding of a share k / n that equals an end of the interval."""


@dataclass(frozen=True, kw_only=True)
class BlockNelbo(Objective):
    """Trains the bound of block diffusion, or a loss on part of its times, in nats.

    Args:
        block_size: tokens per block, as in the network; must divide the length of rows.
        times: how the uniform numbers that become times are drawn over all blocks of the batch.
        low, high: the interval of times, and also of masked shares (which are the times of
            log-linear schedules). (0, 1) is the bound. (1e-3, 1) is the published protocol,
            without the reconstruction. (1, 1) masks all tokens at weight 1, the exact likelihood
            with `block_size` 1.
        t_min: earlier times are moved to this one with the weight 1 / t_min: the reconstruction.
            A `low` at or below it, or a `high` of 1, does not bound the masked shares.
        rounds: how often masks of blocks outside the interval are drawn again, at most.
        first_is_given: the first token of each row (BOS) is never masked and not counted, as in the
            published numbers.
    """

    block_size: int
    times: TimeSampler = LowDiscrepancy()
    low: float = 0.0
    high: float = 1.0
    t_min: float = 1e-3
    rounds: int = 100
    first_is_given: bool = False
    attends: ClassVar[Attends] = "blocks"

    def __post_init__(self):
        if self.block_size < 1:
            raise ValueError(f"block_size={self.block_size}: must be at least 1")
        if not 0 < self.t_min < 1:
            raise ValueError(f"t_min={self.t_min}: must be between 0 and 1")
        if self.rounds < 0:
            raise ValueError(f"rounds={self.rounds}: must be at least 0")
        if self.low == self.high == 1:
            if self.block_size > 1:
                raise ValueError(
                    f"low=high=1 masks whole blocks, which is for block_size=1,"
                    f" not block_size={self.block_size}"
                )
        elif not 0 <= self.low < self.high <= 1:
            raise ValueError(f"low={self.low}, high={self.high}: must satisfy 0 <= low < high <= 1")
        elif self.rounds and not self._has_share():
            raise ValueError(
                f"low={self.low}, high={self.high}: no share of block_size={self.block_size} tokens"
                " lies between them; choose a wider interval"
            )

    def _has_share(self) -> bool:
        lowest = math.ceil((self.low - EDGE) * self.block_size) if self.low > self.t_min else 0
        return lowest <= math.floor((self.high + EDGE) * self.block_size)

    @property
    def is_exact(self) -> bool:
        return self.low == 1

    @property
    def is_clipped(self) -> bool:
        """True if masked shares are kept inside the interval."""
        return not self.is_exact and (self.low > self.t_min or self.high < 1)

    def reported(self) -> Objective:
        return replace(self, low=0.0, high=1.0) if self.is_clipped else self

    @property
    def protocol(self) -> str:
        first = ", first token of each row not scored" if self.first_is_given else ""
        if self.is_exact:
            return f"exact NLL, token by token{first}"
        blocks = f"blocks of {self.block_size}"
        if self.is_clipped:
            return f"loss at t in [{self.low:g}, {self.high:g}] (no bound), {blocks}{first}"
        name = "NELBO"
        if self.low > 0:
            name = nelbo_without("reconstruction", where=f"t >= {self.low:g}")
        return f"{name}, {blocks}, continuous time{first}"

    def incompatibility(self, process, parameterization, network=None):
        reason = super().incompatibility(process, parameterization, network)
        if reason is not None:
            return reason
        if self.is_clipped and not isinstance(process.schedule, LogLinear):
            name = type(process.schedule).__name__
            return (
                f"low and high are masking rates, which are the times of LogLinear, not of {name}"
            )
        return refuse_rates(process.schedule)

    def __call__(
        self, key: Key[Array, ""], batch: Batch, diffusion: Diffusion[Masked]
    ) -> LossTerms:
        # Without an interval nothing is drawn again, and no reduction over devices is needed.
        return replace(self, rounds=self.rounds if self.is_clipped else 0).on(
            self.low, self.high, key, batch, diffusion
        )

    def on(
        self,
        low: Bound,
        high: Bound,
        key: Key[Array, ""],
        batch: Batch,
        diffusion: Diffusion[Masked],
    ) -> LossTerms:
        """Returns the loss on another interval, whose ends may be traced."""
        with jax.named_scope("noise"):
            may_change = batch.is_valid
            if self.first_is_given:
                batch, may_change = _without_first(batch)
            z_t, t, weight = self.noised(low, high, key, batch, may_change, diffusion.process)
        return score_masked(
            batch,
            diffusion.with_clean(batch.tokens),
            z_t=z_t,
            t=t,
            weight=weight,
            key=stream(key, "dropout"),
        )

    def noised(
        self,
        low: Bound,
        high: Bound,
        key: Key[Array, ""],
        batch: Batch,
        may_change: Bool[Array, "b l"] | None,
        process: Masked,
    ) -> tuple[Int[Array, "b l"], Float[Array, "b l"], Float[Array, "b l"]]:
        """Returns noised tokens, and the time and the weight of each."""
        b, l = batch.tokens.shape
        if l % self.block_size:
            raise ValueError(f"block_size={self.block_size} does not divide the length of {l}")
        keys = by_row(stream(key, "corrupt"), batch.row)
        if self.is_exact:
            masks = process.prior(keys, l)
            z_t = masks if may_change is None else jnp.where(may_change, masks, batch.tokens)
            return z_t, jnp.ones((b, l)), jnp.ones((b, l))
        index = strata(batch.row, batch.rows, l // self.block_size)
        u = self.times.sample(stream(key, "times"), index.reshape(-1), batch.rows * index.shape[1])
        u = jnp.repeat(u.reshape(index.shape), self.block_size, axis=1)
        t, weight = self.times_and_weights(process.schedule, u, low, high)

        def numbers(draw: Int[Array, ""]) -> Float[Array, "b l"]:
            return uniforms(jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, draw), l)

        z_t, _ = masked_within(
            numbers,
            batch.tokens,
            t,
            process,
            block_size=self.block_size,
            low=jnp.where(jnp.asarray(low) > self.t_min, low, 0.0),
            high=high,
            rounds=self.rounds,
            may_change=may_change,
        )
        return z_t, t, weight

    def times_and_weights(
        self, schedule: Schedule, u: Float[Array, "b l"], low: Bound, high: Bound
    ) -> tuple[Float[Array, "b l"], Float[Array, "b l"]]:
        """Returns times in [low, high] and loss weights for uniform `u`."""
        t = low + (high - low) * u
        is_early = t < self.t_min
        t = jnp.maximum(t, self.t_min)
        return t, jnp.where(is_early, 1 / self.t_min, schedule.weight(t))


def strata(row: Int[Array, " b"], rows: Int[Array, ""], blocks: int) -> Int[Array, "b n"]:
    """Returns the stratum of each block, unique among the `rows * blocks` of the whole.

    The blocks of a row are spread over all noise levels, and so are the blocks at one index in all
    rows, because the difficulty varies both with the row and with the index.
    """
    block = jnp.arange(blocks)[None]
    return row[:, None] + rows * ((block + row[:, None]) % blocks)


def masked_within(
    uniforms: Callable[[Int[Array, ""]], Float[Array, "b l"]],
    x_0: Int[Array, "b l"],
    t: Float[Array, "b l"],
    process: Masked,
    *,
    block_size: int,
    low: Bound,
    high: Bound,
    rounds: int,
    may_change: Bool[Array, "b l"] | None = None,
) -> tuple[Int[Array, "b l"], Int[Array, ""]]:
    """Noises `x_0` to `t`, and draws a block's masks again until their share is in [low, high].

    `uniforms(0)` gives the first draw, `uniforms(i)` the i-th repetition, of which there are at
    most `rounds`. The share is of the tokens that may change. A block for which no number of masks
    gives a share in the interval keeps its first draw. Returns the tokens and the number of draws.
    """
    b, l = x_0.shape
    blocks = (b, l // block_size, block_size)
    changing = jnp.ones(blocks) if may_change is None else may_change.reshape(blocks)
    n = changing.sum(-1)
    fewest, most = jnp.ceil((low - EDGE) * n), jnp.floor((high + EDGE) * n)

    def draw(i: Int[Array, ""]) -> Int[Array, "b l"]:
        return process.mask_where(uniforms(i), x_0, t, may_change)

    def is_outside(z_t: Int[Array, "b l"]) -> Bool[Array, "b n"]:
        masked = process.is_masked(z_t).reshape(blocks).sum(-1)
        return ((masked < fewest) | (masked > most)) & (fewest <= most)

    def again(carry):
        i, z_t = carry
        outside = jnp.repeat(is_outside(z_t), block_size, axis=1)
        return i + 1, jnp.where(outside, draw(i), z_t)

    z_t = draw(jnp.zeros((), jnp.int32))
    if rounds == 0:
        return z_t, jnp.ones((), jnp.int32)
    draws, z_t = jax.lax.while_loop(
        lambda carry: (carry[0] <= rounds) & is_outside(carry[1]).any(),
        again,
        (jnp.ones((), jnp.int32), z_t),
    )
    return z_t, draws


def _without_first(batch: Batch) -> tuple[Batch, Bool[Array, "b l"]]:
    """Returns the batch with the first tokens not counted, and which tokens may change."""
    later = jnp.broadcast_to(jnp.arange(batch.tokens.shape[1]) > 0, batch.tokens.shape)
    may_change = later if batch.is_valid is None else later & batch.is_valid
    return replace(batch, loss_mask=batch.loss_mask & later), may_change
