"""The rules of parallel decoding: which of the proposed tokens are written.

The network proposes a token at every open position of a row; a rule keeps some of them. A rule gets
a priority for each position (`Order` lists the kinds; larger ones are written first), the number of
positions that the row's block had to write, and the number of calls made for that block. It keeps
at least one position in every row that has open ones; of equal priorities the left one comes first.
n, m and k count positions.

    FixedCount     the k best
    Share          the k best, with k such that a block of m takes S calls
    Expected       the k best, with k the mean number that the reverse chain reveals, rounded down
    Threshold      all above tau, and the `least` best
    Factor         the n best, n the largest with (n + 1)(1 - c_n) < f   (c falling)
    EntropyBound   by rising entropy h, while h_1 + ... + h_(n-1) <= gamma
    MaskGIT        after call i of S, m cos(pi i / 2S) are left; the order is noised
"""

import abc
import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from mdlm.samplers.state import ranks
from mdlm.types import pytree

Order = Literal["confidence", "margin", "entropy", "random", "left"]
"""The priority of a position: the network's probability of the token drawn; the difference between
its two largest probabilities; minus the entropy of its distribution, in nats; a uniform number;
minus the position."""


@pytree
class Turn:
    """The progress of each row's block when a rule is applied."""

    total: Any  # Int[Array, "b 1"], positions of the block that were to be written
    step: Any  # Int[Array, "b 1"], network calls made for the block so far
    keys: Any  # Key[Array, " b"], of this step, for rules that draw


@dataclass(frozen=True, kw_only=True)
class Rule(abc.ABC):
    """Maps priorities (`score`) to the positions that are written."""

    orders: ClassVar[tuple[Order, ...]] = get_args(Order)
    """The kinds of priority that the rule is defined for."""

    @abc.abstractmethod
    def select(
        self, score: Float[Array, "b l"], is_open: Bool[Array, "b l"], turn: Turn
    ) -> Bool[Array, "b l"]:
        """Returns True where the proposed token is written: only at open positions, and at least
        one in each row that has any."""


@dataclass(frozen=True, kw_only=True)
class FixedCount(Rule):
    """Writes the `per_call` best positions with each call."""

    per_call: int = 1

    def __post_init__(self):
        if self.per_call < 1:
            raise ValueError(f"per_call={self.per_call}: must be at least 1")

    def select(self, score, is_open, turn):
        return best(score, is_open, self.per_call)


@dataclass(frozen=True, kw_only=True)
class Share(Rule):
    """Writes equal shares: of the m positions of a block, call i of `steps`, counted from 0, writes
    floor(m / steps), and one more while i < m mod steps (LLaDA, arXiv:2502.09992)."""

    steps: int

    def __post_init__(self):
        _check_steps(self.steps)

    def select(self, score, is_open, turn):
        share, rest = turn.total // self.steps, turn.total % self.steps
        return best(score, is_open, share + (turn.step < rest))


@dataclass(frozen=True, kw_only=True)
class Expected(Rule):
    """Writes as many of the n positions left as the reverse chain of alpha = 1 - t reveals in the
    mean: floor(n (1 - s / t)) between the times t and s of a uniform grid of `steps` steps from 1
    to `eps`, all in the last one (Dream, arXiv:2508.15487, with eps = 0.001).

    Times at which this would be none are passed over without a call. They are the first ones, if
    the block has fewer positions than there are steps.
    """

    steps: int
    eps: float = 0.0

    def __post_init__(self):
        _check_steps(self.steps)
        if not 0 <= self.eps < 1:
            raise ValueError(f"eps={self.eps}: must be in [0, 1)")

    def select(self, score, is_open, turn):
        # 1 - s / t is 1 / (total - i) at step i. Once n / (total - i) is 1 it never falls below.
        total = self.steps / (1 - self.eps)
        first = jnp.clip(math.ceil(total) - turn.total, 0, self.steps - 1)
        i = turn.step + first
        left = is_open.sum(-1, keepdims=True)
        count = jnp.floor(left / jnp.maximum(total - i, 1.0)).astype(jnp.int32)
        return best(score, is_open, jnp.where(i < self.steps - 1, count, left))


@dataclass(frozen=True, kw_only=True)
class Threshold(Rule):
    """Writes every position with a priority above `tau`, and the `least` best ones (Fast-dLLM,
    arXiv:2505.22618; SDAR). A `tau` of 1 or more writes `least` positions with each call."""

    tau: float = 0.9
    least: int = 1
    orders: ClassVar[tuple[Order, ...]] = ("confidence", "margin")

    def __post_init__(self):
        if not self.tau >= 0:
            raise ValueError(f"tau={self.tau}: must be at least 0")
        if self.least < 1:
            raise ValueError(f"least={self.least}: must be at least 1")

    def select(self, score, is_open, turn):
        return best(score, is_open, self.least) | (is_open & (score > self.tau))


@dataclass(frozen=True, kw_only=True)
class Factor(Rule):
    """Writes the n most confident positions, with the largest n for which
    (n + 1)(1 - c_n) < `factor`, where c_n is the n-th largest confidence (Fast-dLLM,
    arXiv:2505.22618). With factor = 1 the greedy tokens are the likeliest under any joint
    distribution that has the network's marginals."""

    factor: float = 1.0
    orders: ClassVar[tuple[Order, ...]] = ("confidence",)

    def __post_init__(self):
        if not self.factor > 0:
            raise ValueError(f"factor={self.factor}: must be above 0")

    def select(self, score, is_open, turn):
        # The left side never decreases with n, so the positions below the bound are the n best.
        n = ranks(jnp.where(is_open, score, -jnp.inf)) + 1
        return is_open & (((n + 1) * (1 - score) < self.factor) | (n == 1))


@dataclass(frozen=True, kw_only=True)
class EntropyBound(Rule):
    """Writes positions by rising entropy, as long as the sum of the entropies before is at most
    `gamma` nats: a bound on the dependence between tokens written at once (arXiv:2505.24857). A
    `gamma` of 0 writes one position with each call, and all that are certain."""

    gamma: float = field(default=0.1, metadata={"infinite": True})
    orders: ClassVar[tuple[Order, ...]] = ("entropy",)

    def __post_init__(self):
        if not self.gamma >= 0:
            raise ValueError(f"gamma={self.gamma}: must be at least 0")

    def select(self, score, is_open, turn):
        # Positions that are not open are sorted last, so they add to no sum that is compared.
        entropy = jnp.sort(jnp.where(is_open, -score, jnp.inf), axis=-1)
        before = jnp.cumsum(entropy[:, :-1], axis=-1)
        return best(score, is_open, 1 + (before <= self.gamma).sum(-1, keepdims=True))


@dataclass(frozen=True, kw_only=True)
class MaskGIT(Rule):
    """Leaves floor(m cos(pi i / (2 steps))) of m positions masked after call i of `steps`, counted
    from 1: the first calls write few tokens, the last many. The order is that of
    log confidence + temperature * (1 - i / steps) * Gumbel noise (MaskGIT, arXiv:2202.04200). Short
    blocks take fewer calls."""

    steps: int
    temperature: float = 4.5
    orders: ClassVar[tuple[Order, ...]] = ("confidence",)

    def __post_init__(self):
        _check_steps(self.steps)
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature}: must be in [0, inf)")

    def select(self, score, is_open, turn):
        i = jnp.minimum(turn.step + 1, self.steps)
        left_share = np.cos(np.pi / 2 * np.arange(self.steps + 1) / self.steps)
        left_share[-1] = 0.0
        left = jnp.floor(turn.total * jnp.asarray(left_share, jnp.float32)[i]).astype(jnp.int32)
        # The noise only orders positions, so its short tail in float32 does no harm.
        noise = jax.vmap(lambda key: jax.random.gumbel(key, score.shape[1:]))(turn.keys)
        noised = jnp.log(score) + self.temperature * (1 - i / self.steps) * noise
        return best(noised, is_open, is_open.sum(-1, keepdims=True) - left)


def best(
    score: Float[Array, "b l"], is_open: Bool[Array, "b l"], count: Int[Array, "b 1"] | int
) -> Bool[Array, "b l"]:
    """The `count` open positions of highest priority: at least one, all if there are fewer."""
    lowest = jnp.finfo(jnp.float32).min
    score = jnp.where(is_open, jnp.maximum(score, lowest), -jnp.inf)
    return is_open & (ranks(score) < jnp.maximum(count, 1))


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"steps={steps}: must be at least 1")
