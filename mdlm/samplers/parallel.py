"""Parallel decoding: a call proposes a token at every open position, a rule keeps the best.

`order` gives each position a priority, and `rule` (see `unmasking_rules`) says how many positions
are written. The distribution of the samples depends on both:

    random, left        with one position per call, the network's distribution
    margin, entropy     the same: the priority depends on the known tokens, not on the one drawn
    confidence          another one, even with one position per call: of two tokens drawn, the
                        likelier is kept, and the other is drawn again. Samples are likelier than
                        the network's, and less diverse; temperature 0 gives the greedy decoders of
                        LLaDA and Fast-dLLM
    several per call    tokens written together are drawn independently of each other

With `block_size` only the leftmost block that has open positions is written (LLaDA's
semi-autoregressive decoding, arXiv:2502.09992). Blocks are counted from a row's first position
that is not fixed, so a batch may hold prompts of different lengths, each row at its own block.
`ParallelBlocks` is the same for networks that attend to diffusion blocks (SDAR, arXiv:2510.06303),
whose blocks are counted from the first position of the row.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, get_args

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int, Key

from mdlm.diffusion import Diffusion
from mdlm.draws import uniforms
from mdlm.processes.masked import Masked
from mdlm.samplers.base import Sampler, Score, entry
from mdlm.samplers.caches.base import Cache
from mdlm.samplers.caches.finished_blocks import FinishedBlocks
from mdlm.samplers.logits.filters import restrict
from mdlm.samplers.logits.shaping import Shaping, check_banned
from mdlm.samplers.requirements import check_length, no_inverse
from mdlm.samplers.state import SampleState, extended, placed, step_keys
from mdlm.samplers.unmasking_rules import FixedCount, Order, Rule, Turn
from mdlm.types import Attends, Vocab, pytree

Priority = Literal["network", "processed"]


@pytree
class BlockState(SampleState):
    """Adds the number of calls made for the current block of each row."""

    calls: Any  # Int[Array, " b"], network calls made for the current block


@dataclass(frozen=True, kw_only=True)
class Parallel(Sampler):
    """Writes the open positions of highest priority with each call, as many as `rule` says.

    The network is given the time at which the expected share of masks is the present one:
    1 - alpha(t) = open positions / positions that are not fixed, over each whole row. (No time is
    quite right, as the masked positions are not random as in training.)

    Confidence, margin and entropy are those of the network's distribution (`priority="network"`),
    or of the one that tokens are drawn from, after bans, `temperature`, `top_k` and `top_p`
    ("processed", as in Dream). Temperature 0 does not count there: it would make every token
    certain. Tokens that are `deferred` have probability 0 in it: a position that proposes one is
    among the last by confidence (LLaDA's way to keep its end tokens from coming first).

    NFE is that of the row that needs most calls.
    """

    keeps_written: ClassVar[bool] = True

    order: Order = "confidence"
    rule: Rule = FixedCount()
    block_size: int | None = None
    priority: Priority = "network"
    deferred: tuple[int, ...] = ()
    cache: Cache | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.order not in get_args(Order):
            raise ValueError(f"order={self.order!r}: must be one of {', '.join(get_args(Order))}")
        if self.order not in self.rule.orders:
            name, orders = type(self.rule).__name__, " or ".join(self.rule.orders)
            raise ValueError(
                f"order={self.order!r} does not fit rule={name}(...): must be {orders}"
            )
        if self.block_size is not None and self.block_size < 1:
            raise ValueError(
                f"block_size={self.block_size}: must be at least 1, or None for one block"
            )
        if self.priority not in get_args(Priority):
            raise ValueError(f'priority={self.priority!r}: must be "network" or "processed"')
        if any(token < 0 for token in self.deferred):
            raise ValueError(f"deferred={self.deferred}: ids must be at least 0")

    def check_ids(self, vocab: Vocab) -> None:
        super().check_ids(vocab)
        check_banned(self.deferred, vocab, "deferred")

    def incompatibility(self, process, parameterization, network=None):
        reason = super().incompatibility(process, parameterization, network)
        if reason is not None:
            return reason
        if process.schedule.per_token:
            return (
                "it finds the time from the number of masks, but the schedule has a rate for each"
                " token; use sampler=Reverse()"
            )
        return no_inverse(process, "a given number of masks")

    def init(
        self,
        keys: Key[Array, " b"],
        tokens: Int[Array, "b l"],
        is_fixed: Bool[Array, "b l"],
        diffusion: Diffusion[Masked],
    ) -> BlockState:
        state = super().init(keys, tokens, is_fixed, diffusion)
        return extended(state, BlockState, calls=jnp.zeros(tokens.shape[0], jnp.int32))

    def step(self, state: BlockState, diffusion: Diffusion[Masked]) -> BlockState:
        process = diffusion.process
        is_open = process.is_masked(state.tokens) & ~state.is_fixed
        is_here = self.here(state, is_open)
        is_asked = is_open & is_here
        if self.cache is not None:
            is_asked = self.cache.answerable(self, state, is_asked, diffusion)
        turn = Turn(
            total=(is_here & ~state.is_fixed).sum(-1, keepdims=True),
            step=state.calls[:, None],
            keys=step_keys(state, "rule"),
        )
        # A done row writes nothing at any time; time 0 is avoided, as log-SNR is infinite there.
        is_timed = is_here if self.attends == "blocks" else jnp.ones_like(is_here)
        left = (is_open & is_timed).sum(-1, keepdims=True)
        writable = (~state.is_fixed & is_timed).sum(-1, keepdims=True)
        t = process.schedule.time_of(jnp.maximum(left, 1) / jnp.maximum(writable, 1))
        if self.order in ("random", "left"):  # known before the network is called
            is_written = self.rule.select(self.blind(state), is_asked, turn)
            state = self.write(state, is_written, t, diffusion)
        else:
            state, proposal = self.propose(
                state,
                is_asked,
                t,
                diffusion,
                score=SCORES[self.order],
            )
            is_written = self.rule.select(proposal.score, is_asked, turn)
            state = placed(state, proposal, is_written)
        is_over = ((is_open & is_here) == is_written).all(-1)
        return replace(
            state,
            calls=jnp.where(is_over, 0, state.calls + 1),
            done=(is_open == is_written).all(-1),
        )

    def longest_block(self) -> int | None:
        return self.block_size

    def here(self, state: SampleState, is_open: Bool[Array, "b l"]) -> Bool[Array, "b l"]:
        block = self.block(state.is_fixed)
        never = jnp.iinfo(jnp.int32).max
        return block == jnp.where(is_open, block, never).min(-1, keepdims=True)

    def block(self, is_fixed: Bool[Array, "b l"]) -> Int[Array, "b l"]:
        """The index of each position's block, 0 from the first position that is not fixed."""
        l = is_fixed.shape[1]
        first = jnp.argmin(is_fixed, axis=-1, keepdims=True)
        return (jnp.arange(l)[None] - first) // (self.block_size or l)

    def blind(self, state: BlockState) -> Float[Array, "b l"]:
        """The priority of each position in an order that does not depend on the network."""
        l = state.tokens.shape[1]
        if self.order == "random":
            return uniforms(step_keys(state, "order"), l)
        return jnp.broadcast_to(-jnp.arange(l, dtype=jnp.float32), state.tokens.shape)

    def weighed(
        self,
        log_p0: Float[Array, "n v"],
        processed: Callable[[Shaping], Float[Array, "n v"]],
        mask_id: int,
    ) -> Float[Array, "n v"]:
        log_p = log_p0
        if self.priority == "processed":
            log_p = processed(replace(self, temperature=self.temperature or 1.0))
        if self.deferred:
            log_p = restrict(log_p, self.deferred, mask_id=mask_id, size=log_p.shape[-1])
        return log_p


@dataclass(frozen=True, kw_only=True)
class ParallelBlocks(Parallel):
    """`Parallel` for networks that attend to diffusion blocks; `block_size` must be the network's.

    Blocks are counted from the first position of a row, so the block in which a prompt ends is
    shorter for the rule. The network is given the time of the share of masks in the current block.
    Fixed tokens of later blocks stay, but influence nothing before their own block. Without the
    cache every call reads the whole row [noised ; clean], for the same samples.
    """

    keeps_written: ClassVar[bool] = True
    attends: ClassVar[Attends] = "blocks"

    block_size: int = field()  # required here
    cache: Cache | None = FinishedBlocks()

    def init(
        self,
        keys: Key[Array, " b"],
        tokens: Int[Array, "b l"],
        is_fixed: Bool[Array, "b l"],
        diffusion: Diffusion[Masked],
    ) -> BlockState:
        check_length(self.block_size, tokens.shape[1])
        return super().init(keys, tokens, is_fixed, diffusion)

    def block(self, is_fixed: Bool[Array, "b l"]) -> Int[Array, "b l"]:
        place = jnp.arange(is_fixed.shape[1])[None]
        return jnp.broadcast_to(place // self.block_size, is_fixed.shape)


def confidence(log_p: Float[Array, "n v"], token: Int[Array, " n"]) -> Float[Array, " n"]:
    """The probability of the token."""
    return jnp.exp(entry(log_p, token))


def margin(log_p: Float[Array, "n v"], token: Int[Array, " n"]) -> Float[Array, " n"]:
    """The probability of the likeliest token minus that of the second likeliest."""
    first = jnp.argmax(log_p, axis=-1, keepdims=True)
    is_first = jnp.arange(log_p.shape[-1])[None] == first
    p = jnp.exp(log_p)
    largest = jnp.where(is_first, p, 0.0).max(-1)
    return largest - jnp.where(is_first, 0.0, p).max(-1)


def negative_entropy(log_p: Float[Array, "n v"], token: Int[Array, " n"]) -> Float[Array, " n"]:
    """Minus the entropy of the distribution, in nats; never above 0."""
    finite = jnp.where(log_p == -jnp.inf, 0.0, log_p)
    return jnp.minimum((jnp.exp(log_p) * finite).sum(-1), 0.0)


SCORES: dict[Order, Score] = {
    "confidence": confidence,
    "margin": margin,
    "entropy": negative_entropy,
}
"""The priorities of the orders that depend on the network's distribution."""
