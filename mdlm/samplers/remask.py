"""Sampling that takes tokens back: ReMDM (arXiv:2503.00307) and the correctors it contains.

A step from t to s < t removes a token with probability sigma, and makes up for it by revealing
more (alpha = alpha(t), alpha' = alpha(s)):

    not masked   masked again with probability sigma
    masked       revealed with probability (alpha' - (1 - sigma) alpha) / (1 - alpha),
                 then drawn from the network's p(x_0 | z_t)

For every sigma from 0 to sigma_max = min(1, (1 - alpha') / alpha) these are the transitions of a
process whose q(z_t | x_0) is that of masking, so a network trained for masking serves. sigma = 0 is
ancestral sampling. What is removed may be drawn again with more known: an early mistake need not
stay.

    cap               sigma = min(eta, sigma_max)
    rescale           sigma = eta sigma_max
    confidence        sigma_i = eta sigma_max softmax_i(-c),  c_i the probability that token i had
                      when it was written, the softmax over the tokens of the row that could go
    forward-backward  sigma = min(eta (alpha' - alpha) / alpha, sigma_max): noise of the step's
                      own size, undone at once (Campbell et al., arXiv:2205.14987)
    dfm               the same with eta (alpha (1 - alpha))^(1/4) for eta: the corrector of
                      discrete flow matching (Gat et al., arXiv:2407.15595)

In the last two the papers bound the steps' length where here sigma_max bounds sigma. With
"confidence" nothing makes up for what is removed, at most one token a step in the mean: the next
steps reveal it.

With the true posterior the law of z_t is kept but for one thing: tokens revealed in the same step
are drawn independently. Ancestral sampling loses that error as its steps grow; here a step
reveals more, about sigma alpha / (1 - alpha) of the masks, so it is lost where sigma too becomes
small.
"""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from mdlm.diffusion import Diffusion
from mdlm.draws import uniforms
from mdlm.processes.masked import Masked
from mdlm.samplers.base import no_inverse, rates_differ
from mdlm.samplers.grid import GridSampler, Last, check_last, resolved
from mdlm.samplers.state import SampleState, removed, step_keys

TINY = 1e-30
"""Below every alpha that a schedule has where there are tokens to remove."""


class Exchange(NamedTuple):
    """What a step does, position by position, and the time at which the network is asked."""

    t: Float[Array, "b 1"]
    reveal: Float[Array, " b #l"]  # probability that a masked position is revealed
    remove: Float[Array, " b #l"]  # probability that a token is masked


def remask(
    sampler: GridSampler, state: SampleState, plan: Exchange, diffusion: Diffusion[Masked]
) -> SampleState:
    """One step that both reveals and removes tokens, by the probabilities of `plan`; beyond the
    grid all that is masked is revealed, and nothing removed. The network is asked about revealed
    positions only."""
    process = diffusion.process
    is_over = state.step >= sampler.steps
    is_masked = process.is_masked(state.tokens) & ~state.is_fixed
    u = uniforms(step_keys(state, "whether"), state.tokens.shape[1])
    is_revealed = is_masked & (is_over | (u < plan.reveal))
    is_removed = visible(state, process) & ~is_over & (u < plan.remove)
    state = sampler.write(state, is_revealed, plan.t, diffusion)
    state = removed(state, is_removed, process.mask_id)
    is_left = ((is_masked & ~is_revealed) | is_removed).any(-1)
    return replace(state, done=(state.step >= sampler.steps - 1) & ~is_left)


Strategy = Literal["cap", "rescale", "confidence", "forward-backward", "dfm"]
"""How much `Remask` removes: see the module's text."""

PUBLISHED: dict[Strategy, float] = {
    "cap": 0.04,
    "rescale": 0.015,
    "confidence": 1.0,
    "forward-backward": 1.0,
    "dfm": 10.0,
}
"""eta in the papers (the cap is ReMDM's for fewer steps than tokens; for as many, 0.008)."""


@dataclass(frozen=True, kw_only=True)
class Remask(GridSampler):
    """Removes tokens all the way down, as `strategy` and `eta` say (None: as published). NFE is
    at most `steps`, less steps that reveal nothing in any row."""

    last: Last = "draw"
    strategy: Strategy = "cap"
    eta: float | None = None

    def __post_init__(self):
        super().__post_init__()
        check_last(self.last)
        if self.strategy not in get_args(Strategy):
            raise ValueError(f"strategy={self.strategy!r}: must be one of {get_args(Strategy)}")
        most = 1.0 if self.strategy in ("cap", "rescale", "confidence") else float("inf")
        if self.eta is not None and not 0 <= self.eta <= most:
            raise ValueError(
                f'eta={self.eta}: must be in [0, {most}] for strategy="{self.strategy}"'
            )

    def incompatibility(self, process, parameterization, network=None):
        reason = super().incompatibility(process, parameterization, network)
        return reason or rates_differ(process, "removes")

    def step(self, state: SampleState, diffusion: Diffusion[Masked]) -> SampleState:
        plan = self.exchange(state, *self.times(state), process=diffusion.process)
        return remask(self, state, plan, diffusion)

    def choose(self, keys, log_p, at, state):
        drawn = super().choose(keys, log_p, at, state)
        return resolved(drawn, log_p, self.last, jnp.atleast_1d(state.step >= self.steps))

    def exchange(
        self,
        state: SampleState,
        t: Float[Array, "b 1"],
        s: Float[Array, "b 1"],
        *,
        process: Masked,
    ) -> Exchange:
        """The probabilities of the step from grid time `t` to `s < t`."""
        schedule = process.schedule
        noised_t, noised_s = schedule.one_minus_alpha(t), schedule.one_minus_alpha(s)
        gap = schedule.alpha_gap(s, t)
        sigma = self.sigma(noised_t, noised_s, gap)
        if self.strategy == "confidence":
            reveal = reveal_probability(noised_t, noised_s, gap, 0.0)
            remove = sigma * least_confident(state.confidence, visible(state, process))
            return Exchange(t, reveal, remove)
        return Exchange(t, reveal_probability(noised_t, noised_s, gap, sigma), sigma)

    def sigma(
        self, noised_t: Float[Array, "*s"], noised_s: Float[Array, "*s"], gap: Float[Array, "*s"]
    ) -> Float[Array, "*s"]:
        """The probability of removing a token, between 0 and `largest_sigma`; with "confidence"
        that of removing any one of the row's."""
        eta = PUBLISHED[self.strategy] if self.eta is None else self.eta
        largest = largest_sigma(noised_t, noised_s)
        if self.strategy == "cap":
            return jnp.minimum(eta, largest)
        if self.strategy in ("rescale", "confidence"):
            return eta * largest
        alpha_t = 1 - noised_t
        times = eta if self.strategy == "forward-backward" else eta * (alpha_t * noised_t) ** 0.25
        return jnp.minimum(times * gap / jnp.maximum(alpha_t, TINY), largest)


@dataclass(frozen=True, kw_only=True)
class RemaskLoop(GridSampler):
    """Goes down to alpha = `alpha_on`, stays there removing and revealing, then goes on to the
    end (ReMDM's "loop"). In time r of the grid, 1 to 0:

        t_on < r           alpha rises from 0 to alpha_on, sigma = 0
        t_off < r <= t_on  alpha = alpha_on, sigma = eta
        r <= t_off         alpha rises from alpha_on to 1, sigma = 0

    In both outer parts alpha is linear in r, whatever the schedule, and the network is asked at
    the schedule's time for that alpha. While alpha stays, masks are revealed with probability
    eta alpha_on / (1 - alpha_on) a step, which must not exceed 1.
    """

    last: Last = "draw"
    eta: float = 0.02
    t_on: float = 0.55
    t_off: float = 0.05
    alpha_on: float = 0.9

    def __post_init__(self):
        super().__post_init__()
        check_last(self.last)
        if not 0 < self.t_off < self.t_on < 1:
            raise ValueError(f"t_off={self.t_off}, t_on={self.t_on}: must be 0 < t_off < t_on < 1")
        if not 0 < self.alpha_on < 1:
            raise ValueError(f"alpha_on={self.alpha_on}: must be in (0, 1)")
        most = min(1.0, (1 - self.alpha_on) / self.alpha_on)
        if not 0 <= self.eta <= most:
            raise ValueError(f"eta={self.eta}: must be in [0, {most:.3g}] for this alpha_on")

    def incompatibility(self, process, parameterization, network=None):
        return (
            super().incompatibility(process, parameterization, network)
            or rates_differ(process, "removes")
            or no_inverse(process, "a given alpha")
        )

    def step(self, state: SampleState, diffusion: Diffusion[Masked]) -> SampleState:
        plan = self.exchange(state, *self.times(state), process=diffusion.process)
        return remask(self, state, plan, diffusion)

    def choose(self, keys, log_p, at, state):
        drawn = super().choose(keys, log_p, at, state)
        return resolved(drawn, log_p, self.last, jnp.atleast_1d(state.step >= self.steps))

    def exchange(
        self,
        state: SampleState,
        t: Float[Array, "b 1"],
        s: Float[Array, "b 1"],
        *,
        process: Masked,
    ) -> Exchange:
        """The probabilities of the step from grid time `t` to `s < t`."""
        noised_t, noised_s = self.noised(t), self.noised(s)
        gap, sigma = noised_t - noised_s, self.sigma(t, s)
        reveal = reveal_probability(noised_t, noised_s, gap, sigma)
        return Exchange(process.schedule.time_of(noised_t), reveal, sigma)

    def noised(self, r: Float[Array, "*s"]) -> Float[Array, "*s"]:
        """1 - alpha at grid time `r`."""
        before = 1 - self.alpha_on * (1 - r) / (1 - self.t_on)
        after = (1 - self.alpha_on) * jnp.minimum(r / self.t_off, 1.0)
        return jnp.where(r > self.t_on, before, after)

    def sigma(self, t: Float[Array, "*s"], s: Float[Array, "*s"]) -> Float[Array, "*s"]:
        """The probability of removing a token between grid times `t` and `s`."""
        stays = (t <= self.t_on) & (t > self.t_off)
        largest = largest_sigma(self.noised(t), self.noised(s))  # less where a step leaves the loop
        return jnp.where(stays, jnp.minimum(self.eta, largest), 0.0)


def largest_sigma(noised_t: Float[Array, "*s"], noised_s: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """sigma_max = min(1, (1 - alpha(s)) / alpha(t)); 1 where alpha(t) = 0 < 1 - alpha(s)."""
    return jnp.minimum(1.0, noised_s / jnp.maximum(1 - noised_t, TINY))


def reveal_probability(
    noised_t: Float[Array, "*s"],
    noised_s: Float[Array, "*s"],
    gap: Float[Array, "*s"],
    sigma: Float[Array, "*s"] | float,
) -> Float[Array, "*s"]:
    """Of a masked position, where tokens are removed with probability `sigma`.

    `noised_*` are 1 - alpha at t and s, `gap` is alpha(s) - alpha(t). Exactly 1 where noise ends.
    """
    is_clean = noised_s == 0
    masked = jnp.where(is_clean, 1.0, noised_t)
    return jnp.where(is_clean, 1.0, jnp.minimum((gap + sigma * (1 - noised_t)) / masked, 1.0))


def least_confident(
    confidence: Float[Array, "b l"], could_go: Bool[Array, "b l"]
) -> Float[Array, "b l"]:
    """Shares of each row's removals, softmax(-confidence) over those that `could_go`."""
    # A finite floor: in a row where none could go the softmax is a number all the same.
    scores = jnp.where(could_go, -confidence, -1e9)
    return jnp.where(could_go, jax.nn.softmax(scores, axis=-1), 0.0)


def visible(state: SampleState, process: Masked) -> Bool[Array, "b l"]:
    """Positions that hold a token which was written here and may be removed."""
    return ~process.is_masked(state.tokens) & ~state.is_fixed
