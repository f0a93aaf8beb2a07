"""Sampling that remasks tokens: ReMDM (arXiv:2503.00307) and the correctors that it contains.

A step from t to s < t removes a token with probability sigma, and reveals more to compensate
(alpha = alpha(t), alpha' = alpha(s)):

    not masked   masked again with probability sigma
    masked       revealed with probability (alpha' - (1 - sigma) alpha) / (1 - alpha),
                 then drawn from the network's p(x_0 | z_t)

For every sigma from 0 to sigma_max = min(1, (1 - alpha') / alpha) these are the transitions of a
process whose q(z_t | x_0) is that of masking, so a network trained for masking can be used.
sigma = 0 is ancestral sampling. A removed token is drawn again when more tokens are known, so early
mistakes can be corrected.

    cap               sigma = min(eta, sigma_max)
    rescale           sigma = eta sigma_max
    confidence        sigma_i = eta sigma_max softmax_i(-c),  c_i the probability that token i had
                      when it was written, the softmax over the removable tokens of the row
    forward-backward  sigma = min(eta (alpha' - alpha) / alpha, sigma_max): noise of the step's
                      size, removed in the same step (Campbell et al., arXiv:2205.14987)
    dfm               the same with eta (alpha (1 - alpha))^(1/4) for eta: the corrector of
                      discrete flow matching (Gat et al., arXiv:2407.15595)

In the last two the papers bound the length of the steps; here sigma_max bounds sigma. With
"confidence" a step does not compensate for the tokens that it removes (on average at most one): the
next steps reveal them.

With the true posterior the distribution of z_t is preserved but for one error: tokens revealed in
the same step are drawn independently. In ancestral sampling the error vanishes with more steps;
here a step reveals more, about sigma alpha / (1 - alpha) of the masks, so the error vanishes only
if sigma becomes small too.
"""

import abc
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from mdlm.diffusion import Diffusion
from mdlm.draws import uniforms
from mdlm.processes.masked import Masked
from mdlm.samplers.base import Sampler
from mdlm.samplers.grid import GridSampler, LastStep
from mdlm.samplers.requirements import no_inverse, rates_differ
from mdlm.samplers.state import SampleState, removed, step_keys

TINY = 1e-30
"""Smaller than alpha at any time at which there are tokens to remove."""


class Exchange(NamedTuple):
    """The probabilities of a step at each position, and the time that the network is given."""

    t: Float[Array, "b 1"]
    reveal: Float[Array, " b #l"]  # probability that a masked position is revealed
    remove: Float[Array, " b #l"]  # probability that a token is masked


class Remasking(Sampler):
    """Mixed into a `GridSampler` that reveals and removes tokens in each step.

    After the grid all masked positions are revealed and none is removed. Logits are made at
    revealed positions only.
    """

    @abc.abstractmethod
    def exchange(
        self,
        state: SampleState,
        t: Float[Array, "b 1"],
        s: Float[Array, "b 1"],
        *,
        process: Masked,
    ) -> Exchange:
        """The probabilities of the step from grid time `t` to `s < t`."""

    def step(self, state: SampleState, diffusion: Diffusion[Masked]) -> SampleState:
        assert isinstance(self, GridSampler)
        process = diffusion.process
        plan = self.exchange(state, *self.times(state), process=process)
        is_over = state.step >= self.steps
        is_masked = process.is_masked(state.tokens) & ~state.is_fixed
        u = uniforms(step_keys(state, "whether"), state.tokens.shape[1])
        is_revealed = is_masked & (is_over | (u < plan.reveal))
        is_removed = visible(state, process) & ~is_over & (u < plan.remove)
        state = self.write(state, is_revealed, plan.t, diffusion)
        state = removed(state, is_removed, process.mask_id)
        is_left = ((is_masked & ~is_revealed) | is_removed).any(-1)
        return replace(state, done=(state.step >= self.steps - 1) & ~is_left)


Strategy = Literal["cap", "rescale", "confidence", "forward-backward", "dfm"]
"""How much `Remask` removes: see the module docstring."""

PUBLISHED: dict[Strategy, float] = {
    "cap": 0.04,
    "rescale": 0.015,
    "confidence": 1.0,
    "forward-backward": 1.0,
    "dfm": 10.0,
}
"""eta in the papers ("cap": ReMDM's for fewer steps than tokens; for as many steps, 0.008)."""


@dataclass(frozen=True, kw_only=True)
class Remask(Remasking, LastStep, GridSampler):
    """Removes tokens in every step, as `strategy` and `eta` say (None: as published).

    NFE is at most `steps`; steps that reveal nothing in any row make no call.
    """

    strategy: Strategy = "cap"
    eta: float | None = None

    def __post_init__(self):
        super().__post_init__()
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

    def exchange(
        self,
        state: SampleState,
        t: Float[Array, "b 1"],
        s: Float[Array, "b 1"],
        *,
        process: Masked,
    ) -> Exchange:
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
        """The probability of removing a token, between 0 and `largest_sigma`; with "confidence",
        of removing one token of the row."""
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
class RemaskLoop(Remasking, LastStep, GridSampler):
    """Raises alpha to `alpha_on`, stays there removing and revealing tokens, then continues to the
    end (ReMDM's "loop").

    In grid time r, from 1 to 0:

        t_on < r           alpha rises from 0 to alpha_on, sigma = 0
        t_off < r <= t_on  alpha = alpha_on, sigma = eta
        r <= t_off         alpha rises from alpha_on to 1, sigma = 0

    In the first and the last part alpha is linear in r for any schedule, and the network is given
    the schedule's time of that alpha. While alpha is constant, masks are revealed with probability
    eta alpha_on / (1 - alpha_on) in each step, which must be at most 1.
    """

    eta: float = 0.02
    t_on: float = 0.55
    t_off: float = 0.05
    alpha_on: float = 0.9

    def __post_init__(self):
        super().__post_init__()
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

    def exchange(
        self,
        state: SampleState,
        t: Float[Array, "b 1"],
        s: Float[Array, "b 1"],
        *,
        process: Masked,
    ) -> Exchange:
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
        largest = largest_sigma(
            self.noised(t), self.noised(s)
        )  # smaller in the step that leaves the loop
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
    """The probability that a masked position is revealed if tokens are removed with probability
    `sigma`.

    `noised_*` are 1 - alpha at t and s, `gap` is alpha(s) - alpha(t). Exactly 1 if alpha(s) = 1.
    """
    is_clean = noised_s == 0
    masked = jnp.where(is_clean, 1.0, noised_t)
    return jnp.where(is_clean, 1.0, jnp.minimum((gap + sigma * (1 - noised_t)) / masked, 1.0))


def least_confident(
    confidence: Float[Array, "b l"], removable: Bool[Array, "b l"]
) -> Float[Array, "b l"]:
    """Each token's share of its row's removals: softmax(-confidence) over `removable` tokens."""
    # The floor is finite, so that the softmax is not NaN in a row with no removable token.
    scores = jnp.where(removable, -confidence, -1e9)
    return jnp.where(removable, jax.nn.softmax(scores, axis=-1), 0.0)


def visible(state: SampleState, process: Masked) -> Bool[Array, "b l"]:
    """Positions that hold a token which the sampler wrote and may remove."""
    return ~process.is_masked(state.tokens) & ~state.is_fixed
