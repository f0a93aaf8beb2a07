"""Samplers of score networks (SEDD, arXiv:2310.16834): tokens jump with weights from the score.

    Tweedie  p(z_s = y | z_t = z) in proportion to (exp(-D Q) s)_y exp(D Q)(y, z)
    Euler    p(z_s = y | z_t = z) = dt Q(y, z) s_y for y != z

Q holds the rates of the noise (in the first line those of sigma' = 1, in the second those at time
t), and D = sigma(t) - sigma(s). `Tweedie` undoes the noise of the step exactly, at each position
independently; `Euler` uses the rates of time t for the whole step. With more steps both tend to the
reverse process, whose samples have the distribution of the data if the score is the true one.

    absorbing, z the mask:  Tweedie weighs y by expm1(D) s_y, and staying by 1 - sum of those
                            Euler   weighs y by dt (-alpha' / alpha) s_y, staying likewise
    uniform, p = s / sum s: Tweedie weighs y by n (p_y - n), and z by (kept + n) (p_z - n),
                            kept = alpha_t / alpha_s,  n = (1 - kept) / K
                            Euler   weighs y by dt (-alpha' / alpha) s_y / K, staying by the rest

(With absorbing noise and alpha linear in t the two are the same.)

The weights are probabilities only if the score is the true one: negative weights are set to 0, and
the weights are divided by their sum. The grid runs from 1 to 0. In both samplers the last step is
Tweedie's with all noise removed and no mask left (the papers' "denoiser").

Whether a token jumps, and to which token, are two draws. One draw over all would scale the
probabilities of the new tokens down by the length of the step, beyond what float32 resolves.
"""

import abc
from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from mdlm.diffusion import Diffusion
from mdlm.draws import categorical_by_position, uniforms
from mdlm.parameterizations.base import Parameterization
from mdlm.parameterizations.score import Score
from mdlm.processes.base import Process
from mdlm.processes.masked import Masked
from mdlm.processes.uniform import Uniform
from mdlm.samplers.base import Sampler
from mdlm.samplers.grid import GridSampler
from mdlm.samplers.logits.shaping import is_plain, shape_all
from mdlm.samplers.state import SampleState, rewritten, step_keys
from mdlm.types import NetInput

TINY = 1e-30  # for positions where no token can jump

Weights = tuple[Float[Array, "b l v"], Float[Array, "b l"]]
"""The weights of jumping to each token (0 at the present token), and of staying."""


class ScoreSampler(Sampler):
    """Mixed into a `GridSampler` that jumps with `weights` made from the score; the last step
    removes all noise."""

    processes: ClassVar[tuple[type[Process], ...]] = (Masked, Uniform)
    parameterizations: ClassVar[tuple[type[Parameterization], ...]] = (Score,)

    @abc.abstractmethod
    def weights(
        self,
        log_score: Float[Array, "b l v"],
        z_t: Int[Array, "b l"],
        t: Float[Array, "b 1"],
        s: Float[Array, "b 1"],
        *,
        process: Masked | Uniform,
    ) -> Weights:
        """The weights of the step from `t` to `s`, all at least 0."""

    def incompatibility(self, process, parameterization, network=None):
        reason = super().incompatibility(process, parameterization, network)
        if reason is None and isinstance(process, Uniform) and not is_plain(self):
            return (
                "temperature, top_k, top_p, banned and hook change the distribution of a revealed"
                " token, and uniform noise reveals none"
            )
        return reason or parameterization.incompatibility(process)

    def step(self, state: SampleState, diffusion: Diffusion[Masked | Uniform]) -> SampleState:
        assert isinstance(self, GridSampler)
        process, score = diffusion.process, diffusion.parameterization
        assert isinstance(score, Score)  # `incompatibility` refuses others
        t, s = self.times(state)
        logits = diffusion.denoise(NetInput(tokens=state.tokens, t=t)).logits()
        log_score = score.log_score(logits, state.tokens, process.schedule.sigma(t))
        is_last = state.step == self.steps - 1
        others, stay = jax.lax.cond(
            is_last,
            lambda: clean_weights(log_score, state.tokens, t, process=process),
            lambda: self.weights(log_score, state.tokens, t, s, process=process),
        )
        u = uniforms(step_keys(state, "whether"), state.tokens.shape[1])
        leave = others.sum(-1)
        jumps = u * (leave + stay) < leave
        log_p = jnp.log(others) - jnp.log(jnp.maximum(leave, TINY))[..., None]
        shaped = shape_all(self, log_p, state, score)
        drawn = categorical_by_position(step_keys(state, "which"), shaped)
        written = jnp.where(jumps & ~state.is_fixed, drawn, state.tokens)
        state = rewritten(state, written, log_p)
        return replace(state, done=jnp.full_like(state.done, is_last), nfe=state.nfe + 1)


@dataclass(frozen=True, kw_only=True)
class Tweedie(ScoreSampler, GridSampler):
    """Undoes the noise of each step, at each position independently (SEDD's "analytic" sampler).

    NFE is `steps`. With absorbing noise, logits processing changes the distribution of a revealed
    token.
    """

    def weights(self, log_score, z_t, t, s, *, process):
        return tweedie_weights(log_score, z_t, t, s, process=process)


@dataclass(frozen=True, kw_only=True)
class Euler(ScoreSampler, GridSampler):
    """Jumps at the rates of the beginning of each step (tau-leaping).

    NFE is `steps`. With absorbing noise, logits processing changes the distribution of a revealed
    token.
    """

    def weights(self, log_score, z_t, t, s, *, process):
        schedule = process.schedule
        rate = (t - s) * -schedule.dalpha(t) / schedule.alpha(t)
        if isinstance(process, Masked):
            others = rate[..., None] * _from_masks(log_score, z_t, process)
        else:
            score = jnp.where(_token_ids(log_score) == z_t[..., None], 0.0, jnp.exp(log_score))
            others = rate[..., None] / process.tokens * score
        return others, jnp.maximum(1 - others.sum(-1), 0.0)


def tweedie_weights(
    log_score: Float[Array, "b l v"],
    z_t: Int[Array, "b l"],
    t: Float[Array, "b 1"],
    s: Float[Array, "b 1"],
    *,
    process: Masked | Uniform,
) -> Weights:
    """The weights that undo the noise between `s` and `t`."""
    schedule = process.schedule
    return _undone(
        log_score, z_t, process, schedule.alpha_gap(s, t), schedule.alpha(s), schedule.alpha(t)
    )


def clean_weights(
    log_score: Float[Array, "b l v"],
    z_t: Int[Array, "b l"],
    t: Float[Array, "b 1"],
    *,
    process: Masked | Uniform,
) -> Weights:
    """The weights that undo all noise up to `t`; a mask does not stay."""
    schedule = process.schedule
    alpha = schedule.alpha(t)
    others, stay = _undone(
        log_score, z_t, process, schedule.one_minus_alpha(t), jnp.ones_like(alpha), alpha
    )
    return others, jnp.where(process.is_noise(z_t), 0.0, stay)


def _undone(log_score, z_t, process, gap, alpha_s, alpha_t) -> Weights:
    if isinstance(process, Masked):
        # expm1 of the step's noise is alpha_s / alpha_t - 1.
        others = (gap / alpha_t)[..., None] * _from_masks(log_score, z_t, process)
        return others, jnp.maximum(1 - others.sum(-1), 0.0)
    kept, noise = alpha_t / alpha_s, gap / alpha_s / process.tokens
    # The noised distribution at this position less the noise of the step; it sums to `kept`.
    p = jnp.maximum(jax.nn.softmax(log_score, axis=-1) - noise[..., None], 0.0)
    is_own = _token_ids(log_score) == z_t[..., None]
    stay = (kept + noise) * jnp.where(is_own, p, 0.0).sum(-1)
    return jnp.where(is_own, 0.0, noise[..., None] * p), stay


def _from_masks(log_score, z_t, process):
    """The scores of tokens at masked positions; 0 for the mask itself and at other positions."""
    is_token = _token_ids(log_score) != process.mask_id
    is_masked = process.is_masked(z_t)[..., None]
    return jnp.where(is_masked & is_token, jnp.exp(log_score), 0.0)


def _token_ids(array):
    return jax.lax.broadcasted_iota(jnp.int32, array.shape, array.ndim - 1)
