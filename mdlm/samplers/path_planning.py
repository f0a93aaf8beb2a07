"""Path planning: each step chooses which positions hold tokens (P2, arXiv:2502.03540).

A token is proposed at each masked position, x ~ p(x_0 | z_t), and each position gets a priority,

    masked       log p(proposed token)
    not masked   eta log p(present token)

(or the logarithm of a uniform number in place of log p). The best positions of a row, as many as
the schedule has unmasked at s, are kept: those among them that were masked are written, all others
are masked, and no token is replaced by another. eta = 0 keeps every token: with random priorities
that is ancestral sampling with a fixed count in each step instead of a random one; with the
network's priorities the likeliest tokens are written first. eta = 1 compares present tokens with
new ones on equal terms; eta > 1 is stricter, and more tokens are remasked.

Only eta = 0 with random priorities draws from the network's distribution, in the limit of many
steps. With SUBS the network was never trained to predict a token that is in its input, so its
distribution there has no guarantee; networks that started as masked language models, or were
trained on noised tokens too, may do better.
"""

from dataclasses import dataclass, replace
from typing import Literal

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from mdlm.diffusion import Diffusion
from mdlm.draws import uniforms
from mdlm.processes.masked import Masked
from mdlm.samplers.grid import GridSampler
from mdlm.samplers.state import SampleState, placed, ranks, removed, step_keys

SMALLEST = 1e-37
"""Replaces a probability of 0, whose logarithm is infinite."""


@dataclass(frozen=True, kw_only=True)
class PathPlanning(GridSampler):
    """Keeps the positions of highest priority in each step and masks all others.

    `eta` weighs the priority of written tokens (larger is stricter); `score` is what the priority
    is made from. In the step to s of a row with n open positions,
    floor(n (1 - alpha(s)) / (1 - alpha(1))) stay masked, and in the last step none.

    NFE is at most `steps`. With random priorities logits are made at written positions only, and a
    step that writes nothing makes no call.
    """

    eta: float = 1.0
    score: Literal["probability", "random"] = "probability"

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.eta < float("inf"):
            raise ValueError(f"eta={self.eta}: must be in [0, inf)")
        if self.score not in ("probability", "random"):
            raise ValueError(f'score={self.score!r}: must be "probability" or "random"')

    def incompatibility(self, process, parameterization, network=None):
        reason = super().incompatibility(process, parameterization, network)
        if reason is not None:
            return reason
        if process.schedule.per_token:
            return "it counts masks of all tokens alike, but the schedule has a rate for each token"
        return None

    def step(self, state: SampleState, diffusion: Diffusion[Masked]) -> SampleState:
        process = diffusion.process
        t, s = self.times(state)
        is_last = state.step >= self.steps - 1
        is_open = ~state.is_fixed
        is_masked = is_open & process.is_masked(state.tokens)
        noised = process.schedule.one_minus_alpha
        share = jnp.where(is_last, 0.0, noised(s) / noised(jnp.ones_like(s)))
        kept = kept_of(is_open, share)
        if self.score == "random":
            p = uniforms(step_keys(state, "score"), state.tokens.shape[1])
            is_kept = highest(self.scores(p, p, is_masked), is_open, kept)
            state = self.write(state, is_masked & is_kept, t, diffusion)
        else:
            is_asked = is_masked if self.eta == 0 else is_open
            state, proposal = self.propose(
                state,
                is_asked,
                t,
                diffusion,
                unseen=process.mask_id,
            )
            scores = self.scores(proposal.confidence, proposal.present, is_masked)
            is_kept = highest(scores, is_open, kept)
            state = placed(state, proposal, is_masked & is_kept)
        state = removed(state, is_open & ~is_masked & ~is_kept, process.mask_id)
        return replace(state, done=jnp.full_like(state.done, is_last))

    def scores(
        self,
        proposed: Float[Array, "b l"],
        present: Float[Array, "b l"],
        is_masked: Bool[Array, "b l"],
    ) -> Float[Array, "b l"]:
        """The priorities of positions, from the probabilities of proposed and of present tokens."""
        new = jnp.log(jnp.maximum(proposed, SMALLEST))
        if self.eta == 0:  # 0 times the logarithm would tie with a certain proposal
            return jnp.where(is_masked, new, jnp.inf)
        return jnp.where(is_masked, new, self.eta * jnp.log(jnp.maximum(present, SMALLEST)))


def kept_of(is_open: Bool[Array, "b l"], share: Float[Array, "b 1"]) -> Float[Array, "b 1"]:
    """How many positions of each row hold tokens when the `share` of the open ones is masked."""
    count = is_open.sum(-1, keepdims=True)
    return count - jnp.floor(count * share + 1e-3)  # rounding may leave integers just below


def highest(
    scores: Float[Array, "b l"], is_open: Bool[Array, "b l"], kept: Float[Array, "b 1"]
) -> Bool[Array, "b l"]:
    """The `kept` open positions of each row with the highest priorities."""
    return is_open & (ranks(jnp.where(is_open, scores, -jnp.inf)) < kept)
